"""A data set for segmentation as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convattn.config import DataConfig
from convattn.data.dense_shards import describe_masks
from convattn.data.images import digest_of_list
from convattn.data.masks import MaskReader, Pair
from convattn.data.shard_files import MASK
from convattn.data.shard_writing import Part, file_content
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


def shard_parts(config: DataConfig) -> tuple[Mapping[str, Part], Mapping[str, Any]]:
    """Images and their masks, for ``write_shards``.

    Args:
        config: The data set, a folder.

    Returns:
        Split -> its images, and what ``index.json`` tells of them.

    Raises:
        ValueError: If there are no files of masks, or the data are not what they should be.
    """
    assert config.root is not None
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
    return parts, describe_masks(reader.layout)
