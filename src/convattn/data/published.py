"""Published data sets for classification in the layouts that they were published in."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from convattn.data.choosing import TEST_SEED, draw_indices
from convattn.data.folders import LeftOut, find_images, subfolders
from convattn.data.images import TensorImages
from convattn.data.labelled import Source
from convattn.data.reading import read_sample
from convattn.data.table_files import import_pyarrow
from convattn.data.texts import first_word, read_table
from convattn.text import one_line

_IDX_SUFFIXES = ("", ".gz")


def load_cifar(name: str, root: Path, download: bool) -> Source:
    """CIFAR in torchvision's folder; see ``load_source`` for the arguments.

    Raises:
        FileNotFoundError: If it is not whole, or cannot be downloaded.
    """
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    with _download_errors(name, root, download):
        train, test = (kind(str(root), train=part, download=download) for part in (True, False))
    return Source(
        name=name,
        class_names=tuple(train.classes),
        train=_cifar_images(train),
        test=_cifar_images(test),
        image_size=(32, 32),
        in_chans=3,
        mean=(0.4914, 0.4822, 0.4465) if name == "cifar10" else (0.5071, 0.4865, 0.4409),
        std=(0.2470, 0.2435, 0.2616) if name == "cifar10" else (0.2673, 0.2564, 0.2762),
    )


def _cifar_images(dataset: CIFAR10) -> TensorImages:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return TensorImages(images, torch.tensor(dataset.targets, dtype=torch.int64))


@contextmanager
def _download_errors(name: str, root: Path, download: bool) -> Iterator[None]:
    """Says in one sentence what torchvision says in several ways."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if download:
            reason = one_line(error)
            raise FileNotFoundError(
                f"{name} could not be downloaded into {root} ({reason}); check the connection, or "
                "copy its files there"
            ) from error
        raise FileNotFoundError(
            f"{root} holds no complete {name}; give its folder (--data.root) or pass download=True "
            "(--data.download)"
        ) from error


def load_fashion_mnist(root: Path, download: bool) -> Source:
    """Four IDX files; see ``load_source`` for the arguments.

    Raises:
        ValueError: If a file is damaged.
        FileNotFoundError: If one is missing, or cannot be downloaded.
    """
    folders = (root, root / "FashionMNIST" / "raw", root / "raw")
    if download and not any(_find_idx(folder, "train-images-idx3-ubyte") for folder in folders):
        with _download_errors("fashion_mnist", root, download):
            FashionMNIST(str(root), download=True)
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(_require_idx(folders, f"{part}-images-idx3-ubyte"), num_axes=3)
        labels_file = _require_idx(folders, f"{part}-labels-idx1-ubyte")
        labels = _read_idx(labels_file, num_axes=1)
        if len(labels) != len(images):
            raise ValueError(
                f"{labels_file} holds {len(labels)} labels for {len(images)} images; fetch both "
                "files anew"
            )
        if labels.max(initial=0) >= len(FashionMNIST.classes):
            raise ValueError(
                f"{labels_file} holds label {labels.max()}; expected 0 to 9: fetch the file anew"
            )
        parts.append(TensorImages(torch.tensor(images).unsqueeze(1), torch.tensor(labels).long()))
    return Source(
        name="fashion_mnist",
        class_names=tuple(FashionMNIST.classes),
        train=parts[0],
        test=parts[1],
        image_size=(28, 28),
        in_chans=1,
        mean=(0.2860,),
        std=(0.3530,),
    )


def _find_idx(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{suffix}" for suffix in _IDX_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _require_idx(folders: tuple[Path, ...], stem: str) -> Path:
    for folder in folders:
        file = _find_idx(folder, stem)
        if file is not None:
            return file
    raise FileNotFoundError(
        f"{folders[0]} holds no {stem} or {stem}.gz, nor do its folders raw and FashionMNIST/raw; "
        "give Fashion-MNIST's folder (--data.root) or pass download=True (--data.download)"
    )


_MOST_IN_IDX = 1_000_000
"""Fashion-MNIST has 60,000, EMNIST in its layout 814,255."""


def _read_idx(file: Path, *, num_axes: int) -> NDArray[np.uint8]:
    """Bytes of an IDX file, as http://yann.lecun.com/exdb/mnist describes it: (N,) or (N, 28, 28).

    torchvision compares the md5 of the packed file, which changes when the same data are packed
    anew; here the header has to fit the contents.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            shape = _read_idx_header(file, content.read(4 + 4 * num_axes), num_axes)
            # One byte more tells a file that is too long; none further is unpacked.
            values = content.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be unpacked ({error}); fetch the file anew") from error
    if len(values) != math.prod(shape):
        more = " or more" if len(values) > math.prod(shape) else ""
        raise ValueError(
            f"{file} announces {math.prod(shape)} bytes and holds {len(values)}{more}; fetch the "
            "file anew"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_idx_header(file: Path, header: bytes, num_axes: int) -> tuple[int, ...]:
    """The shape that an IDX file announces."""
    if header[:4] != bytes([0, 0, 8, num_axes]) or len(header) < 4 + 4 * num_axes:
        raise ValueError(
            f"{file} begins with {header[:4].hex()}; expected {0x0800 + num_axes:08x}, an IDX "
            f"file of bytes in {num_axes} dimensions: fetch the file anew"
        )
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4", num_axes, offset=4))
    if shape[1:] != (28, 28)[: num_axes - 1]:
        raise ValueError(
            f"{file} holds images of {shape[1]} x {shape[2]}; expected 28 x 28 as Fashion-MNIST's"
        )
    if shape[0] > _MOST_IN_IDX:
        raise ValueError(
            f"{file} announces {shape[0]:,} images; expected {_MOST_IN_IDX:,} at most: fetch the "
            "file anew"
        )
    return shape


@dataclass(frozen=True)
class _PackedImages:
    """Images before they are decoded, so that only the drawn ones need be."""

    names: Sequence[str]
    """What an error calls each."""
    files: Sequence[str | bytes]
    """The path of each, or its contents."""
    kind: str
    """What an error says to replace: a file or a row."""
    labels: Tensor
    boxes: Tensor | None
    """(N, 4) int64: xmin, ymin, xmax, ymax, the maxima on the object."""


_Listed = tuple[str, str, list[int]]
"""Path, WordNet id and box of an image."""


def load_tiny_imagenet(
    root: Path, num_train: int | None, num_test: int | None, seed: int
) -> Source:
    """Two parquet files, or the layout as published; see ``load_source`` for the arguments.

    Raises:
        ValueError: If a file is not what it should be.
        FileNotFoundError: If one is missing.
    """
    if (root / "train.parquet").is_file() or (root / "val.parquet").is_file():
        class_names, train, test = _read_tiny_imagenet_parquet(root)
    elif (root / "train").is_dir():
        class_names, train, test = _read_tiny_imagenet_folders(root)
    else:
        raise FileNotFoundError(
            f"{root} holds neither train.parquet and val.parquet nor a folder train; give "
            "Tiny ImageNet's folder (--data.root)"
        )
    train_images = _unpack(train, num_train, seed, "tiny_imagenet: num_train")
    test_images = _unpack(test, num_test, TEST_SEED, "tiny_imagenet: num_test")
    height, width = train_images.images.shape[2:]
    if test_images.images.shape[2:] != (height, width):
        test_height, test_width = test_images.images.shape[2:]
        raise ValueError(
            f"{root} holds training images of {height} x {width} and test images of "
            f"{test_height} x {test_width}; expected one size: resize them beforehand"
        )
    return Source(
        name="tiny_imagenet",
        class_names=class_names,
        train=train_images,
        test=test_images,
        image_size=(height, width),
        in_chans=3,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    )


def _unpack(packed: _PackedImages, number: int | None, seed: int, what: str) -> TensorImages:
    """The drawn images, decoded."""
    available = len(packed.files)
    chosen = (
        torch.arange(available) if number is None else draw_indices(available, number, seed, what)
    )
    images: NDArray[np.uint8] | None = None
    for row, index in enumerate(chosen.tolist()):
        file = packed.files[index]
        name = packed.names[index]
        sample = read_sample(file, name, kind=packed.kind)
        pixels = np.asarray(sample.image).transpose(2, 0, 1)
        if images is None:
            images = np.empty((len(chosen), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"{name} is an image of {pixels.shape[1]} x {pixels.shape[2]} where those before "
                f"it are {images.shape[2]} x {images.shape[3]}; expected one size: resize them "
                "beforehand"
            )
        images[row] = pixels
    assert images is not None
    boxes = None
    if packed.boxes is not None:
        boxes = packed.boxes[chosen]
        least, most = boxes[:, :2], boxes[:, 2:]
        inside = torch.tensor([images.shape[3], images.shape[2]])  # width bounds x, height y
        wrong = ((least < 0) | (most < least) | (most >= inside)).any(1).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{packed.names[int(chosen[wrong[0]])]} has the box {boxes[wrong[0]].tolist()}; "
                f"expected xmin, ymin, xmax, ymax inside its {images.shape[2]} x "
                f"{images.shape[3]} pixels, counted from 0, the maxima on the object"
            )
        boxes = torch.cat([least, most + 1], dim=1)
    return TensorImages(torch.from_numpy(images), packed.labels[chosen], boxes=boxes)


def _read_tiny_imagenet_parquet(
    root: Path,
) -> tuple[tuple[str, ...], _PackedImages, _PackedImages]:
    parts = []
    for file in (root / "train.parquet", root / "val.parquet"):
        if not file.is_file():
            raise FileNotFoundError(f"{root} holds no {file.name}; fetch the data set anew")
        parts.append(_read_parquet(file))
    train, test = parts
    names_file = root / "classes.tsv"
    if names_file.is_file():
        rows = read_table(names_file, 3)
        if [number for number, _, _ in rows] != [str(number) for number in range(len(rows))]:
            raise ValueError(
                f"{names_file} numbers its classes otherwise than 0, 1, 2, ...; put them in order"
            )
        class_names = tuple(first_word(words) for _, _, words in rows)
    else:
        names_file = root / "train.parquet"
        class_names = tuple(map(str, range(max(0, int(train.labels.max())) + 1)))
    for name, part in (("train", train), ("val", test)):
        wrong = part.labels[(part.labels < 0) | (part.labels >= len(class_names))]
        if len(wrong):
            raise ValueError(
                f"{root / name}.parquet holds label {int(wrong[0])}; expected 0 to "
                f"{len(class_names) - 1}, the classes of {names_file}"
            )
    return class_names, train, test


def _read_parquet(file: Path) -> _PackedImages:
    pa, pq = import_pyarrow(file)
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise ValueError(f"{file} cannot be read as parquet ({reason}); fetch it anew") from error
    if not table.num_rows:
        raise ValueError(f"{file} holds no rows; fetch it anew")
    for name in ("image", "label"):
        if name not in table.column_names:
            raise ValueError(
                f"{file} has no column {name!r} but {', '.join(table.column_names)}; expected "
                "image, label and, if boxes are known, bbox"
            )
    image_type = table.schema.field("image").type
    if not pa.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
        raise ValueError(
            f"the column image of {file} is {image_type}; expected a struct with the field bytes"
        )
    contents = [image and image["bytes"] for image in table["image"].to_pylist()]
    if None in contents:
        raise ValueError(
            f"row {contents.index(None)} (from 0) of {file} holds no image; expected its bytes"
        )
    boxes = None
    if "bbox" in table.column_names:
        boxes = _integers(file, table, "bbox", pa.list_(pa.int64()), (table.num_rows, 4))
    return _PackedImages(
        names=[f"row {row} (from 0) of {file}" for row in range(table.num_rows)],
        files=contents,
        kind="row",
        labels=_integers(file, table, "label", pa.int64(), (table.num_rows,)),
        boxes=boxes,
    )


def _integers(file: Path, table: Any, name: str, kind: Any, shape: tuple[int, ...]) -> Tensor:
    """A column as int64."""
    try:
        # Arrow refuses to round, NumPy to make a number of an empty cell or a ragged column.
        values = np.array(table[name].cast(kind).to_pylist(), dtype=np.int64)
    except (TypeError, ValueError, NotImplementedError):  # pyarrow's own are among these
        values = np.empty(0, np.int64)
    if values.shape != shape:
        each = "a whole number" if len(shape) == 1 else f"{shape[1]} whole numbers"
        raise ValueError(
            f"the column {name} of {file} is {table.schema.field(name).type}; expected {each} in "
            "every row"
        )
    return torch.from_numpy(values)


def _read_tiny_imagenet_folders(
    root: Path,
) -> tuple[tuple[str, ...], _PackedImages, _PackedImages]:
    wnids = subfolders(root / "train")
    if len(wnids) < 2:
        raise FileNotFoundError(
            f"{root / 'train'} holds {len(wnids)} class folders; expected at least 2 as "
            f"{root / 'train'}/n01443537/images/n01443537_0.JPEG"
        )
    train: list[_Listed] = []
    for wnid in wnids:
        folder = root / "train" / wnid
        train += _read_listing(folder / f"{wnid}_boxes.txt", folder / "images", wnid)
    listing = root / "val" / "val_annotations.txt"
    test = _read_listing(listing, root / "val" / "images")
    unknown = {wnid for _, wnid, _ in test}.difference(wnids)
    if unknown:
        raise ValueError(
            f"{listing} holds the class {min(unknown)}, which has no folder in {root / 'train'}; "
            "both must have the same ones"
        )
    words_file = root / "words.txt"
    words = dict(read_table(words_file, 2)) if words_file.is_file() else {}
    class_names = tuple(first_word(words.get(wnid, wnid)) for wnid in wnids)
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    return class_names, _pack_files(train, numbers), _pack_files(test, numbers)


def _pack_files(listed: list[_Listed], numbers: dict[str, int]) -> _PackedImages:
    paths = [path for path, _, _ in listed]
    return _PackedImages(
        names=paths,
        files=paths,
        kind="file",
        labels=torch.tensor([numbers[wnid] for _, wnid, _ in listed]),
        boxes=torch.tensor([box for _, _, box in listed]),
    )


def _read_listing(file: Path, folder: Path, wnid: str | None = None) -> list[_Listed]:
    """What a box file says of the images in ``folder``; without ``wnid`` it gives that, too."""
    listed: list[_Listed] = []
    for number, (name, *rest) in enumerate(read_table(file, 6 if wnid is None else 5), start=1):
        try:
            box = [int(edge) for edge in rest[-4:]]
        except ValueError:
            raise ValueError(
                f"line {number} of {file} ends with {rest[-4:]}; expected xmin, ymin, xmax, ymax "
                "in whole pixels"
            ) from None
        listed.append((str(folder / name), rest[0] if wnid is None else wnid, box))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; it should hold the images of {file}")
    there = set(find_images(folder, LeftOut()))
    names = {path for path, _, _ in listed}
    for images, fault in ((names - there, "lacks"), (there - names, "holds, unlisted,")):
        if images:
            raise FileNotFoundError(
                f"{folder} {fault} {Path(min(images)).name}; expected the {len(names)} images "
                f"that {file} lists"
            )
    return listed
