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
    """The images, and how they are parted."""

    name: str = "folder"
    """Name of the data set; `convattn list --data` shows them all."""
    format: DataFormat = "auto"
    """How the folder or file holds what is known of its images; auto looks."""
    path_column: str | None = None
    """Tables: the column of the images' paths; None: the one whose name says so."""
    labels_column: str | None = None
    """Tables: the column of their classes, alike."""
    bad_annotations: BadAnnotations = "error"
    """Tables: refuse one with faulty rows, or leave those out."""
    group: str | None = None
    """What has no splits, or with val_share: as in training."""
    val_share: float | None = None
    """Share of the training images that is set aside to validate on, in shards of its own."""
    in_chans: Literal[1, 3] | None = None
    """Folders and tables: channels that are read later; 1 for grey."""
    num_train: int | None = None
    """Number of training images to keep; None means all."""
    num_test: int | None = None
    """Number of test images to keep; None means all."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Write a data set for classification as shards, or go on with a call that was stopped."""

    data: ShardedDataOptions = field(default_factory=ShardedDataOptions)
    """The images, and how they are parted."""
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

    from convattn.classification.sharding import shard_data

    written = shard_data(
        located(DataConfig(**asdict(options.data)), root),
        Path(out),
        format=options.format,
        shard_size=options.shard_size,
        num_workers=options.num_workers,
    )
    say(f"{out} holds {written}")
    return 0
