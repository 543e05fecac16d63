"""How a network is run: modes, frozen parameters, hooks, on which device, with how many cores."""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from convattn.exceptions import NonFiniteError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in.

    Also after an error, and a network that is trained with some norms frozen keeps them frozen.

    Examples:
        >>> model = nn.Dropout()
        >>> with eval_mode(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if type(module).train is not nn.Module.train:  # it does more than to set the flag
                module.train(training)
        for module, training in modes:
            module.training = training


def check_finite(logits: Tensor, network: str = "the network") -> None:
    """Refuse logits that are no numbers.

    Args:
        logits: Of B images, (B, ...).
        network: What the error calls the network.

    Raises:
        NonFiniteError: If one is NaN or infinite; tells of how many images.
    """
    finite = logits.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"{network} gives logits that are not finite (NaN or infinite) for "
            f"{int((~finite).sum())} of {len(logits)} images: its training has diverged, or its "
            "weights are damaged or too large for the number format; use other weights"
        )


@contextmanager
def frozen_eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters in the block; then everything is as it was.

    Mode flags of every module, ``requires_grad`` and ``grad`` of every parameter come back, also
    after an error. A compiled network runs eagerly in the block. Other threads that want the same
    network so wait until the block is left.
    """
    with _lock_of(model):
        yield from _frozen_eval_mode(model)


_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKING = threading.Lock()


def _lock_of(model: nn.Module) -> AbstractContextManager[Any]:
    """One lock a network, which a thread may take several times."""
    with _LOCKING:
        lock: AbstractContextManager[Any] = _LOCKS.setdefault(model, threading.RLock())
        return lock


def _frozen_eval_mode(model: nn.Module) -> Iterator[None]:
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in states:
            parameter.requires_grad_(False).grad = None
        with eval_mode(model), eager_mode():
            yield
    finally:
        for parameter, requires_grad, gradient in states:
            parameter.requires_grad_(requires_grad).grad = gradient


def eager_mode() -> AbstractContextManager[Any]:
    """Runs compiled code eagerly, since it would not call hooks."""
    # Importing the compiler takes seconds, and without it nothing can have been compiled.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def multiplies_in_tf32() -> bool:
    """Whether PyTorch may multiply matrices of float32 in TF32 on a CUDA device."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)  # before torch 2.9, whose newer name excludes this one


def interprets_triton() -> bool:
    """Whether Triton interprets its kernels on the CPU, as ``TRITON_INTERPRET=1`` asks it to."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def hooks_of(module: nn.Module) -> list[Any]:
    """Everything that is called when a module runs, forward or backward, beside itself.

    Args:
        module: One module, without those inside it.

    Examples:
        >>> hooks_of(nn.Identity())
        []
    """
    return [
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    ]


def own_calls(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that sees what the thread that makes it runs, and not what others do meanwhile.

    Args:
        hook: Of a module, forward or before it.
    """
    thread = threading.get_ident()

    @functools.wraps(hook)
    def own(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return own


def is_unmodified(layer: nn.Module) -> bool:
    """Whether reading a layer's parameters does all that calling it would.

    That is: it is exactly what PyTorch built, without hooks, parametrisation or a stand-in such as
    an adapter or an int8 layer, and its weight is a plain tensor.

    Args:
        layer: One module.

    Examples:
        >>> is_unmodified(nn.Linear(2, 2)), is_unmodified(nn.Sequential())
        (True, False)
    """
    return (
        type(layer) in (nn.Linear, nn.Conv2d, nn.LayerNorm)
        and not hooks_of(layer)
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
    )


def default_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else the GPU if there is one.

    Args:
        device: A device or its name.

    Raises:
        ValueError: If it is the name of none, or of a GPU where there is none.
    """
    has_gpu = torch.cuda.is_available()
    try:
        found = torch.device(device or ("cuda" if has_gpu else "cpu"))
    except RuntimeError:
        raise ValueError(
            f"device={device!r} is none of PyTorch's; expected cpu, cuda or cuda:1 alike"
        ) from None
    if found.type == "cuda" and not has_gpu:
        raise ValueError(f"device={device!r}, but PyTorch finds no GPU here; leave it out")
    return found


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # what a container leaves of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
