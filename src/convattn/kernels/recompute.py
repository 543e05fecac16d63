"""Tensors that the backward pass makes anew instead of keeping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def is_followed() -> bool:
    """Whether a compiler, an export or ``torch.func`` follows the operators that are called."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
    )


@contextmanager
def made_anew(made: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Within it, operators that need ``made`` for their backward pass do not keep it.

    They call ``make`` for it when the backward pass comes. Nothing changes without gradients, nor
    where operators are followed: compilers choose for themselves what to make anew, and
    ``torch.func`` allows nobody else to.

    Args:
        made: What is not to be kept; dense, in any order of its dimensions.
        make: Computes it again, bit for bit, from what is kept anyway; called without gradients.

    Example:
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> y = x.sin()
        >>> with made_anew(y, x.sin):
        ...     z = y.square()
        >>> torch.equal(torch.autograd.grad(z.sum(), x)[0], 2 * x.sin() * x.cos())
        True
    """
    if is_followed() or made.is_meta or not torch.is_grad_enabled():
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
