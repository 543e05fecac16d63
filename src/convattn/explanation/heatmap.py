"""Where a network looks on an image: one map a class, laid on the original image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convattn.data import ImageSource
from convattn.data.bands import as_rgb
from convattn.exceptions import NoEvidenceError
from convattn.explanation.attention import (
    attention_of_layers,
    has_aggregation,
    run_with_attention,
    select_classes,
)
from convattn.explanation.capture import attention_layers, check_logits
from convattn.explanation.classes import (
    Target,
    class_names,
    class_numbers,
    class_probabilities,
    pretrained_cfg,
)
from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import grad_cam
from convattn.explanation.linear_evidence import evidence_of_classes
from convattn.explanation.overlay import overlay
from convattn.explanation.preprocessing import Preprocessed, View, preprocess, read_as_seen
from convattn.layers import AAConv2d
from convattn.modes import frozen_eval_mode
from convattn.text import one_line

Shown = Literal["evidence", "attention", "gradcam"]
Method = Literal["auto", "evidence", "attention", "gradcam"]

_NUM_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """A class and how likely the network finds it."""

    index: int
    """Number of the class."""
    name: str
    """Its name, the number itself where no names are known."""
    probability: float
    """Between 0 and 1: by softmax, or by sigmoid where images may have several classes or the
    network has one logit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Where a network looked on an image, for one class."""

    image: Image.Image
    """The original, upright, RGB."""
    target: Prediction
    """The class that is explained."""
    top: tuple[Prediction, ...]
    """The likeliest classes, the likeliest first."""
    method: Shown
    """How the map was made."""
    class_specific: bool
    """Whether another class would have another map."""
    map: Tensor
    """What the network's layer says, (h, w). Attention sums to 1 over the cells; Grad-CAM is not
    negative. Evidence is signed: it sums, with ``bias``, to the class's ``logit``."""
    logit: float
    """Of the class, before it is made a probability."""
    bias: float | None
    """Of evidence: the part of the logit that no place has spoken for; else None."""
    grid: Grid
    """Where its cells lie on the network's input."""
    region: tuple[float, float, float, float]
    """What the network saw of the image: left, top, right, bottom in pixels."""

    @cached_property
    def heat(self) -> NDArray[np.float32]:
        """The map on the image's pixels, (H, W); 0 where the network saw nothing."""
        size = (self.image.height, self.image.width)
        return self.grid.heat(self.map, size, self.region).numpy()

    def to_dict(self) -> dict[str, Any]:
        """All but the images, as plain values for JSON."""
        return {
            "target": dataclasses.asdict(self.target),
            "top": [dataclasses.asdict(one) for one in self.top],
            "method": self.method,
            "class_specific": self.class_specific,
            "logit": self.logit,
            "bias": self.bias,
            "region": self.region,
            "grid": dataclasses.asdict(self.grid),
        }

    def overlay(self, *, opacity: float = 0.7, max_side: int | None = None) -> Image.Image:
        """The image with the map over it, the hotter the clearer; what was not seen is dark.

        Evidence is red where it speaks for the class and blue where it speaks against it.

        Args:
            opacity: 0 shows the image alone.
            max_side: The longer side in pixels at most; None keeps the image's size.
        """
        shown = self if max_side is None else self.shrink(max_side)
        signed = self.method == "evidence"
        return overlay(shown.image, shown.heat, opacity=opacity, region=shown.region, signed=signed)

    def describe_sum(self) -> str:
        """Evidence's sum in words, as "8.1 for, 1.2 against, bias 0.3: logit 7.2".

        Raises:
            ValueError: If the map is no evidence.
        """
        if self.bias is None:
            raise ValueError(f"{self.method} has no sum that means anything; ask for evidence")
        positive = float(self.map.clamp(min=0).sum())
        negative = float(self.map.clamp(max=0).sum())
        words = (f"{positive:.1f} for", f"{-negative:.1f} against", f"bias {self.bias:.1f}")
        return f"{', '.join(words)}: logit {self.logit:.1f}".replace("-0.0", "0.0")

    def shrink(self, max_side: int) -> Explanation:
        """The same of a smaller image, its proportions kept.

        Args:
            max_side: The longer side in pixels at most.
        """
        if max(self.image.size) <= max_side:
            return self
        image = self.image.copy()
        image.thumbnail((max_side, max_side))
        return self.with_image(image)

    def with_image(self, image: Image.Image) -> Explanation:
        """The same of this image at another size."""
        across, down = (new / old for new, old in zip(image.size, self.image.size, strict=True))
        left, top, right, bottom = self.region
        region = (left * across, top * down, right * across, bottom * down)
        return dataclasses.replace(self, image=image, region=region)


def explain(
    model: nn.Module,
    image: ImageSource,
    target: Target | None = None,
    *,
    method: Method = "auto",
    view: View = "auto",
    layer: str | None = None,
    head: int | None = None,
    query: tuple[float, float] | None = None,
) -> Explanation:
    """Where a network looks on an image, and what it takes it for.

    The image is prepared as the network's ``pretrained_cfg`` says, ImageNet's way where it has
    none, and the map is laid back on the original image. The network is left as it was, and on
    its device.

    Evidence is an exact share of the class's logit for every place (``convattn.evidence``), and
    what is shown wherever the network has it. Attention is shown for what it is. A network with a
    query or token a class has a map a class. With a single one the map is the same for all classes.
    A network with attention in its convolutions alone shows how much each place of its last such
    layer is looked at.

    Args:
        image: A path, an open file, a PIL image, a tensor (C, H, W) of bytes or of 0..1, or an
            array (H, W, C).
        target: The class: its name, or its number; None explains the likeliest one. Names are
            those in ``pretrained_cfg["label_names"]``, or ImageNet's.
        method: ``"evidence"`` where all is linear from the pool on; ``"attention"``; ``"gradcam"``
            for any convnet, by pytorch-grad-cam; ``"auto"`` takes the first of these that the
            network has, or attention if ``layer``, ``head`` or ``query`` choose among it.
        view: ``"crop"`` shows the network what its evaluation would, ``"whole"`` the whole image
            at the same scale; ``"auto"`` crops, except a panorama twice as long as wide or longer.
        layer: Name of the layer with attention; None takes the attention pool, or without one the
            last attention convolution.
        head: Number of the attention head; None takes their mean.
        query: y and x of a pixel of the image: what does an attention convolution look at from
            there? None takes the mean over all positions.

    Returns:
        The explanation.

    Raises:
        ValueError: If the image cannot be read, the class is unknown, or the network has no
            such attention.
        ModuleNotFoundError: If Grad-CAM is asked for and pytorch-grad-cam, of the ``explain``
            extra, is not installed.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True)
        >>> found = explain(model, torch.zeros(3, 200, 300, dtype=torch.uint8), target="7")
        >>> found.target.name, found.heat.shape, len(found.top)
        ('7', (200, 300), 5)
    """
    (found,) = explain_classes(
        model,
        image,
        None if target is None else [target],
        top_k=1,
        method=method,
        view=view,
        layer=layer,
        head=head,
        query=query,
    )
    return found


def explain_classes(
    model: nn.Module,
    image: ImageSource,
    targets: Sequence[Target] | None = None,
    *,
    top_k: int = 3,
    method: Method = "auto",
    view: View = "auto",
    layer: str | None = None,
    head: int | None = None,
    query: tuple[float, float] | None = None,
) -> list[Explanation]:
    """Where a network looks on an image for each of several classes, see ``explain``.

    Args:
        targets: Names or numbers of classes; None takes the ``top_k`` likeliest ones.
        top_k: How many, where no classes are named.

    Returns:
        One explanation a class, in their order.

    Raises:
        ValueError: As ``explain``.
        ModuleNotFoundError: As ``explain``.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano_multi", num_classes=10)
        >>> [one.heat.shape for one in explain_classes(model, torch.zeros(3, 64, 64), [2, 5])]
        [(64, 64), (64, 64)]
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}; expected {', '.join(get_args(Method))}")
    choice = layer is not None or head is not None or query is not None
    if choice and method in ("evidence", "gradcam"):
        name = {"evidence": "evidence", "gradcam": "Grad-CAM"}[method]
        raise ValueError(
            f"layer, head and query choose among attention, and {name} has none; leave them out"
        )
    shown, prepared, pixels = _preprocess(model, image, view)
    point = None if query is None else _on_input(query, prepared, shown)
    attend = cache(partial(run_with_attention, model, pixels, layer, head, point))
    # What learned aggregation makes has no exact shares, which need not be tried.
    if choice or (method == "auto" and has_aggregation(model)):
        method = "attention"
    with frozen_eval_mode(model):
        with _describe_refusal(model, pixels), torch.no_grad():
            out = attend()[0] if method == "attention" else model(pixels)
        logits = check_logits(model, out)
        names = class_names(model, logits.shape[1])
        order = logits[0].argsort(descending=True).tolist()
        wanted = class_numbers(targets, top_k, names, order)
        found = _look(model, pixels, wanted, method, attend)
    probabilities, values = class_probabilities(model, logits)[0].tolist(), logits[0].tolist()

    def prediction(index: int) -> Prediction:
        return Prediction(index, names[index], probabilities[index])

    biases = [None] * len(wanted) if found.bias is None else found.bias.tolist()
    return [
        Explanation(
            image=shown,
            target=prediction(index),
            top=tuple(map(prediction, order[:_NUM_TOP])),
            method=found.method,
            class_specific=found.class_specific,
            map=one,
            logit=values[index],
            bias=bias,
            grid=found.grid,
            region=prepared.region,
        )
        for index, one, bias in zip(wanted, found.maps.float().cpu(), biases, strict=True)
    ]


class _Looked(NamedTuple):
    """Maps of an image's classes, (K, h, w), and how they were made."""

    method: Shown
    maps: Tensor
    grid: Grid
    class_specific: bool
    bias: Tensor | None = None
    """(K,), of evidence."""


def _look(
    model: nn.Module,
    pixels: Tensor,
    classes: Sequence[int],
    method: Method,
    attend: Callable[[], tuple[Tensor, Tensor, Grid]],
) -> _Looked:
    if method in ("auto", "evidence"):
        try:
            maps, bias, grid = evidence_of_classes(model, pixels, classes)
        except NoEvidenceError:
            if method == "evidence":
                raise
            method = "attention" if attention_layers(model) else "gradcam"
        else:
            return _Looked("evidence", maps[0], grid, True, bias)
    numbers = torch.tensor(classes, device=pixels.device)
    if method == "gradcam":
        maps, grid = grad_cam(model, pixels.expand(len(classes), -1, -1, -1), numbers)
        return _Looked("gradcam", maps, grid, True)
    _, per_token, grid = attend()
    maps = select_classes(per_token.expand(len(classes), -1, -1, -1), numbers)
    return _Looked("attention", maps, grid, per_token.shape[1] > 1)


def attention_through(
    model: nn.Module,
    image: ImageSource,
    *,
    query: tuple[float, float] | None = None,
    view: View = "auto",
) -> tuple[Image.Image, dict[str, list[NDArray[np.float32]]]]:
    """One image through all attention convolutions of a network.

    Args:
        model: A network with AAConv2d layers.
        query: y and x of a pixel of the image, which looks; None takes the mean of all.

    Returns:
        The image, and by name of the layer one heat map on it a head, (H, W) each.

    Raises:
        ValueError: If the image cannot be read or no convolution has attention.
    """
    names = [name for name, one in attention_layers(model).items() if isinstance(one, AAConv2d)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no convolution with attention; explain() shows its pool"
        )
    shown, prepared, pixels = _preprocess(model, image, view)
    point = None if query is None else _on_input(query, prepared, shown)
    size = (shown.height, shown.width)
    with frozen_eval_mode(model):
        _, maps, grids = attention_of_layers(model, pixels, names, point)
    return shown, {
        name: list(grids[name].heat(maps[name][0, :, 0].cpu(), size, prepared.region).numpy())
        for name in names
    }


def _preprocess(
    model: nn.Module, image: ImageSource, view: View
) -> tuple[Image.Image, Preprocessed, Tensor]:
    """The image, what the network sees of it, and that as a batch of one, ready for it."""
    cfg = pretrained_cfg(model)
    seen = read_as_seen(image, cfg)
    prepared = preprocess(seen, cfg, view)
    shown = as_rgb(seen) if isinstance(seen, Tensor) else seen
    weight = next(model.parameters())
    return shown, prepared, prepared.pixels.unsqueeze(0).to(weight.device, weight.dtype)


@contextmanager
def _describe_refusal(model: nn.Module, pixels: Tensor) -> Iterator[None]:
    """Whether the network takes such an image at all, its first run shows."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{type(model).__name__} refuses an image of shape {tuple(pixels.shape[1:])} "
            f"({one_line(error)}); its pretrained_cfg must say the input_size, mean "
            "and std that it takes, and view='crop' keeps to that size"
        ) from error


def _on_input(
    point: tuple[float, float], prepared: Preprocessed, image: Image.Image
) -> tuple[float, float]:
    """Where a pixel of the image lies on the network's input, in its pixels."""
    y, x = point
    left, top, right, bottom = prepared.region
    if not (max(top, 0) <= y < min(bottom, image.height)) or not (
        max(left, 0) <= x < min(right, image.width)
    ):
        raise ValueError(
            f"query={(y, x)} lies outside what the network sees of the image, rows "
            f"{max(top, 0):.0f} to {min(bottom, image.height):.0f} and columns "
            f"{max(left, 0):.0f} to {min(right, image.width):.0f}; choose a pixel there, or "
            "view='whole'"
        )
    height, width = prepared.pixels.shape[1:]
    return (
        (y + 0.5 - top) / (bottom - top) * height,
        (x + 0.5 - left) / (right - left) * width,
    )
