"""The blocks of any network: what is gathered, or computed once more, as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def units(model: nn.Module) -> Iterator[nn.Module]:
    """Blocks whose parameters are gathered together: the inner ones first.

    They are what lists and sequences of a network hold, but layers, lists and sequences.

    Args:
        model: A network.

    Examples:
        >>> block = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3)})
        >>> list(units(nn.Sequential(nn.Linear(1, 1), nn.Sequential(block)))) == [block]
        True
    """
    lists = (nn.ModuleList, nn.Sequential)
    for module in reversed(list(model.modules())):
        if isinstance(module, lists):
            for one in reversed(list(module.children())):
                if not isinstance(one, lists) and any(True for _ in one.children()):
                    yield one
