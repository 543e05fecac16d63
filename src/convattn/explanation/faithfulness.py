"""Does a map tell the truth?

Two questions, put to evidence, attention, Grad-CAM, and two maps that know nothing of the image.
Does the map lie on the object? The pointing game asks for its peak, the energy for all of it. And
does the network need what the map shows? Deletion takes the hottest pixels away first and watches
the class's probability fall, insertion brings them back first and watches it rise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from convattn.exceptions import NoEvidenceError
from convattn.explanation.attention import attention_maps
from convattn.explanation.capture import attention_layers
from convattn.explanation.classes import class_probabilities
from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import cam_layers, grad_cam
from convattn.explanation.linear_evidence import evidence, evidence_maps
from convattn.modes import default_device, frozen_eval_mode
from convattn.text import json_text

METHODS: tuple[str, ...] = ("evidence", "attention", "gradcam", "random", "centre")
"""What ``measure_faithfulness`` can compare."""

_TIES = 0
"""Seed of the order among pixels of equal heat."""


def peak_in_box(maps: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
    """The pointing game: whether the point that a map's strongest cell looks at is in the box.

    Zhang et al. 2016, https://arxiv.org/abs/1608.00507, without its tolerance of 15 pixels. Of
    equal cells the first counts; a map that is nowhere above 0 points nowhere and misses.

    Args:
        maps: (B, h, w).
        boxes: (B, 4) in pixels of the network's input: xmin, ymin, xmax, ymax, the maxima one past
            the object.
        grid: Where the cells lie.

    Returns:
        (B,) bool.

    Examples:
        >>> maps, boxes = torch.tensor([[[0.1, 0.9]]]), torch.tensor([[4, 0, 8, 4]])
        >>> peak_in_box(maps, boxes, Grid.regular((1, 2), (4, 8)))
        tensor([True])
    """
    strongest, peak = maps.flatten(1).max(1)
    y = grid.rows.to(maps.device)[peak // maps.shape[2]]
    x = grid.columns.to(maps.device)[peak % maps.shape[2]]
    xmin, ymin, xmax, ymax = boxes.to(maps.device).unbind(1)
    return (strongest > 0) & (xmin <= x) & (x < xmax) & (ymin <= y) & (y < ymax)


def energy_in_box(maps: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
    """Share of each heat map that lies inside the box.

    A pixel that the box cuts counts by the part inside. A map that is 0 throughout has nothing
    inside: 0. Of evidence, what speaks against the class does not count.

    Args:
        maps: (B, h, w).
        boxes: (B, 4) in pixels of the network's input: xmin, ymin, xmax, ymax, the maxima one past
            the object.
        grid: Where the cells lie.

    Returns:
        (B,), between 0 and 1.

    Examples:
        >>> grid = Grid.regular((2, 2), (4, 4))
        >>> energy_in_box(torch.ones(1, 2, 2), torch.tensor([[0, 0, 4, 2]]), grid)
        tensor([0.5000])
    """
    heat = grid.heat(maps).clamp(min=0)
    xmin, ymin, xmax, ymax = boxes.to(heat)[:, :, None].unbind(1)
    y, x = (torch.arange(size).to(heat) for size in grid.image_size)
    rows = (ymax.minimum(y + 1) - ymin.maximum(y)).clamp(min=0)
    columns = (xmax.minimum(x + 1) - xmin.maximum(x)).clamp(min=0)
    inside = torch.einsum("bhw,bh,bw->b", heat, rows, columns)
    return inside / heat.sum((1, 2)).clamp(min=torch.finfo(heat.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What ``deletion_insertion`` found; the steps run from no pixel to all."""

    deletion: Tensor
    """Probability of the class as the hottest pixels are taken away, (B, num_steps + 1)."""
    insertion: Tensor
    """Probability of the class as they are brought back, (B, num_steps + 1)."""

    @property
    def deletion_area(self) -> Tensor:
        """Area under each deletion curve, (B,) between 0 and 1: a true map's is small."""
        return _area(self.deletion)

    @property
    def insertion_area(self) -> Tensor:
        """Area under each insertion curve, (B,) between 0 and 1: a true map's is large."""
        return _area(self.insertion)


def _area(curves: Tensor) -> Tensor:
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1))


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    heats: Tensor,
    targets: Tensor,
    *,
    num_steps: int = 16,
    batch_size: int = 128,
) -> Curves:
    """How a class's probability falls and rises with the pixels that a heat map calls important.

    RISE's causal metrics, Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421. Deletion puts the
    mean colour, 0 in a normalised image, where the hottest pixels were. Insertion starts from
    the image under a Gaussian blur, its sigma a sixteenth of the shorter side, and makes the
    hottest pixels sharp. Pixels of equal heat, as beyond a coarse map's outermost cells, follow in
    an order drawn once for all images, so that neither top nor left comes first.

    The model runs ``2 * (num_steps + 1)`` times an image, in evaluation mode, without gradients,
    and is left as it was.

    Args:
        images: (B, C, H, W), normalised, on the model's device.
        heats: (B, H, W).
        targets: The class of each image, (B,).
        num_steps: Steps from no pixel to all, of equally many pixels each.
        batch_size: Images that the model sees at once.

    Raises:
        ValueError: If ``num_steps`` is not positive or the shapes do not agree.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10)
        >>> images, heats = torch.randn(2, 3, 32, 32), torch.rand(2, 32, 32)
        >>> deletion_insertion(model, images, heats, torch.tensor([3, 5])).deletion.shape
        torch.Size([2, 17])
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: take at least one step, for instance 16")
    if heats.shape != (len(images), *images.shape[2:]) or targets.shape != (len(images),):
        raise ValueError(
            f"heats of shape {tuple(heats.shape)} and targets of shape {tuple(targets.shape)} for "
            f"images of shape {tuple(images.shape)}; give one heat map of the image's size and "
            "one class number an image"
        )
    parts = []
    with frozen_eval_mode(model), torch.no_grad():
        for start in range(0, len(images), batch_size):
            few = slice(start, start + batch_size)
            parts.append(_curves(model, images[few], heats[few], targets[few], num_steps))
    deletion, insertion = (torch.cat(curves) for curves in zip(*parts, strict=True))
    return Curves(deletion=deletion, insertion=insertion)


def _curves(
    model: nn.Module, images: Tensor, heats: Tensor, targets: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    places = hottest_first(heats)[:, None]  # (B, 1, H, W)
    blurred = _blurred(images)
    num_pixels = heats[0].numel()

    def probability(altered: Tensor) -> Tensor:
        shares = class_probabilities(model, model(altered))
        return shares.gather(1, targets[:, None])[:, 0]

    deletion, insertion = [], []
    for step in range(num_steps + 1):
        hottest = places < round(num_pixels * step / num_steps)
        deletion.append(probability(images.masked_fill(hottest, 0)))
        insertion.append(probability(torch.where(hottest, images, blurred)))
    return torch.stack(deletion, 1), torch.stack(insertion, 1)


def hottest_first(heats: Tensor) -> Tensor:
    """The place of every pixel in the order from hot to cold, (B, H, W), from 0 on.

    Pixels of equal heat follow in an order drawn once for all images.

    Args:
        heats: (B, H, W).
    """
    values = heats.flatten(1)
    drawn = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(_TIES))
    drawn = drawn.to(values.device)
    order = drawn[values[:, drawn].argsort(stable=True, dim=1, descending=True)]
    return order.argsort(1).view_as(heats)


def _blurred(images: Tensor) -> Tensor:
    sigma = min(images.shape[2:]) / 16
    return gaussian_blur(images, kernel_size=[2 * round(3 * sigma) + 1] * 2, sigma=[sigma] * 2)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over the images."""

    mean: float
    """The mean."""
    error: float
    """Its standard error."""

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """The mean of values, (N,), and its standard error.

        Args:
            values: One an image, at least two.
        """
        values = values.double()
        return cls(mean=float(values.mean()), error=float(values.std()) / math.sqrt(len(values)))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one method reached; all but ``num_empty`` lie between 0 and 1."""

    pointing: Score | None
    """Share of images whose map peaks in the box; None without boxes."""
    energy: Score | None
    """Share of the map in the box; None without boxes."""
    deletion: Score
    """Area under the deletion curve: the smaller, the truer."""
    insertion: Score
    """Area under the insertion curve: the larger, the truer."""
    deletion_curve: tuple[float, ...]
    """Mean probability after each step of the deletion."""
    insertion_curve: tuple[float, ...]
    """Mean probability after each step of the insertion."""
    num_empty: int
    """Maps of the predicted class that are 0 throughout."""


_COLUMNS = ("pointing", "energy", "deletion", "insertion")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What ``measure_faithfulness`` found."""

    num_images: int
    """Images looked at."""
    top1: float
    """Share of images whose class is the most likely one."""
    box_share: float | None
    """Mean share of the image that the box covers, the energy of a map that is the same
    everywhere; None without boxes."""
    methods: dict[str, Scores]
    """By method, in the order of ``METHODS``."""

    def to_json(self) -> str:
        """The report as JSON text."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"

    def rows(self) -> list[list[str]]:
        """The report as cells for people, its head first; without boxes their columns are out."""
        columns = _COLUMNS if self.box_share is not None else _COLUMNS[2:]
        body = [
            [name, *(_format_score(getattr(scores, column), column) for column in columns)]
            for name, scores in self.methods.items()
        ]
        return [["map", *columns], *body]

    def table(self) -> str:
        """The report as a small table for people, with standard errors."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.num_images:,} images, top-1 {self.top1:.2%}{self._format_box()}", ""]
        for name, *cells in rows:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([f"{name:<{widths[0]}}", *padded]))
        lines += [
            f"empty maps of {name}: {scores.num_empty:,}"
            for name, scores in self.methods.items()
            if scores.num_empty
        ]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The report as a Markdown table, with standard errors."""
        head, *body = self.rows()
        rows = [head, ["---"] * len(head), *body]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"

    def _format_box(self) -> str:
        return "" if self.box_share is None else f", boxes cover {self.box_share:.2%}"


def _format_score(score: Score, column: str) -> str:
    if column in ("pointing", "energy"):
        return f"{100 * score.mean:.1f} ± {100 * score.error:.1f} %"
    return f"{score.mean:.3f} ± {score.error:.3f}"


def measure_faithfulness(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    boxes: Tensor | None = None,
    methods: Sequence[str] | None = None,
    num_steps: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Measure whether maps lie on the object, and whether the network needs what they show.

    Pointing game and energy ask about the map of the *true* class, deletion and insertion about
    the map and the probability of the *predicted* one; a network whose attention has one token
    for all classes gives the same map for both. The baselines know nothing of the image:
    ``random`` draws every cell of the network's own grid, ``centre`` is a Gaussian at the
    image's middle, its sigma a quarter of each side. A Grad-CAM that is 0 throughout misses the
    box, has no energy in it, and orders its pixels by chance; ``num_empty`` counts them. The model
    is left as it was, but on ``device``.

    Args:
        loader: Batches of normalised images (B, C, H, W) and class numbers (B,), in order.
        boxes: The object of each image, in the loader's order and in pixels of what the model
            sees: (N, 4), xmin, ymin, xmax, ymax, the maxima one past the object.
        methods: Of ``METHODS``; None takes all that this network can.
        num_steps: As of ``deletion_insertion``.
        seed: Of the random maps.
        device: Where to compute; None takes the GPU if there is one.
        progress: Called after each batch with the number of images done.

    Raises:
        ValueError: If a method is unknown or asks for what the network does not have, there are
            fewer than two images, or there are not as many boxes.
        ModuleNotFoundError: If Grad-CAM is to be measured and pytorch-grad-cam is not installed.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10)
        >>> batch = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> methods = ["attention", "centre"]
        >>> report = measure_faithfulness(model, [batch], methods=methods, device="cpu")
        >>> list(report.methods), report.num_images
        (['attention', 'centre'], 4)
    """
    device = default_device(device)
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[dict[str, Tensor]]] = {}
    hits: list[Tensor] = []
    shares: list[Tensor] = []
    num_images = 0
    chosen: Sequence[str] = ()
    cells = ""  # whose cells random maps have
    with frozen_eval_mode(model):
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            if not num_images:
                chosen = _choose_methods(model, images, methods)
                cells = _cells_of(model, images) if "random" in chosen else ""
            there = None if boxes is None else _boxes_of(boxes, num_images, len(images)).to(device)
            with torch.no_grad():
                predicted = model(images).argmax(1)
            for name in chosen:
                look = _map_maker(name, model, images, cells, generator)
                values = _measure(model, images, labels, predicted, there, look, num_steps)
                found.setdefault(name, []).append(values)
            hits.append(predicted == labels)
            if there is not None:
                shares.append(_shares_of(there, (images.shape[2], images.shape[3])))
            num_images += len(images)
            if progress is not None:
                progress(num_images)
    if num_images < 2 or (boxes is not None and len(boxes) != num_images):
        given = "" if boxes is None else f" and {len(boxes)} boxes"
        raise ValueError(
            f"the loader gives {num_images} images{given}; give at least two images, and a box for "
            "each or none at all"
        )
    return Report(
        num_images=num_images,
        top1=float(torch.cat(hits).float().mean()),
        box_share=float(torch.cat(shares).mean()) if shares else None,
        methods={name: _scores(found[name]) for name in METHODS if name in found},
    )


MapMaker = Callable[[Tensor], tuple[Tensor, Grid]]
"""Class numbers (B,) -> maps (B, h, w) that explain them, and where their cells lie."""


def _map_maker(
    name: str, model: nn.Module, images: Tensor, cells: str, generator: torch.Generator
) -> MapMaker:
    """A method for one batch; the baselines give the same maps whatever the class."""
    if name == "evidence":
        return lambda targets: evidence_maps(model, images, targets)
    if name == "attention":
        return lambda targets: attention_maps(model, images, targets)[1:]
    if name == "gradcam":
        return lambda targets: grad_cam(model, images, targets)
    if name == "centre":
        maps, grid = centre_maps(images)
    else:
        maps, grid = _random(model, images, cells, generator)
    return lambda targets: (maps, grid)


def centre_maps(images: Tensor) -> tuple[Tensor, Grid]:
    """A Gaussian at the middle of every image, its sigma a quarter of each side.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, H, W), and the pixels as their cells.
    """
    size = (images.shape[2], images.shape[3])
    y, x = ((torch.arange(side, device=images.device) + 0.5) / side - 0.5 for side in size)
    gaussian = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2))
    return gaussian.expand(len(images), -1, -1), Grid.of_pixels(size)


def _cells_of(model: nn.Module, images: Tensor) -> str:
    """The method whose cells are the network's own grid."""
    if attention_layers(model):
        return "attention"
    return "evidence" if _has_evidence(model, images) else "gradcam"


def _random(
    model: nn.Module, images: Tensor, cells: str, generator: torch.Generator
) -> tuple[Tensor, Grid]:
    any_class = torch.zeros(1, dtype=torch.long, device=images.device)
    _, grid = _map_maker(cells, model, images[:1], "", generator)(any_class)
    # Image by image, so that the draw does not depend on the size of the batches.
    maps = [torch.rand(grid.feat_size, generator=generator) for _ in images]
    return torch.stack(maps).to(images.device), grid


def _measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    boxes: Tensor | None,
    look: MapMaker,
    num_steps: int,
) -> dict[str, Tensor]:
    """What a method reaches on each image of a batch."""
    maps, grid = look(predicted)
    curves = deletion_insertion(model, images, grid.heat(maps), predicted, num_steps=num_steps)
    values = {
        "deletion": curves.deletion_area,
        "insertion": curves.insertion_area,
        "deletion_curve": curves.deletion,
        "insertion_curve": curves.insertion,
        "empty": maps.flatten(1).amax(1) <= 0,
    }
    if boxes is not None:
        maps, grid = look(labels)
        values["pointing"] = peak_in_box(maps, boxes, grid)
        values["energy"] = energy_in_box(maps, boxes, grid)
    return {name: value.cpu() for name, value in values.items()}


def _scores(batches: Sequence[dict[str, Tensor]]) -> Scores:
    values = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    score = {name: Score.of(values[name]) for name in _COLUMNS if name in values}
    return Scores(
        pointing=score.get("pointing"),
        energy=score.get("energy"),
        deletion=score["deletion"],
        insertion=score["insertion"],
        deletion_curve=tuple(values["deletion_curve"].double().mean(0).tolist()),
        insertion_curve=tuple(values["insertion_curve"].double().mean(0).tolist()),
        num_empty=int(values["empty"].sum()),
    )


def _choose_methods(
    model: nn.Module, images: Tensor, wanted: Sequence[str] | None
) -> Sequence[str]:
    """The methods asked for, checked; or all that the network can."""
    if wanted is None:
        return _possible_methods(model, images)
    for name in wanted:
        if name not in METHODS:
            raise ValueError(f"methods holds {name!r}; known are {', '.join(METHODS)}")
    if "attention" in wanted and not attention_layers(model):
        raise ValueError(
            f"methods asks for 'attention', and {type(model).__name__} has no layer of attention; "
            "leave it out, or give the network attention with convattn.augment"
        )
    if "evidence" in wanted:
        evidence(model, images[:1], [0])  # says what is in the way
    return list(dict.fromkeys(wanted))


def _has_evidence(model: nn.Module, images: Tensor) -> bool:
    with suppress(NoEvidenceError):
        evidence(model, images[:1], [0])
        return True
    return False


def _possible_methods(model: nn.Module, images: Tensor) -> Sequence[str]:
    possible = ["evidence"] if _has_evidence(model, images) else []
    if attention_layers(model):
        possible.append("attention")
    with suppress(ValueError):
        cam_layers(model, images)
        possible.append("gradcam")
    if not possible:
        raise ValueError(
            f"{type(model).__name__} has neither attention nor a feature map for Grad-CAM; give "
            "it attention with convattn.augment, or take larger images"
        )
    return [*possible, "random", "centre"]


def _shares_of(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The share of the image that each box covers: the energy of a map of one cell."""
    maps = boxes.new_ones(len(boxes), 1, 1, dtype=torch.float32)
    return energy_in_box(maps, boxes, Grid.regular((1, 1), image_size))


def _boxes_of(boxes: Tensor, start: int, number: int) -> Tensor:
    there = boxes[start : start + number]
    if there.shape != (number, 4):
        raise ValueError(
            f"boxes of shape {tuple(boxes.shape)} for {start + number} images or more; give "
            "(N, 4), a box an image"
        )
    return there
