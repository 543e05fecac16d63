"""What is set on the modules of a network beside their weights: modes and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in.

    Also after an error, and a network that is trained with some norms frozen keeps them frozen.

    Args:
        model: Any network.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
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
            module.training = training


def hooks_of(module: nn.Module) -> list[Any]:
    """Everything that is called when a module runs, forward or backward, beside itself.

    Args:
        module: One module, without those inside it.

    Example:
        >>> hooks_of(nn.Identity())
        []
    """
    return [
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    ]
