"""What was asked of a network, and what would become of each of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from torch import nn

from convattn.config import PoolName, check_pool_options, pool_layer
from convattn.layers.rel_pos import Position
from convattn.text import aligned, nearest, short_repr

ConvFilter = str | Sequence[str] | Callable[[nn.Module, str], bool]

NOT_ASKED = "not asked for"
POOL_GAINS: Mapping[int, tuple[float, float]] = {4: (3.65, -1.2), 7: (11.5, 3.8), 14: (20.8, 14.55)}
"""Side of a map -> points over the average where objects fill 2 % of the image: of the average
over the object's own positions, and of the pool query; docs/explanation/law_of_pooling.md."""
_FEW_POSITIONS = 3
POOL_NAMES: tuple[str, ...] = get_args(PoolName)
_PRESERVED = "preserve=True: the logits stay what they are; attention enters as it is trained."
_NOT_PRESERVED = "preserve=False: the papers' layers as they stand; the logits change."


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """What ``augment`` and ``plan`` are asked for; their docstrings say what each means."""

    pool: PoolName | None
    conv: ConvFilter | None
    num_heads: int
    qk_ratio: float
    v_ratio: float
    min_head_dim: int
    position: Position
    attn_downsample: int | Mapping[int, int] | Literal["auto"]
    pool_heads: int | None
    pool_queries: int | None
    mlp_ratio: float | None
    pool_norm: bool
    pool_name: str | None
    classifier_name: str | None
    preserve: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Those among a function's arguments, as its ``locals()`` hold them."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: _plain_number(arguments[name]) for name in names})

    def __post_init__(self) -> None:
        self._check_types()
        if self.pool is not None and self.pool not in POOL_NAMES:
            near = nearest(str(self.pool), POOL_NAMES)
            raise ValueError(
                f"unknown pool {self.pool!r}; the nearest is {near!r} of {', '.join(POOL_NAMES)}"
            )
        check_pool_options(self)
        factor = self.attn_downsample
        factors = factor.values() if isinstance(factor, Mapping) else (factor,)
        if factor != "auto" and any(not isinstance(f, int) or f < 1 for f in factors):
            raise ValueError(
                f"attn_downsample={factor!r} is not 'auto', a positive integer or a mapping of "
                "strides to such, as in {8: 2}"
            )
        if self.mlp_ratio is not None and not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio!r} is not above 0; the paper's is 3")

    def _check_types(self) -> None:
        conv = self.conv
        if conv is not None and (isinstance(conv, nn.Module) or not callable(conv)):
            words: Any = (conv,) if isinstance(conv, str) else conv
            some = isinstance(words, Sequence) and len(words) > 0
            if not some or any(not isinstance(word, str) for word in words):
                raise ValueError(
                    f"conv={short_repr(conv)} is no name of convolutions, several of them or a "
                    "function of (module, name); for instance conv='last-3-stages' or "
                    "conv=['layer4.0.conv1']"
                )
        for word in ("pool_name", "classifier_name"):
            name = getattr(self, word)
            if not isinstance(name, str | None):
                raise ValueError(
                    f"{word}={short_repr(name)} is no name of a module; give it as in "
                    "model.named_modules()"
                )
        for word in ("num_heads", "min_head_dim", "pool_heads", "pool_queries"):
            _check_number(word, getattr(self, word), int)
        for word in ("qk_ratio", "v_ratio", "mlp_ratio"):
            _check_number(word, getattr(self, word), float)

    @property
    def layer(self) -> str | None:
        """Name of the pool, "attention" said by what it means."""
        return None if self.pool is None else pool_layer(self.pool)

    @property
    def per_class(self) -> bool:
        """Whether every class has a map of its own."""
        return self.pool in ("class", "class-attention")


@dataclass(frozen=True, kw_only=True)
class ConvPlan:
    """What becomes of one convolution."""

    name: str
    """Its name in the network."""
    layer: str
    """What it is, as in "Conv2d 3x3, stride 2, 32 groups"."""
    in_channels: int
    """Channels it reads."""
    out_channels: int
    """Channels it makes."""
    in_size: tuple[int, int] | None
    """Height and width of the map it reads; None if it was not reached."""
    out_size: tuple[int, int] | None
    """Height and width of the map it makes; None if it was not reached."""
    stage: int | None
    """Pixels of the image per position of its output, to the nearest power of two."""
    asked: bool
    """Whether it is among the convolutions that were asked for."""
    replaced: bool
    """Whether AAConv2d takes its place."""
    reason: str | None
    """Why it is left alone; None if it is replaced."""
    num_heads: int | None
    """Attention heads."""
    qk_channels: int | None
    """Channels of all queries."""
    v_channels: int | None
    """Channels that attention computes."""
    attn_downsample: int | None
    """How many times smaller the map is on which attention runs."""
    params: int
    """Parameters before."""
    params_after: int
    """Parameters after."""
    macs: int
    """Multiply-adds for one image before."""
    macs_after: int
    """Multiply-adds for one image after."""
    attn_memory: int
    """Bytes that attention keeps of one image for its gradient, at the layer's own precision."""
    attention: dict[str, Any]
    """Keyword arguments of the AAConv2d; empty if none is made."""
    same_padding: bool = False
    """Whether its output has ceil(input / stride) positions, as TensorFlow pads."""


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """What becomes of the pool and of the classifier on it."""

    name: str | None
    """The module that is replaced, or behind which attention goes; None if there is none."""
    layer: str
    """What it is, as in "AdaptiveAvgPool2d"."""
    place: Literal["instead", "behind", "behind-relu"]
    """Whether attention replaces the module, goes behind it, or behind it and a ReLU."""
    classifier: str | None
    """Name of the linear layer or 1x1 convolution that makes the logits."""
    in_features: int | None
    """Channels of the map that is pooled."""
    feat_size: tuple[int, int] | None
    """Height and width of the map that is pooled."""
    pool: str | None
    """Name of the pool that takes the place, of ``convattn.POOLS``; None if none was asked for."""
    tokens: int
    """Vectors that are pooled: 1, or one a class."""
    keepdim: bool
    """Whether the pooled features are a map of one position."""
    average: bool
    """Whether the module is an average pool; another stays and attention is added to it."""
    replaced: bool
    """Whether another pool takes its place."""
    reason: str | None
    """Why it is left alone; None if it is replaced."""
    params: int
    """Parameters of pool and classifier before."""
    params_after: int
    """Parameters of both after."""
    macs: int
    """Multiply-adds of both for one image before; a pool's own are not counted."""
    macs_after: int
    """Multiply-adds of both for one image after."""
    attn_memory: int
    """Bytes of patches and attention weights that one image keeps for the gradient."""

    @property
    def outlook(self) -> str | None:
        """What a pool can matter on a map of this size; None if none takes its place."""
        if not self.replaced or self.feat_size is None:
            return None
        size, least = by(self.feat_size), min(self.feat_size)
        if least < _FEW_POSITIONS:
            return f"{size} positions are too few to choose from: expect a map, not accuracy"
        near = min(POOL_GAINS, key=lambda side: abs(side - least))
        ideal, learnt = POOL_GAINS[near]
        return (
            f"what a pool can matter on {size} positions: on {near}x{near}, objects on 2 % of a "
            f"cluttered image, one that knew where to look gained {ideal:.0f} points over the "
            f"average, and the pool query {learnt:+.0f}; larger images make more positions "
            "(docs/explanation/law_of_pooling.md)"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``augment`` does to a network; ``print`` shows it as a table."""

    model: str
    """Class of the network."""
    input_size: tuple[int, int, int]
    """(C, H, W) of the image that sizes and multiply-adds are for."""
    pool: PoolPlan
    """The pool and the classifier."""
    convs: tuple[ConvPlan, ...]
    """Every convolution, in the order of its name's appearance."""
    preserve: bool
    """Whether the logits stay what they are until the network is trained."""
    params: int
    """Parameters of the whole network before."""
    params_after: int
    """Parameters of the whole network after."""
    macs: int
    """Multiply-adds of the whole network for one image before."""
    macs_after: int
    """Multiply-adds of the whole network for one image after."""

    @property
    def classifier_name(self) -> str | None:
        """Name of the module that makes the logits; None if none was found."""
        return self.pool.classifier

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of all modules that are replaced."""
        convs = (conv.name for conv in self.convs if conv.replaced)
        pool = (self.pool.name,) if self.pool.replaced and self.pool.name is not None else ()
        return (*convs, *pool)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        size = "x".join(map(str, self.input_size))
        lines = [
            f"{self.model} at {size}: {_millions(self.params)} -> {_millions(self.params_after)} "
            f"parameters, {_billions(self.macs)} -> {_billions(self.macs_after)} multiply-adds",
            "",
            *self._table(),
        ]
        left = self._left_alone()
        if left:
            lines += ["", "left alone:", *left]
        if self.pool.outlook is not None:
            lines += ["", self.pool.outlook]
        if self.replaced:
            lines += ["", _PRESERVED if self.preserve else _NOT_PRESERVED]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [("layer", "what", "map", "attention", "parameters", "multiply-adds", "memory")]
        for conv in self.convs:
            if conv.replaced:
                smaller = f", map / {conv.attn_downsample}" if conv.attn_downsample != 1 else ""
                rows.append(
                    (
                        conv.name,
                        conv.layer,
                        by(conv.out_size),
                        f"{conv.v_channels} of {conv.out_channels} channels, "
                        f"{conv.num_heads} heads{smaller}",
                        f"{_millions(conv.params)} -> {_millions(conv.params_after)}",
                        f"{_billions(conv.macs)} -> {_billions(conv.macs_after)}",
                        _bytes(conv.attn_memory),
                    )
                )
        if self.pool.replaced:
            pool = self.pool
            rows.append(
                (
                    f"{'' if pool.place == 'instead' else 'behind '}{pool.name}",
                    pool.layer,
                    by(pool.feat_size),
                    f"{pool.pool}, a map for all classes"
                    if pool.tokens == 1
                    else f"{pool.pool}, {pool.tokens} maps",
                    f"{_millions(pool.params)} -> {_millions(pool.params_after)}",
                    f"{_billions(pool.macs)} -> {_billions(pool.macs_after)}",
                    _bytes(pool.attn_memory),
                )
            )
        if len(rows) == 1:
            return ["nothing is replaced"]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
        return aligned(rows)

    def _left_alone(self) -> list[str]:
        by_reason: dict[str, list[str]] = {}
        for conv in self.convs:
            if conv.reason is not None:
                by_reason.setdefault(conv.reason, []).append(conv.name)
        lines = []
        for reason, names in by_reason.items():
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            lines.append(f"  {', '.join(names[:2])}{more}: {reason}")
        if self.pool.reason is not None:
            lines.append(f"  pool: {self.pool.reason}")
        return lines


def _plain_number(value: Any) -> Any:
    """A number of NumPy's or a tensor as one of Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _check_number(word: str, value: Any, kind: type[int | float]) -> None:
    kinds = (int,) if kind is int else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"{word}={short_repr(value)} is not {what}")


def num_params(module: nn.Module | None) -> int:
    """Parameters of a module, or of none."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def by(size: tuple[int, int] | None) -> str:
    """A size as people write it.

    Args:
        size: Height and width.
    """
    return "none" if size is None else f"{size[0]}x{size[1]}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} G"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
