"""The maps of a frozen network, written once and read as often as wanted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm import tqdm

from convattn.data import ImageFiles, TensorImages
from convattn.data.shard_files import file_of
from convattn.data.workers import end_with_reader
from convattn.exceptions import Interrupted
from convattn.files import replace_atomically
from convattn.modes import eager_mode, eval_mode
from convattn.text import report
from convattn.world import World, share

_BATCH = 32
_CHUNK = 1 << 26  # bytes of maps between two records of progress
_DESCRIPTION, _PROGRESS, _MAPS, _LABELS = "cache.json", "progress.json", "maps.npy", "labels.npy"
_STORED = {
    "float16": (np.float16, torch.float16),
    "float32": (np.float32, torch.float32),
    "bfloat16": (np.int16, torch.bfloat16),  # numpy has no such format: its bits
}
_GIGABYTE = 1e9
_ALONE = World()


class MapCache(Dataset[tuple[Tensor, Tensor]]):
    """Maps of training and test images as a finished cache folder holds them.

    The first rows are the training images in order, then the same in each further view, and last
    the test images. An item is ``(map, label)``, the map (C, h, w) in float32.

    Args:
        folder: What ``write_maps`` has made.

    Attributes:
        shape: (C, h, w) of a map.
        num_train: Training images.
        num_test: Test images.
        views: Passes over the training images.
        labels: Of the training images and then the test images, (N,) or, of images with several
            classes each, (N, K).

    Raises:
        FileNotFoundError: If the folder is no cache.
        ValueError: If it is damaged or was not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = _read_json(folder / _DESCRIPTION, folder)
        try:
            self.shape: tuple[int, int, int] = tuple(self.description["shape"])
            self.num_train = int(self.description["num_train"])
            self.num_test = int(self.description["num_test"])
            self.views = int(self.description["views"])
            _, self._dtype = _STORED[self.description["dtype"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / _DESCRIPTION} lacks {error}; delete {folder} to have the maps made anew"
            ) from None
        done = _rows_done(folder)
        if done != len(self):
            raise ValueError(f"{folder} holds {done:,} of {len(self):,} maps; let it be finished")
        try:
            self._maps = np.load(folder / _MAPS, mmap_mode="r")
            self.labels = torch.from_numpy(np.load(folder / _LABELS))
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{folder} is damaged ({error}); delete it to have the maps made anew"
            ) from None

    def __len__(self) -> int:
        return self.views * self.num_train + self.num_test

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.read(torch.tensor([index]))[0], self.labels[self.image_of(index)]

    def image_of(self, row: int) -> int:
        """Place of a row's image among the labels.

        Args:
            row: From 0.
        """
        first = self.views * self.num_train
        return row % self.num_train if row < first else row - first + self.num_train

    def rows(self, images: Tensor, view: Tensor | int = 0) -> Tensor:
        """The rows of images, (B,).

        Args:
            images: (B,) places among the labels.
            view: Of the training images, 0 is as the network is tested; test images have no other.
        """
        of_train = images + view * self.num_train
        of_test = images + (self.views - 1) * self.num_train
        return torch.where(images < self.num_train, of_train, of_test)

    def read(self, rows: Tensor) -> Tensor:
        """Maps in float32: (B,) -> (B, C, h, w)."""
        found = torch.from_numpy(np.ascontiguousarray(self._maps[rows.numpy()]))
        return (found.view(self._dtype) if self._dtype is torch.bfloat16 else found).float()


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where maps are cached and how."""

    root: Path
    """Folder of caches."""
    name: str
    """What the folder's name begins with."""
    dtype: str = "float16"
    """float16, bfloat16 or float32."""
    limit: float = 20.0
    """Gigabytes at most."""
    num_workers: int = 0
    """Processes that read images."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the network is run."""


class SeededImages(Dataset[tuple[Any, Any]]):
    """Images whose random transform gives each image the same in whatever order they are read.

    Args:
        images: With a transform.
        view: Number of the pass.
    """

    def __init__(self, images: TensorImages | ImageFiles, view: int) -> None:
        self.images = images
        self.view = view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        with _seeded(self.view * 1_000_003 + index):
            return self.images[index]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def write_maps(
    backbone: nn.Module,
    train: Sequence[Dataset[Any]],
    test: Dataset[Any],
    *,
    labels: Tensor,
    shape: tuple[int, int, int],
    about: Mapping[str, Any],
    options: CacheOptions,
    world: World = _ALONE,
) -> MapCache:
    """The maps of these images, out of the cache where they are there.

    A pass that was stopped is gone on with. What it takes of the disk is told and checked before.
    Several processes share the images, the same batches as one would; the first joins what they
    write, and all come back when it is whole.

    Args:
        backbone: (B, C, H, W) -> (B, C', h, w); it is run once for each image and view.
        train: Training images with their transforms, a data set a view.
        test: Test images with theirs.
        labels: Of training and test images.
        shape: (C', h, w) of a map.
        about: All that decides what the maps are beside the backbone's weights: transforms, layer,
            files.
        options: Where and how.
        world: The processes.

    Raises:
        ValueError: If they would take more than the limit or than the disk has, the folder holds
            maps of something else, another process is writing them, or a map is no number.
        OSError: If the disk is full: what is there stays, and is gone on with.
        Interrupted: If the user stopped it, or another of the processes is gone.
    """
    images: list[Dataset[Any]] = [*train, test]
    num_train, num_test = len(train[0]), len(test)  # type: ignore[arg-type]
    total = len(train) * num_train + num_test
    description = {
        "backbone": digest_of(backbone),
        **about,
        "labels": _sha256(labels.numpy().tobytes()),
        "shape": list(shape),
        "dtype": options.dtype,
        "views": len(train),
        "num_train": num_train,
        "num_test": num_test,
    }
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    folder = options.root / f"{options.name}-{_sha256(text.encode())[:16]}"
    row = int(np.prod(shape)) * np.dtype(_STORED[options.dtype][0]).itemsize
    try:
        with _begun(folder, text, labels, total, row, shape, options, world):
            done = int(world.first_says(lambda: str(_rows_done(folder))))
            if done < total:
                write = _Pass(backbone, ConcatDataset(images), shape, options)
                _write_shares(write, folder, total, done, world)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {folder} keeps its maps, and the same command goes on with them"
        ) from None
    return MapCache(folder)


@contextmanager
def _begun(
    folder: Path,
    text: str,
    labels: Tensor,
    total: int,
    row: int,
    shape: tuple[int, int, int],
    options: CacheOptions,
    world: World,
) -> Iterator[None]:
    """The folder, described and kept from others by the first process."""
    if not world.is_first:
        yield
        return
    missing = total - _rows_done(folder)
    if missing:
        _check_disk(folder, missing, row, shape, options, shares=world.count)
    if not (folder / _DESCRIPTION).exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_atomically(folder / _DESCRIPTION, text.encode())
    elif json.loads(text) != _read_json(folder / _DESCRIPTION, folder):
        raise ValueError(
            f"{folder / _DESCRIPTION} tells of other maps (another network, transform, layer or "
            "other files) than the folder's name; delete the folder to have them made anew"
        )
    try:
        with FileLock(folder / ".lock", timeout=0):
            if missing:
                with (folder / _LABELS).open("wb") as file:
                    np.save(file, labels.numpy())
            yield
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another process; wait for it, or give another --cache"
        ) from None


@dataclass(frozen=True)
class _Maps:
    """A file of maps that grows, and beside it how far it is."""

    path: Path
    rows: range
    """Of the data set's."""

    @classmethod
    def whole(cls, folder: Path, total: int) -> _Maps:
        """Those of the data set."""
        return cls(folder / _MAPS, range(total))

    @classmethod
    def share(cls, folder: Path, rows: range) -> _Maps:
        """Those of one of several processes."""
        return cls(folder / f"share-{rows.start}-{rows.stop}.npy", rows)

    @property
    def progress(self) -> Path:
        """How far it is."""
        whole = self.path.name == _MAPS
        return self.path.with_name(_PROGRESS) if whole else self.path.with_suffix(".json")

    @property
    def done(self) -> int:
        """Maps that are known to be written."""
        return _rows_done(self.path.parent, self.progress.name)

    def tell(self, done: int) -> None:
        """Note how many are written."""
        replace_atomically(self.progress, json.dumps({"rows": done}).encode())


@dataclass(frozen=True)
class _Pass:
    """What computes maps."""

    backbone: nn.Module
    images: Dataset[Any]
    shape: tuple[int, int, int]
    options: CacheOptions

    def write(self, maps: _Maps, end: int) -> None:
        """Compute those of the file's rows that are missing, up to a number of them."""
        done, options = maps.done, self.options
        first = maps.rows.start
        loader: DataLoader[Any] = DataLoader(
            Subset(self.images, range(first + done, first + end)),
            batch_size=_BATCH,
            num_workers=options.num_workers,
            worker_init_fn=end_with_reader,
        )
        bar = tqdm(total=end, initial=done, desc="maps", unit=" images", disable=None, leave=False)
        with (
            bar,
            _opened(maps.path, done, len(maps.rows), self.shape, options.dtype) as file,
            eval_mode(self.backbone),
            eager_mode(),
            torch.inference_mode(),
        ):
            written = 0
            for batch, *_ in loader:
                x = self.backbone(batch.to(options.device)).cpu()
                content = _as_stored(x, self.shape, options.dtype)
                file.write(content)
                done, written = done + len(x), written + len(content)
                bar.update(len(x))
                if written >= _CHUNK or done == end:
                    file.flush()
                    os.fsync(file.fileno())
                    # Whole batches only: a map's last bits depend on what it is computed with.
                    maps.tell(done)
                    written = 0

    def append(self, maps: _Maps, share: _Maps) -> None:
        """Put the maps of a finished share behind those of the data set, and remove it."""
        found = np.load(share.path, mmap_mode="r")
        step = max(1, _CHUNK // found[0].nbytes)
        with _opened(maps.path, maps.done, len(maps.rows), self.shape, self.options.dtype) as file:
            for start in range(0, len(found), step):
                file.write(found[start : start + step].tobytes())
            file.flush()
            os.fsync(file.fileno())
        maps.tell(share.rows.stop)
        share.path.unlink(missing_ok=True)
        share.progress.unlink(missing_ok=True)


def _write_shares(write: _Pass, folder: Path, total: int, done: int, world: World) -> None:
    """Compute this process's share; the first joins all.

    The first process's share is the beginning of the file of all.
    """
    maps = _Maps.whole(folder, total)
    ranges = [share(rank, world.count, total, _BATCH) for rank in range(world.count)]
    others = {
        rank: _Maps.share(folder, range(max(own.start, done), own.stop))
        for rank, own in enumerate(ranges)
        if rank and own and own.stop > done
    }
    if world.is_first:
        _remove_others(folder, others.values())
    world.all_say("begun")
    if world.is_first:
        write.write(maps, max(ranges[0].stop, done))
    elif world.rank in others:
        write.write(others[world.rank], len(others[world.rank].rows))
    world.all_say("written")
    if world.is_first:
        for one in others.values():
            write.append(maps, one)
    world.all_say("joined")


def _remove_others(folder: Path, kept: Iterable[_Maps]) -> None:
    """Remove shares of another number of processes."""
    names = {name for one in kept for name in (one.path.name, one.progress.name)}
    for file in folder.glob("share-*"):
        if file.name not in names:
            file.unlink()


@contextmanager
def _opened(
    path: Path, done: int, total: int, shape: tuple[int, int, int], dtype: str
) -> Iterator[IO[bytes]]:
    """The file of maps, cut to what is known to be written, ready for more."""
    stored = np.dtype(_STORED[dtype][0])
    mode = "r+b" if done else "w+b"
    with path.open(mode) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(stored),
            "fortran_order": False,
            "shape": (total, *shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + done * int(np.prod(shape)) * stored.itemsize)
        file.seek(0, os.SEEK_END)
        yield file


def _as_stored(x: Tensor, shape: tuple[int, int, int], dtype: str) -> bytes:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"the network gives maps of {tuple(x.shape[1:])} and of {shape} for images of one size"
        )
    stored, kind = _STORED[dtype]
    x = x.to(kind)
    if not bool(x.isfinite().all()):
        larger = "bfloat16" if dtype == "float16" else "float32"
        raise ValueError(
            f"the network's maps are no numbers, or too large for {dtype}; try "
            f"--cache-dtype {larger}, or other weights"
        )
    return (x.view(torch.int16) if kind is torch.bfloat16 else x).numpy().astype(stored).tobytes()


def _check_disk(
    folder: Path,
    rows: int,
    row: int,
    shape: tuple[int, int, int],
    options: CacheOptions,
    *,
    shares: int,
) -> None:
    need = rows * row
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    size = "x".join(map(str, shape))
    what = f"{rows:,} maps of {size} in {options.dtype} take {_gigabytes(need)}"
    fewer = f"at most {int(min(options.limit * _GIGABYTE, free) // row):,} images and views"
    smaller = f"{fewer} (--data.num-train, --views), a smaller --image-size or another --layer"
    if options.dtype == "float32":
        smaller = f"--cache-dtype float16, {smaller}"
    if need > options.limit * _GIGABYTE:
        raise ValueError(
            f"{what}, and --cache-limit is {options.limit:g} GB; raise it, or take {smaller}"
        )
    # Of several shares one is there twice while it is joined to the others.
    if need + (need // shares if shares > 1 else 0) > free:
        raise OSError(
            f"{what}, and {place} has {_gigabytes(free)} free; give another --cache, or take "
            f"{smaller}"
        )
    report(f"{what} of {_gigabytes(free)} free, in {folder}")


def _gigabytes(number: int) -> str:
    return f"{number / _GIGABYTE:.2f} GB"


def _rows_done(folder: Path, name: str = _PROGRESS) -> int:
    file = folder / name
    return int(_read_json(file, folder)["rows"]) if file.is_file() else 0


def _read_json(file: Path, folder: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no cache of maps: {file} does not exist")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete {folder} to have the maps made anew"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no object; delete {folder} to have the maps made anew")
    return found


def digest_of(network: nn.Module) -> str:
    """SHA-256 of a network's tensors and their names.

    Args:
        network: On any device.
    """
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digest_of_images(images: TensorImages | ImageFiles) -> str:
    """SHA-256 of which images these are: their bytes, or the files' names, sizes and times.

    Args:
        images: With any transform.

    Raises:
        FileNotFoundError: If a file is gone.
    """
    if isinstance(images, TensorImages):
        return _sha256(images.images.contiguous().numpy().tobytes())
    digest = hashlib.sha256()
    for path in images.paths:
        status = os.stat(file_of(path))
        name = os.fsencode(path)
        digest.update(name + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
