"""What several commands share: what they are about, and where their results go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro

from convattn.cli.words import UsageError, parse
from convattn.config import AugmentConfig, DataConfig, TrainConfig
from convattn.text import nearest

Weights = Annotated[str | None, tyro.conf.arg(aliases=("--checkpoint",))]
"""Type of the option that names a file of weights."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(AugmentConfig):
    """Attention that a network is given."""

    # How it is trained has no say in what is replaced.
    lr_scale: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 1.0
    freeze: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = False


def task_of_run(folder: Path | None) -> str:
    """What the network of a run does; a model's name is a classifier's.

    Args:
        folder: The run's, or None.
    """
    if folder is None:
        return "classification"
    from convattn.evaluate import task_of

    return task_of(TrainConfig.load(folder / "config.json").model.name)


def check_window(window: tuple[int, int] | None, target: str, task: str) -> None:
    """Refuse windows where there is nothing to cut.

    Args:
        window: Their height and width.
        target: The run.
        task: What it does.

    Raises:
        UsageError: If they are given and it is not segmentation.
    """
    if window is not None and task != "segmentation":
        raise UsageError(f"--window is for segmentation; {target} does {task}")


def check_free(out: str | None) -> None:
    """Refuse a taken place before the work, not after it.

    Args:
        out: Where the results shall go.

    Raises:
        UsageError: If there is something.
    """
    if out is not None and Path(out).exists():
        raise UsageError(f"{out} exists and is never overwritten; give another --out")


def data_of(folder: Path | None) -> DataConfig:
    """The data set of a run, the default for a model's name.

    Args:
        folder: The run's, or None.
    """
    return DataConfig() if folder is None else TrainConfig.load(folder / "config.json").data


def with_data_name(words: list[str]) -> list[str]:
    """``--data NAME`` as short for ``--data.name NAME``.

    Args:
        words: Of the command line.
    """
    return [
        "--data.name" + word.removeprefix("--data") if word.split("=")[0] == "--data" else word
        for word in words
    ]


def check_weights(folder: Path | None, weights: str | None) -> None:
    """Refuse weights beside a run's own.

    Args:
        folder: The run's, or None.
        weights: The file that was given.

    Raises:
        UsageError: If there are both.
    """
    if folder is not None and weights is not None:
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
) -> tuple[str, Path | None]:
    """What a command is about, its first word: the run's folder, or None for a model's name.

    Args:
        options: Default options, for the help.
        arguments: Words behind the command.
        prog: What the help calls it.
        model: What the help calls a model.
        rest: What else stands before the options.
        dense: Whether the run may be of a detector or segmenter.
        others: Names beside the models'.

    Raises:
        UsageError: If it is neither a run nor a name.
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
        task = task_of_run(Path(target))
        if task != "classification" and not dense:
            raise UsageError(
                f"{prog} is for networks that classify images; {target} does {task}: see "
                f"convattn predict {target} IMAGE"
            )
        return target, Path(target)
    import timm

    names = [*timm.list_models(), *timm.list_pretrained(), *others]
    if target not in names:
        raise UsageError(
            f"{target!r} is neither a run folder nor a model; the nearest "
            f"{'name' if others else 'model'} is {nearest(target, names)!r}"
        )
    return target, None


def find_images(path: Path) -> list[Path]:
    """The file, or every image file of the folder and those in it.

    Args:
        path: An image or a folder.

    Raises:
        UsageError: If the folder holds none.
    """
    if not path.is_dir():
        return [path]
    from torchvision.datasets.folder import is_image_file

    found = sorted(file for file in path.rglob("*") if is_image_file(file.name))
    if not found:
        raise UsageError(f"{path} holds no image; name a folder of .jpg, .png or similar files")
    return found


def new_folder(wanted: str | None, usual: str) -> Path:
    """Make the folder that is asked for, or the first free one of the usual name.

    Args:
        wanted: Asked for; None leaves the choice.
        usual: The usual name.
    """
    from convattn.evaluate import make_numbered_folder

    if wanted is None:
        return make_numbered_folder(Path(usual))
    folder = Path(wanted)
    folder.mkdir(parents=True)
    return folder


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
