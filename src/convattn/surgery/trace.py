"""How data flow through a network: one run on tensors without memory, every operation noted.

What a network does is read from what happens, not from how its parts are called.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convattn.surgery.copying import shadow
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
    outputs: tuple[int, ...]
    """Numbers of all tensors that it returns."""
    macs: int
    """Multiply-adds of convolutions and matrix products."""
    input_size: tuple[int, int, int]
    """(C, H, W) of the image."""

    @property
    def vectors(self) -> tuple[int, ...]:
        """Numbers of the outputs that are no maps: logits, of one classifier or several."""
        return tuple(n for n in self.outputs if len(self.values[n].shape) < 4) or (
            () if self.output is None else (self.output,)
        )

    def bottlenecks(self) -> list[int]:
        """Values through which alone the image reaches the logits, in order."""
        ends = self.vectors
        if not ends:
            return []
        useful = set(ends)
        for number in range(max(ends), -1, -1):
            if number in useful:
                useful.update(self.values[number].sources)
        from_input = {0}
        last_use = dict.fromkeys(useful, -1)
        if len(ends) > 1:
            last_use.update(dict.fromkeys(ends, len(self.values)))
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
    """Run a shadow of a network once and note what happens; the network itself does not run.

    It runs on the meta device, without computing anything; a network whose path depends on what it
    computes has its shadow where it is, and an empty image.

    Args:
        input_size: (C, H, W) of an image.
        count_macs: Count multiply-adds, which takes longest; else they are 0.

    Raises:
        ValueError: If it cannot run on such an image.
    """

    def noted(network: nn.Module, image: Tensor) -> Trace:
        names = {module: name for name, module in network.named_modules()}
        recorder = _Recorder(names=names)
        counter = FlopCounterMode(display=False)
        if count_macs:  # of a run that nobody watches: layers go other ways for hooks
            with counter:
                network(image)
        with _hooked(names, recorder):
            recorder.note(image, "input", ())
            with recorder:
                out = network(image)
        outputs = _numbers(recorder, out)
        return Trace(
            values=recorder.values,
            calls=recorder.calls,
            output=outputs[0] if len(outputs) == 1 else None,
            outputs=outputs,
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


def check_plain(model: nn.Module) -> None:
    """Refuse a network that needs more than an image, or whose weights are not plain numbers.

    Raises:
        ValueError: If attention cannot be put into it.
    """
    _check_inputs(model)
    _check_weights(model)


def _check_inputs(model: nn.Module) -> None:
    """Refuse what needs more than an image."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of C++
        return
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in many]
    if len(needed) > 1:
        raise ValueError(
            f"{type(model).__name__} needs {len(needed)} inputs ({', '.join(needed)}), expected a "
            "network of one image; give the part of it that reads the image alone, and put what "
            "comes back in that part's place"
        )


def _check_weights(model: nn.Module) -> None:
    kind = type(model).__name__
    for name, module in model.named_modules():
        home = type(module).__module__
        if home.startswith(("torch.ao.nn", "torch.nn")) and ".quantized" in home:
            if isinstance(module, torch.ao.nn.quantized.FloatFunctional):
                continue  # of networks that may be quantised, and are not
            raise ValueError(
                f"{kind} is quantised ({name!r} is a {type(module).__name__} of {home}); augment "
                "the float network, then quantise that"
            )
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            raise ValueError(
                f"{kind} has weights that are not plain tensors ({name!r} is a "
                f"{type(parameter).__name__}); augment the network before it is quantised or "
                "sharded, and after lazy layers have seen an image"
            )


def check_runs(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Run a network once and forget it.

    Args:
        input_size: (C, H, W) of an image.

    Raises:
        ValueError: If it cannot run on such an image.
    """
    _run(model, input_size, lambda network, image: network(image))


def _input_sizes(model: nn.Module, given: int | Sequence[int] | None) -> list[tuple[int, int, int]]:
    """The size of the images, with each number of channels that they may have."""
    cfg = getattr(model, "pretrained_cfg", None)
    usual = tuple(cfg.get("input_size", ())) if isinstance(cfg, Mapping) else ()
    sides = (usual or 224) if given is None else given
    try:
        sizes = tuple(map(operator.index, sides if isinstance(sides, Sequence) else (sides, sides)))
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
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
    what: Callable[[nn.Module, Tensor], T],
) -> T:
    """``what`` of a shadow in evaluation mode and an empty image; first on the meta device."""
    first = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = first.dtype if first.dtype.is_floating_point else torch.float32
    size = (1, *input_size)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        try:
            image = torch.zeros(size, device="meta", dtype=dtype)
            return what(shadow(model, device="meta").eval(), image)
        except Exception as error:
            if first.device.type == "meta":
                raise _cannot_run(model, input_size, error) from error
        try:
            return what(shadow(model).eval(), torch.zeros(size, device=first.device, dtype=dtype))
        except Exception as error:
            raise _cannot_run(model, input_size, error) from error


def _cannot_run(model: nn.Module, input_size: tuple[int, int, int], error: Exception) -> ValueError:
    shape = " x ".join(map(str, input_size))
    return ValueError(
        f"{type(model).__name__} cannot run on an image of {shape}: "
        f"{one_line(error)}; give the size it takes as input_size=(C, H, W)"
    )


def _numbers(recorder: _Recorder, out: Any) -> tuple[int, ...]:
    """The tensors in whatever a network returns that were made of the image."""
    numbers = (recorder.number(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


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
