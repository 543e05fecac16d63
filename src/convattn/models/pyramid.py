"""Maps at several strides out of any backbone, and detectors' feature pyramid on them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from convattn.kernels.recomputation import count_batches_once
from convattn.surgery import augment
from convattn.text import nearest, report
from convattn.weights import check_reachable, load_trunk


class FeatureLevels(nn.Module):
    """Maps of one image at several strides, finest first, whatever the backbone is like.

    A hierarchical network gives the deepest of its own maps at each stride. A network of one
    stride, as PatchConvNet and ViT, gives the maps of evenly spaced blocks, the last one among
    them, one a level; transposed convolutions enlarge them, max-pooling shrinks them. So do XCiT
    (Ali et al. 2021, https://arxiv.org/abs/2106.09681) and BEiT for dense tasks, and so does
    PatchConvNet; which of its blocks, and BatchNorm and GELU between two enlargements, are inferred
    from their code.

    Images are padded with zeros, below and on the right, to a multiple of the coarsest stride;
    the maps are cut back to the image.

    Args:
        backbone: A network with timm's ``feature_info`` and ``forward_intermediates``. It is pruned
            of what the levels do not need.
        strides: Pixels a position of each level, rising.

    Attributes:
        strides: As given.
        channels: Of each level.

    Shape:
        (B, C, H, W) -> a list of (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Raises:
        ValueError: If the backbone cannot give one of the strides; at an image, if it refuses the
            image's size.
    """

    def __init__(self, backbone: nn.Module, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.strides = tuple(strides)
        if not self.strides or min(self.strides) < 1 or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides={self.strides} do not rise; for instance (4, 8, 16, 32)")
        info = list(backbone.feature_info)  # type: ignore[arg-type]
        reductions = [int(entry["reduction"]) for entry in info]
        trunk = reductions[-1] if len(set(reductions)) == 1 else None
        blocks = (
            _deepest(reductions, self.strides)
            if trunk is None
            else _evenly_spaced(len(info), len(self.strides))
        )
        self.channels = tuple(int(info[block]["num_chs"]) for block in blocks)
        self.resample = nn.ModuleList(
            nn.Identity() if trunk is None else _resampler(channels, trunk, stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
        )
        taken = sorted(set(blocks))
        self._taken = [taken.index(block) for block in blocks]
        self._multiple = max(*self.strides, trunk or 1)
        self.body = FeatureGetterNet(backbone, taken)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the backbone in the backward pass instead of keeping its activations."""
        self.body.model.set_grad_checkpointing(enable)
        count_batches_once(self.body, enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map a level."""
        height, width = x.shape[-2:]
        # No negative numbers: ONNX divides them towards zero.
        multiple = self._multiple
        below, right = ((multiple - side % multiple) % multiple for side in (height, width))
        x = F.pad(x, (0, right, 0, below))
        try:
            maps = self.body(x)
        except AssertionError as error:  # timm's word for a size that a network was not made for
            raise ValueError(
                f"{type(self.body.model).__name__} refuses images of {x.shape[-2]} x "
                f"{x.shape[-1]}: {error}; backbone_args such as dynamic_img_size=True may change it"
            ) from error
        return [
            self.cropped(
                resample(maps[index]),
                (height + stride - 1) // stride,
                (width + stride - 1) // stride,
            )
            for resample, index, stride in zip(
                self.resample, self._taken, self.strides, strict=True
            )
        ]

    @staticmethod
    def cropped(x: Tensor, height: int, width: int) -> Tensor:
        """The upper left of a map.

        Args:
            x: (B, C, H, W).
            height: At most H.
            width: At most W.
        """
        return x[..., :height, :width]


def _deepest(reductions: list[int], strides: tuple[int, ...]) -> list[int]:
    """The last map of each stride."""
    last = {reduction: index for index, reduction in enumerate(reductions)}
    missing = [stride for stride in strides if stride not in last]
    if missing:
        raise ValueError(
            f"the backbone has no map of stride {missing[0]}; it has strides "
            f"{', '.join(map(str, last))}: choose among these, or another backbone"
        )
    return [last[stride] for stride in strides]


def _evenly_spaced(depth: int, count: int) -> list[int]:
    return [-(-depth * (level + 1) // count) - 1 for level in range(count)]


def _resampler(channels: int, trunk: int, stride: int) -> nn.Module:
    """From a map of the trunk's stride to one of ``stride``."""
    steps = (max(trunk, stride) // min(trunk, stride)).bit_length() - 1
    if min(trunk, stride) << steps != max(trunk, stride):
        good = ", ".join(str(trunk << step) for step in range(3))
        raise ValueError(
            f"stride {stride} cannot be made from the backbone's maps, all of stride {trunk}, by "
            f"doubling or halving; possible are {good}"
        )
    if stride > trunk:
        return nn.MaxPool2d(stride // trunk)
    layers: list[nn.Module] = []
    for _ in range(steps):
        layers += [nn.BatchNorm2d(channels), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)


def feature_levels(
    backbone: str,
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    in_chans: int = 3,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    augment: Mapping[str, Any] | None = None,
    **backbone_args: Any,
) -> FeatureLevels:
    """Maps at several strides out of a network by its name in timm's registry, ours among them.

    Args:
        backbone: The name, with or without a ``.tag``.
        strides: Pixels a position of each level, rising.
        in_chans: Channels of the images.
        pretrained: Load the released weights of that name.
        weights: Or those of a classifier's run folder or file, as ``load_trunk`` takes them.
        augment: Arguments of ``convattn.augment`` for the backbone's convolutions, as in
            ``{"conv": "last-3-stages"}``; there is no pool to augment here.
        **backbone_args: Arguments of the network.

    Raises:
        FileNotFoundError: If there is no such file of weights.
        ValueError: If there is no such network, it has no released weights, refuses an argument,
            cannot be augmented, or has no map of a stride, or the weights are of another one.

    Examples:
        >>> import convattn, torch
        >>> levels = feature_levels("patchconvnet_nano", strides=(4, 8, 16)).eval()
        >>> [tuple(level.shape) for level in levels(torch.randn(1, 3, 50, 64))]
        [(1, 64, 13, 16), (1, 64, 7, 8), (1, 64, 4, 4)]
    """
    model = _network(backbone, pretrained, in_chans=in_chans, **backbone_args)
    if weights is not None:
        report(f"backbone {backbone}: {load_trunk(model, Path(weights))}")
    if augment is not None:
        model = _augmented(backbone, model, augment)
    try:
        return FeatureLevels(model, strides)
    except (AttributeError, AssertionError) as error:
        raise ValueError(
            f"backbone {backbone!r} does not hand out intermediate maps ({error}); choose another"
        ) from error


def _network(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        raise ValueError(f"unknown backbone {name!r}; the nearest is {near!r}")
    try:
        if pretrained:
            check_reachable(name)
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ValueError(f"backbone {name!r} refuses its arguments: {error}") from error
    except (RuntimeError, OSError) as error:  # a wrong name, or a failed download
        if not pretrained:
            raise
        raise ValueError(
            f"no released weights of {name!r} could be loaded ({str(error).splitlines()[0]}); "
            "name a classifier's file or run (--model.backbone-weights FILE), or leave pretrained "
            "out to start from random ones"
        ) from error
    return model


def _augmented(name: str, model: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    if arguments.get("pool") is not None:
        raise ValueError(
            f"augment has pool={arguments['pool']!r}, but a dense network has no pool; give conv "
            "alone, for instance conv='last-3-stages'"
        )
    try:
        return augment(model, inplace=True, **arguments)
    except TypeError as error:
        raise ValueError(f"augment of backbone {name!r}: {error}") from error


class CoarserLevels(ExtraFPNBlock):
    """Levels beyond the backbone's, each by a 3x3 convolution of stride 2 on the one before.

    torchvision's LastLevelP6P7 for any number of levels, with its names and initial weights.

    Args:
        channels: Of every level.
        levels: Their numbers, as (6, 7) for strides 64 and 128.
    """

    def __init__(self, channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        for level in levels:
            conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.add_module(f"p{level}", conv)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Appends the levels to ``results`` and their names to ``names``."""
        level = results[-1]
        for index, (name, conv) in enumerate(self.named_children()):
            level = conv(F.relu(level) if index else level)
            results.append(level)
            names.append(name)
        return results, names


class FeaturePyramid(nn.Module):
    """What torchvision's detectors take as ``backbone``: levels made alike by a feature pyramid.

    Lin et al. 2017, https://arxiv.org/abs/1612.03144, by torchvision's FeaturePyramidNetwork.

    Args:
        levels: The backbone's maps.
        channels: Channels of every level of the pyramid.
        extra_blocks: Makes levels coarser than the backbone's, as torchvision's LastLevelMaxPool.

    Attributes:
        out_channels: As ``channels``.

    Shape:
        (B, 3, H, W) -> an OrderedDict of (B, channels, H', W'), finest first.
    """

    def __init__(
        self, levels: FeatureLevels, channels: int, extra_blocks: ExtraFPNBlock | None = None
    ) -> None:
        super().__init__()
        self.levels = levels
        self.fpn = FeaturePyramidNetwork(list(levels.channels), channels, extra_blocks=extra_blocks)
        self.out_channels = channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) -> one map a level, by its name."""
        maps = self.levels(x)
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(maps)))
