"""What every data set is asked for: its name, its folder, its format, and a part of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from convattn.config import DataFormat
from convattn.text import nearest

TEST_SEED = 0
"""Of the draw of test images, so that runs compare."""


def check_name(name: str, known: Sequence[str], purpose: str = "") -> None:
    """Refuse a data set that is not there.

    Args:
        name: Of the data set.
        known: All there are.
        purpose: What they are for, for the error.

    Raises:
        ValueError: If it is not among them.
    """
    if name not in known:
        raise ValueError(
            f"unknown data set {name!r}{purpose}; did you mean {nearest(name, known)!r}? Known: "
            f"{', '.join(known)}"
        )


def check_format(name: str, format: DataFormat, known: Sequence[str]) -> None:
    """Refuse a format in which a data set never comes.

    Args:
        name: Of the data set.
        format: What is asked for; ``"auto"`` is right for any.
        known: What the data set may be in; nothing if it has one form of its own.

    Raises:
        ValueError: If it is not among these.
    """
    if format == "auto" or format in known:
        return
    if not known:
        raise ValueError(
            f"format={format!r} (--data.format) says how your own folder is read, and {name} has "
            "a form of its own; leave it out, or give --data.name folder"
        )
    raise ValueError(
        f"{name} cannot be read as format={format!r} (--data.format); expected auto or "
        f"{' or '.join(known)}"
    )


def refuse_root(name: str, root: str | Path | None, reader: str) -> None:
    """A folder given to a data set that is generated, which would not be read.

    Args:
        name: Of the data set.
        root: The folder; None is right.
        reader: Name of the data set that reads a folder.

    Raises:
        ValueError: If there is a folder.
    """
    if root is not None:
        raise ValueError(
            f"{name} is generated and would not read root={root} (--data.root); give --data.name "
            f"{reader} to train on that folder, or leave the folder out"
        )


def find_root(
    name: str, root: str | Path | None, download: bool, *, files: Sequence[str] = ()
) -> Path:
    """The folder of a data set, which may be missing only if it is going to be downloaded.

    Args:
        name: Of the data set, for errors.
        download: Whether it will be filled.
        files: Ends of the names of files, in lower case, that may be there instead.

    Raises:
        ValueError: If none was given.
        FileNotFoundError: If it does not exist.
        NotADirectoryError: If it is a file.
    """
    if root is None:
        raise ValueError(f"{name} needs root (--data.root), the folder that holds its files")
    folder = Path(root).expanduser()
    if folder.exists() and not folder.is_dir() and folder.suffix.lower() not in files:
        tables = f", or a table ({', '.join(files)})" if files else ""
        what = "the folder of images" if name == "folder" else f"the folder of {name}"
        raise NotADirectoryError(f"root={folder} is a file; expected {what}{tables}")
    if not folder.exists() and not download:
        raise FileNotFoundError(f"root={folder} does not exist; name a folder that does")
    return folder


class _Images(Protocol):
    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self: ...


Images = TypeVar("Images", bound=_Images)


def draw_part(images: Images, number: int | None, seed: int, what: str) -> Images:
    """A random part of the images, in their own order; all for None.

    Args:
        images: Of any task.
        number: As for ``draw_indices``, alike the rest.
    """
    if number is None:
        return images
    return images.select(draw_indices(len(images), number, seed, what))


def draw_indices(available: int, number: int, seed: int, what: str) -> Tensor:
    """Which images are drawn, (number,) ascending.

    Args:
        available: Number of images there are.
        number: Number to draw.
        seed: Of the draw.
        what: What an error calls ``number``.

    Raises:
        ValueError: If there are not as many.
    """
    if not 1 <= number <= available:
        raise ValueError(f"{what}={number}; expected 1 to {available}, all there are")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(available, generator=generator)[:number].sort().values
