"""Shards as ``convattn shard`` writes them: each written whole, by several processes, once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from convattn.data.shard_files import INDEX, MASK, Shard, import_litdata, index_of, open_image
from convattn.data.workers import end_with_reader
from convattn.files import read_json, replace_atomically, sha256_of, written_whole
from convattn.ownership import owned
from convattn.progress import Progress

ShardFormat = Literal["webdataset", "litdata"]

_SPREAD_SEED = 0  # of the order in which training images lie in the shards
_BYTES_OF_A_CHUNK = 2**32  # litdata counts them in 32 bits
_ITEM = ("image", "mask", "json", "cls")  # what litdata keeps of an image, in its order there


class Part(ABC):
    """The images of one split, and what is said of each."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def sample(self, place: int) -> Iterator[tuple[str, bytes]]:
        """Ends of names and contents of what a shard holds of an image.

        The image comes first, then its mask (``MASK`` and the file's own end), if it has one; then
        texts: ``.cls`` where it is of one class, and ``.json``.

        Raises:
            OSError: If a file cannot be read.
        """

    @abstractmethod
    def columns(self, places: Sequence[int]) -> dict[str, list[Any] | None]:
        """What a shard's index says of some images, by the name of the column in ``Shard``."""

    @abstractmethod
    def told(self) -> Iterator[bytes]:
        """Which images these are and what is known of each, to tell them from others."""


def file_content(path: str) -> tuple[str, bytes]:
    """End of the name of a file, in lower case, and its bytes.

    Args:
        path: Of an image, a file or in a shard.

    Raises:
        OSError: If it cannot be read.
    """
    with open_image(path) as file:
        return os.path.splitext(path)[1].lower(), file.read()


def write_shards(
    out: Path,
    parts: Mapping[str, Part],
    described: Mapping[str, Any],
    *,
    format: ShardFormat = "webdataset",
    shard_size: int = 1000,
    num_workers: int = 0,
) -> str:
    """Write images as shards, or go on where a call like this one was stopped.

    ``out`` then holds ``train-000000.tar`` and so on, or ``train/chunk-0-000000.bin``, val and test
    alike, beside each what is in it, and ``index.json``, which is written last. The training images
    lie in an order drawn once, so that whoever reads shard after shard meets all classes; by the
    index they are read in the order that they had.

    Args:
        out: Folder of the shards; new, or begun by such a call.
        parts: Split -> its images.
        described: What ``index.json`` tells of the data set, so that it is read as that was.
        format: WebDataset's tars, or litdata's chunks.
        shard_size: Images a shard.
        num_workers: Processes that write; 0: this one.

    Returns:
        How much there is, in words.

    Raises:
        ValueError: If ``out`` holds something else.
        OSError: If an image cannot be read, or a shard not written.
        ModuleNotFoundError: If litdata is not installed, and asked for.
    """
    if format == "litdata":
        import_litdata("--format litdata")
    planned = {split: _plan(part, out, split, format, shard_size) for split, part in parts.items()}
    index = {
        "shard_format": format,
        "shard_size": shard_size,
        "data_sha256": _digest(described, parts),
        **described,
    }
    _begin(out, index)
    with owned(out):
        _write([one for some in planned.values() for one in some], format, num_workers)
        return _finish(out, index, planned)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A shard that is to be written."""

    part: Part
    file: Path
    first: int
    """Number of its first image among those of its split, as they lie in the shards."""
    places: list[int]
    """Places of its images among those of its split, as the data set has them."""


@dataclass(frozen=True, kw_only=True)
class _Lying:
    """What was written into a shard: name, offset and size of each."""

    images: list[tuple[str, int, int]]
    masks: list[tuple[str, int, int]]
    """Of all images, or of none."""


class _Shards(Dataset[int]):
    """Shards that are to be written: ``[n]`` writes the n-th, and gives its number of images."""

    def __init__(self, planned: Sequence[_Planned], format: ShardFormat) -> None:
        self.planned = planned
        self.format = format

    def __len__(self) -> int:
        return len(self.planned)

    def __getitem__(self, number: int) -> int:
        one = self.planned[number]
        write = _write_tar if self.format == "webdataset" else _write_chunk
        lying = write(one)
        names, offsets, sizes = zip(*lying.images, strict=True)
        index = Shard(
            file=one.file.name,
            images=len(one.places),
            size=one.file.stat().st_size,
            sha256=sha256_of(one.file),
            names=names,
            offsets=offsets,
            sizes=sizes,
            places=one.places,
            masks=lying.masks or None,
            **one.part.columns(one.places),
        )
        replace_atomically(Path(index_of(str(one.file))), index.to_json())
        return len(one.places)


def _plan(
    part: Part, out: Path, split: str, format: ShardFormat, shard_size: int
) -> list[_Planned]:
    count = len(part)
    places = list(range(count))
    if split == "train":
        generator = torch.Generator().manual_seed(_SPREAD_SEED)
        places = torch.randperm(count, generator=generator).tolist()
    name = "{}-{:06d}.tar" if format == "webdataset" else "{}/chunk-0-{:06d}.bin"
    return [
        _Planned(
            part=part,
            file=out / name.format(split, first // shard_size),
            first=first,
            places=places[first : first + shard_size],
        )
        for first in range(0, count, shard_size)
    ]


def _digest(described: Mapping[str, Any], parts: Mapping[str, Part]) -> str:
    """SHA-256 of which images these are, of which classes, and what else is told of each."""
    digest = hashlib.sha256(json.dumps(described).encode())
    for split, part in parts.items():
        digest.update(f"{split} ".encode())
        for some in part.told():
            digest.update(some)
    return digest.hexdigest()


def _begin(out: Path, index: dict[str, Any]) -> None:
    """Make the folder, or see that a call like this one has made it."""
    place = out / INDEX
    if not place.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(
                f"{out} holds something else than shards; name a new folder (convattn shard ROOT "
                "OUT)"
            )
        out.mkdir(parents=True, exist_ok=True)
        replace_atomically(place, _written({**index, "finished": False}))
        return
    found = read_json(place, f"delete {out} and write the shards anew")
    wanted = json.loads(json.dumps(index))
    differing = next((name for name in wanted if found.get(name) != wanted[name]), None)
    if differing is not None:
        what = {"data_sha256": "images, classes or parts"}.get(differing, differing)
        raise ValueError(
            f"{out} holds shards that differ in {what}; give the flags that they were begun with, "
            "or name a new folder"
        )


def _write(planned: Sequence[_Planned], format: ShardFormat, num_workers: int) -> None:
    for folder in {one.file.parent for one in planned}:
        folder.mkdir(exist_ok=True)
    missing = [one for one in planned if not _is_written(one)]
    total = sum(len(one.places) for one in planned)
    done = total - sum(len(one.places) for one in missing)
    loader: DataLoader[int] = DataLoader(
        _Shards(missing, format),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=end_with_reader,
    )
    with Progress(total, done) as progress:
        for count in loader if missing else ():
            progress.update(count)


def _is_written(one: _Planned) -> bool:
    """Whether a shard is there, whole.

    Raises:
        ValueError: If it is not what was written.
    """
    place = Path(index_of(str(one.file)))
    if not place.exists():
        return False
    index = read_json(place, f"delete it to have {one.file} written anew")
    if not one.file.is_file() or sha256_of(one.file) != index.get("sha256"):
        raise ValueError(
            f"{one.file} is not the file that was written; delete {place} to have it written anew"
        )
    return True


def _finish(out: Path, index: dict[str, Any], planned: dict[str, list[_Planned]]) -> str:
    """Write the index of the folder, and in litdata's format those of its splits."""
    splits: dict[str, Any] = {}
    for split, some in planned.items():
        read = [
            (one, read_json(Path(index_of(str(one.file))), "write the shards anew")) for one in some
        ]
        shards = [
            {
                "file": one.file.relative_to(out).as_posix(),
                **{name: found[name] for name in ("images", "size", "sha256")},
            }
            for one, found in read
        ]
        splits[split] = {"images": sum(one["images"] for one in shards), "shards": shards}
        if index["shard_format"] == "litdata":
            replace_atomically(out / split / INDEX, _index_for_litdata(some, shards, index))
    replace_atomically(out / INDEX, _written({**index, "finished": True, "splits": splits}))
    return ", ".join(
        f"{split}: {found['images']:,} images in {len(found['shards']):,} shards"
        for split, found in splits.items()
    )


def _written(index: dict[str, Any]) -> bytes:
    return (json.dumps(index, indent=1) + "\n").encode()


# --- a shard


def _write_tar(one: _Planned) -> _Lying:
    """Names of the images and masks, where their bytes begin, and how many these are.

    The same images make the same bytes: WebDataset's own writer notes the time.
    """
    lying = _Lying(images=[], masks=[])
    with written_whole(one.file) as file, tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for place in one.places:
            for number, (end, content) in enumerate(one.part.sample(place)):
                member = tarfile.TarInfo(f"{place:09d}{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                where = (member.name, tar.offset - padded, len(content))
                if number == 0:
                    lying.images.append(where)
                elif end.startswith(MASK):
                    lying.masks.append(where)
            tar.members.clear()  # type: ignore[attr-defined]
    return lying


def _write_chunk(one: _Planned) -> _Lying:
    """As ``_write_tar``, but instead of the beginning the number among all of the split."""
    folder = one.file.with_suffix(".writing")
    shutil.rmtree(folder, ignore_errors=True)
    writer = _writer(folder, len(one.places))
    lying, total = _Lying(images=[], masks=[]), 0
    for number, place in enumerate(one.places):
        sample, ends = _item(one.part, place)
        for what, some in (("image", lying.images), ("mask", lying.masks)):
            if what in sample:
                size = len(sample[what])
                total += size
                some.append((f"{place:09d}{ends[what]}", one.first + number, size))
        if total > _BYTES_OF_A_CHUNK * 0.9:
            raise ValueError(
                f"{one.file} would have more than 4 GiB, which litdata cannot read; choose a "
                "smaller --shard-size"
            )
        writer.add_item(number, sample)
    written = writer.write_chunk(on_done=True)
    os.replace(written, one.file)
    shutil.rmtree(folder)
    return lying


def _item(part: Part, place: int) -> tuple[dict[str, Any], dict[str, str]]:
    """What litdata keeps of an image, and of what is bytes the end of its name."""
    (end, image), *rest = part.sample(place)
    found: dict[str, Any] = {"image": image}
    ends = {"image": end}
    for end, content in rest:
        if end.startswith(MASK):
            found["mask"], ends["mask"] = content, end
        else:
            found[end[1:]] = int(content) if end == ".cls" else content
    return {what: found[what] for what in _ITEM if what in found}, ends


def _writer(folder: Path, shard_size: int) -> Any:
    from litdata.streaming.writer import BinaryWriter

    return BinaryWriter(str(folder), chunk_size=shard_size)


def _index_for_litdata(
    planned: Sequence[_Planned], shards: Sequence[dict[str, Any]], index: dict[str, Any]
) -> bytes:
    """What litdata reads of a folder of chunks: their sizes, and of what an item is made."""
    folder = planned[0].file.parent / "index.writing"
    writer = _writer(folder, index["shard_size"])
    item, _ = _item(planned[0].part, planned[0].places[0])
    writer.add_item(0, item)
    shutil.rmtree(folder)
    chunks = [
        {
            "chunk_bytes": one["size"],
            "chunk_size": one["images"],
            "dim": None,
            "filename": Path(one["file"]).name,
        }
        for one in shards
    ]
    return _written(
        {"chunks": chunks, "config": writer.get_config(), "updated_at": index["data_sha256"]}
    )
