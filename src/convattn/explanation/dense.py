"""Where a detector or segmenter looks: what its backbone's maps add to a score, and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from convattn.drawing import WHITE, draw_box, enlarge_for_labels
from convattn.explanation.capture import attention_layers, capture_attention, named_layers
from convattn.explanation.geometry import Grid
from convattn.explanation.overlay import overlay
from convattn.models.pyramid import FeatureLevels
from convattn.modes import frozen_eval_mode


@dataclass(frozen=True, kw_only=True)
class DenseExplanation:
    """Where a network looks for a box, for the pixels of a class, or from a point."""

    image: Image.Image
    """The one that was looked at, RGB."""
    heat: NDArray[np.float32]
    """(H, W) of the image, not negative."""
    method: str
    """``"gradcam"`` or ``"attention"``."""
    name: str | None = None
    """The class; None for attention from a point."""
    score: float | None = None
    """Of the box, or the share of pixels of the class; None for attention."""
    box: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax in pixels of the image; None without a box."""
    point: tuple[float, float] | None = None
    """y and x in pixels of the image; None without a point."""

    @classmethod
    def of(cls, image: Image.Image, heat: Tensor, **more: Any) -> Self:
        """An image of any mode with its heat, (H, W) on the CPU.

        Args:
            image: The one that was looked at.
            heat: Not negative.
            more: The other fields.
        """
        return cls(image=image.convert("RGB"), heat=heat.numpy().astype(np.float32), **more)

    def overlay(self) -> Image.Image:
        """The heat over the image."""
        return overlay(self.image, self.heat)

    def drawing(self) -> Image.Image:
        """The overlay with the box or the point; a small image comes as a multiple of its size."""
        canvas, _ = enlarge_for_labels(self.overlay())
        return self.mark(canvas)

    def mark(self, canvas: Image.Image) -> Image.Image:
        """Draw the box or the point on the image, at whatever size it is.

        Args:
            canvas: The image; drawn on.
        """
        times = canvas.width / self.image.width
        if self.box is not None:
            edges = [times * edge for edge in self.box]
            draw_box(canvas, edges, WHITE, f"{self.name} {self.score:.2f}")
        if self.point is not None:
            y, x = (times * at for at in self.point)
            ImageDraw.Draw(canvas).ellipse((x - 8, y - 8, x + 8, y + 8), outline=WHITE, width=3)
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, for JSON; without the heat."""
        energy = None if self.box is None else self.share_inside(self.box)
        return {
            "method": self.method,
            "class": self.name,
            "score": self.score,
            "box": self.box,
            "point": self.point,
            "energy_in_box": energy,
        }

    def share_inside(self, box: Sequence[float]) -> float:
        """Share of the heat that lies in a box.

        Args:
            box: xmin, ymin, xmax, ymax in pixels of the image.
        """
        left, top, right, bottom = (round(edge) for edge in box)
        total = float(self.heat.sum())
        inside = float(self.heat[max(top, 0) : bottom, max(left, 0) : right].sum())
        return inside / total if total > 0 else 0.0


class Levels:
    """A dense network's run, with the maps of its backbone as what gradients are taken of.

    Args:
        model: A detector or segmenter; it evaluates, with frozen parameters.
        call: Runs it.

    Attributes:
        output: What the call gave.
    """

    def __init__(self, model: nn.Module, call: Callable[[], Any]) -> None:
        (levels,) = (one for one in model.modules() if isinstance(one, FeatureLevels))
        self._maps: list[Tensor] = []
        self._input = (0, 0)

        def cut(module: nn.Module, args: tuple[Any, ...], out: list[Tensor]) -> list[Tensor]:
            self._input = args[0].shape[2], args[0].shape[3]
            self._maps = [one.detach().requires_grad_() for one in out]
            return self._maps

        handle = levels.register_forward_hook(cut)
        try:
            self.output = call()
        finally:
            handle.remove()

    def heat(self, score: Tensor, seen: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """What speaks for a score: gradient times activation of every level, summed; below 0 is 0.

        As HiResCAM, https://arxiv.org/abs/2011.08891, has it: unlike Grad-CAM's, the gradient is
        that of the position itself, so that the map is of one box and not of its class.

        Args:
            score: A number of the output.
            seen: Height and width of the image in the backbone's input, which may be padded.
            size: Height and width of the image itself.

        Returns:
            (H, W), on the CPU.
        """
        gradients = torch.autograd.grad(score, self._maps, retain_graph=True, allow_unused=True)
        total = torch.zeros(size)
        for one, gradient in zip(self._maps, gradients, strict=True):
            if gradient is not None:
                evidence = (one.detach() * gradient).sum(1)[0].cpu()
                total += on_image(
                    evidence,
                    Grid.regular((evidence.shape[0], evidence.shape[1]), self._input),
                    seen,
                    size,
                )
        return total.clamp(min=0)


def on_image(evidence: Tensor, grid: Grid, seen: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A map of the backbone's input on the image, which lies there at its upper left.

    Args:
        evidence: (h, w).
        grid: Where its cells lie on the input.
        seen: Height and width of the image in the input.
        size: Height and width of the image itself.
    """
    down, across = (own / shown for own, shown in zip(size, seen, strict=True))
    region = (0.0, 0.0, grid.image_size[1] * across, grid.image_size[0] * down)
    return grid.heat(evidence.float(), size=size, region=region)


def attention_from(
    model: nn.Module,
    call: Callable[[], Any],
    image: Image.Image,
    point: tuple[float, float],
    *,
    seen: tuple[int, int],
    layer: str | None = None,
    head: int | None = None,
) -> DenseExplanation:
    """What an attention convolution of the backbone looks at from a point of the image.

    Args:
        model: A detector or segmenter.
        call: Runs it on the image.
        image: Of any mode and size.
        point: y and x in pixels of the image.
        seen: Height and width of the image in the backbone's input.
        layer: Name of the layer; None takes the last.
        head: Number of the head; None takes the mean of all.

    Raises:
        ValueError: If there is no such layer, head or point, or no attention at all.
    """
    size = (image.height, image.width)
    if not all(0 <= at < side for at, side in zip(point, size, strict=True)):
        raise ValueError(
            f"query={point[0]:g} {point[1]:g} lies outside the image of {size[0]} x {size[1]} "
            "(height x width)"
        )
    name = layer or next(reversed(attention_layers(model)), "")
    named_layers(model, [name] if name else None)
    on_input = (point[0] * seen[0] / size[0], point[1] * seen[1] / size[1])
    with (
        frozen_eval_mode(model),
        torch.inference_mode(),
        capture_attention(model, point=on_input, layers=[name]) as maps,
    ):
        call()
    heads = maps[name][0, :, 0].cpu()
    if head is not None and not 0 <= head < len(heads):
        raise ValueError(f"head={head}; {name} has heads 0 to {len(heads) - 1}")
    weights = heads.mean(0) if head is None else heads[head]
    heat = on_image(weights, maps.grids[name], seen, size)
    return DenseExplanation.of(image, heat, method="attention", point=point)
