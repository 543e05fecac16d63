"""A data set for detection as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convattn.config import DataConfig
from convattn.data.dense_shards import describe_objects, entry_of
from convattn.data.images import digest_of_list
from convattn.data.objects import ImageRecord
from convattn.data.shard_writing import Part, file_content
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


def shard_parts(
    config: DataConfig, *, boxes_only: bool = False
) -> tuple[Mapping[str, Part], Mapping[str, Any]]:
    """Images with boxes, and outlines where there are some, for ``write_shards``.

    Args:
        config: The data set, a folder.
        boxes_only: Leave outlines out, which then need not be there for every object.

    Returns:
        Split -> its images, and what ``index.json`` tells of them.

    Raises:
        ValueError: If the data are not what they should be.
    """
    assert config.root is not None
    source = open_data(config, masks=False if boxes_only else None)
    parts = {
        split: _ObjectPart(
            records=images.samples,
            names=images.names,
            root=config.root,
            class_names=source.class_names,
            has_masks=source.has_masks,
        )
        for split, images in (("train", source.train), ("test", source.test))
    }
    return parts, describe_objects(
        source.class_names, source.category_ids, has_masks=source.has_masks
    )
