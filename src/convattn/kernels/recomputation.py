"""Tensors that the backward pass recomputes instead of keeping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from convattn.kernels.tracing import is_tracing


@contextmanager
def recompute(made: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Within it, operators that need ``made`` for their backward pass do not keep it.

    They call ``make`` for it when the backward pass comes. Nothing changes without gradients, nor
    while tracing: compilers choose for themselves what to recompute, and
    ``torch.func`` allows nobody else to.

    Args:
        made: What is not to be kept; dense, in any order of its dimensions.
        make: Computes it again, bit for bit, from what is kept anyway; called without gradients.

    Example:
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> y = x.sin()
        >>> with recompute(y, x.sin):
        ...     z = y.square()
        >>> torch.equal(torch.autograd.grad(z.sum(), x)[0], 2 * x.sin() * x.cos())
        True
    """
    if is_tracing() or made.is_meta or not torch.is_grad_enabled():
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
