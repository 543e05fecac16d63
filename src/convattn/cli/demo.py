"""``convattn demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.targets import (
    Weights,
    check_weights,
    find_target,
)
from convattn.cli.words import parse

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """A page in the browser that shows where a network looks."""

    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""
    num_classes: int | None = None
    """Number of classes of those weights; None takes the model's own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int | None = None
    """Port to listen on; None takes the first free one from 7860 on."""
    browser: bool = False
    """Open the page in the browser."""


def command(arguments: list[str]) -> int:
    """Run ``convattn demo``.

    Args:
        arguments: Words behind the command.
    """
    prog = "convattn demo"
    named = bool(arguments) and not arguments[0].startswith("-")
    target: str | None = None
    folder: Path | None = None
    if named:
        target, folder = find_target(DemoOptions(), arguments, prog=prog, model="MODEL")
    options = parse(DemoOptions, DemoOptions(), arguments[named:], prog=prog)
    check_weights(folder, options.weights)
    from convattn.demo import launch

    launch(
        target,
        checkpoint=options.weights,
        num_classes=options.num_classes,
        host=options.host,
        port=options.port,
        open_browser=options.browser,
    )
    return 0
