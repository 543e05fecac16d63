"""``convattn train``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from convattn.cli.config_file import words_of
from convattn.cli.targets import with_data_flags
from convattn.cli.words import UsageError, choose, parse
from convattn.config import TrainConfig
from convattn.text import printable, report, say

if TYPE_CHECKING:
    from convattn.train.run import TrainedRun


TRAIN_HELP = """\
usage: convattn train RECIPE [OPTIONS]
       convattn train --resume RUN

Train a recipe and leave a run folder; every value of the recipe can be overridden by a flag:
convattn train RECIPE --help lists them. --resume goes on with a run that was stopped. --dry-run
tells what would be run, and what memory and time it would take of a --gpu, and runs nothing.

recipes:
"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig):
    """A whole training run, or only the telling of it."""

    dry_run: bool = False
    """Tell what would be run and what it would take, and run nothing."""
    gpu: Literal["h100", "a100", "v100", "rtx4090"] | None = None
    """The GPU that --dry-run estimates memory and time for; None takes the h100."""

    auto_resume: bool = False
    """Go on with the same training where --out holds it, stopped or killed: for jobs that are
    started again by torchrun or SLURM."""

    @property
    def config(self) -> TrainConfig:
        """The run alone."""
        names = (item.name for item in dataclasses.fields(TrainConfig))
        return TrainConfig(**{name: getattr(self, name) for name in names})


def command(arguments: list[str]) -> int:
    """Run ``convattn train``."""
    from convattn.recipes import RECIPES

    if arguments and arguments[0] in ("-h", "--help"):
        width = max(map(len, RECIPES))
        lines = (f"  {name:<{width}}  {recipe.summary}" for name, recipe in RECIPES.items())
        print(TRAIN_HELP + "\n".join(lines))
        return 0
    if not arguments:
        raise UsageError("name a recipe, for example `convattn train quickstart`")
    if arguments[0].split("=")[0] == "--resume":
        return _resume(arguments)
    if arguments[0].startswith("-"):
        raise UsageError(f"name a recipe before {arguments[0]}: convattn train RECIPE [OPTIONS]")
    recipe = choose("recipe", arguments[0], RECIPES)
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        raise UsageError("--resume takes no recipe: convattn train --resume RUN")
    options = parse(
        TrainOptions,
        TrainOptions(**vars(recipe.config)),
        with_data_flags(arguments[1:], "val-share"),
        prog=f"convattn train {arguments[0]}",
        description=recipe.description,
    )
    words = [*words_of(options, arguments[1:]), *arguments[1:]]
    options = _on_own_backbone(options, recipe.config, words)
    if options.dry_run:
        if options.auto_resume:
            raise UsageError("--dry-run trains nothing and takes no --auto-resume")
        from convattn.papers.forecast import report as forecast

        print(forecast(options.config, summary=recipe.summary, gpu=options.gpu or "h100"))
        return 0
    if options.gpu is not None:
        raise UsageError("--gpu goes with --dry-run; a training takes the GPUs that are there")
    if options.auto_resume and options.out is None:
        raise UsageError("--auto-resume needs the folder to look in: give --out RUN")
    from convattn.tasks import train, train_or_resume

    begin = train_or_resume if options.auto_resume else train
    return _finish(begin(options.config))


def _on_own_backbone(options: TrainOptions, recipe: TrainConfig, words: list[str]) -> TrainOptions:
    """Without what the recipe chose for its own backbone, if there is another; it is told."""
    from convattn.recipes.record import without_leftovers

    flags = (word.split("=")[0] for word in words)
    told = {flag.removeprefix("--model.").replace("-", "_") for flag in flags}
    model, gone = without_leftovers(options.model, recipe.model, told)
    if gone:
        report(
            f"{', '.join(gone)} of the recipe belong to its backbone {recipe.model.backbone} and "
            f"are left out for {options.model.backbone}; --model.backbone-args and "
            "--model.model-args give others"
        )
    return dataclasses.replace(options, model=model)


def _resume(arguments: list[str]) -> int:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) < 2:
        raise UsageError("--resume needs the run folder: convattn train --resume RUN")
    if len(words) > 2:
        raise UsageError(
            f"--resume goes on with RUN/config.json as it stands and takes no {words[2]}; edit "
            "that file if the data have moved"
        )
    from convattn.tasks import resume

    return _finish(resume(words[1]))


def _finish(run: TrainedRun | None) -> int:
    if run is not None:
        say(f"\n{run.result.table()}\n")
        for file in (*run.figures, run.folder / "report.md"):
            say(printable(str(file)))
    return 0
