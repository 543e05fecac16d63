"""Named trainings: a record a row of the papers' tables, and of our own.

A figure marked *inferred* is in neither paper nor public code. "Ours" is filled in where we have
trained the recipe to its end.
"""

# Importing these files lists their recipes, in this order.
from convattn.recipes import (
    classification,
    detection,
    imagenet,
    patchconvnet,
    segmentation,
)
from convattn.recipes.record import RECIPES, Recipe, Row

__all__ = [
    "RECIPES",
    "Recipe",
    "Row",
    "classification",
    "detection",
    "imagenet",
    "patchconvnet",
    "segmentation",
]
