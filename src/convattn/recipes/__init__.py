"""Named training runs: functions that return a ``TrainConfig``.

A figure marked *inferred* is in neither paper nor public code. "Ours" is filled in where we have
trained the recipe to its end.
"""

from convattn.recipes import (
    classification,
    detection,
    imagenet,
    patchconvnet,
    segmentation,
)
from convattn.recipes.registry import RECIPES, Recipe, register_recipe

__all__ = [
    "RECIPES",
    "Recipe",
    "classification",
    "detection",
    "imagenet",
    "patchconvnet",
    "register_recipe",
    "segmentation",
]
