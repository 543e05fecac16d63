"""``convattn shard``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from convattn.cli.targets import with_data_flags
from convattn.cli.words import UsageError, parse
from convattn.config import BadAnnotations, DataConfig, DataFormat, located
from convattn.text import say

_PROG = "convattn shard"


@dataclass(frozen=True, kw_only=True)
class ShardedDataOptions:
    """The images, and how they are read and parted."""

    name: str = "folder"
    """Name of the data set; `convattn list --data` shows them all."""
    format: DataFormat = "auto"
    """How the folder or file holds what is known of its images; auto looks."""
    path_column: str | None = None
    """Tables: the column of the images' paths; None: the one whose name says so."""
    labels_column: str | None = None
    """Tables: the column of their classes, alike."""
    annotations: str | None = None
    """Detection: name of the COCO json before _train2017.json; None: instances."""
    bad_annotations: BadAnnotations = "error"
    """Tables, detection and segmentation: refuse a set with faulty annotations, or leave them
    out."""
    group: str | None = None
    """What has no splits, or with val_share: as in training."""
    split: str | None = None
    """Detection and segmentation: the split that is the test set, val or test; None: val where
    there are both."""
    val_share: float | None = None
    """Classification: share of the training images that is set aside to validate on, in shards of
    its own."""
    in_chans: Literal[1, 3] | None = None
    """Folders and tables: channels that are read later; 1 for grey."""
    num_train: int | None = None
    """Number of training images to keep; None means all."""
    num_test: int | None = None
    """Number of test images to keep; None means all."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Write a data set as shards, or go on with a call that was stopped."""

    data: ShardedDataOptions = field(default_factory=ShardedDataOptions)
    """The images, and how they are read and parted."""
    task: Literal["auto", "classification", "detection", "segmentation"] = "auto"
    """What the data are for; auto looks for boxes, then masks, then classes."""
    boxes_only: bool = False
    """Detection: leave outlines out, where not every object has one."""
    format: Literal["webdataset", "litdata"] = "webdataset"
    """WebDataset's tars, which need no package to be read, or litdata's chunks."""
    shard_size: int = 1000
    """Images a shard."""
    num_workers: int = 0
    """Processes that write shards; 0 writes them in this one."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size}; expected images, at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}; expected 0 or more")


def command(arguments: list[str]) -> int:
    """Run ``convattn shard``."""
    prog = f"{_PROG} ROOT OUT"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a folder of images, and the folder of the shards")
        parse(ShardOptions, ShardOptions(), ["--help"], prog=prog)
    words = arguments[:2]
    if len(words) < 2 or any(word.startswith("-") for word in words):
        raise UsageError(f"name a folder of images, and the folder of the shards, first: {prog}")
    root, out = words
    options = parse(
        ShardOptions, ShardOptions(), with_data_flags(arguments[2:], "val-share"), prog=prog
    )

    from convattn.data.folders import listed_once
    from convattn.tasks import TASKS, task_of_data

    data = located(DataConfig(**asdict(options.data)), root)
    with listed_once():
        task = task_of_data(data) if options.task == "auto" else TASKS[options.task]
        written = task.shard(
            data,
            Path(out),
            format=options.format,
            shard_size=options.shard_size,
            boxes_only=options.boxes_only,
            num_workers=options.num_workers,
        )
    say(f"{out} holds {written}, for {task.name}")
    return 0
