"""UPerNet: the class of every pixel, from the maps of any backbone.

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding",
https://arxiv.org/abs/1807.10221; the decoder is segmentation_models_pytorch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from convattn.data.masks import IGNORED
from convattn.models.pyramid import FeatureLevels, feature_levels

_AUXILIARY_LEVEL = 2  # stride 16 of 4, 8, 16, 32


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid down to stride 4, one class a pixel.

    A second, small head on the map of stride 16 helps the backbone in training, as usual.

    In training a norm that sees a single value a channel, as the pool to 1 x 1 does for a batch of
    one image, takes its running statistics, since one value has no variance. A backbone with
    BatchNorm may still refuse one very small image.

    Args:
        levels: The backbone's maps of strides 4, 8, 16 and 32.
        num_classes: Classes, at most 255, since mask files keep 255 for pixels that do not count.
        channels: Of the decoder's maps.
        aux_channels: Of the auxiliary head's map.
        drop_rate: Dropout of whole channels before each of the two classifiers.

    Attributes:
        num_classes: As given.
        pretrained_cfg: ``mean`` and ``std`` of the normalisation, ImageNet's at first;
            ``image_size``, the shorter side that images are resized to, None keeps theirs; and
            ``label_names``. Whoever trains the network writes its own there.

    Shape:
        (B, C, H, W) -> logits (B, num_classes, H, W) for any H and W; in training a pair of them,
        the second from the auxiliary head.

    Raises:
        ValueError: If ``num_classes`` is not in 1..255, or the levels are others.
    """

    def __init__(
        self,
        levels: FeatureLevels,
        *,
        num_classes: int,
        channels: int = 512,
        aux_channels: int = 256,
        drop_rate: float = 0.1,
    ) -> None:
        # Here, so that the names of segmenters are known without the extra that builds them.
        from segmentation_models_pytorch.base.initialization import (
            initialize_decoder,
            initialize_head,
        )
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        if not 1 <= num_classes <= IGNORED:
            raise ValueError(f"num_classes={num_classes}; expected 1 to {IGNORED}")
        if levels.strides != (4, 8, 16, 32):
            raise ValueError(f"levels of strides {levels.strides}; expected (4, 8, 16, 32)")
        self.num_classes = num_classes
        self.levels = levels
        # The decoder expects two finer maps before these, and leaves them out.
        self.decoder = UPerNetDecoder((0, 0, *levels.channels), decoder_channels=channels)
        self.head = nn.Sequential(nn.Dropout2d(drop_rate), nn.Conv2d(channels, num_classes, 1))
        self.aux_head = nn.Sequential(
            nn.Conv2d(levels.channels[_AUXILIARY_LEVEL], aux_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(aux_channels),
            nn.ReLU(),
            nn.Dropout2d(drop_rate),
            nn.Conv2d(aux_channels, num_classes, 1),
        )
        initialize_decoder(self.decoder)
        initialize_decoder(self.aux_head)
        initialize_head(self.head)
        initialize_head(self.aux_head[-1])
        _bear_single_values(self.decoder)
        _bear_single_values(self.aux_head)
        self.pretrained_cfg: dict[str, Any] = {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "image_size": None,
            "label_names": tuple(map(str, range(num_classes))),
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the backbone in the backward pass instead of keeping its activations."""
        self.levels.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, num_classes, H, W), in training two of them."""
        maps = self.levels(x)
        logits = resize_logits(self.head(self.decoder([x, x, *maps])), x.shape[2:])
        if not self.training:
            return logits
        return logits, resize_logits(self.aux_head(maps[_AUXILIARY_LEVEL]), x.shape[2:])


def upernet(
    backbone: str,
    *,
    num_classes: int,
    pretrained: bool = False,
    backbone_weights: str | os.PathLike[str] | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    channels: int = 512,
    aux_channels: int = 256,
    drop_rate: float = 0.1,
) -> UPerNet:
    """UPerNet on a backbone by its name in timm's registry, ours among them.

    Args:
        backbone: The name, with or without a ``.tag``.
        num_classes: Classes, at most 255.
        pretrained: Load the backbone's released weights.
        backbone_weights: Or those of a classifier's run folder or file.
        augment: Arguments of ``convattn.augment`` for the backbone's convolutions.
        channels: Of the decoder's maps; 512 as mmsegmentation's UPerNet has them in the papers'
            tables, where segmentation_models_pytorch's default is 256.
        aux_channels: Of the auxiliary head's map.
        drop_rate: Dropout of whole channels before the classifiers.

    Raises:
        ValueError: If the backbone or a number does not fit.

    Examples:
        >>> import convattn, torch
        >>> model = upernet("patchconvnet_nano", num_classes=11, channels=32, aux_channels=32)
        >>> model.eval()(torch.randn(1, 3, 50, 64)).shape
        torch.Size([1, 11, 50, 64])
        >>> [tuple(logits.shape) for logits in model.train()(torch.randn(1, 3, 50, 64))]
        [(1, 11, 50, 64), (1, 11, 50, 64)]
    """
    levels = feature_levels(
        backbone,
        pretrained=pretrained,
        weights=backbone_weights,
        augment=augment,
        **dict(backbone_args or {}),
    )
    return UPerNet(
        levels,
        num_classes=num_classes,
        channels=channels,
        aux_channels=aux_channels,
        drop_rate=drop_rate,
    )


def upernet_patchconvnet_s60(*, num_classes: int, **arguments: Any) -> UPerNet:
    """UPerNet on PatchConvNet-S60."""
    return upernet("patchconvnet_s60", num_classes=num_classes, **arguments)


def upernet_patchconvnet_b60(*, num_classes: int, **arguments: Any) -> UPerNet:
    """UPerNet on PatchConvNet-B60."""
    return upernet("patchconvnet_b60", num_classes=num_classes, **arguments)


def upernet_patchconvnet_b120(*, num_classes: int, **arguments: Any) -> UPerNet:
    """UPerNet on PatchConvNet-B120."""
    return upernet("patchconvnet_b120", num_classes=num_classes, **arguments)


def upernet_patchconvnet_l120(*, num_classes: int, **arguments: Any) -> UPerNet:
    """UPerNet on PatchConvNet-L120."""
    return upernet("patchconvnet_l120", num_classes=num_classes, **arguments)


def segmentation_loss(
    output: Tensor | tuple[Tensor, Tensor], mask: Tensor, *, aux_weight: float = 0.4
) -> Tensor:
    """Cross-entropy a pixel; pixels of class 255 do not count.

    Where no pixel counts, loss and gradients are 0.

    Args:
        output: Logits (B, classes, H, W), or a pair of them as a segmenter gives in training.
        mask: (B, H, W), the class of each pixel.
        aux_weight: What the second of a pair counts; 0.4 as in mmsegmentation.

    Examples:
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> mask = torch.tensor([[[0, 3], [255, 255]]])
        >>> round(segmentation_loss((logits, logits), mask).item(), 3)  # 1.4 ln 4
        1.941
    """
    mask = mask.as_subclass(Tensor)
    if isinstance(output, Tensor):
        return _cross_entropy(output, mask)
    logits, auxiliary = output
    return _cross_entropy(logits, mask) + aux_weight * _cross_entropy(auxiliary, mask)


def sliding_window(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int] | None = None,
    batch_size: int = 4,
) -> Tensor:
    """Logits of large images, window by window, averaged where windows overlap.

    As mmsegmentation's "slide" mode: the last window of a row or column is shifted inside, so that
    every window is full. An image smaller than the window is seen whole along that side.

    Args:
        model: A segmenter in evaluation mode.
        image: (B, C, H, W).
        window: Height and width of what the model sees at once, in pixels.
        stride: Steps down and to the right, at most the window; None takes two thirds of it.
        batch_size: Windows that run together, which bounds the memory.

    Returns:
        (B, classes, H, W).

    Raises:
        ValueError: If ``window``, ``stride`` or ``batch_size`` is below 1, or ``stride`` is larger
            than ``window``.

    Examples:
        >>> sliding_window(nn.Conv2d(3, 5, 1), torch.randn(1, 3, 40, 70), (32, 32)).shape
        torch.Size([1, 5, 40, 70])
    """
    steps = stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
    if min(*window, *steps, batch_size) < 1 or steps[0] > window[0] or steps[1] > window[1]:
        raise ValueError(
            f"window={window}, stride={steps}, batch_size={batch_size}; expected 1 or more each, "
            "and a stride no larger than the window"
        )
    height, width = (min(pair) for pair in zip(window, image.shape[2:], strict=True))
    places = [
        (slice(number, number + 1), slice(None), slice(y, y + height), slice(x, x + width))
        for number, y, x in product(
            range(len(image)),
            _starts(image.shape[2], height, steps[0]),
            _starts(image.shape[3], width, steps[1]),
        )
    ]
    total, count = image.new_zeros(()), image.new_zeros(len(image), 1, *image.shape[2:])
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        logits = model(torch.cat([image[place] for place in batch]))
        if not first:
            total = logits.new_zeros(len(image), logits.shape[1], *image.shape[2:])
        for place, one in zip(batch, logits, strict=True):
            total[place] += one
            count[place] += 1
    return total / count


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits at another size, bilinear as in mmsegmentation.

    Args:
        logits: (B, classes, h, w).
        size: Height and width wanted.
    """
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


class _BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where there is one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def _bear_single_values(module: nn.Module) -> None:
    """Put ``_BatchNorm2d`` in the place of every batch norm; names of weights stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _BatchNorm2d(child.num_features))
        else:
            _bear_single_values(child)


def _cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    # The mean of cross_entropy is NaN where no pixel counts.
    total = F.cross_entropy(logits.float(), mask, ignore_index=IGNORED, reduction="sum")
    return total / (mask != IGNORED).sum().clamp(min=1)


def _starts(size: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along one side."""
    return [*range(0, size - window, stride), size - window]
