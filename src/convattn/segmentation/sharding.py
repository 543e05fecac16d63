"""A data set for segmentation as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.config import DataConfig
from convattn.data.dense_shards import describe_masks
from convattn.data.images import digest_of_list
from convattn.data.masks import MaskReader, Pair
from convattn.data.shard_files import MASK, import_litdata
from convattn.data.shard_writing import Part, ShardFormat, file_content, write_shards
from convattn.segmentation.dataset import open_data


@dataclass(frozen=True, kw_only=True)
class _MaskPart(Part):
    """Images with masks."""

    pairs: Sequence[Pair]
    root: str

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """Paths of the images and of the masks."""
        return [path for pair in self.pairs for path in pair]

    def sample(self, place: int) -> Iterator[tuple[str, bytes]]:
        image, mask = self.pairs[place]
        yield file_content(image)
        end, content = file_content(mask)
        yield f"{MASK}{end}", content
        notes = {
            "path": os.path.relpath(image, self.root),
            "mask": os.path.relpath(mask, self.root),
        }
        yield ".json", json.dumps(notes).encode()

    def columns(self, places: Sequence[int]) -> dict[str, list[Any] | None]:
        return {}

    def told(self) -> Iterator[bytes]:
        yield digest_of_list(self).encode()


def shard_data(
    config: DataConfig,
    out: Path,
    *,
    format: ShardFormat = "webdataset",
    shard_size: int = 1000,
    num_workers: int = 0,
) -> str:
    """Write images and their masks as shards, or go on where a call like this one was stopped.

    Files of both go in as they are. See ``write_shards``.

    Args:
        config: The data set.
        out: Folder of the shards; new, or begun by such a call.
        format: WebDataset's tars, or litdata's chunks.
        shard_size: Images a shard.
        num_workers: Processes that write; 0: this one.

    Returns:
        How much there is, in words.

    Raises:
        ValueError: If there are no files of masks, or ``out`` holds something else.
        OSError: If a file cannot be read, or a shard not written.
        ModuleNotFoundError: If litdata is not installed, and asked for.
    """
    if format == "litdata":
        import_litdata("--format litdata")
    if config.root is None:
        raise ValueError(
            f"{config.name} is generated for segmentation, a scene at a time, and needs no shards; "
            "name a folder of images"
        )
    source = open_data(config)
    reader = source.train.read
    if not isinstance(reader, MaskReader):
        raise ValueError(
            f"{config.root} has outlines and no files of masks; shard it for detection (--task "
            "detection): training of a segmenter reads these shards, too"
        )
    parts = {
        split: _MaskPart(pairs=images.samples, root=config.root)
        for split, images in (("train", source.train), ("test", source.test))
    }
    return write_shards(
        out,
        parts,
        describe_masks(reader.layout),
        format=format,
        shard_size=shard_size,
        num_workers=num_workers,
    )
