"""What a network costs to run and to train, found out without training it.

Multiply-adds are counted on the meta device, which computes nothing. What the backward pass will
need is what a small image's forward pass leaves behind on the CPU: it grows with the area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from convattn.bench import Counts, HeldTensors, count
from convattn.config import FSDP2, TrainConfig
from convattn.detection import MaskRCNN, RetinaNet
from convattn.models.blocks import units
from convattn.train.optim import create_optimizer, optimizer_args

_SMALL = 64  # pixels; two of a network's coarsest positions
_REGIONS, _MASKS = 1000, 100  # that a Mask R-CNN looks at in an image


class _Detector(nn.Module):
    """What of a detector an image goes through before boxes are chosen, and some regions."""

    def __init__(self, model: RetinaNet | MaskRCNN, *, regions: bool) -> None:
        super().__init__()
        self.model = model
        self.regions = regions

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> whatever is predicted."""
        maps = list(self.model.backbone(images).values())
        if isinstance(self.model, RetinaNet):
            return list(self.model.head(maps).values())
        predicted = tree_leaves(self.model.rpn.head(maps))
        return [*predicted, *(self._regions(maps[0]) if self.regions else ())]

    def _regions(self, features: Tensor) -> list[Tensor]:
        heads, one = self.model.roi_heads, features.mean((2, 3), keepdim=True)[:1]
        boxes = heads.box_head(one.expand(_REGIONS, -1, 7, 7))
        masks = heads.mask_head(one.expand(_MASKS, -1, 14, 14))
        return [*heads.box_predictor(boxes), heads.mask_predictor(masks)]


def count_network(model: nn.Module, input_size: tuple[int, int, int]) -> Counts:
    """:func:`convattn.bench.count`, of detectors, too: without choosing boxes.

    A Mask R-CNN's 1,000 boxes and 100 masks an image are counted.

    Args:
        model: A classifier, a segmenter or a detector.
        input_size: (C, H, W) of one image.
    """
    return count(_runnable(model, regions=True), input_size)


class _Flops(TorchDispatchMode):
    """Adds up what operations cost; FlopCounterMode also sorts it by module, which takes longer."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self.total += flops(*args, **(kwargs or {}), out_val=out)
        return out


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """The multiply-adds of :func:`count_network` alone, in half its time.

    Args:
        model: A network without memory, as made under ``torch.device("meta")``.
        input_size: (C, H, W) of one image.
    """
    network = _runnable(model.eval(), regions=True)
    image = torch.empty(1, *input_size, device="meta")
    with torch.no_grad(), _Flops() as flops:
        network(image)
    return flops.total // 2


def _runnable(model: nn.Module, *, regions: bool) -> nn.Module:
    return _Detector(model, regions=regions) if isinstance(model, RetinaNet | MaskRCNN) else model


def activation_bytes(model: nn.Module, input_size: tuple[int, int, int], *, mixed: bool) -> int:
    """Bytes that the backward pass of one image needs, estimated.

    They are those of an image of 64 pixels, times the areas' ratio. Regions of a Mask R-CNN are
    left out.

    Args:
        model: A network without memory, as made under ``torch.device("meta")``; it is filled.
        input_size: (C, H, W) of the image.
        mixed: Whether in bfloat16 where autocast says so.
    """
    channels, height, width = input_size
    scale = min(1.0, _SMALL / min(height, width))
    small = [max(_SMALL if scale < 1 else 1, round(side * scale)) for side in (height, width)]
    # What it computes does not matter: whatever lies in that memory will do.
    network = _runnable(model.to_empty(device="cpu").train(), regions=False)

    def held(batch_size: int) -> int:
        mode = HeldTensors(tracks_most=False)
        images = torch.zeros(batch_size, channels, *small)
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = network(images)
        found = mode.held_bytes()
        del out
        return found

    # What a batch of two holds more is an image's; weights cast to bfloat16 are in both.
    per_image = held(2) - held(1)
    return round(per_image * height * width / (small[0] * small[1]))


def checkpointed_bytes(
    model: nn.Module, input_size: tuple[int, int, int], *, mixed: bool, plain: int
) -> int:
    """As ``activation_bytes`` where blocks compute theirs once more: what is kept, and a block's.

    Args:
        model: As there.
        input_size: As there.
        mixed: As there.
        plain: Bytes where nothing is computed once more.
    """
    blocks = max(1, sum(1 for _ in units(model)))
    model.set_grad_checkpointing()  # type: ignore[operator]
    return min(plain, activation_bytes(model, input_size, mixed=mixed) + plain // blocks)


def training_state_bytes(model: nn.Module, config: TrainConfig, devices: int = 1) -> int:
    """Bytes of weights, gradients, the optimiser's memory and averaged weights, a device.

    By fsdp2 each device has its part of all, and at once the weights of two blocks and the
    gradients of one, whole.

    Args:
        model: A network without memory, as made under ``torch.device("meta")``.
        config: How it is trained.
        devices: How many train it.
    """
    blocks = [sum(one.nbytes for one in block.parameters()) for block in units(model)]
    optimizer = create_optimizer(model, **optimizer_args(config))
    parameters = [one for one in model.parameters() if one.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [
        leaf
        for state in optimizer.state.values()
        for leaf in tree_leaves(state)
        if isinstance(leaf, Tensor)
    ]
    weights = [*model.parameters(), *model.buffers()]
    averaged = weights if config.ema_decay is not None else []
    total = sum(one.nbytes for one in (*weights, *parameters, *kept, *averaged))
    # Autocast keeps a copy of half the width of every weight that it uses.
    cast = sum(one.nbytes for one in parameters) // 2 if config.precision.endswith("mixed") else 0
    if config.strategy == FSDP2:
        return (total + cast) // devices + 3 * max(blocks, default=0)
    return 2 * total if config.precision == "64-true" else total + cast
