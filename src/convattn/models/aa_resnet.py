"""Attention-augmented ResNets.

Bello et al. 2019, https://arxiv.org/abs/1904.09925, sections 4.2 and 4.4, on timm's ResNet.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from convattn.kernels.recomputation import count_batches_once
from convattn.layers.rel_pos import Position
from convattn.models.aa_wide_resnet import strided
from convattn.models.pooling import build_pooled
from convattn.surgery import augmented_conv


class AAResNet(ResNet):
    """ResNet with attention-augmented convolutions in its last three stages.

    Bello et al. 2019, https://arxiv.org/abs/1904.09925: the 3x3 convolution of every bottleneck,
    or the first of every basic block, computes part of its channels by attention. The attention
    is downsampled in the stage of stride 8 only, 28x28 at 224. Inferred from parameter counts:
    the tables of that stage are made for 28x28 all the same, and resampled; queries, keys, values
    and the projection have biases, the convolution, which BatchNorm follows, has none.

    Args:
        block: timm's BasicBlock or Bottleneck.
        layers: Blocks of each stage.
        num_heads: Attention heads.
        qk_ratio: Query (and key) channels per output channel.
        v_ratio: Share of an augmented convolution's output channels that attention computes.
        min_head_dim: Least query channels of a head.
        position: "relative", "sine", "coord" or "none".
        img_size: Side, or height and width, of the images that positions are made for, in
            pixels; other sizes resample them.
        attn_downsample: How many times smaller the map is on which attention runs, by the stride
            of the stage; 1 elsewhere.
        **kwargs: timm's ResNet arguments.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        ValueError: If ``num_heads`` cannot share the channels of a stage.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("aa_resnet_nano", num_classes=7)
        >>> model(torch.randn(2, 3, 64, 96)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        *,
        num_heads: int = 8,
        qk_ratio: float = 0.2,
        v_ratio: float = 0.1,
        min_head_dim: int = 20,
        position: Position = "relative",
        img_size: int | tuple[int, int] = 224,
        attn_downsample: Mapping[int, int] = MappingProxyType({8: 2}),
        **kwargs: Any,
    ) -> None:
        super().__init__(block, layers, **kwargs)
        image = (img_size, img_size) if isinstance(img_size, int) else img_size
        name = "conv2" if issubclass(block, Bottleneck) else "conv1"
        for before, stage in pairwise(self.feature_info[1:]):
            stride = before["reduction"]
            for part in self.get_submodule(stage["module"]):
                conv = getattr(part, name)
                stride *= conv.stride[0]
                downsample = attn_downsample.get(stride, 1)
                height, width = strided(image, stride)
                stride = stage["reduction"]  # with ``aa_layer`` it is not the convolution's
                attention = augmented_conv(
                    conv,
                    num_heads=num_heads,
                    qk_ratio=qk_ratio,
                    v_ratio=v_ratio,
                    min_head_dim=min_head_dim,
                    position=position,
                    feat_size=(height * downsample, width * downsample),
                    attn_downsample=downsample,
                )
                setattr(part, name, attention)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        super().set_grad_checkpointing(enable)
        count_batches_once(self, enable)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], **kwargs: Any) -> AAResNet:
    model = build_pooled(AAResNet, variant, pretrained, **{**defaults, **kwargs})
    return cast(AAResNet, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:1904.09925",
        **kwargs,
    }


_NANO_CFG = _cfg(
    num_classes=10,
    input_size=(3, 64, 64),
    pool_size=(2, 2),
    crop_pct=1.0,
    first_conv="conv1.0",
)

default_cfgs = generate_default_cfgs(
    {
        "aa_resnet34.untrained": _cfg(),
        "aa_resnet50.untrained": _cfg(),
        "aa_resnet101.untrained": _cfg(),
        "aa_resnet152.untrained": _cfg(),
        "aa_resnet_nano.untrained": _NANO_CFG,
        "aa_resnet18_nano.untrained": _NANO_CFG,
        "resnet_nano.untrained": {**_NANO_CFG, "paper_ids": "arXiv:1512.03385"},
        "resnet18_nano.untrained": {**_NANO_CFG, "paper_ids": "arXiv:1512.03385"},
        "se_resnet18_nano.untrained": {**_NANO_CFG, "paper_ids": "arXiv:1709.01507"},
    }
)


@register_model
def aa_resnet34(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-34: the first 3x3 of every block, a quarter of the channels by attention."""
    defaults = {"block": BasicBlock, "layers": (3, 4, 6, 3), "qk_ratio": 0.25, "v_ratio": 0.25}
    return _create("aa_resnet34", pretrained, defaults, **kwargs)


@register_model
def aa_resnet50(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-50."""
    defaults = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
    return _create("aa_resnet50", pretrained, defaults, **kwargs)


@register_model
def aa_resnet101(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-101."""
    defaults = {"block": Bottleneck, "layers": (3, 4, 23, 3)}
    return _create("aa_resnet101", pretrained, defaults, **kwargs)


@register_model
def aa_resnet152(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-152."""
    defaults = {"block": Bottleneck, "layers": (3, 8, 36, 3)}
    return _create("aa_resnet152", pretrained, defaults, **kwargs)


def _create_plain(variant: str, pretrained: bool, defaults: dict[str, Any], **kw: Any) -> ResNet:
    return cast(ResNet, build_pooled(ResNet, variant, pretrained, **{**defaults, **kw}))


_NANO: dict[str, Any] = {
    "block": BasicBlock,
    "layers": (1, 1, 1, 1),
    "channels": (16, 32, 64, 128),
    "stem_type": "deep",
    "stem_width": 8,
}


_NANO_ATTENTION: dict[str, Any] = {
    "num_heads": 4,
    "qk_ratio": 0.25,
    "v_ratio": 0.25,
    "min_head_dim": 8,
    "img_size": 64,
}

_NANO18: dict[str, Any] = {**_NANO, "layers": (2, 2, 2, 2)}


@register_model
def aa_resnet_nano(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet for laptops and tests: one basic block a stage, 16 to 128 channels."""
    return _create("aa_resnet_nano", pretrained, {**_NANO, **_NANO_ATTENTION}, **kwargs)


@register_model
def resnet_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The plain twin of ``aa_resnet_nano``."""
    return _create_plain("resnet_nano", pretrained, _NANO, **kwargs)


@register_model
def aa_resnet18_nano(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-18 of a quarter of the width, for 64x64 images: no map needs downsampling."""
    attention = {**_NANO_ATTENTION, "attn_downsample": {}}
    return _create("aa_resnet18_nano", pretrained, {**_NANO18, **attention}, **kwargs)


@register_model
def resnet18_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The plain twin of ``aa_resnet18_nano``."""
    return _create_plain("resnet18_nano", pretrained, _NANO18, **kwargs)


@register_model
def se_resnet18_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The squeeze-excite twin of ``aa_resnet18_nano``."""
    se = {"block_args": {"attn_layer": "se"}}
    return _create_plain("se_resnet18_nano", pretrained, {**_NANO18, **se}, **kwargs)
