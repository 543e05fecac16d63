"""Attention-augmented MnasNets.

Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 4.3, on timm's MnasNet-A1.
"""

from functools import partial
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet

from convattn.kernels.recomputation import count_batches_once
from convattn.layers.rel_pos import Position
from convattn.models.aa_wide_resnet import strided
from convattn.models.pooling import build_pooled
from convattn.surgery import augmented_conv

_MNASNET_A1 = [
    ["ds_r1_k3_s1_e1_c16_noskip"],
    ["ir_r2_k3_s2_e6_c24"],
    ["ir_r3_k5_s2_e3_c40_se0.25"],
    ["ir_r4_k3_s2_e6_c80"],
    ["ir_r2_k3_s1_e6_c112_se0.25"],
    ["ir_r3_k5_s2_e6_c160_se0.25"],
    ["ir_r1_k3_s1_e6_c320"],
]


class AAMnasNet(EfficientNet):
    """MnasNet-A1 with attention-augmented expansion convolutions.

    Bello et al. 2019, https://arxiv.org/abs/1904.09925, on Tan et al. 2018,
    https://arxiv.org/abs/1807.11626. The placement is inferred: of many placements and ratios
    tried, this one comes nearest to the parameters and FLOPs believed to be the paper's, which
    are unconfirmed. Every expansion but the first, at half the image's size, is augmented with
    4 heads of at least 4 channels, ``qk_ratio`` 0.1 and ``v_ratio`` 0.05, and attends on a map
    of half its size.

    Args:
        channel_multiplier: Factor on the channels of every stage.
        depth_multiplier: Factor on the blocks of every stage, rounded up.
        num_heads: Attention heads.
        qk_ratio: Query (and key) channels per output channel.
        v_ratio: Share of an augmented convolution's output channels that attention computes.
        min_head_dim: Least query channels of a head.
        position: "relative", "sine", "coord" or "none".
        img_size: Side, or height and width, of the images that positions are made for, in
            pixels; other sizes resample them.
        **kwargs: timm's EfficientNet arguments.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        ValueError: If ``num_heads`` cannot share the channels of a stage.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("aa_mnasnet_nano", num_classes=7)
        >>> model(torch.randn(2, 3, 64, 96)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        channel_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        *,
        num_heads: int = 4,
        qk_ratio: float = 0.1,
        v_ratio: float = 0.05,
        min_head_dim: int = 4,
        position: Position = "relative",
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            decode_arch_def(_MNASNET_A1, depth_multiplier),
            round_chs_fn=partial(round_channels, multiplier=channel_multiplier),
            **kwargs,
        )
        size = strided((img_size, img_size) if isinstance(img_size, int) else img_size, 4)
        expanding = [block for stage in self.blocks[1:] for block in stage]
        for block in expanding[1:]:
            block.conv_pw = augmented_conv(
                block.conv_pw,
                num_heads=num_heads,
                qk_ratio=qk_ratio,
                v_ratio=v_ratio,
                min_head_dim=min_head_dim,
                position=position,
                feat_size=size,
                attn_downsample=2,
            )
            size = strided(size, block.conv_dw.stride[0])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        super().set_grad_checkpointing(enable)
        count_batches_once(self, enable)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], **kwargs: Any) -> AAMnasNet:
    model = build_pooled(
        AAMnasNet,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        **{**defaults, **kwargs},
    )
    return cast(AAMnasNet, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "license": "apache-2.0",
        "paper_ids": "arXiv:1904.09925",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "aa_mnasnet_075.untrained": _cfg(),
        "aa_mnasnet_100.untrained": _cfg(),
        "aa_mnasnet_125.untrained": _cfg(),
        "aa_mnasnet_140.untrained": _cfg(),
        "mnasnet_a1_125.untrained": _cfg(paper_ids="arXiv:1807.11626"),
        "aa_mnasnet_nano.untrained": _cfg(
            num_classes=10, input_size=(3, 64, 64), pool_size=(2, 2), crop_pct=1.0
        ),
    }
)


@register_model
def aa_mnasnet_075(pretrained: bool = False, **kwargs: Any) -> AAMnasNet:
    """AA-MnasNet 0.75; the placement of attention is inferred."""
    return _create("aa_mnasnet_075", pretrained, {"channel_multiplier": 0.75}, **kwargs)


@register_model
def aa_mnasnet_100(pretrained: bool = False, **kwargs: Any) -> AAMnasNet:
    """AA-MnasNet 1.0; the placement of attention is inferred."""
    return _create("aa_mnasnet_100", pretrained, {}, **kwargs)


@register_model
def aa_mnasnet_125(pretrained: bool = False, **kwargs: Any) -> AAMnasNet:
    """AA-MnasNet 1.25; the placement of attention is inferred."""
    return _create("aa_mnasnet_125", pretrained, {"channel_multiplier": 1.25}, **kwargs)


@register_model
def aa_mnasnet_140(pretrained: bool = False, **kwargs: Any) -> AAMnasNet:
    """AA-MnasNet 1.4; the placement of attention is inferred."""
    return _create("aa_mnasnet_140", pretrained, {"channel_multiplier": 1.4}, **kwargs)


@register_model
def mnasnet_a1_125(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MnasNet-A1 1.25, the plain twin of ``aa_mnasnet_125``; timm has the other widths."""
    defaults = {
        "block_args": decode_arch_def(_MNASNET_A1),
        "round_chs_fn": partial(round_channels, multiplier=1.25),
    }
    model = build_pooled(
        EfficientNet,
        "mnasnet_a1_125",
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        **{**defaults, **kwargs},
    )
    return cast(EfficientNet, model)


@register_model
def aa_mnasnet_nano(pretrained: bool = False, **kwargs: Any) -> AAMnasNet:
    """AA-MnasNet for laptops and tests: one block a stage, a quarter of the channels."""
    defaults = {
        "channel_multiplier": 0.25,
        "depth_multiplier": 0.25,
        "num_features": 256,
        "img_size": 64,
    }
    return _create("aa_mnasnet_nano", pretrained, defaults, **kwargs)
