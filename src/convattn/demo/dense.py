"""The detector or segmenter behind the page: one network that all requests share."""

from __future__ import annotations

import threading
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from convattn.demo.network import SHOWN_SIDE, Query, shown_size
from convattn.explanation import attention_layers
from convattn.explanation.attention import num_heads
from convattn.explanation.dense import DenseExplanation
from convattn.explanation.overlay import overlay
from convattn.layers import AAConv2d
from convattn.tasks import Dense


class Finder:
    """A network that finds boxes or classes of pixels, and answers one request at a time.

    Args:
        model: A detector or segmenter, on the device that it shall run on.
        task: What it is for.
    """

    def __init__(self, model: nn.Module, task: Dense) -> None:
        self._model, self._task = model, task
        self.does = task.name
        """What it is for."""
        self._lock = threading.Lock()
        self.convs = {
            name: num_heads(layer)
            for name, layer in attention_layers(model).items()
            if isinstance(layer, AAConv2d)
        }
        """Name of each attention convolution -> number of its heads."""
        names = [str(name) for name in cast(Any, model).pretrained_cfg["label_names"]]
        self.knows_digits = set("0123456789") <= set(names)
        """Whether the ten digits are among its classes."""
        self.num_classes = len(names)
        """That it tells apart."""

    def describe(self) -> str:
        """What it is for and what attention it has, in one line."""
        number = len(self.convs)
        convs = f"attention in {number} convolution{'s' * (number != 1)}"
        attention = convs if number else "no attention of its own"
        return f"{self.does} of {self.num_classes} classes; {attention}"

    def find(self, image: Image.Image) -> Any:
        """Objects, or the class of every pixel.

        Args:
            image: RGB.
        """
        with self._lock:
            return self._task.find(self._model, image)

    def draw(self, image: Image.Image, found: Any) -> Image.Image:
        """What was found over the image, at a size to look at.

        Args:
            image: RGB.
            found: As ``find`` gave it.
        """
        drawn = self._task.draw(image, found)
        drawn.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return drawn.convert("RGB")

    def explain(self, image: Image.Image, found: Any, number: int) -> DenseExplanation:
        """What speaks for one of the things that were found.

        Args:
            image: RGB.
            found: As ``find`` gave it.
            number: Its place among ``found.choices()``.

        Raises:
            ValueError: If there is no such one.
        """
        choices = len(found.choices())
        if not 0 <= number < choices:
            raise ValueError(f"number={number}; {choices} things are found, counted from 0")
        with self._lock:
            return self._task.explain_choice(self._model, image, found, number)

    def attend(
        self, image: Image.Image, layer: str, head: int | None, query: Query
    ) -> DenseExplanation:
        """What an attention convolution looks at from a pixel.

        Args:
            image: RGB.
            layer: Its name.
            head: Number of the head; None takes their mean.
            query: The pixel that looks.

        Raises:
            ValueError: If there is no such pixel, layer or head.
        """
        with self._lock:
            return self._task.attend(self._model, image, query, layer=layer, head=head)


def enlarged(image: Image.Image) -> Image.Image:
    """An image at a size to look at.

    Args:
        image: RGB.
    """
    size = shown_size(image.size)
    grows = size[0] > image.width
    return image.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.BICUBIC)


def heat_overlay(found: DenseExplanation, opacity: float) -> Image.Image:
    """The heat over the image, at a size to look at.

    Args:
        found: What is shown.
        opacity: Of the hottest place, 0 to 1.
    """
    image = enlarged(found.image)
    width, height = image.size
    heat = F.interpolate(torch.from_numpy(found.heat)[None, None], (height, width), mode="bilinear")
    return overlay(image, heat[0, 0].numpy(), opacity=opacity)
