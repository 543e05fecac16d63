"""How data flow through a network: one run on tensors without memory, every operation noted.

What a network does is read from what happens, not from how its parts are called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convattn.modes import eval_mode
from convattn.text import one_line

TRANSFORMER = (
    "the network is a transformer: it cuts the image into patches and attends to them already; "
    "augment() is for convolutional networks"
)
_ATTENTION_OPS = frozenset({"scaled_dot_product_attention", "softmax", "_softmax"})

Size = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that the run has made."""

    shape: Size
    """Its shape, the batch of 1 included."""
    op: str
    """The operation that made it, as in "mean"; "input" for the image."""
    sources: tuple[int, ...]
    """Numbers of the values it was made of; parameters are none."""
    owner: str
    """Name of the innermost module in whose forward it was made; "" for the network itself."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module."""

    name: str
    """The module's name in the network."""
    depth: int
    """Modules around it."""
    source: int | None
    """Number of the value it was given first; None if that is no tensor that was made before."""
    result: int | None
    """Number of the value it returned; None if that is no tensor."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run of a network."""

    values: list[Value]
    calls: list[Call]
    output: int | None
    """Number of the logits; None if the network returns several tensors or none."""
    macs: int
    """Multiply-adds of convolutions and matrix products."""
    input_size: tuple[int, int, int]
    """(C, H, W) of the image."""

    def bottlenecks(self) -> list[int]:
        """Values through which alone the image reaches the logits, in order."""
        if self.output is None:
            return []
        useful = {self.output}
        for number in range(self.output, -1, -1):
            if number in useful:
                useful.update(self.values[number].sources)
        from_input = {0}
        last_use = dict.fromkeys(useful, -1)
        for number in sorted(useful - {0}):
            if from_input.intersection(self.values[number].sources):
                from_input.add(number)
                for source in self.values[number].sources:
                    last_use[source] = max(last_use[source], number)
        found, reach = [], 0
        for number in sorted(from_input & useful):
            if reach <= number:
                found.append(number)
            reach = max(reach, last_use[number])
        return found

    def calls_from(self, value: int) -> list[Call]:
        """Calls of modules that were given this value, the innermost first."""
        calls = [call for call in self.calls if call.source == value]
        return sorted(calls, key=lambda call: -call.depth)

    def calls_to(self, value: int) -> list[Call]:
        """Calls of modules that returned this value, the outermost first."""
        calls = [call for call in self.calls if call.result == value and call.source != value]
        return sorted(calls, key=lambda call: call.depth)


def is_transformer(model: nn.Module, run: Trace) -> bool:
    """Whether a network attends, and has no convolution whose windows overlap."""
    return any(value.op in _ATTENTION_OPS for value in run.values) and not any(
        kernel > stride
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
        for kernel, stride in zip(conv.kernel_size, conv.stride, strict=True)
    )


@dataclass
class _Recorder(TorchDispatchMode):
    """Notes every operation, and by the modules' hooks every call of a module."""

    names: Mapping[nn.Module, str]
    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._number: dict[int, int] = {}
        self._sharing: dict[int, list[Tensor]] = {}
        self._stack: list[tuple[str, int | None]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = tuple(dict.fromkeys(self._number[id(t)] for t in given if id(t) in self._number))
        out = func(*args, **kwargs)
        if sources:
            writes = func._schema.is_mutable
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.note(tensor, func.__name__.split(".")[0], sources, writes=writes)
        return out

    def note(
        self, tensor: Tensor, op: str, sources: tuple[int, ...], *, writes: bool = False
    ) -> None:
        """A new value; whatever shares memory with a tensor that is written to becomes it, too."""
        owner = self._stack[-1][0] if self._stack else ""
        value = Value(shape=tuple(tensor.shape), op=op, sources=sources, owner=owner)
        self.values.append(value)
        memory = tensor.untyped_storage()._cdata
        sharing = self._sharing.setdefault(memory, [])
        if writes:
            self._number.update((id(other), len(self.values) - 1) for other in sharing)
        sharing.append(tensor)
        self._number[id(tensor)] = len(self.values) - 1

    def number(self, found: Any) -> int | None:
        """The number of the first tensor among what a module was given or returned."""
        leaves = (leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return self._number.get(id(next(leaves, None)))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module runs."""
        self._stack.append((self.names[module], self.number((args, kwargs))))

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """After a module has run."""
        name, source = self._stack.pop()
        result = self.number(out) if isinstance(out, Tensor) else None
        call = Call(name=name, depth=len(self._stack), source=source, result=result)
        self.calls.append(call)


def trace(model: nn.Module, input_size: tuple[int, int, int], *, count_macs: bool) -> Trace:
    """Run a network once and note what happens; the network is left as it was.

    It runs on the meta device, without computing anything; a network whose path depends on what it
    computes runs where it is, on an empty image.

    Args:
        input_size: (C, H, W) of an image.
        count_macs: Count multiply-adds, which takes longest; else they are 0.

    Raises:
        ValueError: If it cannot run on such an image.
    """
    names = {module: name for name, module in model.named_modules()}

    def noted(forward: Callable[[Tensor], Any], image: Tensor) -> Trace:
        recorder = _Recorder(names=names)
        counter = FlopCounterMode(display=False)
        with _hooked(names, recorder), counter if count_macs else nullcontext():
            recorder.note(image, "input", ())
            with recorder:
                out = forward(image)
        return Trace(
            values=recorder.values,
            calls=recorder.calls,
            output=_logits(recorder, out),
            macs=counter.get_total_flops() // 2,
            input_size=input_size,
        )

    return _run(model, input_size, noted)


def trace_usual(
    model: nn.Module, input_size: int | Sequence[int] | None = None, *, count_macs: bool = False
) -> Trace:
    """:func:`trace` on an image of the network's usual size.

    Args:
        input_size: A side, (H, W) or (C, H, W) of an image; None takes the usual one.
        count_macs: As in :func:`trace`.

    Raises:
        ValueError: If ``input_size`` is none, or the network cannot run on such an image.
    """
    sizes = _input_sizes(model, input_size)
    for size in sizes[:-1]:
        with suppress(ValueError):
            return trace(model, size, count_macs=count_macs)
    return trace(model, sizes[-1], count_macs=count_macs)


def check_network(model: nn.Module, task: str) -> None:
    """Refuse what is no network that can be traced.

    Args:
        task: What was to be done with it, as in "augment".

    Raises:
        ValueError: If it is no module, scripted, or wrapped by another module.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r} is no network; give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{kind} is a scripted module, whose code is frozen; {task} the Python module it was "
            "made of, then script that"
        )
    wrappers = {
        "OptimizedModule": ("torch.compile", "model._orig_mod"),
        "DataParallel": ("DataParallel", "model.module"),
        "DistributedDataParallel": ("DistributedDataParallel", "model.module"),
        "FullyShardedDataParallel": ("FullyShardedDataParallel", "model.module"),
    }
    if kind in wrappers:
        wrapper, inner = wrappers[kind]
        raise ValueError(f"the network is wrapped by {wrapper}; {task} {inner}, then wrap it again")


def check_runs(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Run a network once and forget it.

    Args:
        input_size: (C, H, W) of an image.

    Raises:
        ValueError: If it cannot run on such an image.
    """
    _run(model, input_size, lambda forward, image: forward(image))


def _input_sizes(model: nn.Module, given: int | Sequence[int] | None) -> list[tuple[int, int, int]]:
    """The size of the images, with each number of channels that they may have."""
    cfg = getattr(model, "pretrained_cfg", None)
    usual = tuple(cfg.get("input_size", ())) if isinstance(cfg, Mapping) else ()
    sides = (usual or 224) if given is None else given
    sizes = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if len(sizes) not in (2, 3) or any(not isinstance(side, int) or side < 1 for side in sizes):
        raise ValueError(
            f"input_size={given!r} is not a side, (H, W) or (C, H, W) in pixels; for instance 224"
        )
    height, width = sizes[-2:]
    if given is not None and len(sizes) == 3:
        return [(sizes[0], height, width)]
    # The first convolution tells, unless the network rearranges the image before it.
    first = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = dict.fromkeys([next(first, 3), *usual[:1], 3])
    return [(count, height, width) for count in channels]


def _run(
    model: nn.Module,
    input_size: tuple[int, int, int],
    what: Callable[[Callable[[Tensor], Any], Tensor], T],
) -> T:
    """``what`` of the network in evaluation mode and an empty image; first on the meta device."""
    first = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = first.dtype if first.dtype.is_floating_point else torch.float32
    with torch.inference_mode(), eval_mode(model):
        try:
            state = {
                name: tensor.detach().to("meta")
                for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
            }
            image = torch.zeros((1, *input_size), device="meta", dtype=dtype)
            return what(partial(functional_call, model, state), image)
        except Exception as error:
            if first.device.type == "meta":
                raise _cannot_run(model, input_size, error) from error
        try:
            return what(model, torch.zeros((1, *input_size), device=first.device, dtype=dtype))
        except Exception as error:
            raise _cannot_run(model, input_size, error) from error


def _cannot_run(model: nn.Module, input_size: tuple[int, int, int], error: Exception) -> ValueError:
    shape = " x ".join(map(str, input_size))
    return ValueError(
        f"{type(model).__name__} cannot run on an image of {shape}: "
        f"{one_line(error)}; give the size it takes as input_size=(C, H, W)"
    )


def _logits(recorder: _Recorder, out: Any) -> int | None:
    """The tensor that a classifier returns, or the only one in whatever it returns."""
    tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    return recorder.number(tensors) if len(tensors) == 1 else None


@contextmanager
def _hooked(names: Mapping[nn.Module, str], recorder: _Recorder) -> Iterator[None]:
    handles = []
    try:
        for module in names:
            handles.append(
                module.register_forward_pre_hook(cast(Any, recorder.enter), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(recorder.leave))
        yield
    finally:
        for handle in handles:
            handle.remove()
