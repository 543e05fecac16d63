"""Classes on images: colours, labels, legends and sheets, with Pillow alone."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from convattn.text import printable

Colour = tuple[int, int, int]
Number = TypeVar("Number", bound=np.generic)

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)

_READABLE = 512  # pixels of the longer side; labels on fewer are not
_CELL = 400  # of a sheet
_GAP = 10
_GROUPS_A_LINE = 2


@cache
def class_colour(index: int) -> Colour:
    """The colour of a class; the first 256 all differ.

    Steps of the golden ratio around the colour circle keep neighbours apart, and every seventh
    class it changes how deep and how bright they are.

    Args:
        index: Number of the class, from 0.

    Examples:
        >>> class_colour(0), class_colour(1)
        ((255, 51, 51), (51, 111, 255))
    """
    saturation, value = ((0.8, 1.0), (0.9, 0.65), (0.4, 1.0))[index // 7 % 3]
    hue = index * (math.sqrt(5) - 1) / 2 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarge_for_labels(image: Image.Image) -> tuple[Image.Image, int]:
    """A copy in RGB, large enough for labels, and how many times the image's size it has.

    Args:
        image: Any; one of at least 512 pixels along its longer side keeps its size.
    """
    times = math.ceil(_READABLE / max(image.size))
    size = (image.width * times, image.height * times)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST), times


def magnify(values: NDArray[Number], times: int) -> NDArray[Number]:
    """Each of some values (H, W) as a square, as ``enlarge_for_labels`` does with pixels.

    Args:
        values: (H, W).
        times: Side of the squares.
    """
    return values.repeat(times, 0).repeat(times, 1)


def tint(
    image: Image.Image, colours: NDArray[np.uint8], opacity: NDArray[np.float32]
) -> Image.Image:
    """Translucent colours on an image.

    Args:
        image: In RGB.
        colours: (H, W, 3).
        opacity: (H, W); 0 leaves the pixel as it is, 1 hides it.
    """
    share = opacity[..., None]
    mixed = (1 - share) * np.asarray(image, np.float32) + share * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_box(image: Image.Image, box: Sequence[float], colour: Colour, text: str) -> None:
    """Draw a box and its label on an image.

    The label stands on the box, or inside where there is no room above, and within the image.

    Args:
        image: In RGB; drawn on.
        box: xmin, ymin, xmax, ymax in pixels, the maxima one past the object.
        colour: Of box and label.
    """
    text = printable(text)
    draw, font = ImageDraw.Draw(image), _font(max(image.size) // 32)
    xmin, ymin, xmax, ymax = (round(edge) for edge in box)
    # A box without an inside is still shown, as a line.
    corners = (xmin, ymin, max(xmin, xmax - 1), max(ymin, ymax - 1))
    draw.rectangle(corners, outline=colour, width=max(2, max(image.size) // 256))
    _, _, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = math.ceil(right) + 4, math.ceil(bottom) + 3
    left = max(0, min(xmin, image.width - width))
    top = ymin - height if ymin >= height else max(0, min(ymin, image.height - height))
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    draw.text((left + 2, top), text, _readable_on(colour), font)


def draw_legend(colours: Mapping[str, Colour], width: int) -> Image.Image:
    """Names beside squares of their colours, in as many lines as they need.

    Args:
        colours: Colour of each name.
        width: Of the image that is made, in pixels.
    """
    colours = {printable(name): colour for name, colour in colours.items()}
    font = _font(max(16, width // 80))
    side = round(1.25 * font.size)
    widest = max((font.getlength(name) for name in colours), default=0)
    columns = max(1, int(width // (widest + 2 * side)))
    image = Image.new("RGB", (width, side * math.ceil(len(colours) / columns)), WHITE)
    draw = ImageDraw.Draw(image)
    for number, (name, colour) in enumerate(colours.items()):
        x, y = number % columns * (width // columns) + 4, number // columns * side
        draw.rectangle((x, y + 3, x + side - 6, y + side - 3), fill=colour, outline=BLACK)
        draw.text((x + side, y), name, BLACK, font)
    return image


def stack_images(*images: Image.Image) -> Image.Image:
    """Images of one width, one below the other.

    Args:
        images: In RGB.
    """
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images]))


def draw_sheet(
    groups: Sequence[Sequence[Image.Image]], captions: Sequence[str], title: str
) -> Image.Image:
    """Groups of images that belong together, two groups a line.

    Args:
        groups: The images of each group; at least one group.
        captions: What stands above the first, second, ... image of every group.
    """
    assert groups
    a_line = min(_GROUPS_A_LINE, len(groups))
    step, wide = _CELL + _GAP, len(captions) * (_CELL + _GAP) + 2 * _GAP
    head = 90
    size = (a_line * wide - _GAP, head + math.ceil(len(groups) / a_line) * step)
    whole = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(whole)
    draw.text((_GAP, 8), printable(title), BLACK, _font(26))
    for number, group in enumerate(groups):
        for column, (image, caption) in enumerate(zip(group, captions, strict=True)):
            x = _GAP + number % a_line * wide + column * step
            if number < a_line:
                draw.text((x, head - 32), caption, BLACK, _font(20))
            cell = ImageOps.contain(image, (_CELL, _CELL))
            whole.paste(cell, (x, head + number // a_line * step))
    return whole


def save_png(image: Image.Image, out: Path) -> None:
    """Write a PNG so that a reader finds all of it or nothing.

    Args:
        image: Any.
        out: The file; its folder is there.
    """
    fresh = out.with_name(f"{out.stem}.{os.getpid()}.part{out.suffix}")
    image.save(fresh, format="PNG")
    os.replace(fresh, out)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE
