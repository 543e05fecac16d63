"""``convattn augment``."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convattn.cli.targets import (
    AttentionOptions,
    find_target,
)
from convattn.cli.words import UsageError, parse
from convattn.config import AugmentConfig, TrainConfig, as_flags
from convattn.text import json_text, say

if TYPE_CHECKING:
    from convattn.runs import Run


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(AttentionOptions):
    """Show what attention would replace in a network, and at what cost; nothing is changed."""

    input_size: int | None = None
    """Height and width of the images, in pixels; None takes those of the network."""
    num_classes: int | None = None
    """Number of classes of a model that is given by name; None keeps its own."""
    json: bool = False
    """Print the plan as JSON, and nothing else."""


def command(arguments: list[str]) -> int:
    """Run ``convattn augment``."""
    prog = "convattn augment"
    target = find_target(AugmentOptions(), arguments, prog=prog, model="MODEL")
    options = parse(AugmentOptions, AugmentOptions(), arguments[1:], prog=f"{prog} {target.name}")
    if target.run is not None and options.num_classes is not None:
        raise UsageError("--num-classes goes with a model's name; a run has its own classes")
    names = [item.name for item in dataclasses.fields(AugmentConfig)]
    wanted = AugmentConfig(**{name: getattr(options, name) for name in names})
    if wanted.pool is None and not wanted.conv:
        wanted = dataclasses.replace(wanted, pool="attention", conv=("all",))

    from convattn.runs import augment_arguments, plan_model
    from convattn.surgery import plan

    asked = augment_arguments(wanted, options.input_size)
    assert asked is not None
    if target.run is None:
        found = plan_model(target.name, asked, num_classes=options.num_classes)
    else:
        found = plan(target.run.load_model(), **asked)
    if options.json:
        print(json_text(found.to_dict(), indent=2))
        return 0
    say(str(found))
    if found.replaced:
        possible = dataclasses.replace(
            wanted,
            pool=wanted.pool if found.pool.replaced else None,
            conv=wanted.conv if any(conv.replaced for conv in found.convs) else (),
        )
        if target.run is None:
            print(f"\n{_how_to_train(target.name, possible, image_size=found.input_size[1])}")
        else:
            print(f"\n{_how_to_train_run(target.run, possible, image_size=options.input_size)}")
    return 0


def _how_to_train(name: str, augment: AugmentConfig, *, image_size: int) -> str:
    """The command that trains a model with attention on a folder of images."""
    import timm

    from convattn.recipes.classification import finetune

    default = finetune.config
    config = dataclasses.replace(
        default,
        data=dataclasses.replace(default.data, root="DIR", image_size=image_size),
        model=dataclasses.replace(
            default.model, name=name, pretrained=timm.models.is_model_pretrained(name)
        ),
        augment=augment,
    )
    return _training_command(config, default)


def _how_to_train_run(run: Run, augment: AugmentConfig, *, image_size: int | None) -> str:
    """The command that trains a run's weights further, with attention."""
    from convattn.recipes import RECIPES
    from convattn.recipes.classification import finetune

    config = run.config
    if config.augment.pool is not None or config.augment.conv:
        return f"{run.folder} has been given attention already; add more in Python, by augment()"
    default = RECIPES.get(config.recipe, finetune).config
    if image_size is None:
        image_size = config.data.image_size
    config = dataclasses.replace(
        config,
        recipe=default.recipe,
        data=dataclasses.replace(config.data, image_size=image_size),
        model=dataclasses.replace(
            config.model, num_classes=None, pretrained=False, checkpoint=str(run.folder)
        ),
        augment=augment,
        out=None,
    )
    return _training_command(config, default)


def _training_command(config: TrainConfig, recipe: TrainConfig) -> str:
    words = ["convattn", "train", recipe.recipe, *as_flags(config, recipe)]
    return f"train it with:\n  {shlex.join(words)}"
