"""Images for networks that see other channels than red, green and blue."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convattn.data.reading import (
    MAX_PIXELS,
    Reduction,
    check_number_of_pixels,
    image_extensions,
    read_sample,
    read_values,
    to_eight_bits,
    turned,
)
from convattn.exceptions import UnreadableImageError
from convattn.text import one_line

_TIFF = (".tif", ".tiff")
_ORIENTATION = 274  # TIFF's tag
_TRUTH = "8 or 16 bits without a sign, or floats in 0..1"


def read_channels(
    path: str, in_chans: int, *, reduction: Reduction | None = None
) -> Image.Image | Tensor:
    """An image of a data set with as many channels as a network sees, upright.

    Args:
        path: Of the file.
        in_chans: 3 gives what ``read_image`` gives, 1 that in grey; any other number the bands of
            the file itself.
        reduction: See ``read_sample``; for 1 and 3.

    Returns:
        A PIL image in RGB or grey, or bytes (C, H, W).

    Raises:
        UnreadableImageError: If it is no image, or has another number of bands.
    """
    if in_chans not in (1, 3):
        return read_bands(path, in_chans)
    image = read_sample(path, path, reduction=reduction).image
    return image.convert("L") if in_chans == 1 else image


def read_bands(path: str, in_chans: int) -> Tensor:
    """The bands of an image file as bytes (C, H, W), upright.

    They are those of a file with opacity (4 with red, green and blue, 2 with grey), of CMYK, of a
    TIFF (by tifffile, where Pillow cannot), or of an array (H, W, C) or (C, H, W) in a ``.npy``. 16
    bits become 8 of the same meaning, floats in 0..1 too.

    Args:
        path: Of the file.
        in_chans: How many there must be.

    Raises:
        UnreadableImageError: If there are others, or their values have no agreed meaning.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        values = _read_npy(path)
    elif suffix in _TIFF:
        values = _read_tiff(path, in_chans)
    else:
        _, values = read_values(path)
    bands = _channels_first(path, values, in_chans)
    check_number_of_pixels((bands.shape[2], bands.shape[1]), path)
    return torch.from_numpy(np.array(_as_bytes(path, bands), order="C"))


def as_rgb(bands: Tensor) -> Image.Image:
    """The first three of some bands (C, H, W), bytes, as red, green and blue; of two, the first."""
    shown = bands[:3] if len(bands) >= 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())


def extensions_of(in_chans: int) -> tuple[str, ...]:
    """Ends of the names of files that are read as images of so many channels, in lower case."""
    return image_extensions() if in_chans in (1, 3) else (*image_extensions(), ".npy")


def measure_channels(
    paths: Sequence[str], in_chans: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band over some files, in 0..1.

    Args:
        paths: Of the files, at least one.
        in_chans: Their number of bands.

    Raises:
        UnreadableImageError: If none can be read.
    """
    sums, squares, count = torch.zeros(in_chans), torch.zeros(in_chans), 0
    trouble: UnreadableImageError | None = None
    for path in paths:
        try:
            values = read_bands(path, in_chans).flatten(1).double() / 255
        except UnreadableImageError as error:
            trouble = error
            continue
        sums = sums + values.sum(1)
        squares = squares + values.square().sum(1)
        count += values.shape[1]
    if not count:
        assert trouble is not None
        raise trouble
    mean = sums / count
    # A band that is the same everywhere is left as it is.
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std < 1e-3, 1.0, std)
    return tuple(round(one, 4) for one in mean.tolist()), tuple(
        round(one, 4) for one in std.tolist()
    )


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    try:
        yield
    except UnreadableImageError:
        raise
    # A broken file makes a decoder raise whatever it leads it to.
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise UnreadableImageError(
            f"{path} cannot be read as an image ({reason}): replace or remove this file"
        ) from error


def _read_npy(path: str) -> NDArray[Any]:
    with _one_sentence(path):
        # Mapped, so that its header is looked at before its size is believed.
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return values


def _read_tiff(path: str, in_chans: int) -> NDArray[Any]:
    """By Pillow if it gives that many bands, which are then upright; else by tifffile."""
    try:
        _, values = read_values(path)
    except UnreadableImageError as error:
        trouble: UnreadableImageError | None = error
    else:
        trouble = None
        if values.ndim == 3 and values.shape[2] == in_chans:
            return values
    try:
        tifffile = importlib.import_module("tifffile")
    except ModuleNotFoundError:
        if trouble is None:
            return values
        raise UnreadableImageError(f"{trouble}; TIFFs of many bands need tifffile") from trouble
    with _one_sentence(path), tifffile.TiffFile(path) as file:
        page = file.pages[0]
        orientation = page.tags.get(_ORIENTATION)
        if np.prod(file.series[0].shape) > MAX_PIXELS * in_chans:
            raise UnreadableImageError(
                f"{path} is too large: {' x '.join(map(str, file.series[0].shape))} values"
            )
        values = file.series[0].asarray()
    noted = 1 if orientation is None else int(orientation.value)
    if noted == 1 or values.ndim != 3:
        return values
    first = _channels_first(path, values, in_chans)
    return np.stack([turned(band, noted) for band in first])


def _channels_first(path: str, values: NDArray[Any], in_chans: int) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[2] == in_chans:
        return np.moveaxis(values, 2, 0)
    if values.ndim == 3 and values.shape[0] == in_chans:
        return values
    found = "1 band" if values.ndim == 2 else f"the shape {tuple(values.shape)}"
    raise UnreadableImageError(
        f"{path} has {found}; expected {in_chans} bands, as the network sees (--data.in-chans)"
    )


def _as_bytes(path: str, bands: NDArray[Any]) -> NDArray[np.uint8]:
    if bands.dtype == np.uint8:
        return np.asarray(bands)
    if bands.dtype == np.uint16:
        return to_eight_bits(bands)
    if np.issubdtype(bands.dtype, np.floating) and bands.size:
        low, high = bands.min(), bands.max()
        if low >= 0 and high <= 1:
            return np.rint(np.asarray(bands, np.float32) * 255).astype(np.uint8)
        raise UnreadableImageError(
            f"{path} has values from {low:.3g} to {high:.3g} of {bands.dtype}; expected {_TRUTH}"
        )
    raise UnreadableImageError(f"{path} has values of {bands.dtype}; expected {_TRUTH}")
