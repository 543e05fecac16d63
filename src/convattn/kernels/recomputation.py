"""Tensors that the backward pass recomputes instead of keeping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.kernels.tracing import is_tracing


@contextmanager
def recompute(made: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Within it, operators that need ``made`` for their backward pass do not keep it.

    They call ``make`` for it when the backward pass comes. Nothing changes without gradients, nor
    while tracing: compilers choose for themselves what to recompute, and
    ``torch.func`` allows nobody else to; nor with tensors that hold no numbers of their own, as
    fake ones.

    Args:
        made: What is not to be kept; dense, in any order of its dimensions.
        make: Computes it again, bit for bit, from what is kept anyway; called without gradients.

    Examples:
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> y = x.sin()
        >>> with recompute(y, x.sin):
        ...     z = y.square()
        >>> torch.equal(torch.autograd.grad(z.sum(), x)[0], 2 * x.sin() * x.cos())
        True
    """
    if is_tracing() or made.is_meta or type(made) is not Tensor or not torch.is_grad_enabled():
        yield
        return
    place, numbers = made.data_ptr(), made.numel()
    device = made.device.type
    casts = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    )

    def pack(kept: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        if kept.data_ptr() == place and kept.numel() == numbers:
            return kept.shape, kept.stride()
        return kept

    def unpack(kept: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad(), casts:
            return make().as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def count_batches_once(model: nn.Module, wanted: bool = True) -> None:
    """Keeps a recomputed pass from moving the running statistics of batch norms a second time.

    Gradient checkpointing runs its part of a network again in the backward pass, whatever that
    part remembers.

    Args:
        model: Hooks are put on its batch norms, or taken off.
        wanted: Whether it is checkpointed from now on.
    """
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            continue
        for hook, hooks in (
            (_put_aside, module._forward_pre_hooks),
            (_put_back, module._forward_hooks),
        ):
            for key in [key for key, own in hooks.items() if own is hook]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        if wanted:
            module.register_forward_pre_hook(_put_aside)
            module.register_forward_hook(_put_back, always_call=True)


def _put_aside(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Gives a norm that runs in a backward pass statistics to move that nobody reads."""
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    norm.__dict__["_statistics"] = dict(norm._buffers)
    for name, buffer in norm._buffers.items():
        norm._buffers[name] = None if buffer is None else buffer.clone()


def _put_back(norm: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    """Also after checkpointing has broken off, when it has what it wanted."""
    if "_statistics" in norm.__dict__:
        norm._buffers.update(norm.__dict__.pop("_statistics"))
