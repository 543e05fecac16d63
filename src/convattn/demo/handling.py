"""What every page does with a request: read its image, tell what is wrong with it."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from html import escape
from typing import ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from convattn.data import read_image
from convattn.demo.page import MAX_FILE_BYTES

MEAN = "mean"
"""Chosen instead of a head's number."""
OPACITY = 0.7
"""Of a heat map, to begin with."""
MAX_PIXELS = 40_000_000
"""More take seconds and gigabytes; a JPEG of more is decoded smaller."""

P = ParamSpec("P")
R = TypeVar("R")


def show_errors(handler: Callable[P, R]) -> Callable[P, R]:
    """Our own sentences reach whoever asked; any other error only shows that it happened."""

    @functools.wraps(handler)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except ValueError as error:
            # The page takes it for HTML.
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from None

    return wrapped


def picked_file(event: gr.EventData) -> bytes:
    """The file that was dropped, pasted or chosen.

    Raises:
        ValueError: If it is too large.
    """
    file = base64.b64decode(event.image.partition(",")[2])
    if max(len(file), event.size) > MAX_FILE_BYTES:
        raise ValueError(
            f"the file has {event.size / 2**20:.0f} MB, where at most "
            f"{MAX_FILE_BYTES // 2**20} MB are taken; make the image smaller"
        )
    return file


def read(file: bytes | None) -> Image.Image:
    """An image that was sent.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if file is None:
        raise ValueError("there is no image yet; give one")
    return read_image(io.BytesIO(file), most_pixels=MAX_PIXELS)


def head_number(head: str | int) -> int | None:
    """The number of a head that the API was given; None for their mean.

    Raises:
        ValueError: If it is neither.
    """
    if head != MEAN and not str(head).isdecimal():
        raise ValueError(f"head={head!r}; expected the number of a head, or {MEAN}")
    return None if head == MEAN else int(head)
