"""A finetuned network, what it said of images, and its temperature in its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from convattn.config import FinetuneConfig
from convattn.data import transform_of
from convattn.data.workers import end_with_reader
from convattn.files import replace_atomically
from convattn.finetuning.images import Images
from convattn.finetuning.results import fit_rejection, fit_temperature, fit_thresholds
from convattn.modes import default_device, eval_mode

_CLASSIFIER = "head.fc."
_BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A trained network, and what another one, that had not learnt them, said of some images."""

    tensors: Mapping[str, Tensor]
    """By the names of ``map_classifier``."""
    logits: Tensor
    """(V, K), of the validation images."""
    labels: Tensor
    """Their classes."""
    told: Mapping[str, Any]
    """How it was trained, for the report."""

    @property
    def epochs(self) -> int:
        """How many it was trained end to end; 0 if only its head was."""
        return int(self.told.get("end to end", 0))

    @property
    def drop_rate(self) -> float:
        """Before the classifier, in training."""
        return float(self.told.get("dropout", 0.0))

    @cached_property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return fit_temperature(self.logits, self.labels)

    @cached_property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of images of several classes."""
        if self.labels.ndim == 1:
            return None
        return fit_thresholds((self.logits / self.temperature).sigmoid(), self.labels)

    def reject_below(self, target: float) -> float | None:
        """Of images of one class, the least probability that is to be trusted, if there is one.

        Args:
            target: As of ``fit_rejection``.
        """
        if self.labels.ndim == 2:
            return None
        confidences, said = (self.logits.double() / self.temperature).softmax(1).max(1)
        return fit_rejection(confidences, said == self.labels, target)

    def write(self, file: Path) -> None:
        """Keep it, whole or not at all."""
        tensors = {**self.tensors, "valid.logits": self.logits, "valid.labels": self.labels}
        content = safetensors.torch.save(
            {name: x.contiguous() for name, x in tensors.items()}, {"told": json.dumps(self.told)}
        )
        replace_atomically(file, content)

    @classmethod
    def read(cls, file: Path) -> Network:
        """What ``write`` kept."""
        with safetensors.safe_open(file, "pt") as opened:
            told = json.loads(opened.metadata()["told"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        return cls(
            logits=tensors.pop("valid.logits"),
            labels=tensors.pop("valid.labels"),
            tensors=tensors,
            told=told,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """What networks said of images that they had not learnt."""

    images: Tensor
    """(N,), their numbers."""
    folds: Tensor
    """(N,), of which fold each is."""
    logits: Tensor
    """(N, K)."""
    calibrated: Tensor
    """(N, K), each fold's divided by its own temperature."""


def divided(tensors: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """The same network, whose logits are divided by a temperature: its classifier's tensors are.

    Args:
        tensors: By their names.
        temperature: Above 0.
    """
    return {
        name: tensor / temperature if name.startswith(_CLASSIFIER) else tensor
        for name, tensor in tensors.items()
    }


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Images,
    numbers: Tensor,
    config: FinetuneConfig,
    cfg: Mapping[str, Any],
    *,
    what: str,
) -> Tensor:
    """(N, K) logits of images, on the CPU.

    Args:
        model: The whole network.
        images: All images.
        numbers: Of those that it is asked about.
        config: Device and workers.
        cfg: What the network needs of an image.
        what: Stands beside the progress.
    """
    device = default_device(config.device)
    chosen = images.all.select(numbers).with_transform(transform_of(cfg))
    loader = DataLoader(
        chosen,
        batch_size=_BATCH,
        num_workers=config.data.num_workers,
        worker_init_fn=end_with_reader,
    )
    model.to(device)
    with eval_mode(model):
        bar = tqdm(loader, desc=what, unit=" batches", disable=None, leave=False)
        return torch.cat([model(batch.to(device)).float().cpu() for batch, *_ in bar])
