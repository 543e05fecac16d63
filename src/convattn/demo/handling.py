"""What every page does with a request: read its image, tell what is wrong with it."""

from __future__ import annotations

import base64
import functools
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from html import escape
from typing import Generic, ParamSpec, Protocol, TypeVar

import gradio as gr
from PIL import Image

from convattn.data import read_image
from convattn.demo.network import Query
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


class Attends(Protocol):
    """A network on a page."""

    @property
    def convs(self) -> Mapping[str, int]:
        """Layer with attention -> its heads."""


N = TypeVar("N", bound=Attends)


class AttentionHandlers(ABC, Generic[N]):
    """What happens where a page shows what an attention convolution looks at from a pixel."""

    network: N

    def heads(self, layer: str | None) -> list[str | int]:
        """What there is to choose from in a layer."""
        return [MEAN, *range(self.network.convs.get(layer or "", 0))]

    @show_errors
    def asked(
        self, file: bytes | None, layer: str, head: str | int, event: gr.EventData
    ) -> tuple[Query, str]:
        """A pixel was clicked."""
        query = (event.y, event.x)
        return query, self._answer(read(file), layer, head, query)

    @show_errors
    def layer_chosen(
        self, file: bytes | None, layer: str, query: Query | None
    ) -> tuple[gr.Dropdown, str]:
        """Another layer: other heads."""
        heads = gr.Dropdown(self.heads(layer), value=MEAN)
        return heads, self._answer(read(file), layer, MEAN, query)

    @show_errors
    def head_chosen(
        self, file: bytes | None, layer: str, head: str | int, query: Query | None
    ) -> str:
        """Another head."""
        return self._answer(read(file), layer, head, query)

    @abstractmethod
    def _answer(self, image: Image.Image, layer: str, head: str | int, query: Query | None) -> str:
        """What stands on the page about a pixel, or about none yet."""
