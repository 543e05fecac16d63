"""Wide ResNets for small images: plain, squeeze-and-excitation, attention-augmented.

Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146; the attention is that of Bello et
al. 2019, https://arxiv.org/abs/1904.09925, section 4.1.
"""

from typing import Any, cast

import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite, create_classifier
from timm.models import (
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from convattn.kernels.recomputation import count_batches_once
from convattn.layers.rel_pos import Position
from convattn.models.pooling import build_pooled
from convattn.surgery import augmented_conv


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **dd: Any
) -> nn.Conv2d:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False, **dd
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of what a padded layer of this stride makes of a map."""
    return -(-size[0] // stride), -(-size[1] // stride)


class PreActBlock(nn.Module):
    """Pre-activation residual block: twice BatchNorm, ReLU, 3x3 convolution.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the result; another number, or a stride, takes a 1x1 shortcut.
        stride: Of the first convolution and the shortcut.
        attention: Attention words of AAConv2d for the first convolution; None for a plain one.
        squeeze_excite: Gates the residual branch's channels, reduction 16.
        drop_path: Probability of dropping the residual branch.
        device: As in nn.Conv2d.
        dtype: As in nn.Conv2d.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        attention: dict[str, Any] | None = None,
        squeeze_excite: bool = False,
        drop_path: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, **dd)
        conv = _conv(in_channels, out_channels, 3, stride, **dd)
        self.conv1 = conv if attention is None else augmented_conv(conv, **attention)
        self.bn2 = nn.BatchNorm2d(out_channels, **dd)
        self.conv2 = _conv(out_channels, out_channels, 3, **dd)
        self.se = (
            SqueezeExcite(out_channels, rd_channels=out_channels // 16, **dd)
            if squeeze_excite
            else nn.Identity()
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        x = self.conv1(activated)
        x = self.conv2(F.relu(self.bn2(x), inplace=True))
        return shortcut + self.drop_path(self.se(x))


class WideResNet(nn.Module):
    """Pre-activation Wide ResNet for 32x32 images, optionally with attention.

    Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146. With ``augmented``, the first
    convolution of every residual block is attention-augmented: Bello et al. 2019,
    https://arxiv.org/abs/1904.09925, section 4.1. That the attention of the first stage runs on a
    map of half the size is inferred from the paper's FLOPs.

    Args:
        depth: Convolutions on the longest path, 6n + 4.
        widen: Factor on the 16, 32 and 64 channels of the three stages.
        num_classes: Classes; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's pooling before the classifier.
        augmented: Whether the first convolution of every block computes channels by attention.
        squeeze_excite: Whether every residual branch ends in squeeze-and-excitation.
        num_heads: Attention heads.
        qk_ratio: Query (and key) channels per output channel.
        v_ratio: Share of an augmented convolution's output channels that attention computes.
        min_head_dim: Least query channels of a head.
        position: "relative", "sine", "coord" or "none".
        attn_downsample: Attention of the first stage runs on a map this many times smaller.
        img_size: Side, or height and width, of the images that positions are made for, in
            pixels; other sizes resample them.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
        device: As in nn.Conv2d.
        dtype: As in nn.Conv2d.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        ValueError: If ``depth`` is not 6n + 4, or ``num_heads`` cannot share a stage's channels.

    Examples:
        >>> import torch
        >>> model = WideResNet(10, 1, num_classes=7)
        >>> model(torch.randn(2, 3, 32, 48)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        *,
        augmented: bool = False,
        squeeze_excite: bool = False,
        num_heads: int = 8,
        qk_ratio: float = 0.2,
        v_ratio: float = 0.1,
        min_head_dim: int = 20,
        position: Position = "relative",
        attn_downsample: int = 2,
        img_size: int | tuple[int, int] = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            good = 6 * max(1, round((depth - 4) / 6)) + 4
            raise ValueError(f"depth={depth} is not 6n + 4; nearest that works: depth={good}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.conv1 = _conv(in_chans, 16, 3, **dd)
        self.feature_info = [{"num_chs": 16, "reduction": 1, "module": "conv1"}]
        channels = 16
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        for stage in range(3):
            layers = []
            downsample = attn_downsample if stage == 0 else 1
            for index in range(blocks):
                stride = 2 if stage and index == 0 else 1
                size = strided(size, stride)
                attention = {
                    "num_heads": num_heads,
                    "qk_ratio": qk_ratio,
                    "v_ratio": v_ratio,
                    "min_head_dim": min_head_dim,
                    "position": position,
                    "feat_size": (size[0] * downsample, size[1] * downsample),
                    "attn_downsample": downsample,
                }
                layers.append(
                    PreActBlock(
                        channels,
                        16 * widen * 2**stage,
                        stride,
                        attention=attention if augmented else None,
                        squeeze_excite=squeeze_excite,
                        drop_path=drop_path_rate * (stage * blocks + index) / (3 * blocks - 1),
                        **dd,
                    )
                )
                channels = 16 * widen * 2**stage
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*layers))
            self.feature_info.append({"num_chs": channels, "reduction": 2**stage, "module": name})
        self.norm: nn.Module = nn.BatchNorm2d(channels, **dd)
        self.act: nn.Module = nn.ReLU()
        self.num_features = channels
        self.global_pool, self.fc = create_classifier(
            channels, num_classes, pool_type=global_pool, **dd
        )
        self.head_hidden_size = channels * self.global_pool.feat_mult()

    def _stages(self) -> list[nn.Sequential]:
        return [cast(nn.Sequential, self.get_submodule(f"layer{n}")) for n in (1, 2, 3)]

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that put every parameter into a layer, for layer-wise decay."""
        block = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^conv1", "blocks": [(block, None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        count_batches_once(self, enable)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return cast(nn.Module, self.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes for none, ``global_pool=""`` for no pooling either."""
        self.num_classes = num_classes
        weight = self.conv1.weight
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after the stem and the three stages, for timm's feature extraction.

        Args:
            x: (B, in_chans, H, W).
            indices: Which of the four, or how many of the last; None for all.
            norm: Whether the last stage's map goes through the final BatchNorm and ReLU.
            stop_early: Whether to stop behind the last map asked for.
            output_fmt: "NCHW".
            intermediates_only: Whether to return the maps without the final features.

        Returns:
            The features, (B, num_features, H', W'), and the list of maps; or the list alone.

        Raises:
            ValueError: If ``output_fmt`` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not known; give 'NCHW'")
        take, last = feature_take_indices(4, indices)
        maps = []
        x = self.conv1(x)
        if 0 in take:
            maps.append(x)
        stages = self._stages()
        for index, stage in enumerate(stages[:last] if stop_early else stages, start=1):
            x = self._run(stage, x)
            if index in take:
                maps.append(self._norm(x) if norm and index == 3 else x)
        if intermediates_only:
            return maps
        return self._norm(x) if last == 3 or not stop_early else x, maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops what the maps of ``indices`` do not need; returns the indices kept."""
        take, last = feature_take_indices(4, indices)
        for index in range(last + 1, 4):
            setattr(self, f"layer{index}", nn.Sequential())
        if prune_norm or last < 3:
            self.norm = nn.Identity()
            self.act = nn.Identity()
        if last < 3:
            self.num_features = cast(int, self.feature_info[last]["num_chs"])
        if prune_head or last < 3:
            self.reset_classifier(0, "")
        return cast(list[int], take)

    def _norm(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.norm(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / 4, W / 4), rounded up."""
        x = self.conv1(x)
        for stage in self._stages():
            x = self._run(stage, x)
        return self._norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') -> (B, num_classes), or what the classifier would see."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, training=self.training)
        return x if pre_logits else cast(Tensor, self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], **kwargs: Any) -> WideResNet:
    model = build_pooled(
        WideResNet,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **kwargs},
    )
    return cast(WideResNet, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


_NANO_CFG = _cfg(num_classes=10, input_size=(3, 28, 28), pool_size=(7, 7))

default_cfgs = generate_default_cfgs(
    {
        "wide_resnet28_10.untrained": _cfg(paper_ids="arXiv:1605.07146"),
        "se_wide_resnet28_10.untrained": _cfg(paper_ids="arXiv:1709.01507"),
        "aa_wide_resnet28_10.untrained": _cfg(paper_ids="arXiv:1904.09925"),
        "wide_resnet_nano.untrained": _NANO_CFG,
        "aa_wide_resnet_nano.untrained": _NANO_CFG,
    }
)


@register_model
def wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Wide-ResNet-28-10 for 32x32 images."""
    return _create("wide_resnet28_10", pretrained, {}, **kwargs)


@register_model
def se_wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Wide-ResNet-28-10 with squeeze-and-excitation on every residual branch, reduction 16."""
    return _create("se_wide_resnet28_10", pretrained, {"squeeze_excite": True}, **kwargs)


@register_model
def aa_wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """AA-Wide-ResNet-28-10: the first convolution of every block is attention-augmented."""
    return _create("aa_wide_resnet28_10", pretrained, {"augmented": True}, **kwargs)


_NANO = {
    "depth": 10,
    "widen": 2,
    "num_heads": 2,
    "qk_ratio": 0.25,
    "v_ratio": 0.25,
    "min_head_dim": 8,
    "attn_downsample": 4,
    "img_size": 28,
}


@register_model
def wide_resnet_nano(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Wide-ResNet-10-2 for 28x28 images, on a laptop."""
    return _create("wide_resnet_nano", pretrained, _NANO, **kwargs)


@register_model
def aa_wide_resnet_nano(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """AA-Wide-ResNet-10-2 for 28x28 images, on a laptop: 2 heads, a quarter attention."""
    return _create("aa_wide_resnet_nano", pretrained, {**_NANO, "augmented": True}, **kwargs)
