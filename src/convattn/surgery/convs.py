"""Which convolutions attention can stand in for, and what that costs."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from convattn.layers import AAConv2d, LearnedAggregation2d, Pool
from convattn.surgery.records import NOT_ASKED, AugmentOptions, ConvFilter, ConvPlan, by, num_params
from convattn.surgery.trace import TRANSFORMER, Call, Trace, is_transformer
from convattn.text import nearest_few

_STAGES = re.compile(r"last-(\d+)-stages?")
_MOST_POSITIONS = 512  # of a map that "auto" leaves at its size: 28x28 is halved, as in the paper
_ONE_BY_ONE = "1x1, not a spatial convolution; name it to have it replaced all the same"

_Sizes = tuple[tuple[int, int], tuple[int, int]]


def plan_convs(model: nn.Module, run: Trace, options: AugmentOptions) -> list[ConvPlan]:
    """What becomes of every convolution of a network.

    Raises:
        ValueError: If what was asked for names nothing in it.
    """
    calls: dict[str, list[Call]] = {}
    for call in run.calls:
        calls.setdefault(call.name, []).append(call)
    inside = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, AAConv2d | LearnedAggregation2d | Pool)
    )
    convs = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith(inside)
    }
    sizes = {name: _sizes(run, calls.get(name, [])) for name in convs}
    obstacles = {name: _obstacle(convs[name], sizes[name], bool(calls.get(name))) for name in convs}
    if is_transformer(model, run):
        obstacles = dict.fromkeys(convs, TRANSFORMER)
    stages = {
        name: None if found is None else _stage(run.input_size, found[1])
        for name, found in sizes.items()
    }
    chosen = _chosen(model, options.conv, convs, obstacles, stages)
    plans = []
    for name, module in convs.items():
        reason = obstacles[name]
        if name not in chosen:
            reason = reason or (NOT_ASKED if max(module.kernel_size) > 1 else _ONE_BY_ONE)
        plans.append(
            _conv_plan(
                name,
                module,
                sizes[name],
                stages[name],
                reason,
                options,
                asked=name in chosen,
                num_calls=len(calls.get(name, [])),
            )
        )
    return plans


def _sizes(run: Trace, calls: list[Call]) -> _Sizes | None:
    """Height and width of the maps that a convolution read and made, in its first call."""
    for call in calls:
        if call.source is not None and call.result is not None:
            source, result = run.values[call.source].shape, run.values[call.result].shape
            if len(source) == 4 and len(result) == 4:
                return (source[2], source[3]), (result[2], result[3])
    return None


def _obstacle(conv: nn.Conv2d, sizes: _Sizes | None, called: bool) -> str | None:
    """Why no AAConv2d can stand in a convolution's place."""
    if sizes is None:
        return (
            "it was given no map of the image"
            if called
            else "it was not reached, or its weights are used without calling it"
        )
    if sizes[1] == (1, 1):
        return "its map has one position at this input_size: there is nowhere else to look"
    if _same_padding(conv, sizes) is None:
        return f"it makes {by(sizes[1])} of {by(sizes[0])}, which no padding of Conv2d explains"
    return None


def _same_padding(conv: nn.Conv2d, sizes: _Sizes) -> bool | None:
    """Whether it pads as TensorFlow does; None if neither that nor its own padding fits."""
    usual, same = [], []
    pads = (0, 0) if isinstance(conv.padding, str) else conv.padding
    for size, kernel, stride, pad, dilation in zip(
        sizes[0], conv.kernel_size, conv.stride, pads, conv.dilation, strict=True
    ):
        usual.append((size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1)
        same.append(-(-size // stride))
    if tuple(usual) == sizes[1] and conv.padding != "same":
        return False
    return True if tuple(same) == sizes[1] else None


def _stage(input_size: tuple[int, int, int], out_size: tuple[int, int]) -> int:
    ratio = math.sqrt(input_size[1] * input_size[2] / (out_size[0] * out_size[1]))
    return 2 ** max(0, round(math.log2(ratio)))


def _chosen(
    model: nn.Module,
    wanted: ConvFilter | None,
    convs: Mapping[str, nn.Conv2d],
    obstacles: Mapping[str, str | None],
    stages: Mapping[str, int | None],
) -> set[str]:
    """Names of the convolutions that were asked for."""
    if wanted is None:
        return set()
    spatial = [name for name, conv in convs.items() if max(conv.kernel_size) > 1]
    if callable(wanted):
        found = {name for name, conv in convs.items() if wanted(conv, name)}
        if not found:
            raise ValueError(
                f"the filter given as conv matches none of the {len(convs)} convolutions of "
                f"{type(model).__name__}; their names are like {_some(spatial or list(convs))}"
            )
        return found
    found = set()
    for word in (wanted,) if isinstance(wanted, str) else wanted:
        if word == "all":
            found.update(spatial)
            continue
        stage_words = _STAGES.fullmatch(word)
        if stage_words is not None:
            found.update(_last_stages(model, int(stage_words[1]), spatial, obstacles, stages))
            continue
        within = {name for name in spatial if name.startswith(f"{word}.")}
        named = {word} if word in convs else within or set(fnmatch.filter(convs, word))
        if not named:
            raise ValueError(_names_nothing(model, word, list(convs)))
        found.update(named)
    return found


def _last_stages(
    model: nn.Module,
    count: int,
    spatial: Sequence[str],
    obstacles: Mapping[str, str | None],
    stages: Mapping[str, int | None],
) -> set[str]:
    there = sorted({s for name in spatial if (s := stages[name]) and obstacles[name] is None})
    if not 1 <= count <= len(there):
        strides = ", ".join(map(str, there))
        raise ValueError(
            f"conv='last-{count}-stages', but the spatial convolutions of {type(model).__name__} "
            + (
                f"have {len(there)} resolutions (strides {strides}); for instance "
                f"conv='last-{min(max(count, 1), len(there))}-stages'"
                if there
                else "have none that could be replaced"
            )
        )
    last = there[-count:]
    return {name for name in spatial if stages[name] in last}


def _names_nothing(model: nn.Module, word: str, names: list[str]) -> str:
    if not names:
        return f"conv={word!r}, but {type(model).__name__} has no convolution"
    near = nearest_few(word, names)
    return (
        f"conv={word!r} names no convolution of {type(model).__name__}; the nearest are "
        f"{', '.join(near)}; stages are named as in 'last-3-stages', and a * stands for anything"
    )


def _some(names: list[str]) -> str:
    step = max(1, len(names) // 3)
    return ", ".join(names[::step][:3])


def _conv_plan(
    name: str,
    conv: nn.Conv2d,
    sizes: _Sizes | None,
    stage: int | None,
    reason: str | None,
    options: AugmentOptions,
    *,
    asked: bool,
    num_calls: int,
) -> ConvPlan:
    params = num_params(conv)
    macs = 0
    if sizes is not None:
        per_position = conv.out_channels * conv.in_channels // conv.groups
        macs = num_calls * per_position * math.prod(conv.kernel_size) * math.prod(sizes[1])
    words: dict[str, Any] = {}
    layer: AAConv2d | None = None
    same = False
    if reason is None:
        assert sizes is not None
        same = bool(_same_padding(conv, sizes))
        downsample = _downsample(options.attn_downsample, stage, sizes[1])
        # The tables keep the map's resolution where attention runs on a smaller one: the only
        # convention found that gives the paper's parameters (docs/explanation/models.md).
        words = {
            "num_heads": options.num_heads,
            "qk_ratio": options.qk_ratio,
            "v_ratio": options.v_ratio,
            "min_head_dim": options.min_head_dim,
            "position": options.position,
            "residual": options.preserve,
            "feat_size": (sizes[1][0] * downsample, sizes[1][1] * downsample),
            "attn_downsample": downsample,
        }
        try:
            if not options.preserve:
                _check_narrowing(conv)
            with torch.device("meta"):
                layer = attention_layer(conv, same_padding=same, **words)
        except ValueError as error:
            reason, words = str(error), {}
    params_after, macs_after, memory = params, macs, 0
    if layer is not None and sizes is not None:
        kept = 0 if layer.conv is None else layer.conv.out_channels
        branch = num_params(layer) - num_params(layer.conv)
        params_after = params * kept // conv.out_channels + branch
        attention_macs, memory = _attention_cost(layer, sizes[1], conv.weight.element_size())
        macs_after = macs * kept // conv.out_channels + num_calls * attention_macs
    return ConvPlan(
        name=name,
        layer=_describe(conv),
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        in_size=None if sizes is None else sizes[0],
        out_size=None if sizes is None else sizes[1],
        stage=stage,
        asked=asked,
        replaced=layer is not None,
        reason=reason,
        num_heads=None if layer is None else layer.num_heads,
        qk_channels=None if layer is None else layer.qk_channels,
        v_channels=None if layer is None else layer.v_channels,
        attn_downsample=None if layer is None else layer.attn_downsample,
        params=params,
        params_after=params_after,
        macs=macs,
        macs_after=macs_after,
        attn_memory=memory,
        attention=words,
        same_padding=same,
    )


def attention_layer(conv: nn.Conv2d, *, same_padding: bool = False, **attention: Any) -> AAConv2d:
    """An AAConv2d with a convolution's words and untrained weights.

    Args:
        conv: Whose words it takes.
        same_padding: Make ceil(input / stride) positions whatever ``conv.padding`` says.
        **attention: AAConv2d's own words.

    Raises:
        ValueError: As AAConv2d.
    """
    padding: Any = 0 if same_padding else conv.padding
    layer = AAConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        padding,
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        padding_mode=conv.padding_mode,
        **attention,
    )
    if same_padding:
        # nn.Conv2d itself has no "same" with a stride, only the convolutions that replace it.
        layer.padding = "same"
    return layer


def _check_narrowing(conv: nn.Conv2d) -> None:
    if parametrize.is_parametrized(conv) or "weight" not in conv._parameters:
        raise ValueError(
            "its weight is computed from others (parametrised, normed or pruned), so that no "
            "filters can be left out; use preserve=True, or remove that first"
        )
    if conv.groups == conv.in_channels and conv.groups > 1:
        raise ValueError(
            "it is depthwise, and the paper's layer needs a convolution that can leave out "
            "filters; preserve=True adds attention beside it"
        )


def _downsample(
    wanted: int | Mapping[int, int] | Literal["auto"], stage: int | None, size: tuple[int, int]
) -> int:
    if isinstance(wanted, Mapping):
        return wanted.get(stage or 1, 1)
    if wanted != "auto":
        return wanted
    factor = 1
    while -(-size[0] // factor) * -(-size[1] // factor) > _MOST_POSITIONS:
        factor *= 2
    return factor


def _attention_cost(layer: AAConv2d, size: tuple[int, int], itemsize: int) -> tuple[int, int]:
    """Multiply-adds of the attention branch, and bytes that attention keeps for its gradient."""
    height, width = (-(-side // layer.attn_downsample) for side in size)
    positions = height * width
    qk, v = layer.qk_channels, layer.v_channels
    macs = positions * layer.qkv.in_channels * layer.qkv.out_channels
    macs += positions * positions * (qk + v) + positions * v * v
    if layer.rel_pos is not None:
        macs += positions * (height + width) * qk
    kept = 2 * (qk + v) * itemsize  # queries, keys, values and output
    return macs, positions * (kept + 8 * layer.num_heads)  # and each query's maximum and sum


def _describe(conv: nn.Conv2d) -> str:
    words = [f"{type(conv).__name__} {conv.kernel_size[0]}x{conv.kernel_size[1]}"]
    if max(conv.stride) > 1:
        words.append(f"stride {max(conv.stride)}")
    if max(conv.dilation) > 1:
        words.append(f"dilation {max(conv.dilation)}")
    if conv.groups == conv.in_channels > 1:
        words.append("depthwise")
    elif conv.groups > 1:
        words.append(f"{conv.groups} groups")
    return ", ".join(words)
