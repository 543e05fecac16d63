"""Images from anywhere, read safely and upright, and what a network sees of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from timm.data import resolve_data_config
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode
from torchvision.transforms.functional import resize as resize_tensor

from convattn.data import UnreadableImageError, transform_of

ImageSource = str | Path | BinaryIO | Image.Image | Tensor | NDArray[Any]
View = Literal["auto", "crop", "whole"]

MAX_PIXELS = 2**27
"""More are refused before they are decoded: as RGB so many fill 512 MiB, and reading holds up to
three copies. Room for a camera's 100 million, but for no bomb of few bytes and gigabytes."""

_LONGEST_SEEN_WHOLE = 16  # times the shorter side; already 16 times the cells of a square
# EPS is a program, which Ghostscript runs; IPTC wraps a file of any kind and size.
_LEFT_OUT = ("EPS", "IPTC")
_UNNAMED = "the image"


def read_image(source: ImageSource) -> Image.Image:
    """An image of any kind, upright, in 8-bit RGB.

    Transparent parts become white, 16 bits become 8 of the same meaning, the camera's note which
    side is up is followed, and of an animation the first frame is taken. Colour profiles are
    ignored, as in training.

    Args:
        source: A path; an open binary file, read from its start; a PIL image, which is left as it
            is; a tensor (C, H, W) or (H, W); or an array (H, W, C) or (H, W). Tensors and arrays
            are uint8, or floats in 0..1, with 1, 3 or 4 channels: grey, RGB, RGB and opacity.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        UnreadableImageError: If it is no image, cut short, larger than ``MAX_PIXELS``, of a kind
            that Pillow cannot read, or of values without an agreed meaning. Names no path but one
            given as ``source``.

    Example:
        >>> image = read_image(torch.rand(3, 4, 6))
        >>> image.mode, image.size
        ('RGB', (6, 4))
    """
    if isinstance(source, (str, Path)):
        return _read_path(Path(source), str(source))
    if isinstance(source, Image.Image):
        _check_number_of_pixels(source.size, _UNNAMED)
        with _one_sentence(_UNNAMED):
            return _upright_rgb(source.copy(), _UNNAMED)
    if isinstance(source, Tensor):
        name = f"the tensor of {source.dtype} and shape {tuple(source.shape)}"
        pixels = source.detach().cpu()
        # numpy has no bfloat16.
        pixels = pixels.float() if pixels.is_floating_point() else pixels
        channels_last = pixels.movedim(0, -1) if pixels.ndim == 3 else pixels
        return _from_array(channels_last.numpy(), name, "(C, H, W)")
    if isinstance(source, np.ndarray):
        name = f"the array of {source.dtype} and shape {source.shape}"
        return _from_array(source, name, "(H, W, C)")
    return _read_file(source, _UNNAMED)


def read_or_error(file: Path) -> Image.Image | UnreadableImageError:
    """``read_image``, where one unreadable file of several must not end the work.

    Args:
        file: An image.
    """
    try:
        return read_image(file)
    except UnreadableImageError as error:
        return error


@dataclass(frozen=True)
class Seen:
    """What a network is given of an image, and where that lies on the image.

    Attributes:
        pixels: (C, H, W), normalised.
        region: Left, top, right and bottom of what ``pixels`` covers, in pixels of the image;
            beyond its edges where the transform pads.
    """

    pixels: Tensor
    region: tuple[float, float, float, float]


def see(image: Image.Image, cfg: Mapping[str, Any], view: View = "auto") -> Seen:
    """What a network sees of an image.

    ``"crop"`` is the transform that the network is tested with, to the bit. ``"whole"`` is the
    same without its crop: all of the image, at the scale that the network was trained for, so
    of another size than ``input_size``. ``"auto"`` is the crop, except of an image at least twice
    as long as wide or wide as long, of which a square crop hides more than half; networks with
    ``fixed_input_size`` are always given the crop.

    Args:
        image: In RGB, as ``read_image`` gives it; converted for networks of one channel.
        cfg: The network's ``pretrained_cfg``; what it lacks is timm's default.
        view: ``"auto"``, ``"crop"`` or ``"whole"``.

    Raises:
        ValueError: If there is no such view, the network takes neither grey nor RGB, or the
            image is so long and thin that the resized one would fill the memory or vanish.

    Example:
        >>> cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0}
        >>> see(Image.new("RGB", (300, 100)), cfg, "crop").region
        (100.0, 0.0, 200.0, 100.0)
    """
    if view not in get_args(View):
        raise ValueError(f"view={view!r}; expected one of {', '.join(get_args(View))}")
    channels = _checked_channels(cfg)
    transform = transform_of(cfg)
    resize, crop, *finish = transform.pil.transforms
    resized = _resized(image.size, resize)
    whole = view == "whole" or (view == "auto" and _is_panorama(image, cfg))
    if whole and max(image.size) > _LONGEST_SEEN_WHOLE * min(image.size):
        raise ValueError(
            f"an image of {_times(image.size)} pixels is too long to be seen whole, at most "
            f"{_LONGEST_SEEN_WHOLE} times its shorter side; crop it first"
        )
    _check_resized(image.size, resized)
    if channels == 1:
        image = image.convert("L")
    if whole:
        region = (0.0, 0.0, float(image.width), float(image.height))
        return Seen(Compose(finish)(resize(image)), region)
    height, width = crop.size
    left, right = _kept_by_centre_crop(image.width, resized[0], width)
    top, bottom = _kept_by_centre_crop(image.height, resized[1], height)
    return Seen(transform(image), (left, top, right, bottom))


def _read_path(path: Path, name: str) -> Image.Image:
    if path.is_dir():
        raise UnreadableImageError(f"{name} is a folder; expected the path of one image")
    with _one_sentence(name):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name} does not exist; give the path of an image") from None
        with file:
            return _read_file(file, name)


def _read_file(file: BinaryIO, name: str) -> Image.Image:
    with _one_sentence(name):
        try:
            file.seek(0)
        except AttributeError:
            raise UnreadableImageError(
                f"source is of type {type(file).__name__}; expected a path, an open binary file, "
                "a PIL image, a tensor or an array"
            ) from None
        with _open(file, name) as image:
            _check_number_of_pixels(image.size, name, _most_pixels(image))
            return _upright_rgb(image, name)


def _open(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """``Image.open``, without its look at the number of pixels.

    That warns below our limit, and warnings can be silenced for a whole process only.
    """
    Image.init()
    head = file.read(16)
    if not head:
        raise _unreadable(name, "it is empty")
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
    raise _unreadable(name, reason)


def _most_pixels(image: ImageFile.ImageFile) -> int:
    # Pillow's TIFF decoder looks at the number of pixels once more, and warns.
    if image.format == "TIFF" and Image.MAX_IMAGE_PIXELS is not None:
        return min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS)
    return MAX_PIXELS


def _check_number_of_pixels(size: tuple[int, int], name: str, most: int = MAX_PIXELS) -> None:
    if min(size) < 1:
        raise UnreadableImageError(f"{name} is {_times(size)} pixels; expected at least 1 x 1")
    if size[0] * size[1] > most:
        raise UnreadableImageError(
            f"{name} is too large: {_times(size)} pixels, where at most {most / 1e6:.0f} million "
            "are read; make it smaller"
        )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """As ``read_image``; ``image`` is the caller's to change."""
    image.load()
    # Damaged notes of the camera do not make an image unreadable.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        image = Image.fromarray(_bytes_of(np.asarray(image), f"{name}, in 32-bit floats,"))
    elif image.mode.startswith("I"):
        image = _eight_bits(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(rgba, mask=rgba)
    return on_white


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """16 bits a pixel as 8, where Pillow would clip; it holds them in 32 for some formats."""
    values = np.asarray(image).astype(np.int32)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise UnreadableImageError(
            f"{name} has values from {low} to {high}; expected 16 bits, 0 to 65535"
        )
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535  # the one invisible grey
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _from_array(pixels: NDArray[Any], name: str, axes: str) -> Image.Image:
    """An image of (H, W) or (H, W, C); ``name`` and ``axes`` are for errors."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if not is_image or not (is_float or pixels.dtype == np.uint8):
        raise UnreadableImageError(
            f"{name} is no image; expected {axes} or (H, W) with C 1, 3 or 4, of uint8 or of "
            "floats in 0..1"
        )
    _check_number_of_pixels((pixels.shape[1], pixels.shape[0]), name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if is_float:
        pixels = _bytes_of(pixels, name)
    return _upright_rgb(Image.fromarray(pixels), name)


def _bytes_of(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # nor are NaNs
        raise UnreadableImageError(
            f"{name} has values from {low:.3g} to {high:.3g}, where floats are expected in 0..1: "
            "it looks normalised, or not scaled; undo that, or give 8-bit values"
        )
    return np.rint(values * 255).astype(np.uint8)


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Whatever reading an image raises, as one sentence for whoever gave the image."""
    try:
        yield
    except (UnreadableImageError, FileNotFoundError):
        raise
    # A broken file makes Pillow's decoders raise whatever it leads them to.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable(name, reason) from error


def _unreadable(name: str, reason: str) -> UnreadableImageError:
    return UnreadableImageError(
        f"{name} cannot be read: {reason.rstrip('.')}; give a whole image in a common format, "
        "for example PNG or JPEG"
    )


def _checked_channels(cfg: Mapping[str, Any]) -> int:
    resolved = resolve_data_config(pretrained_cfg=dict(cfg))
    channels, mean = resolved["input_size"][0], resolved["mean"]
    if channels not in (1, 3):
        raise ValueError(
            f"the network takes {channels} channels, where an image has 3, or 1 of grey; give "
            "the network a tensor of your own"
        )
    if len(mean) != channels:
        raise ValueError(
            f"the network's configuration has input_size={tuple(resolved['input_size'])} and "
            f"mean={tuple(mean)}; expected one mean and one std a channel"
        )
    return int(channels)


def _is_panorama(image: Image.Image, cfg: Mapping[str, Any]) -> bool:
    return max(image.size) >= 2 * min(image.size) and not cfg.get("fixed_input_size")


def _resized(size: tuple[int, int], resize: Any) -> tuple[int, int]:
    """Width and height that ``resize``, timm's or torchvision's, gives an image of ``size``."""
    # Of a tensor without memory: so the rules stay theirs.
    probe = torch.empty(1, size[1], size[0], device="meta")
    if isinstance(resize, ResizeKeepRatio):
        height, width = resize.get_params(probe, resize.size, resize.longest)
    else:
        height, width = resize_tensor(probe, resize.size, InterpolationMode.NEAREST).shape[1:]
    return width, height


def _check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    # Pillow resizes the width first: between its two steps stands the new width by the old height.
    largest = resized[0] * max(resized[1], size[1])
    if min(resized) < 1 or largest > MAX_PIXELS:
        raise ValueError(
            f"an image of {_times(size)} pixels is too long and thin to be resized to "
            f"{_times(resized)}; crop it first"
        )


def _kept_by_centre_crop(length: int, resized: int, cropped: int) -> tuple[float, float]:
    """Where a centre crop, or padding, of a resized side starts and ends on the image's side.

    To whole resized pixels, rounded as torchvision's ``center_crop`` and timm's
    ``center_crop_or_pad`` do.
    """
    pad = (cropped - resized) // 2
    start = -pad if cropped > resized else round((resized - cropped) / 2)
    return start * length / resized, (start + cropped) * length / resized


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
