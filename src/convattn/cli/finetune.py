"""``convattn finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import Weights, config_on_images, folder_to_resume
from convattn.config import FinetuneConfig
from convattn.text import say

if TYPE_CHECKING:
    from convattn.finetuning.folder import FinetunedRun

_PROG = "convattn finetune"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(FinetuneConfig):
    """From a folder of images to a trained, tested and explained classifier.

    Reads the images and says what it found; splits them if nobody has; trains a pool and a
    classifier on a small trained network, then the whole of it where there is time and validation
    images find that better; tests once, and leaves a run folder with report.html. convattn
    finetune --resume DIR goes on with one that was stopped.
    """

    images: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")] = None
    """A folder or a table of images, or cluttered_digits, which is generated."""
    weights: Weights = None
    """File of trained weights of the model."""


def command(arguments: list[str]) -> int:
    """Run ``convattn finetune``."""
    stopped = folder_to_resume(arguments, prog=_PROG, what="finetuning")
    if stopped is not None:
        from convattn.finetuning.run import resume_finetune

        return _show(resume_finetune(stopped))
    config = config_on_images(FinetuneOptions, FinetuneConfig, arguments, prog=_PROG)

    from convattn.finetuning.run import run_finetune

    return _show(run_finetune(config))


def _show(run: FinetunedRun) -> int:
    say(f"{run.result.table()}\n\n{run.folder} holds the network; see {run.report}")
    return 0
