"""``convattn predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import check_free, find_images
from convattn.cli.words import UsageError, fail, parse, refuse_several
from convattn.config import PredictConfig
from convattn.launching import is_first_process
from convattn.text import printable, say

if TYPE_CHECKING:
    from convattn.classification.table import PredictedTable
    from convattn.tasks import Task

_OF_TABLES = ("embeddings", "reject_below", "batch_size", "num_workers")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(PredictConfig):
    """Classes, objects, or the class of every pixel, of an image or every image of a folder.

    A classifier writes a table with --out FILE.csv; the same command goes on with one that was
    stopped.
    """

    image: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|VIDEO")
    ] = None
    """An image, a folder of images, or of detectors and segmenters a video."""


def command(arguments: list[str]) -> int:
    """Run ``convattn predict``."""
    prog = "convattn predict"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN IMAGE|FOLDER|VIDEO [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder and an image")
        parse(PredictOptions, PredictOptions(), ["--help"], prog=f"{prog} RUN")
    target = arguments[0]
    if not Path(target).is_dir():
        raise UsageError(f"{target!r} is no run folder; name one that `convattn train` has made")
    options = parse(PredictOptions, PredictOptions(), arguments[1:], prog=f"{prog} {target}")

    from convattn.data.video import is_video
    from convattn.explanation.preprocessing import read_as_seen
    from convattn.files import new_folder
    from convattn.modes import default_device
    from convattn.runs import Run
    from convattn.tasks import task_of

    run = Run.open(target)
    task = task_of(run.config.model.name)
    if options.image is None:
        raise UsageError(f"{prog} {target} takes an image or a folder of images")
    task.check_options(options, target)
    if options.makes_table:
        return _show(task.predict_table(run, Path(options.image), options))
    _check_folder_options(options)
    refuse_several(f"{prog} without --out FILE.csv")
    check_free(options.out)
    images = find_images(Path(options.image), run.config.data.in_chans or 3)
    shows_video = is_video(images[0])
    if shows_video:
        _check_video(images[0], task, target)
    elif options.every is not None:
        raise UsageError(f"--every is for videos, and {options.image} is none")
    elif len(images) == 1:
        # The only one must be readable; of several, some may not be.
        read_as_seen(images[0], run.pretrained_cfg)
    model = run.load_model().to(default_device(options.device))
    out = new_folder(options.out, "predicted")
    failed = 0
    total = "" if shows_video else f"/{len(images)}"
    for number, (name, found) in enumerate(task.predict(model, images, out, options), 1):
        if isinstance(found, Exception):
            failed += 1
            fail(str(found), 2)
        else:
            say(printable(f"{number}{total}  {name}  {found}"), flush=True)
    say(f"\n{printable(str(out))}")
    if failed:
        return fail(f"{failed} of {len(images)} files could not be read as an image", 2)
    return 0


def _check_video(file: Path, task: Task, target: str) -> None:
    """Refuse a video where the task takes none, and one that cannot be read."""
    from convattn.data.video import check_video

    if not task.models:
        raise UsageError(
            f"{file} is a video, which detectors and segmenters take; {target} does {task.name}: "
            "give a folder of its frames"
        )
    check_video(file)


def _check_folder_options(options: PredictOptions) -> None:
    """Refuse what only a table heeds."""
    default = PredictConfig()
    for name in _OF_TABLES:
        if getattr(options, name) != getattr(default, name):
            raise UsageError(f"--{name.replace('_', '-')} is for tables: give --out FILE.csv, too")


def _show(table: PredictedTable) -> int:
    if not is_first_process():
        return 0
    told = f"{table.out}: {table.num_rows:,} of {table.num_images:,} images"
    if table.num_rejected:
        told += f", {table.num_rejected:,} of them rejected"
    say(told if table.embeddings is None else f"{told}; their embeddings: {table.embeddings}")
    unreadable = table.num_images - table.num_rows
    if unreadable:
        files = f"{unreadable:,} of {table.num_images:,} files"
        return fail(f"{files} could not be read as an image and have no row", 2)
    return 0
