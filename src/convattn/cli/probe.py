"""``convattn probe``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import Weights, check_free, with_data_flags
from convattn.cli.words import UsageError, parse
from convattn.config import ProbeConfig

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

    @property
    def config(self) -> ProbeConfig:
        """The probe alone."""
        names = (item.name for item in dataclasses.fields(ProbeConfig))
        return ProbeConfig(**{name: getattr(self, name) for name in names})


def command(arguments: list[str]) -> int:
    """Run ``convattn probe``."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        return _resume(arguments)
    options = parse(ProbeOptions, ProbeOptions(), with_data_flags(arguments), prog=_PROG)
    if options.images is None:
        raise UsageError(f"{_PROG} takes a folder or a table of images: {_PROG} IMAGES")
    check_free(options.out)

    from convattn.probing import located
    from convattn.probing.study import run_probe

    if options.data.root is not None:
        raise UsageError(f"--data.root is {_PROG}'s first word; leave the flag out")
    of_data = {
        item.name: getattr(options.data, item.name)
        for item in dataclasses.fields(options.data)
        if item.name != "root"
    }
    data = type(options.data)(**located(options.images, of_data))
    return _show(run_probe(dataclasses.replace(options.config, data=data)))


def _resume(arguments: list[str]) -> int:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) != 2 or words[0] != "--resume":
        raise UsageError(
            f"--resume takes the folder of a probe and nothing else: {_PROG} --resume DIR"
        )
    from convattn.probing.study import resume_probe

    return _show(resume_probe(Path(words[1])))


def _show(run: ProbedRun) -> int:
    print(f"{run.table}\n\n{run.folder} holds the network with {run.best}")
    for name in ("probe.csv", "report.md"):
        print(run.folder / name)
    return 0
