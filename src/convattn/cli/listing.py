"""``convattn list``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tyro

from convattn.cli.targets import num_params_of
from convattn.cli.words import UsageError, parse, summary
from convattn.text import aligned, nearest


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Show convattn's models: their parameters at 1,000 classes, and what they are."""

    filter: Annotated[str | None, tyro.conf.Positional] = None
    """Show only names that contain this."""
    recipes: bool = False
    """Show the recipes instead."""
    dense: bool = False
    """Show the detectors and segmenters instead."""
    data: bool = False
    """Show the data sets instead."""


def command(arguments: list[str]) -> int:
    """Run ``convattn list``."""
    options = parse(ListOptions, ListOptions(), arguments, prog="convattn list")
    describe: Callable[[str], tuple[str, ...]]
    names: list[str]
    if options.recipes:
        from convattn.recipes import RECIPES

        names, describe = list(RECIPES), lambda name: (name, RECIPES[name].summary)
    elif options.data:
        tasks = _tasks_of_data()
        names, describe = list(tasks), lambda name: (name, ", ".join(tasks[name]))
    elif options.dense:
        from convattn.tasks import TASKS

        dense = {name: made for task in TASKS.values() for name, made in task.models.items()}
        names, describe = list(dense), lambda name: (name, summary(dense[name]))
    else:
        from convattn import OUR_MODELS

        names, describe = list(OUR_MODELS), _describe_model
    rows = [describe(name) for name in names if (options.filter or "") in name]
    if not rows:
        assert options.filter is not None
        raise UsageError(
            f"no name contains {options.filter!r}; the nearest is "
            f"{nearest(options.filter, names)!r}"
        )
    print("\n".join(aligned(rows)))
    return 0


def _tasks_of_data() -> dict[str, list[str]]:
    """Name of each data set -> what it can be used for."""
    from convattn.tasks import TASKS

    tasks: dict[str, list[str]] = {}
    for task in TASKS.values():
        for name in task.datasets:
            tasks.setdefault(name, []).append(task.name)
    return tasks


def _describe_model(name: str) -> tuple[str, str, str]:
    """Name, parameters in millions and sentence of a model."""
    import timm

    return name, f"{num_params_of(name) / 1e6:7.2f} M", summary(timm.model_entrypoint(name))
