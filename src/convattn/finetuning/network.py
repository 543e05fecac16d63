"""A finetuned network: its temperature in its weights, and what it says of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from convattn.config import FinetuneConfig
from convattn.data import transform_of
from convattn.finetuning.images import Images
from convattn.modes import default_device, eval_mode

_CLASSIFIER = "head.fc."
_BATCH = 64


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
