"""``convattn probe``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import Weights, config_on_images, folder_to_resume
from convattn.config import ProbeConfig
from convattn.text import say

if TYPE_CHECKING:
    from convattn.probing.study import ProbedRun

_PROG = "convattn probe"


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(ProbeConfig):
    """Train every pool on a frozen network's maps: which is best, by how much, where it looks.

    The maps are computed once and cached; pools, learning rates and seeds are trained on them
    together. convattn probe --resume DIR goes on with one that was stopped.
    """

    images: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")] = None
    """A folder or a table of images, or cluttered_digits, which is generated."""
    weights: Weights = None
    """File of trained weights of the model; None, without --pretrained or --random: a run's own."""


def command(arguments: list[str]) -> int:
    """Run ``convattn probe``."""
    stopped = folder_to_resume(arguments, prog=_PROG, what="probe")
    if stopped is not None:
        from convattn.probing.study import resume_probe

        return _show(resume_probe(stopped))
    config = config_on_images(ProbeOptions, ProbeConfig, arguments, prog=_PROG)

    from convattn.probing.study import run_probe

    return _show(run_probe(config))


def _show(run: ProbedRun | None) -> int:
    if run is None:  # another process speaks
        return 0
    say(f"{run.table}\n\n{run.folder} holds the network with {run.best}")
    for name in ("probe.csv", "report.md", "README.md"):
        say(str(run.folder / name))
    return 0
