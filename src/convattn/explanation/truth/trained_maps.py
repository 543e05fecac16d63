"""Maps that are learned: where must an image stay for the network to say what it says?

One convolution of 1 x 1 on the frozen network's last map gives every class a mask, and learns to
keep the network's class while little of the image is left. The layer is that of L-CAM (Gkartzonika
et al. 2022, https://arxiv.org/abs/2209.01022), the loss that of T-TAME (Ntrougkas et al. 2024,
https://arxiv.org/abs/2403.04523), which reads three maps and learns for epochs on ImageNet. Unlike
a map that is computed, such a one has learned from data, and sums to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import LastMap, find_last_map
from convattn.explanation.truth.methods import Look
from convattn.modes import frozen_eval_mode, own_calls

CLASS_WEIGHT, AREA_WEIGHT, ROUGHNESS_WEIGHT, AREA_POWER = 1.5, 2.0, 0.01, 0.3
"""Of T-TAME's loss: cross-entropy, area, differences of neighbours, exponent of the area."""
_RATE = 1e-2
_LEAST = 1e-6  # of a mask: its power's slope is infinite at 0


class ClassMasks(nn.Module):
    """A mask of a network's last map for every class.

    Args:
        in_features: Channels of the map.
        num_classes: Classes.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_features)
        self.masks = nn.Conv2d(in_features, num_classes, 1)
        nn.init.zeros_(self.masks.weight)
        nn.init.zeros_(self.masks.bias)  # type: ignore[arg-type]

    @classmethod
    def of(cls, state_dict: Mapping[str, Tensor]) -> ClassMasks:
        """Learned masks from their tensors, in evaluation mode, frozen.

        Args:
            state_dict: Of such masks.
        """
        num_classes, in_features = state_dict["masks.weight"].shape[:2]
        masks = cls(in_features, num_classes)
        masks.load_state_dict(state_dict)
        return masks.eval().requires_grad_(False)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """The masks of one class an image.

        Args:
            features: (B, in_features, h, w).
            targets: (B,) class numbers.

        Returns:
            (B, h, w) between 0 and 1.
        """
        masks: Tensor = self.masks(self.norm(features)).sigmoid()
        return masks[torch.arange(len(masks), device=masks.device), targets]


@dataclass(frozen=True)
class _Learned:
    """The masks of one network."""

    masks: ClassMasks
    layer: str
    """Name of the layer with the last map."""
    place: LastMap


def trained_look(masks: Mapping[nn.Module, ClassMasks], images: Tensor) -> Look:
    """The method, of networks and their masks.

    A network that is not among them, a copy with random layers, is asked by the first one's.

    Args:
        masks: By network; the first is the one that is measured, the others are of other seeds.
        images: (B, C, H, W), normalised, on the networks' device; one is looked at.
    """
    learned = {}
    for model, own in masks.items():
        place = find_last_map(model, images)
        name = next(name for name, module in model.named_modules() if module is place.layer)
        learned[model] = _Learned(own, name, place)
    first = next(iter(learned.values()))

    def look(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
        own = learned.get(model, first)
        layer = model.get_submodule(own.layer)
        with frozen_eval_mode(model), torch.no_grad():
            features, _ = _read(model, layer, own.place.channels_last, images)
            return own.masks(features.float(), targets), own.place.grid

    return look


def train_masks(
    model: nn.Module,
    batches: Iterable[Tensor],
    num_steps: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> ClassMasks:
    """Learn a network's masks; itself it is left as it was.

    Args:
        model: A classifier with a last map (``gradcam.cam_layers``).
        batches: Of images (B, C, H, W), normalised, on its device; at least ``num_steps``.
        num_steps: Batches that are learned from.
        progress: Called after each batch with the number of its images.

    Returns:
        The masks, in evaluation mode.

    Raises:
        ValueError: If the network has no map of several positions.
    """
    masks: ClassMasks | None = None
    with frozen_eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        for _, images in zip(range(num_steps), batches, strict=False):
            if masks is None:
                place = find_last_map(model, images)
            with torch.no_grad():
                features, logits = _read(model, place.layer, place.channels_last, images)
            features, predicted = features.float(), logits.argmax(1)
            if masks is None:
                masks = ClassMasks(features.shape[1], logits.shape[1]).to(images.device)
                optimiser = torch.optim.Adam(masks.parameters(), lr=_RATE)
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, num_steps)
            optimiser.zero_grad()
            mask_loss(model, images, predicted, masks(features, predicted), place.grid).backward()
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(len(images))
    assert masks is not None
    return masks.eval().requires_grad_(False)


def mask_loss(
    model: nn.Module, images: Tensor, predicted: Tensor, maps: Tensor, grid: Grid
) -> Tensor:
    """T-TAME's: the class shall stay, little of the image, and the mask be smooth.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised; what is masked becomes the mean colour.
        predicted: (B,) the network's classes.
        maps: (B, h, w) between 0 and 1.
        grid: Where their cells lie.
    """
    masks = grid.heat(maps)[:, None]
    kept = F.cross_entropy(model(images * masks.to(images)), predicted)
    area = masks.clamp(min=_LEAST).pow(AREA_POWER).mean()
    rough = masks.diff(dim=2).square().mean() + masks.diff(dim=3).square().mean()
    return CLASS_WEIGHT * kept + AREA_WEIGHT * area + ROUGHNESS_WEIGHT * rough


def _read(
    model: nn.Module, layer: nn.Module, channels_last: bool, images: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's output as (B, C, h, w), and the logits."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: object, out: Tensor) -> None:
        seen.append(out.detach().clone())  # the network may go on in place

    handle = layer.register_forward_hook(own_calls(note))
    try:
        logits = model(images)
    finally:
        handle.remove()
    return seen[-1].permute(0, 3, 1, 2) if channels_last else seen[-1], logits
