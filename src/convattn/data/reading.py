"""Images from anywhere, read safely and upright: the only place where files become pixels."""

from __future__ import annotations

import importlib
import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, JpegImagePlugin, features
from torch import Tensor

from convattn.data.shard_files import file_of, open_image
from convattn.exceptions import UnreadableImageError
from convattn.text import one_line

ImageSource = str | Path | BinaryIO | Image.Image | Tensor | NDArray[Any]
"""An image from outside, as ``read_image`` takes it."""

MAX_PIXELS = 2**27
"""More are refused before they are decoded: as RGB so many fill 512 MiB, and reading holds up to
three copies. Room for a camera's 100 million, but for no bomb of few bytes and gigabytes."""

Reduction = Callable[[int, int], float]
"""Width and height of an image -> the factor by which it may be decoded smaller; 1: not at all."""

# EPS is a program, which Ghostscript runs; IPTC wraps a file of any kind and size.
_LEFT_OUT = ("EPS", "IPTC")
_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_ORIENTATION = ExifTags.Base.Orientation
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF's orientations that swap width and height
_DRAFTS = (8, 4, 2)  # factors by which a JPEG can be decoded smaller


@dataclass(frozen=True)
class _Name:
    """What an error calls an image, and what it tells to do."""

    text: str
    kind: str | None = None
    """Of a data set's: "file" or "row", to be replaced or removed."""

    def __str__(self) -> str:
        return self.text

    def unreadable(self, reason: str) -> UnreadableImageError:
        """The error for an image that is none."""
        if self.kind is not None:
            return UnreadableImageError(
                f"{self} cannot be read as an image ({reason}): replace or remove this {self.kind}"
            )
        return UnreadableImageError(
            f"{self} cannot be read: {reason.rstrip('.')}; give a whole image in a common format, "
            "for example PNG or JPEG"
        )


_UNNAMED = _Name("the image")


@dataclass(frozen=True)
class Sample:
    """An image of a data set, upright, and how its file stores it."""

    image: Image.Image
    """Upright, in RGB."""
    orientation: int
    """EXIF's number, 1 to 8, of how the file stores it; 1: as it is seen."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height as in the file."""
        width, height = self.image.size
        return (height, width) if self.orientation in _QUARTER_TURNS else (width, height)


def read_image(source: ImageSource, *, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image of any kind, upright, in 8-bit RGB.

    Training, test, prediction, explanation and demo see these pixels of it. Transparent parts
    become white, 16 bits become 8 of the same meaning, the camera's note which side is up is
    followed, and of an animation the first frame is taken. Colour profiles are ignored. Formats are
    Pillow's, and HEIC where pillow-heif is installed.

    Args:
        source: A path; an open binary file, read from its start; a PIL image, which is left as it
            is; a tensor (C, H, W) or (H, W); or an array (H, W, C) or (H, W). Tensors and arrays
            are uint8, or floats in 0..1, with 1, 3 or 4 channels: grey, RGB, RGB and opacity.
        most_pixels: What an open file may have; a JPEG of more is decoded smaller.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        UnreadableImageError: If it is no image, cut short, larger than ``MAX_PIXELS``, of a kind
            that Pillow cannot read, or of values without an agreed meaning. Names no path but one
            given as ``source``.

    Examples:
        >>> image = read_image(torch.rand(3, 4, 6))
        >>> image.mode, image.size
        ('RGB', (6, 4))
    """
    if isinstance(source, (str, Path)):
        return _read_path(source, _Name(str(source))).image
    if isinstance(source, Image.Image):
        check_number_of_pixels(source.size, _UNNAMED)
        with _one_sentence(_UNNAMED):
            return _upright_rgb(source.copy(), _UNNAMED).image
    if isinstance(source, Tensor):
        name = _Name(f"the tensor of {source.dtype} and shape {tuple(source.shape)}")
        pixels = source.detach().cpu()
        # numpy has no bfloat16.
        pixels = pixels.float() if pixels.is_floating_point() else pixels
        channels_last = pixels.movedim(0, -1) if pixels.ndim == 3 else pixels
        return _from_array(channels_last.numpy(), name, "(C, H, W)")
    if isinstance(source, np.ndarray):
        name = _Name(f"the array of {source.dtype} and shape {source.shape}")
        return _from_array(source, name, "(H, W, C)")
    return _read_file(source, _UNNAMED, most_pixels=most_pixels).image


def read_sample(
    source: str | bytes, name: str, *, kind: str = "file", reduction: Reduction | None = None
) -> Sample:
    """An image of a data set, as ``read_image`` reads it, with errors that say where it lies.

    Args:
        source: Its path, or its bytes.
        name: What an error calls it.
        kind: What an error says to replace or remove.
        reduction: By how much a JPEG may be decoded smaller, which is several times faster. The
            pixels are then means of those that the file has.

    Raises:
        UnreadableImageError: If it is missing, or as for ``read_image``.
    """
    known = _Name(name, kind)
    if isinstance(source, bytes):
        return _read_file(io.BytesIO(source), known, reduction)
    try:
        return _read_path(source, known, reduction)
    except FileNotFoundError as error:
        raise known.unreadable("it is no longer there") from error


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before a pixel of it is decoded."""

    size: tuple[int, int]
    """Width and height of the upright image."""
    format: str
    """Pillow's name of the format, by the contents."""
    traits: tuple[str, ...]
    """What ``read_image`` changes or leaves out: some of ``HEADER_TRAITS``."""


HEADER_TRAITS = ("grey", "CMYK", "16 bits or floats", "transparent", "several frames", "turned")


def read_header(path: str) -> Header:
    """Size and kind of an image file; no pixel is decoded but of a TIFF that is turned.

    Args:
        path: Of the file.

    Raises:
        UnreadableImageError: If it is missing, or no image by its beginning.
    """
    name = _Name(path, "file")
    if not os.path.isfile(file_of(path)):
        raise name.unreadable("it is no longer there")
    with _one_sentence(name), _opened(path, name) as file, _open(file, name) as image:
        orientation = _orientation_before_decoding(image, file)
        found = {
            "grey": image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF",
            "CMYK": image.mode == "CMYK",
            "16 bits or floats": image.mode[0] in "IF" or _has_deep_colours(image),
            "transparent": image.has_transparency_data,
            # A camera's MPO has previews beside the photograph.
            "several frames": getattr(image, "is_animated", False) and image.format != "MPO",
            "turned": orientation != 1,
        }
        traits = tuple(trait for trait in HEADER_TRAITS if found[trait])
        return Header(_upright_size(image, orientation), image.format or "unknown", traits)


def _has_deep_colours(image: ImageFile.ImageFile) -> bool:
    """Whether colours of 16 bits are stored, which Pillow gives in 8."""
    return any(";16" in str(tile[3]) for tile in image.tile)


def read_values(path: str) -> tuple[str, NDArray[Any]]:
    """An image as its file stores its values, but upright, as masks want it.

    Args:
        path: Of the file.

    Returns:
        Pillow's name of the mode, and (H, W) or (H, W, C) values; those of a palette are indices.

    Raises:
        UnreadableImageError: As for ``read_image``.
    """
    name = _Name(path, "file")
    with _one_sentence(name), _opened(path, name) as file, _open(file, name) as image:
        check_number_of_pixels(image.size, name, _most_pixels(image))
        image.load()
        if image.format != "TIFF" and _noted_orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        return image.mode, np.array(image)


def read_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image in a file; see ``read_header``.

    Args:
        path: Of the file.

    Raises:
        UnreadableImageError: As for ``read_image``.
    """
    name = _Name(path, "file")
    with _one_sentence(name), _opened(path, name) as file, _open(file, name) as image:
        check_number_of_pixels(image.size, name, _most_pixels(image))
        width, height = _upright_size(image, _orientation_before_decoding(image, file))
    return height, width


def _orientation_before_decoding(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    """As ``_noted_orientation``, which decodes a PNG to see whether notes stand behind its pixels.

    Few have any.
    """
    return 1 if image.format == "PNG" and not _has_notes(file) else _noted_orientation(image)


def _upright_size(image: ImageFile.ImageFile, orientation: int) -> tuple[int, int]:
    """Width and height of an opened image once it is turned."""
    if orientation in _QUARTER_TURNS and image.format == "TIFF":
        image.load()  # Pillow turns it itself, sooner or later
        return image.size
    width, height = image.size
    return (height, width) if orientation in _QUARTER_TURNS else (width, height)


def _has_notes(png: BinaryIO) -> bool:
    place = png.tell()
    png.seek(0)
    content = png.read()
    png.seek(place)  # where decoding goes on
    return any(mark in content for mark in (b"eXIf", b"type exif", b"adobe.xmp"))


@cache
def image_extensions() -> tuple[str, ...]:
    """Ends of the names of files that are read as images, in lower case.

    Examples:
        >>> ".jpg" in image_extensions() and ".gif" in image_extensions()
        True
    """
    # Pillow warns of a name that it does not know; it knows AVIF since 11.3.
    more = [".avif"] if "avif" in features.get_supported() else []
    more += [".jp2"] if features.check("jpg_2000") else []
    return (*_EXTENSIONS, *more, *((".heic", ".heif") if _add_heif() else ()))


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Values (H, W), one a pixel of a stored image, as they lie on the upright one.

    Args:
        pixels: As the file stores its image.
        orientation: EXIF's number, 1 to 8.

    Examples:
        >>> turned(np.array([[1, 2, 3]]), 6)
        array([[1],
               [2],
               [3]])
    """
    if orientation in _QUARTER_TURNS:
        pixels = pixels.T
    # What is left after rows and columns were swapped: which of the two run the other way.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_boxes(
    boxes: NDArray[np.float32], orientation: int, stored_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Boxes (N, 4) on a stored image, xmin, ymin, xmax, ymax in pixels, as on the upright one.

    Args:
        orientation: EXIF's number, 1 to 8.
        stored_size: Width and height of the stored image.
    """
    x, y = boxes[:, [0, 2]], boxes[:, [1, 3]]
    width, height = stored_size
    if orientation in _QUARTER_TURNS:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = width - x[:, ::-1]
    if orientation in (3, 4, 7, 8):
        y = height - y[:, ::-1]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def read_or_error(file: Path) -> Image.Image | UnreadableImageError:
    """``read_image``, where one unreadable file of several must not end the work.

    Args:
        file: An image.
    """
    try:
        return read_image(file)
    except UnreadableImageError as error:
        return error


def _read_path(path: str | Path, name: _Name, reduction: Reduction | None = None) -> Sample:
    with _one_sentence(name):
        try:
            with _opened(path, name) as file:
                return _read_opened(file, name, reduction)
        except FileNotFoundError:
            raise FileNotFoundError(f"{name} does not exist; give the path of an image") from None
        except (IsADirectoryError, PermissionError):  # the latter on Windows
            if not os.path.isdir(path):
                raise
            raise UnreadableImageError(
                f"{name} is a folder; expected the path of one image"
            ) from None


def _opened(path: str | Path, name: _Name) -> BinaryIO:
    """The file, or its bytes in a shard, open; a pipe or a device, which may not end, is none."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise name.unreadable("it is a pipe or a device and no file")
    return open_image(str(path))


def _read_file(
    file: BinaryIO,
    name: _Name,
    reduction: Reduction | None = None,
    most_pixels: int = MAX_PIXELS,
) -> Sample:
    with _one_sentence(name):
        try:
            file.seek(0)
        except AttributeError:
            raise UnreadableImageError(
                f"source is of type {type(file).__name__}; expected a path, an open binary file, "
                "a PIL image, a tensor or an array"
            ) from None
        return _read_opened(file, name, reduction, most_pixels)


def _read_opened(
    file: BinaryIO, name: _Name, reduction: Reduction | None, most_pixels: int = MAX_PIXELS
) -> Sample:
    with _open(file, name) as image:
        check_number_of_pixels(image.size, name, _most_pixels(image))
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            pixels = image.width * image.height
            if reduction is not None:
                _draft(image, reduction(*image.size))
            elif pixels > most_pixels:
                _draft(image, 2 ** math.ceil(math.log2(pixels / most_pixels) / 2))
        check_number_of_pixels(image.size, name, most_pixels)
        return _upright_rgb(image, name)


def _draft(image: JpegImagePlugin.JpegImageFile, most: float) -> None:
    """Have a JPEG decoded smaller, by at most that factor."""
    width, height = image.size
    factor = next((factor for factor in _DRAFTS if factor <= most), 1)
    if factor > 1 and min(width, height) >= factor:
        image.draft(None, (width // factor, height // factor))


@cache
def _add_heif() -> bool:
    """Whether pillow-heif is installed; it then adds its formats to Pillow's."""
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ModuleNotFoundError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _open(file: BinaryIO, name: _Name) -> ImageFile.ImageFile:
    """``Image.open``, without its look at the number of pixels.

    That warns below our limit, and warnings can be silenced for a whole process only.
    """
    Image.init()
    _add_heif()
    head = file.read(16)
    if not head:
        raise name.unreadable("it is empty")
    reason = "it is not in a known image format"
    for kind in Image.ID:
        factory, accept = Image.OPEN[kind]
        # What a plugin raises, and what it answers, where a file is not of its kind: as in Pillow.
        try:
            accepted = accept is None or accept(head)
            if isinstance(accepted, str):
                reason = accepted
            elif accepted and kind not in _LEFT_OUT:
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if accept is not None:
                reason = f"a damaged {kind} file, or one of an unusual kind: {error}"
    raise name.unreadable(reason)


def _most_pixels(image: ImageFile.ImageFile) -> int:
    # Pillow's TIFF decoder looks at the number of pixels once more, and warns.
    if image.format == "TIFF" and Image.MAX_IMAGE_PIXELS is not None:
        return min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS)
    return MAX_PIXELS


def check_number_of_pixels(size: tuple[int, int], name: object, most: int = MAX_PIXELS) -> None:
    """Refuse an image that would fill the memory.

    Args:
        size: Width and height.
        name: What an error calls the image.
        most: Pixels that are read.

    Raises:
        UnreadableImageError: If it has more, or none.
    """
    if min(size) < 1:
        raise UnreadableImageError(
            f"{name} is {size[0]} x {size[1]} pixels; expected at least 1 x 1"
        )
    if size[0] * size[1] > most:
        raise UnreadableImageError(
            f"{name} is too large: {size[0]} x {size[1]} pixels, where at most "
            f"{most / 1e6:.0f} million are read; make it smaller"
        )


def _upright_rgb(image: Image.Image, name: _Name) -> Sample:
    """As ``read_image``; ``image`` is the caller's to change."""
    # Pillow turns a TIFF itself while it decodes it, and the note is gone.
    noted = _noted_orientation(image) if image.format == "TIFF" else None
    image.load()
    orientation = noted or _noted_orientation(image)
    if noted is None and orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return Sample(_rgb(image, name), orientation)


def _noted_orientation(image: Image.Image) -> int:
    """EXIF's number, 1 where it has none, or damaged notes, which make no image unreadable."""
    try:
        noted = image.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return next((known for known in range(2, 9) if known == noted), 1)


def _rgb(image: Image.Image, name: _Name) -> Image.Image:
    if image.mode == "F":
        image = Image.fromarray(_bytes_of(np.asarray(image), f"{name}, in 32-bit floats,"))
    elif image.mode.startswith("I"):
        image = _eight_bits(image, name)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(rgba, mask=rgba)
    return on_white


def _eight_bits(image: Image.Image, name: _Name) -> Image.Image:
    """16 bits a pixel as 8, where Pillow would clip; it holds them in 32 for some formats."""
    values = np.asarray(image).astype(np.int32)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise UnreadableImageError(
            f"{name} has values from {low} to {high}; expected 16 bits, 0 to 65535"
        )
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535  # the one invisible grey
    return Image.fromarray(to_eight_bits(values))


def to_eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of 16 bits, 0 to 65535, as such of 8 with the same meaning.

    Args:
        values: Of any type that holds them, and a little more.
    """
    return ((values.astype(np.int32) + 128) // 257).astype(np.uint8)


def _from_array(pixels: NDArray[Any], name: _Name, axes: str) -> Image.Image:
    """An image of (H, W) or (H, W, C); ``name`` and ``axes`` are for errors."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if not is_image or not (is_float or pixels.dtype == np.uint8):
        raise UnreadableImageError(
            f"{name} is no image; expected {axes} or (H, W) with C 1, 3 or 4, of uint8 or of "
            "floats in 0..1"
        )
    check_number_of_pixels((pixels.shape[1], pixels.shape[0]), name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if is_float:
        pixels = _bytes_of(pixels, name)
    return _rgb(Image.fromarray(pixels), name)


def _bytes_of(values: NDArray[Any], name: _Name | str) -> NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # nor are NaNs
        raise UnreadableImageError(
            f"{name} has values from {low:.3g} to {high:.3g}, where floats are expected in 0..1: "
            "it looks normalised, or not scaled; undo that, or give 8-bit values"
        )
    return np.rint(values * 255).astype(np.uint8)


@contextmanager
def _one_sentence(name: _Name) -> Iterator[None]:
    """Whatever reading an image raises, as one sentence for whoever gave the image."""
    try:
        yield
    except (UnreadableImageError, FileNotFoundError):
        raise
    # A broken file makes Pillow's decoders raise whatever it leads them to.
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise name.unreadable(reason) from error
