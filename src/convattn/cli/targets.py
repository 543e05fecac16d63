"""What several commands share: what they are about, and where their results go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from convattn.cli.words import UsageError, parse
from convattn.config import AugmentConfig, DataConfig, ImagesConfig, located
from convattn.text import nearest

if TYPE_CHECKING:
    from torch import nn

    from convattn.runs import Run
    from convattn.tasks import Task

Weights = Annotated[str | None, tyro.conf.arg(aliases=("--checkpoint",))]
"""Type of the option that names a file of weights."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(AugmentConfig):
    """Attention that a network is given."""

    # How it is trained has no say in what is replaced.
    lr_scale: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 1.0
    freeze: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a command is about."""

    name: str
    """A run's folder, or a model's name."""
    run: Run | None
    """The run; None for a model by name."""

    @property
    def folder(self) -> Path | None:
        """The run's."""
        return None if self.run is None else self.run.folder

    @property
    def task(self) -> Task:
        """What a run does; a model's name is a classifier's."""
        from convattn.tasks import TASKS, task_of

        if self.run is None:
            return TASKS["classification"]
        return task_of(self.run.config.model.name)

    @property
    def data(self) -> DataConfig:
        """The data set of a run, the default for a model's name."""
        return DataConfig() if self.run is None else self.run.config.data

    def load_model(
        self, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        """The trained network, in evaluation mode.

        Args:
            checkpoint: Weights of a model that is given by name; None takes its released ones.
            num_classes: Number of classes of those weights; None takes the model's own.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the weights are those of another model.
        """
        from convattn.runs import open_model

        if self.run is not None:
            return self.run.load_model()
        return open_model(self.name, checkpoint=checkpoint, num_classes=num_classes)


def check_free(out: str | None) -> None:
    """Refuse a taken place before the work, not after it.

    Args:
        out: Where the results shall go.

    Raises:
        UsageError: If there is something.
    """
    if out is not None and Path(out).exists():
        raise UsageError(f"{out} exists and is never overwritten; give another --out")


_SHORT = ("group", "ignore-unknown")


def with_data_flags(words: list[str], *more: str) -> list[str]:
    """``--data NAME`` as short for ``--data.name NAME``, and others alike.

    Args:
        words: Of the command line.
        *more: Names of the data's flags that this command takes without their prefix, beside those
            that all do.
    """
    short = {"--data": "--data.name"} | {f"--{name}": f"--data.{name}" for name in (*_SHORT, *more)}
    flags = [word.split("=")[0] for word in words]
    return [
        short.get(flag, flag) + word.removeprefix(flag)
        for flag, word in zip(flags, words, strict=True)
    ]


Config = TypeVar("Config", bound=ImagesConfig)


def config_on_images(
    options: type[Config], kind: type[Config], arguments: list[str], *, prog: str
) -> Config:
    """The configuration that the words of a command about images make.

    Args:
        options: The configuration's class with the command's first word, ``images``.
        kind: The configuration's class.
        arguments: Of the command line.
        prog: What the help calls the command.

    Raises:
        UsageError: If there are no images, they are given twice, or ``out`` exists.
        ValueError: If a value does not fit.
    """
    parsed: Any = parse(options, options(), with_data_flags(arguments), prog=prog)
    if parsed.images is None:
        raise UsageError(f"{prog} takes a folder or a table of images: {prog} IMAGES")
    check_free(parsed.out)
    if parsed.data.root is not None:
        raise UsageError(f"--data.root is {prog}'s first word; leave the flag out")
    values = {item.name: getattr(parsed, item.name) for item in dataclasses.fields(kind)}
    return kind(**{**values, "data": located(parsed.data, parsed.images)})


def folder_to_resume(arguments: list[str], *, prog: str, what: str) -> Path | None:
    """What ``--resume`` names, which stands alone; None without it.

    Args:
        arguments: Of the command line.
        prog: What the help calls the command.
        what: Is gone on with.

    Raises:
        UsageError: If anything stands beside it.
    """
    if not any(argument.split("=")[0] == "--resume" for argument in arguments):
        return None
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) != 2 or words[0] != "--resume":
        raise UsageError(
            f"--resume takes the folder of a {what} and nothing else: {prog} --resume DIR"
        )
    return Path(words[1])


def check_weights(run: Run | None, weights: str | None) -> None:
    """Refuse weights beside a run's own.

    Args:
        run: The run, None for a model by name.
        weights: The file that was given.

    Raises:
        UsageError: If there are both.
    """
    if run is not None and weights is not None:
        raise UsageError("--weights goes with a model's name; a run has its own weights")


def find_target(
    options: Any,
    arguments: list[str],
    *,
    prog: str,
    model: str,
    rest: str = "",
    dense: bool = False,
    others: Iterable[str] = (),
) -> Target:
    """What a command is about, its first word: a run, whose configuration is read, or a model.

    Args:
        options: Default options, for the help.
        prog: What the help calls it.
        model: What the help calls a model.
        rest: What else stands before the options.
        dense: Whether the run may be of a detector or segmenter.
        others: Names beside the models'.

    Raises:
        UsageError: If it is neither a run nor a name.
        FileNotFoundError: If it is a folder and no run.
        ValueError: If the run's configuration cannot be understood.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN {rest}[OPTIONS]\n       {prog} {model} {rest}[OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder or a model")
        parse(type(options), options, ["--help"], prog=f"{prog} RUN|MODEL")
    target = arguments[0]
    if target.startswith("-"):
        raise UsageError(f"name a run folder or a model before {target}")
    if Path(target).is_dir():
        from convattn.runs import Run

        found = Target(name=target, run=Run.open(target))
        if found.task.models and not dense:
            raise UsageError(
                f"{prog} is for networks that classify images; {target} does {found.task.name}: "
                f"see convattn predict {target} IMAGE"
            )
        return found
    import timm

    names = [*timm.list_models(), *timm.list_pretrained(), *others]
    if target not in names:
        if Path(target).name != target:  # no model has a slash in its name
            raise UsageError(f"{target!r} is a path, and there is no such run folder")
        raise UsageError(
            f"{target!r} is neither a run folder nor a model; the nearest "
            f"{'name' if others else 'model'} is {nearest(target, names)!r}"
        )
    return Target(name=target, run=None)


def find_images(path: Path, in_chans: int = 3) -> list[Path]:
    """The file, or every image file of the folder and those in it; what is left out is told.

    Args:
        path: An image or a folder.
        in_chans: Channels that the network sees.

    Raises:
        ValueError: If the folder holds none.
    """
    if not path.is_dir():
        return [path]
    from convattn.data.batches import list_images

    return sorted(map(Path, list_images(path, in_chans)))


@cache
def num_params_of(name: str) -> int:
    """Parameters of a model, which is not given memory.

    Args:
        name: In timm's registry.
    """
    import timm
    import torch

    from convattn.surgery.records import num_params

    with torch.device("meta"):
        return num_params(timm.create_model(name))
