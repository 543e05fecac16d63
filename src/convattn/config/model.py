"""The network, its pool, and the attention that it is given."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from convattn.config.numbers import check_numbers

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, by its name in timm's registry, where convattn's own networks are too."""

    name: str = "patchconvnet_nano"
    """Name of the model; `convattn list` shows convattn's own, --dense detectors and segmenters."""
    backbone: str | None = None
    """Detection and segmentation: name of the network that looks at the image, any of timm's."""
    backbone_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the backbone, for example embed_dim 96."""
    num_classes: int | None = None
    """Number of classes, without the background; None takes it from the data."""
    pretrained: bool = False
    """Start from the released weights of that name, or of that backbone."""
    checkpoint: str | None = None
    """Weights to start from: a run folder, a .safetensors file or a PyTorch state dict."""
    backbone_weights: str | None = None
    """Detection and segmentation: weights that the backbone starts from, a classifier's run folder
    or file."""
    drop_rate: float | None = None
    """Dropout before the classifier; None keeps the model's default."""
    drop_path_rate: float | None = None
    """Chance that a residual branch is dropped; None keeps the model's default."""
    model_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the model, for example global_pool avg."""

    def __post_init__(self) -> None:
        check_numbers(self, "model.")
        starts = ("backbone_weights", "checkpoint", "pretrained")
        given = [name for name in starts if getattr(self, name)]
        if len(given) > 1 and given[0] == "backbone_weights":
            raise ValueError(
                f"model.backbone_weights={self.backbone_weights} and model.{given[1]} both say "
                "what the backbone starts from; give one of them"
            )

    @property
    def is_trained(self) -> bool:
        """Whether training starts from weights that are trained already."""
        return self.pretrained or bool(self.checkpoint or self.backbone_weights)

    @property
    def backbone_arguments(self) -> dict[str, Scalar]:
        """Every keyword argument of the backbone of a detector or segmenter."""
        if self.drop_path_rate is None:
            return self.backbone_args
        return {"drop_path_rate": self.drop_path_rate, **self.backbone_args}

    @property
    def title(self) -> str:
        """Model and backbone, for people."""
        return self.name if self.backbone is None else f"{self.name} {self.backbone}"


PoolName = Literal[
    "attention",
    "class",
    "aggregation",
    "class-attention",
    "query",
    "residual",
    "ep",
    "simpool",
    "abmil",
    "map",
    "avg",
    "max",
    "gem",
    "lse",
]
"""What can pool: ``convattn.POOLS``; "attention", which is the light default among them; and
"class-attention", the paper's block with a token a class."""

DEFAULT_POOL: PoolName = "residual"
"""What "attention" means; chosen by docs/results/frozen_pools.md."""

_HAVING: dict[str, tuple[str, ...]] = {
    "pool_heads": ("aggregation", "class-attention", "simpool", "map"),
    "pool_queries": ("ep",),
    "mlp_ratio": ("aggregation", "class-attention", "map"),
    "pool_norm": typing.get_args(PoolName),
}
"""Option of a pool -> the pools that have it."""


def pool_layer(pool: str) -> str:
    """Name of a pool, "attention" said by what it means.

    Examples:
        >>> pool_layer("ep")
        'ep'
    """
    return DEFAULT_POOL if pool == "attention" else pool


def check_pool_options(options: Any, prefix: str = "") -> None:
    """Refuse an option that the pool does not have.

    Args:
        options: Has ``pool`` and the options of pools.
        prefix: Of their names, for errors.

    Raises:
        ValueError: If one was given, or there is no pool.
    """
    pool = options.pool
    for word, having in _HAVING.items():
        value = getattr(options, word)
        if value is None or value is False:
            continue
        if pool is None:
            raise ValueError(
                f"{prefix}{word}={value!r} is about the pool, and {prefix}pool=None keeps that of "
                "the network; give one, for example attention"
            )
        if pool_layer(pool) not in having:
            raise ValueError(
                f"{prefix}{word}={value!r} means nothing to {prefix}pool={pool!r}; those that have "
                f"it are {', '.join(having)}"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Attention that the network is given after it is made, and how that is trained."""

    pool: PoolName | None = None
    """What pools: attention, a light pool that begins as the average; class: a map a class; ..."""
    conv: tuple[str, ...] = ()
    """Convolutions that get attention: last-3-stages, all, names, or globs as layer3.*.conv2."""
    num_heads: int = 8
    """Attention heads of a convolution."""
    qk_ratio: float = 0.2
    """Width of queries and keys over the convolution's output channels; the paper's kappa."""
    v_ratio: float = 0.1
    """Share of the output channels that attention makes; the paper's upsilon."""
    min_head_dim: int = 20
    """Least width of queries and keys a head."""
    position: Literal["relative", "sine", "coord", "none"] = "relative"
    """How the attention of a convolution knows positions."""
    attn_downsample: int | Literal["auto"] = "auto"
    """Factor by which attention sees its map smaller; auto chooses it by the map's size."""
    pool_heads: int | None = None
    """Attention heads of a pool that has heads; None takes the pool's own number."""
    pool_queries: int | None = None
    """Queries of the ep pool; None takes 32."""
    mlp_ratio: float | None = None
    """Width of the MLP of a pool that has one, over the channels; None takes the pool's own."""
    pool_norm: bool = False
    """A BatchNorm without factors behind the pool, as the authors of ep have it."""
    pool_name: str | None = None
    """Name of the pool in the network; None finds it."""
    classifier_name: str | None = None
    """Name of the classifier in the network; None finds it."""
    preserve: bool = True
    """Start with the same logits as without attention; else with the paper's layers as they are."""
    lr_scale: float = 1.0
    """Learning rate of the new layers over that of the others; metrics.csv shows the higher."""
    freeze: bool = False
    """Train only the new attention and the classifier."""

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(
                f"augment.lr_scale={self.lr_scale} must be above 0, for example 10; "
                "augment.freeze keeps the old layers as they are"
            )
        check_numbers(self, "augment.")
        check_pool_options(self, "augment.")
        if self.pool is None and not self.conv and (self.freeze or self.lr_scale != 1):
            name = "freeze" if self.freeze else "lr_scale"
            raise ValueError(
                f"augment.{name} is about new attention, and there is none: give augment.pool, for "
                "example attention, or augment.conv, for example last-3-stages"
            )
