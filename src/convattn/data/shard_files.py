"""Images that lie in shards, tar files or litdata's chunks: found by an index, read one by one."""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import os
import random
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from convattn.text import one_line

INDEX = "index.json"
"""What a folder of shards holds beside them: classes and hashes."""

MASK = ".mask"
"""Between the number of an image in a shard and the end of its mask's name."""

_IN_SHARD = re.compile(r"(?P<shard>.+?\.(?:tar|bin))/(?P<name>.+)", re.DOTALL)
_DESCRIBED = {
    "classification": (
        *("class_names", "multi_label", "test_drawn", "image_size", "in_chans", "mean", "std"),
    ),
    "detection": ("class_names", "category_ids", "has_masks"),
    "segmentation": ("class_names", "first", "ignored", "is_binary", "colours"),
}
SHARD_TASKS = {
    "classification": "images with a class each",
    "detection": "images with boxes",
    "segmentation": "images with masks",
}
"""What shards may be for -> what they then hold."""

_COLUMNS = (
    *("names", "offsets", "sizes", "places", "classes", "groups", "weights", "objects", "masks"),
)
_AGAIN = "write the shards anew with `convattn shard`, or copy them once more"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The images of one shard, a place in each list for each image, in the order of the file."""

    file: str
    """Its name."""
    images: int
    """How many there are."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Of the file, in hexadecimal digits."""
    names: Sequence[str]
    """What the images are called in the shard."""
    offsets: Sequence[int]
    """Where each begins in a tar, in bytes; its number among all of its split in litdata's."""
    sizes: Sequence[int]
    """Bytes of each."""
    places: Sequence[int]
    """Place of each among the images of its split."""
    classes: Sequence[int | list[int]] | None = None
    """Number of the class of each, or numbers of several."""
    groups: Sequence[int] | None = None
    """Number of what each belongs with; None: each stands alone."""
    weights: Sequence[float] | None = None
    """How much each counts in the loss; None: all alike."""
    objects: Sequence[dict[str, Any]] | None = None
    """What is on each; None: what is known of them is not that."""
    masks: Sequence[tuple[str, int, int]] | None = None
    """Name, offset and size of the mask of each, alike."""

    def to_json(self) -> bytes:
        """The file that lies beside the shard."""
        return (json.dumps(vars(self)) + "\n").encode()


_FIELDS = tuple(field.name for field in fields(Shard))


def index_of(shard: str) -> str:
    """Path of the file that lies beside a shard and tells what is in it.

    Example:
        >>> index_of("OUT/train-000000.tar")
        'OUT/train-000000.tar.json'
    """
    return f"{shard}.json"


def is_url(path: str) -> bool:
    """Whether a path is on another computer.

    Example:
        >>> is_url("s3://bucket/train-000000.tar"), is_url("OUT/train-000000.tar")
        (True, False)
    """
    return "://" in path


def read_index(
    folder: str, format: str, tasks: Sequence[str] = ("classification",)
) -> dict[str, Any] | None:
    """Classes, splits and shards of a folder that ``convattn shard`` has written; None for others.

    Args:
        folder: Its path or URL.
        format: The format that it must have.
        tasks: What they may be for.

    Returns:
        The index; ``task`` is in it.

    Raises:
        ValueError: If it has another format, is for another task, is not finished, or is no such
            index.
    """
    place = f"{folder}/{INDEX}"
    if not _exists(place):
        return None
    try:
        index: dict[str, Any] = json.loads(read_bytes(place))
        if "shard_format" not in index:
            return None
        found, finished = index["shard_format"], index["finished"]
        task = index.setdefault("task", "classification")
        lacking = {*_DESCRIBED[task], *(["splits"] if finished else [])}.difference(index)
        if lacking:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{place} is damaged ({one_line(error) or type(error).__name__}); {_AGAIN}"
        ) from error
    if found != format:
        raise ValueError(f"{folder} holds {found} shards, not {format}; give --data.name {found}")
    if task not in tasks:
        raise ValueError(
            f"{folder} holds {SHARD_TASKS[task]}, for {task}, and this is {tasks[0]}, which needs "
            f"{SHARD_TASKS[tasks[0]]}; name other shards, or a recipe for {task}"
        )
    if not finished:
        raise ValueError(
            f"{folder} is not finished; go on with the same `convattn shard` that began it"
        )
    return index


def read_shard(shard: str) -> Shard | None:
    """What is in a shard that ``convattn shard`` has written; None for any other.

    Args:
        shard: Its path or URL.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not the file that was written.
    """
    place = index_of(shard)
    if not _exists(shard):
        raise FileNotFoundError(f"{shard} does not exist; {_AGAIN}")
    if not _exists(place):
        return None
    index = _parsed(read_bytes(place), place)
    size = _size(shard)
    if size != index.size:
        raise ValueError(
            f"{shard} holds {size:,} bytes, and its index says {index.size:,}: it is cut short, or "
            f"another file; {_AGAIN}"
        )
    return index


def _parsed(content: bytes, place: str) -> Shard:
    try:
        found = json.loads(content)
        index = Shard(**{name: found[name] for name in _FIELDS if name in found})
        columns = [getattr(index, name) for name in _COLUMNS]
        lengths = {len(column) for column in columns if column is not None}
        if lengths != {index.images}:
            raise ValueError("its columns differ in length")
        if not all(isinstance(name, str) for name in (*index.names, *_mask_names(index))):
            raise ValueError("a name is no text")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{place} is no index of a shard ({one_line(error) or type(error).__name__}); {_AGAIN}"
        ) from error
    return index


def _mask_names(index: Shard) -> list[Any]:
    return [name for name, _, _ in index.masks or ()]


# --- one image


def shard_of(path: str) -> tuple[str, str] | None:
    """Shard and name of an image by its path; None for an image that is a file.

    Args:
        path: As ``SHARD.tar/NAME``.
    """
    if ".tar/" not in path and ".bin/" not in path:
        return None
    found = _IN_SHARD.fullmatch(path)
    if found is None or not (is_url(path) or os.path.isfile(found["shard"])):
        return None
    return found["shard"], found["name"]


def shard_numbers(paths: Sequence[str]) -> list[int]:
    """Number of the shard that each image lies in, counted from 0.

    Args:
        paths: As ``SHARD.tar/NAME``.

    Raises:
        ValueError: If one lies in none.
    """
    numbers: dict[str, int] = {}
    found = []
    for path in paths:
        match = _IN_SHARD.fullmatch(path)
        shard = "" if match is None else match["shard"]
        if shard not in numbers and shard_of(path) is None:
            raise ValueError(
                f"data.sampler=shards reads shard after shard, and {path} lies in none; leave it "
                "out, or write shards with `convattn shard`"
            )
        found.append(numbers.setdefault(shard, len(numbers)))
    return found


def file_of(path: str) -> str:
    """The file that holds an image: its shard, or itself."""
    found = shard_of(path)
    return path if found is None else found[0]


def open_image(path: str) -> io.BufferedReader | io.BytesIO:
    """An image's file, open, or its bytes out of a shard.

    Args:
        path: A file, or ``SHARD.tar/NAME``.

    Raises:
        FileNotFoundError: If it is not there.
        OSError: If it cannot be read, or its shard ends before the image does.
    """
    found = shard_of(path)
    if found is None:
        return open(path, "rb")
    shard, name = found
    offset, size = _members(shard).find(name)
    if shard.endswith(".bin"):
        what = "mask" if f"{MASK}." in name else "image"
        return io.BytesIO(_item_of(os.path.dirname(shard), offset)[what])
    content = read_bytes(shard, offset, size)
    if len(content) != size:
        raise OSError(
            f"{shard} gives {len(content):,} bytes where {name} has {size:,}: it is cut short, or "
            "its server knows no ranges"
        )
    return io.BytesIO(content)


def size_of(path: str) -> int:
    """Bytes of an image, a file or in a shard.

    Raises:
        OSError: If it is not there.
    """
    found = shard_of(path)
    return os.path.getsize(path) if found is None else _members(found[0]).find(found[1])[1]


class _Members:
    """Where the images of a shard lie, in arrays, which processes share after a fork."""

    def __init__(self, names: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]) -> None:
        encoded = np.array([name.encode(errors="surrogateescape") for name in names])
        order = np.argsort(encoded, kind="stable")
        self._names: NDArray[np.bytes_] = encoded[order]
        self._offsets = np.array(offsets, dtype=np.int64)[order]
        self._sizes = np.array(sizes, dtype=np.int64)[order]

    def find(self, name: str) -> tuple[int, int]:
        """Offset and size of an image.

        Raises:
            FileNotFoundError: If there is none of that name.
        """
        encoded = name.encode(errors="surrogateescape")
        place = int(np.searchsorted(self._names, encoded))
        if place == len(self._names) or self._names[place] != encoded:
            raise FileNotFoundError(name)
        return int(self._offsets[place]), int(self._sizes[place])


@cache
def _members(shard: str) -> _Members:
    place = index_of(shard)
    if _exists(place):
        index = _parsed(read_bytes(place), place)
        images = zip(index.names, index.offsets, index.sizes, strict=True)
        return _Members(*zip(*images, *(index.masks or ()), strict=True))
    members = list(tar_members(shard))
    return _Members(
        [member.name for member in members],
        [member.offset for member in members],
        [member.size for member in members],
    )


@cache
def _stream(folder: str, process: int) -> Any:
    """Litdata's reader of a folder; each process has its own, whose files no other moves."""
    litdata = import_litdata(folder)
    if not is_url(folder):
        return litdata.StreamingDataset(folder)
    # Litdata copies the index of a URL into a folder of this machine, which it first deletes where
    # it does not look finished: one process at a time.
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"convattn-{getpass.getuser()}-{name}.lock"):
        return litdata.StreamingDataset(folder)


def _item_of(folder: str, number: int) -> dict[str, Any]:
    """What litdata's chunks hold of an image."""
    if not is_url(folder):
        found: dict[str, Any] = _stream(folder, os.getpid())[number]
        return found
    with _drawing_nothing():
        # Litdata 0.2.76 fetches the chunk of a part, and keeps it; by a number alone it asks for
        # the bytes of that item, and gets none of chunks as it writes them.
        part: list[dict[str, Any]] = _stream(folder, os.getpid())[number : number + 1]
        return part[0]


def import_litdata(what: str) -> Any:
    """The package ``litdata``.

    Args:
        what: That needs it, for the error.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import litdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs litdata: pip install 'convattn[shards]'", name="litdata"
        ) from error
    return litdata


# --- tars of others


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    """Where its bytes begin."""
    size: int
    text: bytes | None
    """What it holds, of labels and notes."""


_TEXTS = (".cls", ".json")


def tar_members(shard: str) -> Iterator[Member]:
    """The files in a tar, without its folders, links, and what a name says is about the tar.

    Args:
        shard: Its path or URL.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no tar, packed, or cut short.
    """
    if not _exists(shard):
        raise FileNotFoundError(f"{shard} does not exist; name shards that are there")
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or os.path.basename(member.name).startswith(("__", ".")):
                    continue
                content = tar.extractfile(member) if member.name.endswith(_TEXTS) else None
                text = None if content is None else content.read()
                yield Member(member.name, member.offset_data, member.size, text)
                tar.members.clear()  # type: ignore[attr-defined]  # one of a million is enough
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} cannot be read as a tar ({one_line(error)}): it is cut short, packed or of "
            "another kind; unpack it if it is packed, or copy it once more"
        ) from error


# --- files here and elsewhere


def read_bytes(path: str, start: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file, all from ``start`` on for None.

    Args:
        path: Its path or URL.

    Raises:
        OSError: If it cannot be read.
        ValueError: If fsspec needs a package for that kind of URL, or knows no such kind.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
    with _drawing_nothing():
        system, place = _system_of(path)
        end = None if size is None else start + size
        content: bytes = system.cat_file(place, start=start, end=end)
        return content


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    """What talks to a server may draw how long it waits: augmentation must not see that."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _exists(path: str) -> bool:
    if not is_url(path):
        return os.path.isfile(path)
    system, place = _system_of(path)
    return bool(system.exists(place))


def _size(path: str) -> int:
    if not is_url(path):
        return os.path.getsize(path)
    system, place = _system_of(path)
    return int(system.size(place))


def _opened(path: str) -> BinaryIO:
    if not is_url(path):
        return open(path, "rb")
    system, place = _system_of(path)
    file: BinaryIO = system.open(place, "rb")
    return file


def _system_of(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the place in it."""
    import fsspec  # torch brings it along

    try:
        system, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"{url} needs a package that is not installed: {one_line(error)}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url} is of a kind that is not known ({one_line(error)})") from error
    return system, str(place)
