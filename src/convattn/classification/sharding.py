"""A data set for classification as shards."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from convattn.classification.dataset import open_data, with_validation
from convattn.config import DataConfig
from convattn.data.images import ImageFiles, TensorImages, digest_of_list
from convattn.data.labelled import Source
from convattn.data.shard_writing import Part, ShardFormat, file_content, write_shards

_COLUMNS = ("groups", "weights")


@dataclass(frozen=True, kw_only=True)
class _LabelledPart(Part):
    """Images with a class, or several, each."""

    images: ImageFiles | TensorImages
    root: str | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, place: int) -> Iterator[tuple[str, bytes]]:
        yield self._content(place)
        classes = self._classes(place)
        if isinstance(classes, int):
            yield ".cls", str(classes).encode()
        numbers = classes if isinstance(classes, list) else [classes]
        notes: dict[str, Any] = {"classes": [self.class_names[number] for number in numbers]}
        if isinstance(self.images, ImageFiles):
            path = self.images.paths[place]
            notes["path"] = path if self.root is None else os.path.relpath(path, self.root)
        for name in _COLUMNS:
            column = self._column(name, [place])
            if column is not None:
                notes[name.removesuffix("s")] = column[0]
        yield ".json", json.dumps(notes).encode()

    def columns(self, places: Sequence[int]) -> dict[str, list[Any] | None]:
        return {
            "classes": [self._classes(place) for place in places],
            **{name: self._column(name, places) for name in _COLUMNS},
        }

    def told(self) -> Iterator[bytes]:
        yield digest_of_list(self.images).encode()
        for name in _COLUMNS:
            yield str(self._column(name, range(len(self)))).encode()

    def _content(self, place: int) -> tuple[str, bytes]:
        """End of the name and bytes of an image's file; PNG's of one without a file."""
        if isinstance(self.images, ImageFiles):
            return file_content(self.images.paths[place])
        pixels = self.images.images[place].movedim(0, -1).squeeze(-1).numpy()
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "PNG")
        return ".png", written.getvalue()

    def _classes(self, place: int) -> int | list[int]:
        """Number of an image's class, or numbers of several."""
        label = self.images.labels[place]
        return label.nonzero()[:, 0].tolist() if label.ndim else int(label)

    def _column(self, name: str, places: Sequence[int]) -> list[Any] | None:
        """Groups or weights of some images; None where there are none."""
        column: Tensor | None = getattr(self.images, name, None)
        return None if column is None else column[list(places)].tolist()


def shard_data(
    config: DataConfig,
    out: Path,
    *,
    format: ShardFormat = "webdataset",
    shard_size: int = 1000,
    num_workers: int = 0,
) -> str:
    """Write a data set as shards, or go on where a call like this one was stopped.

    Files of images go in as they are; images without files as PNG. See ``write_shards``.

    Args:
        config: The data set.
        out: Folder of the shards; new, or begun by such a call.
        format: WebDataset's tars, or litdata's chunks.
        shard_size: Images a shard.
        num_workers: Processes that write; 0: this one.

    Returns:
        How much there is, in words.

    Raises:
        ValueError: If ``out`` holds something else, or the images have other channels than 1 or 3.
        OSError: If an image cannot be read, or a shard not written.
        ModuleNotFoundError: If litdata is not installed, and asked for.
    """
    source = with_validation(config, open_data(config), seed=0)
    if source.in_chans not in (1, 3):
        raise ValueError(
            f"{config.root} is read with {source.in_chans} channels (--data.in-chans); shards are "
            "read with 1 or 3"
        )
    parts = {
        split: _LabelledPart(images=images, root=config.root, class_names=source.class_names)
        for split, images in (("train", source.train), ("val", source.val), ("test", source.test))
        if images is not None and len(images)
    }
    return write_shards(
        out,
        parts,
        _described(source),
        format=format,
        shard_size=shard_size,
        num_workers=num_workers,
    )


def _described(source: Source) -> dict[str, Any]:
    return {
        "class_names": source.class_names,
        "multi_label": source.multi_label,
        "test_drawn": source.test_drawn,
        "image_size": source.image_size,
        "in_chans": source.in_chans,
        "mean": source.mean,
        "std": source.std,
    }
