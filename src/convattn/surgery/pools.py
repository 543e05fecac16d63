"""Where a network pools its last map, and what another pool costs in that place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from convattn.layers import LearnedAggregation2d, Pool, create_pool
from convattn.layers.pools import ClassTokenPool, GatedPool
from convattn.surgery.adapters import AggregationPool, GlobalPool
from convattn.surgery.copying import shadow
from convattn.surgery.records import NOT_ASKED, AugmentOptions, PoolPlan, num_params
from convattn.surgery.trace import TRANSFORMER, Call, Trace, Value, is_transformer
from convattn.text import nearest_few

_AVERAGES = frozenset({"mean", "adaptive_avg_pool2d", "avg_pool2d"})
_EXAMPLE = "self.pool = nn.AdaptiveAvgPool2d(1) in __init__ and self.pool(x).flatten(1) in forward"


def plan_pool(model: nn.Module, run: Trace, options: AugmentOptions) -> PoolPlan:
    """What becomes of a network's pool and of the classifier on it.

    Raises:
        ValueError: If what was asked for names nothing in it.
    """
    modules = dict(model.named_modules())
    for word, name in (
        ("pool_name", options.pool_name),
        ("classifier_name", options.classifier_name),
    ):
        if name is not None and name not in modules:
            near = nearest_few(name, filter(None, modules))
            raise ValueError(f"{word}={name!r} names no module; the nearest are {', '.join(near)}")
    found = _find_pool(modules, run, options.pool_name)
    classifier = options.classifier_name or _find_classifier(modules, run)
    reason = found.reason
    tokens = 1
    if options.pool is None:
        reason = NOT_ASKED
    elif reason is None and options.per_class:
        tokens, reason = _class_tokens(modules, run, classifier)
    if reason is None and options.pool == "avg" and found.average and not options.pool_norm:
        reason = "it pools by the mean already; pool_norm=True puts a BatchNorm behind it"
    layer: AggregationPool | GlobalPool | None = None
    if reason is None:
        assert found.in_features is not None
        try:
            with torch.device("meta"):
                layer = make_pool(found.in_features, tokens, options)
        except ValueError as error:
            reason = str(error)
            for theirs, ours in _WORDS.items():
                reason = reason.replace(f"{theirs}=", f"{ours}=")
    linear = modules.get(classifier) if classifier is not None else None
    params = num_params(linear)
    macs = linear.weight.numel() if isinstance(linear, nn.Linear | nn.Conv2d) else 0
    params_after, macs_after, memory = params, macs, 0
    if layer is not None and found.feat_size is not None and found.in_features is not None:
        params_after += num_params(layer)
        image = torch.empty((1, found.in_features, *found.feat_size), device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer.eval()(image)
        macs_after += counter.get_total_flops() // 2
        macs_after += (tokens - 1) * _macs_between(modules, run, found.pooled, classifier)
        maps = (options.pool_heads or options.pool_queries or 1) * tokens
        memory = 4 * math.prod(found.feat_size) * (found.in_features + maps)
    return PoolPlan(
        name=found.name,
        layer=found.layer,
        place=found.place,
        classifier=classifier,
        in_features=found.in_features,
        feat_size=found.feat_size,
        pool=options.layer,
        tokens=tokens,
        keepdim=found.keepdim,
        average=found.average,
        replaced=layer is not None,
        reason=reason,
        params=params,
        params_after=params_after,
        macs=macs,
        macs_after=macs_after,
        attn_memory=memory,
    )


_WORDS = {"num_heads": "pool_heads", "num_queries": "pool_queries"}
"""Options of pools -> what they are called here."""
_BEGIN_AS_AVERAGE = ("avg", "query", "residual")


def make_pool(
    in_features: int,
    tokens: int,
    options: AugmentOptions,
    *,
    other: nn.Module | None = None,
    keepdim: bool = False,
) -> AggregationPool | GlobalPool:
    """What takes a network's pool's place.

    Args:
        in_features: Channels of the map.
        tokens: Vectors that are pooled: 1, or one a class.
        options: What was asked for.
        other: A pool that is no average, and stays; None if there is none.
        keepdim: Whether the pooled features are a map of one position.

    Raises:
        ValueError: If an option does not fit the channels.
    """
    name = options.layer
    assert name is not None
    more: dict[str, Any] = {
        "num_heads": options.pool_heads,
        "num_queries": options.pool_queries,
        "mlp_ratio": options.mlp_ratio,
    }
    given = {word: value for word, value in more.items() if value is not None}
    if name in ("aggregation", "class-attention"):
        aggregation = LearnedAggregation2d(
            in_features,
            tokens if options.per_class else 0,
            class_tokens=options.per_class,
            residual=options.preserve,
            **given,
        )
        aggregation.fc = nn.Identity()
        norm = options.pool_norm
        return AggregationPool(aggregation, pool=other, norm=norm, keepdim=keepdim)
    pool: Pool
    if name == "class":
        pool = ClassTokenPool(in_features, num_classes=tokens)
    else:
        pool = create_pool(name, in_features, **given)
        if options.preserve and name not in _BEGIN_AS_AVERAGE:
            pool = GatedPool(pool)
    return GlobalPool(pool, other=other, norm=options.pool_norm, keepdim=keepdim)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Where a network pools."""

    reason: str | None = None
    name: str | None = None
    layer: str = "none"
    place: Literal["instead", "behind", "behind-relu"] = "instead"
    in_features: int | None = None
    feat_size: tuple[int, int] | None = None
    keepdim: bool = False
    average: bool = True
    pooled: int = 0
    """Number of the pooled value."""


def _find_pool(modules: Mapping[str, nn.Module], run: Trace, pool_name: str | None) -> _Found:
    """The module that pools, or why none can be replaced."""
    values = run.values
    network = type(modules[""]).__name__
    if is_transformer(modules[""], run):
        return _Found(reason=TRANSFORMER)
    if any(isinstance(module, LearnedAggregation2d) for module in modules.values()):
        return _Found(reason="it is learned aggregation already")
    if any(isinstance(module, Pool) for module in modules.values()):
        return _Found(reason="it has one of convattn's pools already")
    if not run.vectors:
        return _Found(
            reason=f"{network} returns several tensors or none, as a backbone of features does; "
            "there is no pool and no classifier on it"
        )
    line = run.bottlenecks()
    maps = [at for at, number in enumerate(line) if number and _is_map(values[number].shape)]
    if not maps:
        return _Found(reason=f"{network} makes no map of the image on its way to the logits")
    before = line[maps[-1]]
    if maps[-1] + 1 == len(line) and len(run.vectors) > 1:
        return _Found(
            reason=f"{network} returns {len(run.vectors)} tensors that read its map of "
            f"{_shape(values[before])} each in its own way; there is no pool that all of them read"
        )
    if maps[-1] + 1 == len(line):
        return _Found(reason=f"{network} returns a map of {_shape(values[before])}, unpooled")
    after = line[maps[-1] + 1]
    if pool_name is not None:
        return _named_pool(modules, run, line, pool_name)
    candidate = _pool_call(modules, run, line, before, after)
    if candidate is not None:
        return _pool_module(modules, run, candidate)
    return _Found(reason=_why_no_pool(modules, run, before, after))


def _is_map(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and sum(side > 1 for side in shape[1:]) > 1


def _pool_call(
    modules: Mapping[str, nn.Module], run: Trace, line: Sequence[int], before: int, after: int
) -> Call | None:
    """The smallest call of a module without matrices that makes a vector of a map."""
    values, on_line = run.values, set(line)
    fitting = [
        call
        for call in run.calls
        if call.source in on_line
        and call.result in on_line
        and call.name
        and call.source <= before
        and call.result >= after
        and _is_map(values[call.source].shape)
        and not _is_map(values[call.result].shape)
        and math.prod(values[call.result].shape) < math.prod(values[call.source].shape)
        and all(parameter.dim() < 2 for parameter in modules[call.name].parameters())
    ]
    return min(
        fitting,
        key=lambda call: (call.result or 0) - (call.source or 0) - call.depth * 1e-3,
        default=None,
    )


def _pool_module(modules: Mapping[str, nn.Module], run: Trace, call: Call) -> _Found:
    assert call.source is not None
    assert call.result is not None
    module, shape = modules[call.name], run.values[call.source].shape
    pooled = run.values[call.result].shape
    layer = type(module).__name__
    times = sum(other.name == call.name for other in run.calls)
    if times > 1:
        return _Found(
            name=call.name,
            layer=layer,
            reason=f"{call.name!r} ({layer}) is called {times} times for one image, and not only "
            "by the head; give the head a pool module of its own",
        )
    if math.prod(pooled) != shape[1]:
        return _Found(
            name=call.name,
            layer=layer,
            reason=f"{call.name!r} ({layer}) makes {math.prod(pooled)} features of a map of "
            f"{_shape(run.values[call.source])}, expected one a channel, (B, {shape[1]}) or "
            f"(B, {shape[1]}, 1, 1) of (B, {shape[1]}, H, W)",
        )
    return _Found(
        name=call.name,
        layer=layer,
        in_features=shape[1],
        feat_size=(shape[2], shape[3]),
        keepdim=len(pooled) == 4,
        average=_averages(module, shape),
        pooled=call.result,
    )


def _averages(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a pool gives the mean of random numbers."""
    if any(True for _ in module.parameters()):
        return False
    generator = torch.Generator().manual_seed(0)
    size = (1, min(shape[1], 8), *shape[2:])
    with torch.device("cpu"), torch.no_grad():
        x = torch.randn(size, generator=generator, device="cpu")
        try:
            pooled = shadow(module).eval()(x).flatten(1)
            return torch.allclose(pooled, x.mean((2, 3)), atol=1e-5)
        except RuntimeError:
            return False


def _named_pool(
    modules: Mapping[str, nn.Module], run: Trace, line: Sequence[int], name: str
) -> _Found:
    """The place that the user has named: a pool, or the module whose output a function pools."""
    values, on_line = run.values, set(line)
    calls = [call for call in run.calls if call.name == name]
    for call in calls:
        if call.source in on_line and call.result in on_line and call.result is not None:
            assert call.source is not None
            if _is_map(values[call.source].shape) and not _is_map(values[call.result].shape):
                if any(parameter.dim() > 1 for parameter in modules[name].parameters()):
                    break
                return _pool_module(modules, run, call)
    for call in calls:
        if call.result is None:
            continue
        at, place = call.result, "behind"
        following = [number for number in line if number > at]
        while following and values[following[0]].op.startswith("relu") and place == "behind":
            at, place = following.pop(0), "behind-relu"
        if call.result in on_line and following and _is_map(values[at].shape):
            shape, pooled = values[at].shape, values[following[0]]
            if math.prod(pooled.shape) == shape[1] and pooled.op in _AVERAGES:
                return _Found(
                    name=name,
                    layer=f"{pooled.op}() behind {type(modules[name]).__name__}",
                    place="behind" if place == "behind" else "behind-relu",
                    in_features=shape[1],
                    feat_size=(shape[2], shape[3]),
                    keepdim=True,
                    average=True,
                    pooled=following[0],
                )
    return _Found(
        name=name,
        layer=type(modules[name]).__name__,
        reason=f"pool_name={name!r} is a {type(modules[name]).__name__} that neither pools a map "
        "to one position nor makes the map that a function call averages to one position",
    )


def _why_no_pool(modules: Mapping[str, nn.Module], run: Trace, before: int, after: int) -> str:
    source, result = run.values[before], run.values[after]
    network = type(modules[""]).__name__
    reader = next((call.name for call in run.calls_from(after) if call.name), "")
    if math.prod(result.shape) == math.prod(source.shape):
        if len(result.shape) == 2:
            where = f"its classifier {reader!r}" if reader else "its classifier"
            return (
                f"{network} has no global pool: {where} reads all positions of the "
                f"{_shape(source)} map one by one (flattened to {result.shape[1]} features)"
            )
        return (
            f"{network} turns its map of {_shape(source)} into {_dims(result)}, a sequence of "
            "patches, before it pools; pool a (B, C, H, W) map instead"
        )
    if math.prod(result.shape) == source.shape[3] != source.shape[1]:
        return (
            f"{network} pools a map with its channels last, (B, H, W, C); permute it to "
            "(B, C, H, W) before the pool"
        )
    between = [value for value in run.values[before + 1 : after + 1] if value.op.startswith("conv")]
    if between:
        return (
            f"{network} has nothing to pool at this input_size: its convolution "
            f"{between[0].owner!r} reduces the {_shape(source)} map to one position; a larger "
            "input_size may leave more"
        )
    owner = type(modules[result.owner]).__name__
    call = f"{result.op.rstrip('_')}() in {owner}.forward"
    behind = _behind(run, before) if result.op in _AVERAGES else None
    if math.prod(result.shape) != source.shape[1] or behind is None:
        return (
            f"{network} makes {_dims(result)} of its map of {_shape(source)} by a function call, "
            f"{call}, which cannot be replaced; write the pool as a module: {_EXAMPLE}"
        )
    return (
        f"{network} pools by a function call, {call}, on the {_shape(source)} map that "
        f"{behind!r} makes, and a call cannot be replaced; give pool_name={behind!r} to have the "
        "attention pool put behind that module (the call then finds a map of one position), or "
        f"write the pool as a module: {_EXAMPLE}"
    )


def _behind(run: Trace, value: int) -> str | None:
    """The outermost module that makes a map, a ReLU after it aside."""
    for number in (value, *run.values[value].sources):
        calls = [call for call in run.calls_to(number) if call.name]
        if calls:
            return calls[0].name
        if not run.values[value].op.startswith("relu"):
            return None
    return None


def _find_classifier(modules: Mapping[str, nn.Module], run: Trace) -> str | None:
    """The linear layer or 1x1 convolution that makes the logits, after the pool or before it."""
    if run.output is None:
        return None
    on_line = set(run.bottlenecks())
    last: dict[bool, str] = {}
    for call in run.calls:
        module = modules[call.name]
        linear = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        )
        if linear and call.source in on_line and call.result in on_line:
            last[_is_map(run.values[call.source].shape)] = call.name
    if False in last:
        return last[False]
    before_pool = modules.get(last.get(True, ""))
    classes = math.prod(run.values[run.output].shape)
    made = before_pool.out_channels if isinstance(before_pool, nn.Conv2d) else None
    return last[True] if made == classes else None


def _macs_between(
    modules: Mapping[str, nn.Module], run: Trace, pooled: int, classifier: str | None
) -> int:
    """Multiply-adds of what lies between pool and classifier, and runs once a token."""
    between = 0
    for call in run.calls:
        module = modules[call.name]
        if isinstance(module, nn.Linear | nn.Conv2d) and call.name != classifier:
            source = -1 if call.source is None else call.source
            if source >= pooled and not _is_map(run.values[source].shape):
                between += module.weight.numel()
    return between


def _class_tokens(
    modules: Mapping[str, nn.Module], run: Trace, classifier: str | None
) -> tuple[int, str | None]:
    """Number of class tokens, or why there cannot be one a class."""
    if run.output is None:
        return 1, (
            f"the network returns {len(run.outputs)} tensors, and a map a class needs one of "
            "logits; use pool='attention'"
        )
    classes = math.prod(run.values[run.output].shape)
    module = modules.get(classifier) if classifier is not None else None
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return 1, (
            "no linear layer or 1x1 convolution makes the logits from pooled features, so that a "
            "map a class has no weights; name it as classifier_name=, or use pool='attention'"
        )
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return 1, (
            f"the weight of the classifier {classifier!r} is computed from others (parametrised, "
            "normed or pruned), and a map a class takes its rows apart; remove that first, or use "
            "pool='attention'"
        )
    call = next(call for call in run.calls if call.name == classifier)
    read = None if call.source is None else run.values[call.source].shape
    if read is None or _is_map(read) or module.weight.shape[0] != classes:
        return 1, (
            f"the classifier {classifier!r} stands before the pool or does not make the "
            f"{classes} logits itself; use pool='attention'"
        )
    return classes, None


def _dims(value: Value) -> str:
    return f"({', '.join(map(str, ('B', *value.shape[1:])))})"


def _shape(value: Value) -> str:
    return f"{'x'.join(map(str, value.shape[2:]))} x {value.shape[1]} channels"
