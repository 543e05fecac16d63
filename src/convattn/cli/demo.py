"""``convattn demo``."""

from __future__ import annotations

from dataclasses import dataclass

from convattn.cli.targets import (
    Weights,
    check_weights,
    find_target,
)
from convattn.cli.words import parse


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """A page in the browser that shows what a network finds and where it looks."""

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
    """Run ``convattn demo``."""
    prog = "convattn demo"
    named = bool(arguments) and not arguments[0].startswith("-")
    target = None
    if named:
        target = find_target(DemoOptions(), arguments, prog=prog, model="MODEL", dense=True)
    options = parse(DemoOptions, DemoOptions(), arguments[named:], prog=prog)
    check_weights(None if target is None else target.run, options.weights)
    from convattn.demo import launch

    launch(
        None if target is None else target.run or target.name,
        checkpoint=options.weights,
        num_classes=options.num_classes,
        host=options.host,
        port=options.port,
        open_browser=options.browser,
    )
    return 0
