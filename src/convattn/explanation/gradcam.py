"""Grad-CAM for networks without attention, and to compare attention with.

Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, computed by pytorch-grad-cam (the extra
``explain``), whose habits stay in here: it puts the network into evaluation mode and drops its
gradients, leaves gradients of its own behind, and stretches every map over the whole image,
which moves it by half a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convattn.explanation.geometry import Grid, GridTracker
from convattn.layers import LearnedAggregation2d
from convattn.modes import frozen_eval_mode, own_calls

_Kind = Literal["GradCAM", "LayerCAM"]
"""A class of pytorch-grad-cam."""


class LastMap(NamedTuple):
    """Where a network's last map is to be read."""

    layer: nn.Module
    """Whose output it is."""
    channels_last: bool
    """Whether that is (B, H, W, C)."""
    grid: Grid
    """Where its cells lie."""


def find_last_map(model: nn.Module, images: Tensor) -> LastMap:
    """The layer of ``cam_layers``, and what its output is.

    Args:
        model: A convolutional classifier.
        images: (B, C, H, W), normalised; one is looked at.

    Raises:
        ValueError: As ``cam_layers``.
    """
    with frozen_eval_mode(model), torch.inference_mode(False):
        return LastMap(*_last_map(model, images[:1].detach().clone())[:3])


def cam_layers(
    model: nn.Module, images: Tensor
) -> tuple[list[nn.Module], Callable[[Tensor], Tensor] | None]:
    """The ``target_layers`` and the ``reshape_transform`` that pytorch-grad-cam asks for.

    The layer is the one that ends last with a map of more than one position, before the network
    pools it; the network runs once to tell. A layer that is called several times is passed over,
    since pytorch-grad-cam would take its first call.

    Which axes are the map's height and width, (B, C, H, W) or (B, H, W, C)? Those that a
    convolution or pool has left, as ``GridTracker`` follows them; else those with the image's
    proportions. Where all three axes are equal, a narrower image tells.

    Args:
        model: A convolutional classifier, any of timm's, torchvision's or ours.
        images: (B, C, H, W), normalised, of the size that will be explained; one is looked at.

    Returns:
        The one layer, and what turns its output into (B, C, H, W), None if it is so already.

    Raises:
        ValueError: If there is no such layer: the network is none of convolutions, or the images
            are so small that they end as a single position.

    Examples:
        >>> import convattn, timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10)
        >>> layers, reshape_transform = cam_layers(model, torch.zeros(1, 3, 64, 64))
        >>> layers[0] is model.blocks
        True
    """
    layer, channels_last, _ = find_last_map(model, images)
    return [layer], _channels_first if channels_last else None


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
    """What in the network's last map speaks for a class: its channels, weighted by gradient.

    The mean gradient of the class's logit is a channel's weight; a negative sum becomes 0. The
    maps are as coarse as the network's and not scaled: ``grid.heat`` enlarges them to where they
    lie. One may be 0 throughout. The network runs as in evaluation and is left as it was, its
    gradients too; while it runs its parameters are frozen, so do not train it in another thread.

    Works inside ``torch.no_grad`` and ``torch.inference_mode``. Gradients are computed behind the
    map only, so that the memory is that of a run without them.

    Args:
        images: (B, C, H, W), normalised, on the model's device.
        targets: The class of each image, (B,).

    Returns:
        (B, h, w), not negative, and where its cells lie.

    Raises:
        ValueError: If the network has no map to look at (see ``cam_layers``), gives no logits, or
            has no class of that number.
        ModuleNotFoundError: If pytorch-grad-cam is not installed.

    Examples:
        >>> import convattn, timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10)
        >>> maps, grid = grad_cam(model, torch.randn(2, 3, 64, 96), torch.tensor([3, 5]))
        >>> maps.shape, grid.stride
        (torch.Size([2, 8, 12]), (8.0, 8.0))
    """
    return _cam("GradCAM", model, images, targets)


def layer_cam(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
    """As ``grad_cam``, with a weight of its own for every place of a channel.

    LayerCAM, Jiang et al. 2021, https://arxiv.org/abs/2107.10662: the weight is the gradient at
    that place, where it is positive. Of the network's last map.

    Args:
        images: (B, C, H, W), normalised, on the model's device.
        targets: The class of each image, (B,).

    Returns:
        (B, h, w), not negative, and where its cells lie.

    Raises:
        ValueError: As ``grad_cam``.
        ModuleNotFoundError: As ``grad_cam``.
    """
    return _cam("LayerCAM", model, images, targets)


def _cam(kind: _Kind, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
    with frozen_eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode cannot take part in a computation with gradients.
        images, targets = images.detach().clone(), targets.detach().clone()
        layer, channels_last, grid, logits = _last_map(model, images[:1])
        _check_targets(model, targets, len(images), logits)
        maps = _maps(kind, model, layer, channels_last, images, targets)
    return torch.from_numpy(maps).to(images.device), grid


def _last_map(model: nn.Module, images: Tensor) -> tuple[nn.Module, bool, Grid, Tensor]:
    """The layer to look at, whether its channels come last, where its map lies, and the logits."""
    with GridTracker() as grids:
        grids.begin(images)
        layer, out, logits = _run(model, images)
    tracked = grids.of(out)
    proportion = math.log(images.shape[2] / images.shape[3])

    def mismatch(size: tuple[int, int]) -> tuple[bool, float]:
        untracked = tracked is not None and size != tracked.feat_size
        return untracked, abs(math.log(size[0] / size[1]) - proportion)

    first, last = (out.shape[2], out.shape[3]), (out.shape[1], out.shape[2])
    if first == last:
        _, narrower, _ = _run(model, images[..., : images.shape[3] * 3 // 4])
        channels_last = narrower.shape[3] == out.shape[3]
    else:
        channels_last = mismatch(last) < mismatch(first)
    size = last if channels_last else first
    grid = grids.of(out, size) or Grid.regular(size, (images.shape[2], images.shape[3]))
    return layer, channels_last, grid, logits


def _run(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """The last layer with a map, its output, and the network's."""
    maps: dict[nn.Module, Tensor] = {}
    seen: set[nn.Module] = set()
    heads = [module for module in model.modules() if isinstance(module, LearnedAggregation2d)]
    pooling = {part for head in heads for part in head.modules()}

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not isinstance(out, Tensor) or len(out) != len(images):
            return
        if module in seen:
            maps.pop(module, None)
        elif out.ndim == 4 and (1, 1) not in (out.shape[1:3], out.shape[2:]):
            maps[module] = out
        elif _goes_on(module, args, out):
            maps.clear()
        seen.add(module)

    with ExitStack() as hooks:
        for module in model.modules():
            if module not in pooling:
                hooks.callback(module.register_forward_hook(own_calls(note)).remove)
        logits = model(images)
    if not maps:
        raise ValueError(
            f"{type(model).__name__} does not end in a feature map of several positions for "
            f"images of {images.shape[2]} x {images.shape[3]}; Grad-CAM needs one: take a "
            "convolutional network, or larger images"
        )
    layer, out = next(reversed(maps.items()))
    return layer, out, logits


def _goes_on(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> bool:
    """Whether a layer shows that the network has not pooled: the maps before it are not its last.

    A block that gives tokens does, and a convolution at a single position whose window is wider
    than its input: it stands there for larger images.
    """
    if isinstance(module, nn.Conv2d):
        wider = any(k > s for k, s in zip(module.kernel_size, args[0].shape[2:], strict=True))
        return wider and out.shape[2:] == (1, 1)
    return out.ndim == 3 and out.shape[1] > 1 and any(module.children())


def _check_targets(model: nn.Module, targets: Tensor, num_images: int, logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(
            f"{type(model).__name__} gives no logits of shape (B, classes); Grad-CAM explains "
            "classifiers"
        )
    if targets.shape != (num_images,) or not num_images:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} for {num_images} images; give each "
            "image one class number"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"targets run from {low} to {high}, and the model has {logits.shape[1]} classes; give "
            f"numbers from 0 to {logits.shape[1] - 1}"
        )


def _maps(
    kind: _Kind,
    model: nn.Module,
    layer: nn.Module,
    channels_last: bool,
    images: Tensor,
    targets: Tensor,
) -> NDArray[np.floating[Any]]:
    """pytorch-grad-cam's answer, (B, h, w)."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def as_maps(x: Tensor) -> Tensor:
        x = _channels_first(x) if channels_last else x
        # NumPy knows no bfloat16; and the copy survives a network that goes on in place.
        return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)

    def cut(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        # A clone, since no operation may change a leaf in place.
        return out.detach().requires_grad_().clone()

    with ExitStack() as hooks:
        hooks.callback(layer.register_forward_hook(own_calls(cut)).remove)
        cam = _unscaled(kind)(model, [layer], as_maps)
        # Not ``with cam``: that swallows every IndexError.
        hooks.callback(cam.activations_and_grads.release)
        return cam(images, [ClassifierOutputTarget(target) for target in targets.tolist()])


def _channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


@cache
def _unscaled(kind: _Kind) -> Any:
    """A class of pytorch-grad-cam's without its resizing and its scaling to 0..1."""
    import pytorch_grad_cam

    base: Any = getattr(pytorch_grad_cam, kind)

    class Unscaled(base):
        def compute_cam_per_layer(self, images: Tensor, targets: Any, smooth: bool) -> Any:
            recorded = self.activations_and_grads
            activations, gradients = recorded.activations[0], recorded.gradients[0]
            layer = self.target_layers[0]
            return self.get_cam_image(
                images, layer, targets, activations.numpy(), gradients.numpy(), smooth
            )

        def aggregate_multi_layers(self, cam: Any) -> Any:
            return np.maximum(cam, 0)

    return Unscaled
