"""Where recipes are listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from convattn.config import TrainConfig

Recipe = Callable[[], TrainConfig]

RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name."""


def register_recipe(recipe: Recipe) -> Recipe:
    """List a function among the recipes, under its own name.

    Args:
        recipe: Returns the configuration; its docstring says what it reproduces.
    """
    RECIPES[recipe.__name__] = recipe
    return recipe


def variant(base: TrainConfig, recipe: str, **model: object) -> TrainConfig:
    """The same training under another name, with another model.

    Args:
        base: What it shares.
        recipe: The name.
        model: Fields of the model that differ.
    """
    return dataclasses.replace(
        base,
        recipe=recipe,
        model=dataclasses.replace(base.model, **model),  # type: ignore[arg-type]
    )
