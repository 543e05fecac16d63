"""Which parameters of a test run by hand alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(fast: Iterable[str], names: Iterable[str]) -> list[Any]:
    """The names, of which all but the fast ones carry the marker ``slow``."""
    names, fast = list(names), set(fast)
    assert fast <= set(names)
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]
