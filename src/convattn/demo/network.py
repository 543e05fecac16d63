"""The network behind the page: one model that all requests share."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image, ImageDraw
from torch import nn

from convattn.explanation import Explanation, attention_layers, class_names, explain
from convattn.explanation.attention import num_heads
from convattn.explanation.classes import Target
from convattn.explanation.heatmap import Method
from convattn.layers import AAConv2d, LearnedAggregation2d

SHOWN_SIDE = 1024
"""Pixels of the longer side of an image on the page at most."""
_ENLARGED_SIDE = 512  # of an image that is smaller, at most

Query = tuple[int, int]
"""y and x of a pixel of the image."""


@dataclass(frozen=True)
class ImageExplanations:
    """One image explained in every way that the network allows."""

    evidence: Explanation | None
    """None for a network whose logits have no exact shares."""
    attention: Explanation | None
    """None for a network without attention."""
    gradcam: Explanation | str | None
    """None beside evidence, which is the same and signed; or a sentence that says why there is
    none, for a network without a map to look at."""

    @property
    def prediction(self) -> Explanation:
        """The one to read the classes from."""
        found = self.evidence or self.attention or self.gradcam
        assert isinstance(found, Explanation)
        return found


class Network:
    """A model that answers one request at a time.

    Hooks see every run of the model, whoever asked for it, so two requests must not overlap.

    Args:
        model: A classifier that follows timm's contract, on the device that it shall run on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lock = threading.Lock()
        layers = attention_layers(model)
        self.has_attention = bool(layers)
        """Whether it holds a layer of ours."""
        self.convs = {
            name: num_heads(layer) for name, layer in layers.items() if isinstance(layer, AAConv2d)
        }
        """Name of each attention convolution -> number of its heads."""
        self.pool = next(
            (layer for layer in layers.values() if not isinstance(layer, AAConv2d)), None
        )
        """What takes the place of its average pool; None for a network that keeps that."""
        names = class_names(model, cast(Any, model).num_classes)
        self.knows_digits = names == list("0123456789")
        """Whether its classes are the ten digits."""

    def describe(self) -> str:
        """What attention it has, in one line."""
        if not self.has_attention:
            return "no attention of its own; the map shows what speaks for a class"
        found = self.explain(Image.new("RGB", (64, 64)), method="attention")
        cells = f"{_times(found.grid.feat_size)} cells at {_times(found.grid.image_size)}"
        convs = f"attention in {len(self.convs)} convolution{'s' * (len(self.convs) != 1)}"
        if self.pool is None:
            return f"{convs}, {cells} in the last one"
        same = "a map for each class" if found.class_specific else "the same map for every class"
        kind = "learned aggregation" if isinstance(self.pool, LearnedAggregation2d) else "a pool"
        pool = f"{kind}, {cells}, {same}"
        return f"{pool}; {convs}" if self.convs else pool

    def explain_all(self, image: Image.Image, target: Target | None = None) -> ImageExplanations:
        """Evidence, attention and Grad-CAM of one class, as far as the network has them.

        Args:
            image: RGB.
            target: The class; None takes the likeliest one.

        Raises:
            ValueError: If the class is unknown, or the network can show nothing of this image.
        """
        first = self.explain(image, target)
        number = first.target.index
        if first.method == "gradcam":
            return ImageExplanations(None, None, first)
        if first.method == "evidence":
            attention = None
            if self.has_attention:
                attention = self.explain(image, number, method="attention")
            return ImageExplanations(first, attention, None)
        try:
            return ImageExplanations(None, first, self.explain(image, number, method="gradcam"))
        except ValueError as error:
            return ImageExplanations(None, first, f"No Grad-CAM: {error}.")

    def explain(
        self, image: Image.Image, target: Target | None = None, *, method: Method = "auto"
    ) -> Explanation:
        """As ``convattn.explain``.

        Args:
            image: RGB.
            target: The class; None takes the likeliest one.
            method: As ``convattn.explain`` takes it.

        Raises:
            ValueError: As ``convattn.explain``.
        """
        with self._lock:
            return explain(self._model, image, target, method=method)

    def attend(
        self, image: Image.Image, layer: str, head: int | None, query: Query | None
    ) -> Explanation:
        """What an attention convolution looks at.

        Args:
            image: RGB.
            layer: Name of the convolution.
            head: Number of the head; None takes their mean.
            query: The pixel that looks; None takes the mean over all.

        Raises:
            ValueError: If the network does not see that pixel, or there is no such layer or head.
        """
        with self._lock:
            return explain(
                self._model, image, method="attention", layer=layer, head=head, query=query
            )


def open_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resize_for_display(found: Explanation) -> Explanation:
    """The same explanation of the image at a size to look at, its proportions kept.

    A small image grows by whole pixels: what is seen is what the network was given.
    """
    image = found.image
    by = _ENLARGED_SIDE // max(image.size)
    if by < 2:
        return found.shrink(SHOWN_SIDE)
    larger = (by * image.width, by * image.height)
    return found.with_image(image.resize(larger, Image.Resampling.NEAREST))


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image on the page: a small one grows by whole pixels.

    Args:
        size: Its own width and height.
    """
    longer = max(size)
    by: float = max(1, _ENLARGED_SIDE // longer) if longer <= SHOWN_SIDE else SHOWN_SIDE / longer
    return max(1, round(size[0] * by)), max(1, round(size[1] * by))


def mark_pixel(image: Image.Image, query: Query | None, size: tuple[int, int]) -> Image.Image:
    """An image with a ring round a pixel.

    Args:
        image: The image as it is shown; drawn on.
        query: The pixel; None draws nothing.
        size: Width and height of the image that ``query`` is about.
    """
    if query is None:
        return image
    y, x = (
        (at + 0.5) * new / old
        for at, new, old in zip(query, image.size[::-1], size[::-1], strict=True)
    )
    radius = max(image.size) / 50
    draw = ImageDraw.Draw(image)
    for colour, extra, width in (("black", 2, 6), ("#31f4ff", 0, 2)):
        reach = radius + extra
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)
    return image


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
