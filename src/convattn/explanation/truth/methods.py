"""Ways to map what an image's class rests on, for any classifier, and two that know nothing.

Grad-CAM and LayerCAM are pytorch-grad-cam's. Integrated gradients and occlusion equal captum's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convattn.exceptions import NoEvidenceError
from convattn.explanation.attention import attention_maps
from convattn.explanation.capture import attention_layers
from convattn.explanation.faithfulness import centre_maps
from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import cam_layers, grad_cam, layer_cam
from convattn.explanation.linear_evidence import evidence_maps, evidence_of_classes
from convattn.text import one_line

NETWORK_METHODS: tuple[str, ...] = (
    "evidence",
    "attention",
    "gradcam",
    "layercam",
    "integrated_gradients",
    "occlusion",
)
"""Methods that ask a network."""
YARDSTICKS: tuple[str, ...] = ("random", "centre")
"""Methods that do not: random cells, and a Gaussian at the image's middle."""

Look = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Grid]]
"""A network in evaluation mode with frozen parameters, normalised images (B, C, H, W) and class
numbers (B,) -> maps (B, h, w), and where their cells lie."""

_IMAGES_AT_ONCE = 64
_WINDOW, _STRIDE = 4, 8
"""Of occlusion, as a part of each side."""
PATH_STEPS = 16
"""Of integrated gradients."""


class Possible(NamedTuple):
    """The methods that a network can be asked by, and why not by the others."""

    looks: dict[str, Look]
    """By name, in the order of ``NETWORK_METHODS``."""
    left_out: dict[str, str]
    """Name of a method -> what is in the way."""
    cells: Grid
    """Of the first of them: the network's own."""


def possible_methods(
    model: nn.Module, images: Tensor, names: Sequence[str] = NETWORK_METHODS
) -> Possible:
    """Which methods a network can be asked by.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised, on the model's device; one is looked at.
        names: Of ``NETWORK_METHODS``.

    Raises:
        ValueError: If a name is unknown, or none of them can be asked.
    """
    for name in names:
        if name not in NETWORK_METHODS:
            raise ValueError(f"methods holds {name!r}; known are {', '.join(NETWORK_METHODS)}")
    image, left_out = images[:1], _missing(model, images[:1])
    looks = {name: _LOOKS[name] for name in NETWORK_METHODS if name in names}
    left_out = {name: why for name, why in left_out.items() if name in looks}
    looks = {name: look for name, look in looks.items() if name not in left_out}
    if not looks:
        raise ValueError("; ".join(left_out.values()))
    any_class = torch.zeros(1, dtype=torch.long, device=images.device)
    cells = next(iter(looks.values()))(model, image, any_class)[1]
    return Possible(looks, left_out, cells)


def _missing(model: nn.Module, image: Tensor) -> dict[str, str]:
    missing = {}
    try:
        evidence_of_classes(model, image, [0])
    except NoEvidenceError as error:
        missing["evidence"] = one_line(error)
    if not attention_layers(model):
        missing["attention"] = f"{type(model).__name__} has no layer of attention"
    try:
        cam_layers(model, image)
    except ValueError as error:
        missing |= dict.fromkeys(("gradcam", "layercam"), one_line(error))
    else:
        with suppress(ModuleNotFoundError):
            import pytorch_grad_cam  # noqa: F401

            return missing
        why = "pytorch-grad-cam is not installed: pip install 'convattn[explain]'"
        missing |= dict.fromkeys(("gradcam", "layercam"), why)
    return missing


def integrated_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, *, num_steps: int = PATH_STEPS
) -> Tensor:
    """Each pixel's part of how a class's logit grows on the way from the mean colour.

    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, by Gauss and Legendre's rule, as
    captum's. The maps sum to the logit less that of the mean colour, the better the more steps.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised, on the model's device.
        targets: (B,) class numbers.
        num_steps: Places on the way where gradients are taken.

    Returns:
        (B, H, W), signed: the sum over the channels.
    """
    points, weights = np.polynomial.legendre.leggauss(num_steps)
    total = torch.zeros_like(images)
    for point, weight in zip(points, weights, strict=True):
        total += weight / 2 * _gradients(model, images * ((1 + point) / 2), targets)
    return (total * images).sum(1)


def _gradients(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Of each image's logit by its pixels."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf).gather(1, targets[:, None].clone())
        (gradients,) = torch.autograd.grad(logits.sum(), leaf)
    return gradients


def occlusion(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> Tensor:
    """How much of a class's logit is lost under a window of the mean colour.

    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901; a pixel has the mean of all windows
    that cover it, as captum's.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised, on the model's device.
        targets: (B,) class numbers.
        window: Height and width in pixels; None takes a quarter of each side.
        stride: Down and across; None takes an eighth of each side.

    Returns:
        (B, H, W), signed.
    """
    size = images.shape[2:]
    tall, wide = window or [max(side // _WINDOW, 1) for side in size]
    down, across = stride or [max(side // _STRIDE, 1) for side in size]
    lost, covered = torch.zeros_like(images[:, 0]), torch.zeros_like(images[0, 0])
    with torch.no_grad():
        whole = _logits(model, images, targets)
        for top in range(0, _last(size[0], tall, down) + 1, down):
            for left in range(0, _last(size[1], wide, across) + 1, across):
                place = (slice(top, top + tall), slice(left, left + wide))
                hidden = images.clone()
                hidden[:, :, *place] = 0
                lost[:, *place] += (whole - _logits(model, hidden, targets))[:, None, None]
                covered[place] += 1
    return lost / covered


def _last(side: int, window: int, stride: int) -> int:
    """Where the last window begins."""
    return math.ceil((side - window) / stride) * stride


def _logits(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = model(images).gather(1, targets[:, None])
    return logits[:, 0]


def _pixel_look(attribute: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Look:
    def look(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
        parts = [
            attribute(model, few, classes)
            for few, classes in zip(
                images.split(_IMAGES_AT_ONCE), targets.split(_IMAGES_AT_ONCE), strict=True
            )
        ]
        return torch.cat(parts), Grid.of_pixels((images.shape[2], images.shape[3]))

    return look


def _attention_look(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
    _, maps, grid = attention_maps(model, images, targets)
    return maps, grid


_LOOKS: Mapping[str, Look] = {
    "evidence": evidence_maps,
    "attention": _attention_look,
    "gradcam": grad_cam,
    "layercam": layer_cam,
    "integrated_gradients": _pixel_look(integrated_gradients),
    "occlusion": _pixel_look(occlusion),
}


def yardstick_maps(name: str, images: Tensor, cells: Grid, seed: int) -> tuple[Tensor, Grid]:
    """Maps of one of ``YARDSTICKS``.

    Args:
        name: Which.
        images: (B, C, H, W).
        cells: That random maps have.
        seed: Of random maps; gives every batch others.

    Returns:
        (B, h, w), and where the cells lie.
    """
    if name == "centre":
        return centre_maps(images)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(len(images), *cells.feat_size, generator=generator)
    return maps.to(images.device), cells
