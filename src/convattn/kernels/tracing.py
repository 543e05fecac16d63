"""Who follows the operators that are called, and so decides which of them may be used."""

import warnings
from typing import NoReturn

import torch
from torch import Tensor, nn


def is_tracing() -> bool:
    """Whether what is called is recorded or transformed rather than just computed.

    ==================== ===================================================================
    compiling            ``torch.compile``, and ``torch.export``, which traces alike: the graph
                         is planned later, and what to recompute is the compiler's choice
    jit tracing          ``torch.jit.trace``, and ONNX by way of it: every operator is written
                         down, with this input's choices
    functorch            ``torch.func`` (vmap, grad, jvp): tensors are wrapped, and neither hooks
                         of autograd nor operators without rules for it are allowed
    ==================== ===================================================================
    """
    return torch.compiler.is_compiling() or _is_recorded_or_transformed()


def needs_standard_operators() -> bool:
    """Whether PyTorch's own operators alone will do: ``is_tracing``, but for ``torch.compile``.

    An exported or traced program is read by software that knows none of ours, and ``torch.func``
    has no rules for them. A compiler keeps them as they are.
    """
    return torch.compiler.is_exporting() or _is_recorded_or_transformed()


def as_number(size: int) -> int:
    """A size as a number, to check it, or to choose by it what holds for every image.

    ``torch.jit.trace`` hands out sizes as tensors and warns of every branch on one, since the graph
    would keep it. Here nothing of it gets into the graph.
    """
    if not isinstance(size, Tensor):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def refuse_scripting(layer: nn.Module) -> NoReturn:
    """What ``torch.jit.script`` calls first, as ``__prepare_scriptable__``, also inside of others.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(layer).__name__}; torch.jit.trace, torch.export "
        "and convattn export can, for any size of image"
    )


def _is_recorded_or_transformed() -> bool:
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
    )
