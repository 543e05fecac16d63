"""``convattn check-data``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from convattn.cli.targets import check_free, with_data_flags
from convattn.cli.words import UsageError, parse
from convattn.config import DataFormat
from convattn.text import printable

if TYPE_CHECKING:
    from convattn.checks import CheckedData

_PROG = "convattn check-data"


@dataclass(frozen=True, kw_only=True)
class CheckedDataOptions:
    """How the data are read."""

    name: str = "folder"
    """Name of a published data set in the layout that it was published in; `convattn list --data`
    shows them."""
    format: DataFormat = "auto"
    """How the folder or file holds what is known of its images; auto looks."""
    annotations: str | None = None
    """Detection: name of the COCO json before _train2017.json; None: instances."""
    path_column: str | None = None
    """Tables: the column of the images' paths; None: the one whose name says so."""
    labels_column: str | None = None
    """Tables: the column of their classes, alike."""
    group: str | None = None
    """What has no splits: as in training."""


@dataclass(frozen=True, kw_only=True)
class CheckDataOptions:
    """Tell what is in a data set and what is wrong with it, and leave a page to look at."""

    data: CheckedDataOptions = field(default_factory=CheckedDataOptions)
    """How the data are read."""
    task: Literal["auto", "classification", "detection", "segmentation"] = "auto"
    """What the data are for; auto looks for boxes, then masks, then class folders."""
    out: str | None = None
    """Folder for data.html, data.json and, where images look alike, groups.csv: a table to train on
    that keeps them together; without one only text is printed."""
    run: str | None = None
    """Run folder of a classifier, whose network judges the labels of images it did not learn; the
    networks of its cross-validation (convattn finetune --folds) judge the others."""
    quick: bool = False
    """Read the images' headers alone, no pixels."""
    num_workers: int | None = None
    """Processes that read images; None takes one a core where there are many images."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}; expected 0 or more")
        if self.quick and self.run is not None:
            raise ValueError("quick reads no pixels, which run has to; give one of the two")


def command(arguments: list[str]) -> int:
    """Run ``convattn check-data``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {_PROG} IMAGES [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a folder of images")
        parse(CheckDataOptions, CheckDataOptions(), ["--help"], prog=f"{_PROG} IMAGES")
    root = arguments[0]
    if root.startswith("-"):
        raise UsageError(f"name a folder of images before {root}: {_PROG} IMAGES [OPTIONS]")
    options = parse(
        CheckDataOptions,
        CheckDataOptions(),
        with_data_flags(arguments[1:]),
        prog=f"{_PROG} {root}",
    )
    check_free(options.out)

    from convattn.checks import Place, check_data
    from convattn.runs import Run
    from convattn.tasks import task_of

    run = None if options.run is None else Run.open(options.run)
    if run is not None and task_of(run.config.model.name).models:
        raise UsageError(f"--run judges labels of whole images; {options.run} is no classifier's")
    data = options.data
    place = Place(
        root=root,
        name=data.name,
        format=data.format,
        group=data.group,
        annotations=data.annotations,
        path_column=data.path_column,
        labels_column=data.labels_column,
    )
    checked = check_data(
        place, task=options.task, run=run, quick=options.quick, num_workers=options.num_workers
    )
    print(checked.report.text())
    if options.out is not None:
        print("\n" + "\n".join(printable(str(file)) for file in _write(checked, options.out)))
    return 0


def _write(checked: CheckedData, out: str) -> list[Path]:
    from convattn.checks.grouping import grouped_table
    from convattn.checks.page import render_page
    from convattn.files import new_folder, replace_atomically

    contents = {"data.html": render_page(checked), "data.json": checked.report.to_json().encode()}
    table = grouped_table(checked.source, checked.copies)
    if table is not None:
        contents["groups.csv"] = table.encode(errors="surrogateescape")
    folder = new_folder(out, "data")
    for name, content in contents.items():
        replace_atomically(folder / name, content)
    return [folder / name for name in contents]
