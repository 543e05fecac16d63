"""Both papers' tables: which recipes are their rows, and what their figures mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from convattn.config import TrainConfig
from convattn.recipes import RECIPES, Row
from convattn.weights import RELEASES


@dataclass(frozen=True, kw_only=True)
class RecipeRow(Row):
    """A row of a paper's table, and what trains it."""

    recipe: str
    """Name of the recipe."""

    @property
    def config(self) -> TrainConfig:
        """Of the recipe."""
        return RECIPES[self.recipe].config


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are counted alike."""

    title: str
    """Stands above it."""
    metric: str
    """What the score is, for people."""
    field: str
    """Where ``evaluation.json`` holds it."""
    rows: tuple[RecipeRow, ...]
    """In the paper's order."""
    flops: int = 1
    """What a multiply-add counts: 1, or 2 where the paper has FLOPs."""

    @property
    def unit(self) -> str:
        """Of the cost."""
        return "GMACs" if self.flops == 1 else "GFLOPs"


def _table(key: str, title: str, *, field: str = "top1", flops: int = 1) -> Table:
    rows = [
        RecipeRow(recipe=name, **dataclasses.asdict(recipe.row))
        for name, recipe in RECIPES.items()
        if recipe.row is not None and recipe.row.table == key
    ]
    # Released ones in the order of the authors' README, then the others as they are listed.
    order = list(RELEASES)
    rows.sort(key=lambda row: order.index(row.release) if row.release else len(order))
    metric = rows[0].metric
    return Table(title=title, metric=metric, field=field, rows=tuple(rows), flops=flops)


TABLES = (
    _table("patchconvnets", "PatchConvNet on ImageNet"),
    _table("resnets", "Attention-augmented ResNets on ImageNet, with their twins", flops=2),
    _table("mnasnets", "Attention-augmented MnasNets on ImageNet, with their twins", flops=2),
    _table("wide_resnets", "Attention-augmented Wide-ResNet on CIFAR-100, with its twins", flops=2),
    _table("retinanets", "RetinaNet on COCO", field="map", flops=2),
    _table("upernets", "PatchConvNet in UPerNet on ADE20k", field="miou"),
    _table("mask_rcnns", "PatchConvNet in Mask R-CNN on COCO", field="map"),
)
"""Every row of both papers that there is a network for."""

HEADLINE = (
    "patchconvnet_s60_imagenet",
    "patchconvnet_s120_imagenet",
    "patchconvnet_b60_imagenet",
    "patchconvnet_b120_imagenet",
    "patchconvnet_s60_finetune_512",
    "patchconvnet_b60_finetune_384",
    "patchconvnet_l120_finetune_384",
    "aa_resnet152_imagenet",
    "aa_wide_resnet28_10_cifar100",
)
"""Recipes of the rows that the papers are known by."""
