"""The finetuned network as ``Run.open`` reads it: its file, its configuration, what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from convattn.config import AugmentConfig, FinetuneConfig, ModelConfig, Scalar, TrainConfig
from convattn.data import transform_of
from convattn.files import replace_atomically
from convattn.finetuning.images import Images
from convattn.models.pooling import PooledClassifier
from convattn.modes import default_device, eval_mode
from convattn.probing.backbone import Frozen
from convattn.probing.heads import pool_options

RECIPE = "finetune"
_CLASSIFIER = "head.fc."
_BATCH = 64


def run_config(config: FinetuneConfig, frozen: Frozen, num_classes: int) -> TrainConfig:
    """What ``config.json`` of the run folder holds.

    Args:
        config: Of the finetuning.
        frozen: The backbone.
        num_classes: Classes.
    """
    options = pool_options(config.pool, frozen.backbone.num_features)
    arguments: dict[str, Scalar] = {
        **frozen.arguments,
        "pool": config.pool,
        **{f"pool_{name}": value for name, value in options.items()},
    }
    return TrainConfig(
        recipe=RECIPE,
        data=config.data,
        model=ModelConfig(name="map_classifier", num_classes=num_classes, model_args=arguments),
        augment=AugmentConfig(),
        seed=config.seed,
    )


def network_cfg(frozen: Frozen, images: Images) -> dict[str, Any]:
    """What the network needs of an image, and its classes, in timm's words.

    Args:
        frozen: The backbone.
        images: Have the classes.
    """
    several = {"multi_label": True} if images.source.multi_label else {}
    return {
        "architecture": "map_classifier",
        "num_classes": len(images.class_names),
        **frozen.cfg,
        "label_names": list(images.class_names),
        **several,
    }


def join_tensors(frozen: Frozen, head: PooledClassifier) -> dict[str, Tensor]:
    """The tensors of the whole network, by the names that ``map_classifier`` gives them."""
    parts: Mapping[str, nn.Module] = {"backbone": frozen.backbone, "head": head}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def save_network(file: Path, tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> None:
    """Write a network, whole or not at all.

    Args:
        file: The safetensors file.
        tensors: By their names.
        cfg: What it needs of an image.
    """
    content = safetensors.torch.save(dict(tensors), {"pretrained_cfg": json.dumps(cfg)})
    replace_atomically(file, content)


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
    loader = DataLoader(chosen, batch_size=_BATCH, num_workers=config.data.num_workers)
    model.to(device)
    with eval_mode(model):
        bar = tqdm(loader, desc=what, unit=" batches", disable=None, leave=False)
        return torch.cat([model(batch.to(device)).float().cpu() for batch, *_ in bar])


def worst_first(losses: Sequence[float]) -> list[int]:
    """Places in the order of falling losses, of equal ones the first first."""
    return sorted(range(len(losses)), key=lambda place: -losses[place])
