"""A data set for detection as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.config import DataConfig
from convattn.data.dense_shards import describe_objects, entry_of
from convattn.data.images import digest_of_list
from convattn.data.objects import ImageRecord
from convattn.data.shard_files import import_litdata
from convattn.data.shard_writing import Part, ShardFormat, file_content, write_shards
from convattn.detection.dataset import open_data


@dataclass(frozen=True, kw_only=True)
class _ObjectPart(Part):
    """Images with objects."""

    records: Sequence[ImageRecord]
    names: Sequence[str]
    root: str
    class_names: tuple[str, ...]
    has_masks: bool

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, place: int) -> Iterator[tuple[str, bytes]]:
        record = self.records[place]
        yield file_content(record.path)
        notes = {
            "path": os.path.relpath(record.path, self.root),
            "classes": [self.class_names[label - 1] for label in record.labels.tolist()],
            **self._entry(place),
        }
        yield ".json", json.dumps(notes).encode()

    def columns(self, places: Sequence[int]) -> dict[str, list[Any] | None]:
        return {"objects": [self._entry(place) for place in places]}

    def told(self) -> Iterator[bytes]:
        yield digest_of_list(self).encode()
        for place in range(len(self)):
            yield json.dumps(self._entry(place)).encode()

    def _entry(self, place: int) -> dict[str, Any]:
        return entry_of(self.records[place], has_masks=self.has_masks)


def shard_data(
    config: DataConfig,
    out: Path,
    *,
    boxes_only: bool = False,
    format: ShardFormat = "webdataset",
    shard_size: int = 1000,
    num_workers: int = 0,
) -> str:
    """Write images with boxes, and outlines where there are some, as shards; or go on with it.

    Files of images go in as they are. See ``write_shards``.

    Args:
        config: The data set.
        out: Folder of the shards; new, or begun by such a call.
        boxes_only: Leave outlines out, which then need not be there for every object.
        format: WebDataset's tars, or litdata's chunks.
        shard_size: Images a shard.
        num_workers: Processes that write; 0: this one.

    Returns:
        How much there is, in words.

    Raises:
        ValueError: If the images are no files, or ``out`` holds something else.
        OSError: If an image cannot be read, or a shard not written.
        ModuleNotFoundError: If litdata is not installed, and asked for.
    """
    if format == "litdata":
        import_litdata("--format litdata")
    if config.root is None:
        raise ValueError(
            f"{config.name} is generated for detection, a scene at a time, and needs no shards; "
            "name a folder of images"
        )
    source = open_data(config, masks=False if boxes_only else None)
    root = config.root
    parts = {
        split: _ObjectPart(
            records=images.samples,
            names=images.names,
            root=root,
            class_names=source.class_names,
            has_masks=source.has_masks,
        )
        for split, images in (("train", source.train), ("test", source.test))
    }
    return write_shards(
        out,
        parts,
        describe_objects(source.class_names, source.category_ids, has_masks=source.has_masks),
        format=format,
        shard_size=shard_size,
        num_workers=num_workers,
    )
