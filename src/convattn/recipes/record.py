"""What is kept of a recipe: a record a row of the papers' tables, and of our own trainings."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, replace

from convattn.config import ModelConfig, Scalar, TrainConfig

_WIDTHS = ("channels", "aux_channels", "box_channels", "mask_channels")
"""Arguments of heads that go with a backbone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a paper's table: the one place where its figures stand, as the paper prints them."""

    table: str
    """Key of the table in ``convattn.papers.TABLES``."""
    name: str
    """What the paper calls it."""
    source: str
    """Paper, and its table."""
    score: str
    """Per cent."""
    metric: str = "top-1"
    """What the score is."""
    top5: str = ""
    """Per cent of top-5, where the paper gives it."""
    remark: str = ""
    """What else belongs to the score."""
    score_known: bool = True
    """Whether a second source confirms the score."""
    parameters: str = ""
    """Millions."""
    cost: str = ""
    """G multiply-adds or GFLOPs, whichever the table has."""
    cost_known: bool = True
    """Whether a second source confirms parameters and cost."""
    left_out: int = 0
    """Multiply-adds that the paper's network has and ours, computing the same, has not."""
    size: tuple[int, int] | None = None
    """Height and width that its cost is counted at; None takes what the recipe's network sees."""
    from_weights: bool = False
    """Whether the training starts from trained weights."""
    release: str | None = None
    """Name and tag of the authors' weights."""

    def __str__(self) -> str:
        unit = f"% {self.metric}" if self.metric == "top-1" else self.metric
        top5 = f", {self.top5} % top-5" if self.top5 else ""
        known = "" if self.score_known else ", by memory and unconfirmed"
        return f"{self.score} {unit}{top5}{self.remark}{known}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training by name, and what is known of it."""

    config: TrainConfig
    """The training; its ``recipe`` is the name."""
    summary: str
    """What it is, in a sentence."""
    notes: str = ""
    """How it is started, where that needs saying."""
    row: Row | None = None
    """The row that it reproduces."""
    paper: str = "none"
    """What a paper says, where it gives no figure."""
    ours: str = "not trained yet"
    """What came of it here."""
    ours_on: str = ""
    """On what: seeds, number of classes."""
    hardware: str = "8 GPUs"
    """What it is meant for, or was trained on."""
    time: str = "not measured"
    """How long it took there."""
    settings: str = ""
    """Which of its settings are known, and from where; *inferred* is in neither paper nor code."""

    @property
    def name(self) -> str:
        """As ``convattn train`` takes it."""
        return self.config.recipe

    def __call__(self) -> TrainConfig:
        """The training."""
        return self.config

    @property
    def description(self) -> str:
        """All of it as text."""
        paper = f"Paper: {self.paper}."
        if self.row is not None:
            paper = f"Paper ({self.row.source}): {self.row}."
        elif self.paper.startswith("("):
            paper = f"Paper {self.paper}."
        ours = f"Ours{f', {self.ours_on}' if self.ours_on else ''}: {self.ours}."
        known = f"{paper} {ours} Hardware: {self.hardware}. Time: {self.time}. {self.settings}"
        parts = [self.summary, *([self.notes] if self.notes else []), known.strip()]
        return "\n\n".join(textwrap.fill(part, 100, break_on_hyphens=False) for part in parts)


RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name."""


def add_recipe(recipe: Recipe) -> Recipe:
    """List a recipe.

    Args:
        recipe: Of a name that is free.
    """
    assert recipe.name not in RECIPES
    RECIPES[recipe.name] = recipe
    return recipe


def without_leftovers(
    given: ModelConfig, recipe: ModelConfig, told: Collection[str]
) -> tuple[ModelConfig, list[str]]:
    """A model on another backbone than its recipe's, without what the recipe chose for that one.

    These are the backbone's arguments and the widths of the heads, which then are the network's
    own.

    Args:
        given: What is trained.
        recipe: What the recipe trains.
        told: Paths of fields that were given on purpose, as ``model_args.channels``, and stay.

    Returns:
        The model, and the arguments that are gone, as people write them.
    """
    if given.backbone == recipe.backbone:
        return given, []
    kept: dict[str, dict[str, Scalar]] = {}
    gone = []
    of_backbone = (("backbone_args", tuple(recipe.backbone_args)), ("model_args", _WIDTHS))
    for field, names in of_backbone:
        values: dict[str, Scalar] = getattr(given, field)
        left = [
            name
            for name in names
            if name in values
            and values[name] == getattr(recipe, field).get(name)
            and not {field, f"{field}.{name}"} & set(told)
        ]
        kept[field] = {name: value for name, value in values.items() if name not in left}
        gone += [f"{name} {values[name]}" for name in left]
    model = replace(given, backbone_args=kept["backbone_args"], model_args=kept["model_args"])
    return model, gone


def vary_model(base: TrainConfig, recipe: str, /, **model: object) -> TrainConfig:
    """The same training under another name, of another model.

    Args:
        base: What it shares.
        recipe: Name of the recipe.
        model: Fields of the model that differ.
    """
    return dataclasses.replace(
        base,
        recipe=recipe,
        model=dataclasses.replace(base.model, **model),  # type: ignore[arg-type]
    )
