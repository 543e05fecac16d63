"""A data set for classification as shards: each written whole, by several processes, once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convattn.classification.dataset import open_data, with_validation
from convattn.config import DataConfig
from convattn.data.images import ImageFiles, TensorImages, digest_of_list
from convattn.data.labelled import Source
from convattn.data.shard_files import INDEX, Shard, import_litdata, index_of, open_image
from convattn.files import read_json, replace_atomically, sha256_of, written_whole
from convattn.ownership import owned
from convattn.progress import Progress

ShardFormat = Literal["webdataset", "litdata"]

_SPREAD_SEED = 0  # of the order in which training images lie in the shards
_BYTES_OF_A_CHUNK = 2**32  # litdata counts them in 32 bits


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The images of one split, and what is said of each."""

    images: ImageFiles | TensorImages
    root: str | None
    class_names: tuple[str, ...]

    def content(self, place: int) -> tuple[str, bytes]:
        """End of the name and bytes of an image's file; PNG's of one without a file.

        Raises:
            OSError: If it cannot be read.
        """
        if isinstance(self.images, ImageFiles):
            path = self.images.paths[place]
            with open_image(path) as file:
                return os.path.splitext(path)[1].lower(), file.read()
        pixels = self.images.images[place].movedim(0, -1).squeeze(-1).numpy()
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "PNG")
        return ".png", written.getvalue()

    def classes(self, place: int) -> int | list[int]:
        """Number of an image's class, or numbers of several."""
        label = self.images.labels[place]
        return label.nonzero()[:, 0].tolist() if label.ndim else int(label)

    def column(self, name: str, places: Sequence[int]) -> list[Any] | None:
        """Groups or weights of some images; None where there are none."""
        column: Tensor | None = getattr(self.images, name, None)
        return None if column is None else column[list(places)].tolist()

    def sample(self, place: int) -> Iterator[tuple[str, bytes]]:
        """Ends of names and contents of what a shard holds of an image, the image first."""
        yield self.content(place)
        classes = self.classes(place)
        if isinstance(classes, int):
            yield ".cls", str(classes).encode()
        numbers = classes if isinstance(classes, list) else [classes]
        notes: dict[str, Any] = {"classes": [self.class_names[number] for number in numbers]}
        if isinstance(self.images, ImageFiles):
            path = self.images.paths[place]
            notes["path"] = path if self.root is None else os.path.relpath(path, self.root)
        for name in ("groups", "weights"):
            column = self.column(name, [place])
            if column is not None:
                notes[name.removesuffix("s")] = column[0]
        yield ".json", json.dumps(notes).encode()


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A shard that is to be written."""

    part: _Part
    file: Path
    first: int
    """Number of its first image among those of its split, as they lie in the shards."""
    places: list[int]
    """Places of its images among those of its split, as the data set has them."""


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
        names, offsets, sizes = zip(*write(one), strict=True)
        index = Shard(
            file=one.file.name,
            images=len(one.places),
            size=one.file.stat().st_size,
            sha256=sha256_of(one.file),
            names=names,
            offsets=offsets,
            sizes=sizes,
            places=one.places,
            classes=[one.part.classes(place) for place in one.places],
            groups=one.part.column("groups", one.places),
            weights=one.part.column("weights", one.places),
        )
        replace_atomically(Path(index_of(str(one.file))), index.to_json())
        return len(one.places)


def shard_data(
    config: DataConfig,
    out: Path,
    *,
    format: ShardFormat = "webdataset",
    shard_size: int = 1000,
    num_workers: int = 0,
) -> str:
    """Write a data set as shards, or go on where a call like this one was stopped.

    ``out`` then holds ``train-000000.tar`` and so on, or ``train/chunk-0-000000.bin``, val and test
    alike, beside each what is in it, and ``index.json``, which is written last. Files of images
    go in as they are; images without files as PNG. The training images lie in an order drawn once,
    so that whoever reads shard after shard meets all classes; by the index they are read in the
    order that they had.

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
    if format == "litdata":
        import_litdata("--format litdata")
    source = with_validation(config, open_data(config), seed=0)
    if source.in_chans not in (1, 3):
        raise ValueError(
            f"{config.root} is read with {source.in_chans} channels (--data.in-chans); shards are "
            "read with 1 or 3"
        )
    parts = {"train": source.train, "val": source.val, "test": source.test}
    kept = {
        split: _Part(images=images, root=config.root, class_names=source.class_names)
        for split, images in parts.items()
        if images is not None and len(images)
    }
    planned = {split: _plan(part, out, split, format, shard_size) for split, part in kept.items()}
    index = {
        "shard_format": format,
        "shard_size": shard_size,
        "data_sha256": _digest(source, kept),
        **_described(source),
    }
    _begin(out, index)
    with owned(out):
        _write([one for some in planned.values() for one in some], format, num_workers)
        return _finish(out, index, planned)


def _plan(
    part: _Part, out: Path, split: str, format: ShardFormat, shard_size: int
) -> list[_Planned]:
    count = len(part.images)
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


def _digest(source: Source, parts: dict[str, _Part]) -> str:
    """SHA-256 of which images these are, of which classes, and what else is told of each."""
    digest = hashlib.sha256(json.dumps(_described(source)).encode())
    for split, part in parts.items():
        digest.update(f"{split} {digest_of_list(part.images)}".encode())
        for name in ("groups", "weights"):
            digest.update(str(part.column(name, range(len(part.images)))).encode())
    return digest.hexdigest()


def _described(source: Source) -> dict[str, Any]:
    """What a folder of shards tells of its data set, so that it is read as that was."""
    return {
        "class_names": source.class_names,
        "multi_label": source.multi_label,
        "test_drawn": source.test_drawn,
        "image_size": source.image_size,
        "in_chans": source.in_chans,
        "mean": source.mean,
        "std": source.std,
    }


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
        _Shards(missing, format), batch_size=None, num_workers=num_workers
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


def _write_tar(one: _Planned) -> list[tuple[str, int, int]]:
    """Names of the images, where their bytes begin, and how many these are.

    The same images make the same bytes: WebDataset's own writer notes the time.
    """
    images = []
    with written_whole(one.file) as file, tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for place in one.places:
            for number, (end, content) in enumerate(one.part.sample(place)):
                member = tarfile.TarInfo(f"{place:09d}{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if not number:
                    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    images.append((member.name, tar.offset - padded, len(content)))
            tar.members.clear()  # type: ignore[attr-defined]
    return images


def _write_chunk(one: _Planned) -> list[tuple[str, int, int]]:
    """As ``_write_tar``, but instead of the beginning the number among all of the split."""
    folder = one.file.with_suffix(".writing")
    shutil.rmtree(folder, ignore_errors=True)
    writer = _writer(folder, len(one.places))
    images, total = [], 0
    for number, place in enumerate(one.places):
        sample = _item(one.part, place)
        end, content = sample.pop("end"), sample["image"]
        total += len(content)
        if total > _BYTES_OF_A_CHUNK * 0.9:
            raise ValueError(
                f"{one.file} would have more than 4 GiB, which litdata cannot read; choose a "
                "smaller --shard-size"
            )
        writer.add_item(number, sample)
        images.append((f"{place:09d}{end}", one.first + number, len(content)))
    written = writer.write_chunk(on_done=True)
    os.replace(written, one.file)
    shutil.rmtree(folder)
    return images


def _item(part: _Part, place: int) -> dict[str, Any]:
    """What litdata keeps of an image, and the end of its name."""
    (end, image), *rest = part.sample(place)
    texts = dict(rest)
    item: dict[str, Any] = {"end": end, "image": image, "json": texts[".json"]}
    if ".cls" in texts:
        item["cls"] = int(texts[".cls"])
    return item


def _writer(folder: Path, shard_size: int) -> Any:
    from litdata.streaming.writer import BinaryWriter

    return BinaryWriter(str(folder), chunk_size=shard_size)


def _index_for_litdata(
    planned: Sequence[_Planned], shards: Sequence[dict[str, Any]], index: dict[str, Any]
) -> bytes:
    """What litdata reads of a folder of chunks: their sizes, and of what an item is made."""
    folder = planned[0].file.parent / "index.writing"
    writer = _writer(folder, index["shard_size"])
    item = _item(planned[0].part, planned[0].places[0])
    del item["end"]
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
