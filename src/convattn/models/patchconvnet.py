"""PatchConvNet: one resolution, convolutions, and a learned aggregation in place of the pool.

Touvron et al. 2021, "Augmenting Convolutional Networks with Attention-based Aggregation",
https://arxiv.org/abs/2112.13692.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d, NormMlpClassifierHead
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from convattn.kernels.patchconv_block import apply_form, fast_form, normalize, project
from convattn.kernels.recomputation import count_batches_once
from convattn.kernels.tracing import refuse_scripting
from convattn.layers import LearnedAggregation2d
from convattn.models.pooling import OUR_POOLS, PooledClassifier
from convattn.weights import (
    RELEASES,
    Release,
    adapt_classifier,
    adapt_input_channels,
    fetch,
    load_checked,
    read_weights,
    remap_keys,
)

Norm = Literal["layernorm", "batchnorm"]


class _ChannelGate(nn.Module):
    """Squeeze-excite's factors for (B, H, W, C) maps, by way of a quarter of the channels."""

    def __init__(self, dim: int, **where: Any) -> None:
        super().__init__()
        hidden = round(0.25 * dim)
        self.reduce = nn.Linear(dim, hidden, **where)
        self.expand = nn.Linear(hidden, dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1, 1, C)."""
        return self.from_mean(x.mean((1, 2), keepdim=True))

    def from_mean(self, mean: Tensor) -> Tensor:
        """(..., C) -> (..., C), of a map's mean over its positions."""
        return self.expand(F.relu(self.reduce(mean))).sigmoid()


class PatchConvBlock(nn.Module):
    """Residual block of the trunk, whose 1x1 convolutions are matrices.

    It reads and makes (B, C, H, W) maps, as whoever looks into a network expects, in the memory
    order of ``channels_last``, which is that of the matrices.

    Layer scale is multiplied into the last matrix rather than into the map. For its backward pass,
    which is written by hand where that is all the same, the block keeps five maps of the eight
    that take part, and with ``recomputes_gelu`` three: the others are recomputed.

    Args:
        dim: Channels.
        layer_scale: Initial factor of the residual branch.
        drop_path: Probability of dropping the residual branch for an image. Dropped images are
            left out of the computation, but with BatchNorm, which would notice.
        norm: "layernorm" as published, or "batchnorm".
        where: Device and dtype, as in nn.Linear.

    Attributes:
        recomputes_gelu: May be set at any time.

    Shape:
        (B, dim, H, W) -> (B, dim, H, W).
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        dim: int,
        *,
        layer_scale: float = 1e-6,
        drop_path: float = 0.0,
        norm: Norm = "layernorm",
        **where: Any,
    ) -> None:
        super().__init__()
        self.norm: nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm = (
            nn.LayerNorm(dim, eps=1e-6, **where)
            if norm == "layernorm"
            else nn.BatchNorm2d(dim, **where)
        )
        self.conv_pw = nn.Linear(dim, dim, **where)
        self.conv_dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **where)
        self.se = _ChannelGate(dim, **where)
        self.conv_pwl = nn.Linear(dim, dim, **where)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale, **where))
        self.drop_path = DropPath(drop_path)
        self.recomputes_gelu = False

    def forward(self, x: Tensor) -> Tensor:
        """``x + drop_path(gamma * conv_pwl(se(gelu(conv_dw(gelu(conv_pw(norm(x))))))))``."""
        x = x.to(self.gamma.dtype)  # autocast must not narrow the sum of all blocks
        return self._channels_last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _channels_last(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        form = fast_form(self, x)
        if form is not None:
            return apply_form(form, self, x)
        maps = F.gelu(self.conv_pw(normalize(self, x)))
        maps = F.gelu(self.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.drop_path(project(self, maps * self.se(maps), 1.0))


class PatchConvNet(nn.Module):
    """A convolutional stem, identical residual blocks at one resolution, learned aggregation.

    Args:
        in_chans: Channels of the images.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: "attn" for learned aggregation; "avg", "max" and timm's others for a plain
            pool, LayerNorm and linear layer; "attention", "class" and others of
            ``convattn.POOLS`` for that, BatchNorm and linear layer, whose logits have exact
            shares; "" for neither pool nor classifier.
        patch_size: Stride of the trunk, a power of two; the stem halves the size at each step.
        embed_dim: Channels of the trunk; divisible by ``patch_size / 2``.
        depth: Blocks.
        num_heads: Heads of the aggregation.
        mlp_ratio: Hidden channels of the aggregation's MLP per channel.
        class_tokens: One aggregation token, and one map, a class.
        layer_scale: Initial factor of every residual branch.
        norm: "layernorm" as published; "batchnorm" normalises trunk and stem by batch instead,
            which learns faster in short runs.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, the same for every block.
        device: As in nn.Linear.
        dtype: As in nn.Linear.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes), for any H and W; no grid size is assumed.

    Raises:
        ValueError: If ``patch_size`` or ``norm`` is none of the known, or ``embed_dim`` does not
            fit ``patch_size``.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "attn",
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 60,
        num_heads: int = 1,
        mlp_ratio: float = 3.0,
        class_tokens: bool = False,
        layer_scale: float = 1e-6,
        norm: Norm = "layernorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if patch_size not in (4, 8, 16, 32):
            raise ValueError(f"patch_size={patch_size} is not one of 4, 8, 16, 32")
        if embed_dim % (patch_size // 2):
            raise ValueError(
                f"embed_dim={embed_dim} is not divisible by {patch_size // 2}, which "
                f"patch_size={patch_size} needs; nearest that works: "
                f"{max(1, round(embed_dim / (patch_size // 2))) * (patch_size // 2)}"
            )
        if norm not in ("layernorm", "batchnorm"):
            raise ValueError(f"norm={norm!r} is not one of 'layernorm', 'batchnorm'")
        if global_pool == "class-attention":
            raise ValueError("global_pool='class-attention' is class_tokens=True here")
        if global_pool == "aggregation":
            global_pool = "attn"
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.class_tokens = class_tokens
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        steps = patch_size.bit_length() - 1
        widths = [in_chans, *(embed_dim >> (steps - 1 - i) for i in range(steps))]
        stem: list[nn.Module] = []
        for before, after in pairwise(widths):
            stem.append(nn.Conv2d(before, after, 3, 2, 1, bias=False, **where))
            if after < embed_dim:
                stem += [nn.BatchNorm2d(after, **where)] if norm == "batchnorm" else []
                stem.append(nn.GELU())
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(
            *(
                PatchConvBlock(
                    embed_dim,
                    layer_scale=layer_scale,
                    drop_path=drop_path_rate,
                    norm=norm,
                    **where,
                )
                for _ in range(depth)
            )
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"}
            for i in range(depth)
        ]
        self.head = self._make_head(**where)

    def _make_head(self, **where: Any) -> nn.Module:
        if not self.global_pool:
            return nn.Identity()
        if self.global_pool == "attn":
            return LearnedAggregation2d(
                self.num_features,
                self.num_classes,
                num_heads=self.num_heads,
                class_tokens=self.class_tokens,
                mlp_ratio=self.mlp_ratio,
                layer_scale=self.layer_scale,
                drop=self.drop_rate,
                **where,
            )
        if self.global_pool in OUR_POOLS:
            head = PooledClassifier(
                self.num_features, self.num_classes, self.global_pool, self.drop_rate
            )
            return head.to(**where)
        return NormMlpClassifierHead(
            self.num_features,
            self.num_classes,
            pool_type=self.global_pool,
            drop_rate=self.drop_rate,
            norm_layer=LayerNorm2d,
            **where,
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside the one-dimensional ones."""
        return {"head.token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that give every parameter its depth, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass: keeps one map of a block instead of five."""
        self.grad_checkpointing = enable
        count_batches_once(self, enable)

    @torch.jit.ignore
    def set_pointwise_recomputation(self, enable: bool = True) -> None:
        """Recomputes the blocks' GELUs in the backward pass: keeps three maps instead of five.

        Cheaper than :meth:`set_grad_checkpointing`, which recomputes everything.
        """
        for block in self.blocks:
            cast(PatchConvBlock, block).recomputes_gelu = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier, an nn.Identity when there is none."""
        classifier = self.head.fc if self.global_pool else self.head
        assert isinstance(classifier, nn.Module)
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new classifier, and with ``class_tokens`` new tokens.

        Args:
            num_classes: Classes; 0 leaves the classifier out.
            global_pool: Changes the pool, as in the constructor; None keeps it.
        """
        self.num_classes = num_classes
        if isinstance(self.head, LearnedAggregation2d) and global_pool in (None, "attn"):
            self.head.reset(num_classes)
            return
        if global_pool is not None:
            self.global_pool = global_pool
        weight = self.stem[0].weight
        self.head = self._make_head(device=weight.device, dtype=weight.dtype).train(self.training)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str) -> None:
        """Loads trained weights, with our names or as released; timm calls it.

        Other channels of the images get the first convolution summed or repeated, as timm does;
        for other classes see :func:`checkpoint_filter_fn`.

        Args:
            checkpoint_path: As ``convattn.weights.read_weights`` takes it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or of another network.
        """
        file, weights = read_weights(Path(checkpoint_path))
        load_checked(self, file, adapt_input_channels(self, checkpoint_filter_fn(weights, self)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after the blocks asked for.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: The last so many blocks, or these, or all of them for None.
            norm: Not available, the trunk ends without a normalisation.
            stop_early: Leave out the blocks after the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: Leave out the final map.

        Returns:
            The maps, (B, C, H', W') each, with the final map before them unless left out.

        Raises:
            ValueError: If ``output_fmt`` is another, or ``norm`` is asked for.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not available; use 'NCHW'")
        if norm:
            raise ValueError("norm=True is not available: the trunk ends without a normalisation")
        take, last = feature_take_indices(len(self.blocks), indices)
        blocks = self.blocks[: last + 1] if stop_early else self.blocks
        maps = []
        x = self._patches(x)
        for i, block in enumerate(blocks):
            x = checkpoint_seq([block], x) if self._checkpoints else block(x)
            if i in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what the maps at ``indices`` do not need.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Nothing to drop here, the trunk ends without a normalisation.
            prune_head: Drop pool and classifier too.

        Returns:
            The indices kept.
        """
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @property
    def _checkpoints(self) -> bool:
        return self.grad_checkpointing and torch.is_grad_enabled()

    def _patches(self, x: Tensor) -> Tensor:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        # In the order of the blocks' matrices, whatever the stem's last layer has left.
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, embed_dim, H', W')."""
        x = self._patches(x)
        return checkpoint_seq(self.blocks, x) if self._checkpoints else self.blocks(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, embed_dim, H', W') -> (B, num_classes), or (B, embed_dim) before the classifier."""
        return self.head(x, pre_logits=pre_logits) if self.global_pool else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: PatchConvNet) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names, and for the classes of the model.

    Where the model has another number of classes than its ``pretrained_cfg``, it keeps a classifier
    of its own, and with ``class_tokens`` tokens of its own; without classes it takes the trained
    tokens. Without a pool it takes the trunk.

    Args:
        state_dict: Tensors with our names, or as released by the authors; also under ``model``.
        model: What they are for.
    """
    weights = remap_keys(state_dict.get("model", state_dict))
    if not model.global_pool:
        return {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    if model.num_classes == cast(Mapping[str, Any], model.pretrained_cfg)["num_classes"]:
        return weights
    head, token = model.head, weights.get("head.token")
    if isinstance(head, LearnedAggregation2d) and not model.num_classes and token is not None:
        head.token = nn.Parameter(head.token.new_empty(token.shape))
    return adapt_classifier(model, weights)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    # No ``pool_size``: fastai reads it as a pool that it may replace by one of its own.
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head.fc",
        **kwargs,
    }


def _released(release: Release) -> dict[str, Any]:
    """What the authors say of a release; 0.875 resizes the short side to int(size * 256 / 224).

    Their evaluation script has that ratio as its default; whether they used 1.0 for 384 and 512
    pixels is not documented.
    """
    return _cfg(
        url=release.url,
        input_size=(3, release.pixels, release.pixels),
        license="apache-2.0",
        origin_url="https://github.com/facebookresearch/deit",
        paper_name="Augmenting Convolutional networks with attention-based aggregation",
        paper_ids="arXiv:2112.13692",
    )


_NANO_CFG = _cfg(num_classes=10, input_size=(3, 64, 64), crop_pct=1.0)

_CLUTTERED_DIGITS: dict[str, Any] = {
    "file": str(Path(__file__).parent / "weights/patchconvnet_nano.cluttered_digits.safetensors"),
    "mean": (0.404, 0.415, 0.386),
    "std": (0.253, 0.204, 0.210),
    "label_names": tuple("0123456789"),
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(
    {name: _released(release) for name, release in RELEASES.items()}
    | {
        "patchconvnet_l60": _cfg(),
        "patchconvnet_l120": _cfg(),
        "patchconvnet_nano.cluttered_digits": _NANO_CFG | _CLUTTERED_DIGITS,
        "patchconvnet_nano_multi": _NANO_CFG,
    }
)


def _from_file(variant: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The overlay that has ``load_pretrained`` read a file, which is fetched first if need be.

    timm would unpickle it by rules of its own, and know no hash.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    if cfg.source or cfg.state_dict or cfg.hf_hub_id:  # timm's own: folders, tensors, the Hub
        return overlay
    file = cfg.file or (cfg.url and fetch(cfg.url, kwargs.get("cache_dir")))
    return overlay | {"file": str(file), "custom_load": True} if file else overlay


def _create(variant: str, pretrained: bool, args: dict[str, Any], kwargs: Any) -> PatchConvNet:
    if pretrained:
        kwargs = kwargs | {"pretrained_cfg_overlay": _from_file(variant, kwargs)}
    return build_model_with_cfg(
        PatchConvNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 1, "feature_cls": "getter"},
        **args | kwargs,
    )


@register_model
def patchconvnet_s60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet S60: 25.2 M parameters."""
    args = {"embed_dim": 384, "depth": 60, "layer_scale": 1e-4}
    return _create("patchconvnet_s60", pretrained, args, kwargs)


@register_model
def patchconvnet_s120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet S120: 47.7 M parameters."""
    return _create("patchconvnet_s120", pretrained, {"embed_dim": 384, "depth": 120}, kwargs)


@register_model
def patchconvnet_b60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet B60: 99.4 M parameters."""
    return _create("patchconvnet_b60", pretrained, {"embed_dim": 768, "depth": 60}, kwargs)


@register_model
def patchconvnet_b120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet B120: 188.6 M parameters."""
    return _create("patchconvnet_b120", pretrained, {"embed_dim": 768, "depth": 120}, kwargs)


@register_model
def patchconvnet_l60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet L60: 176.0 M parameters."""
    return _create("patchconvnet_l60", pretrained, {"embed_dim": 1024, "depth": 60}, kwargs)


@register_model
def patchconvnet_l120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet L120: 334.3 M parameters."""
    return _create("patchconvnet_l120", pretrained, {"embed_dim": 1024, "depth": 120}, kwargs)


@register_model
def patchconvnet_s60_multi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet S60 with one token and one map a class: 25.6 M parameters."""
    args = {"embed_dim": 384, "depth": 60, "layer_scale": 1e-4, "class_tokens": True}
    return _create("patchconvnet_s60_multi", pretrained, args, kwargs)


_NANO = {"patch_size": 8, "embed_dim": 64, "depth": 4, "layer_scale": 1.0, "norm": "batchnorm"}


@register_model
def patchconvnet_nano(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """PatchConvNet for laptops and tests: stride 8, 4 blocks of 64 channels, BatchNorm."""
    return _create("patchconvnet_nano", pretrained, _NANO, kwargs)


@register_model
def patchconvnet_nano_multi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The nano network with one token and one map a class."""
    return _create("patchconvnet_nano_multi", pretrained, _NANO | {"class_tokens": True}, kwargs)
