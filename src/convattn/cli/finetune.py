"""``convattn finetune``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import Weights, check_free, with_data_flags
from convattn.cli.words import UsageError, parse
from convattn.config import FinetuneConfig

if TYPE_CHECKING:
    from convattn.finetuning.run import FinetunedRun

_PROG = "convattn finetune"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(FinetuneConfig):
    """From a folder of images to a trained, tested and explained classifier.

    Reads the images and says what it found; splits them if nobody has; trains a pool and a
    classifier on a small trained network, then all of it while the time lasts; tests once, and
    leaves a run folder with report.html. convattn finetune --resume DIR goes on with one that was
    stopped.
    """

    images: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")] = None
    """A folder or a table of images, or cluttered_digits, which is generated."""
    weights: Weights = None
    """File of trained weights of the model."""

    @property
    def config(self) -> FinetuneConfig:
        """The finetuning alone."""
        names = (item.name for item in dataclasses.fields(FinetuneConfig))
        return FinetuneConfig(**{name: getattr(self, name) for name in names})


def command(arguments: list[str]) -> int:
    """Run ``convattn finetune``."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        return _resume(arguments)
    options = parse(FinetuneOptions, FinetuneOptions(), with_data_flags(arguments), prog=_PROG)
    if options.images is None:
        raise UsageError(f"{_PROG} takes a folder or a table of images: {_PROG} IMAGES")
    check_free(options.out)

    from convattn.finetuning.run import run_finetune
    from convattn.probing import located

    if options.data.root is not None:
        raise UsageError(f"--data.root is {_PROG}'s first word; leave the flag out")
    of_data = {
        item.name: getattr(options.data, item.name)
        for item in dataclasses.fields(options.data)
        if item.name != "root"
    }
    data = type(options.data)(**located(options.images, of_data))
    return _show(run_finetune(dataclasses.replace(options.config, data=data)))


def _resume(arguments: list[str]) -> int:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) != 2 or words[0] != "--resume":
        raise UsageError(
            f"--resume takes the folder of a finetuning and nothing else: {_PROG} --resume DIR"
        )
    from convattn.finetuning.run import resume_finetune

    return _show(resume_finetune(Path(words[1])))


def _show(run: FinetunedRun) -> int:
    print(f"{run.result.table()}\n\n{run.folder} holds the network; see {run.report}")
    return 0
