"""The suite: every method by every measure on some images, batch by batch, and gone on with.

What a batch gave is kept in a file of its own, whole or not at all, so that a study that was killed
goes on behind its last batch and ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convattn.explanation.faithfulness import deletion_insertion
from convattn.explanation.geometry import Grid
from convattn.explanation.linear_evidence import evidence_of_classes
from convattn.explanation.truth import measures
from convattn.explanation.truth.methods import (
    NETWORK_METHODS,
    YARDSTICKS,
    Look,
    Possible,
    possible_methods,
    yardstick_maps,
)
from convattn.explanation.truth.sanity import (
    agreements,
    other_classes,
    randomised_copies,
    rank_correlation,
)
from convattn.files import written_whole
from convattn.modes import check_finite, default_device, frozen_eval_mode

_SEEDS_A_STUDY = 1_000_003
"""Between the seeds of two studies lie those of their batches."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What scores depend on beside network and images."""

    num_steps: int = 16
    """Of deletion and insertion."""
    percentiles: tuple[int, ...] = measures.PERCENTILES
    """Shares of the pixels that ROAD keeps."""
    num_samples: int = 4
    """Draws of max-sensitivity."""
    radius: float = 0.02
    """Of these, in units of the normalised image."""
    num_stages: int = 4
    """Of the cascade of random layers."""
    trained_steps: int = 0
    """Batches that trained maps learn from; 0: none are asked for."""
    num_dear: int = 100
    """Images, the first, that ROAD, max-sensitivity, the cascade, other classes and other seeds
    are measured on."""
    seed: int = 0
    """Of all draws."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types, with the protocol's other words."""
        return {
            **asdict(self),
            "percentiles": list(self.percentiles),
            "class": "pointing, energy, max_box_acc and iou: the true class's map; all else: the "
            "predicted class's",
            "baseline": "deletion, occlusion and integrated gradients: the mean colour, 0 of the "
            "normalised image; insertion: a Gaussian blur, its sigma a sixteenth of the shorter "
            "side; ROAD: noisy linear imputation",
            "interval": "95 %, 1,000 bootstrap draws of the images",
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was measured."""

    values: Mapping[str, Mapping[str, Tensor]]
    """By method and measure, (N,) or (N, K) float64; N is ``num_dear`` of dear measures."""
    left_out: Mapping[str, str]
    """Name of a method -> why the network cannot be asked by it."""
    top1: float
    """Share of images whose class is the most likely one."""
    knows: Tensor | None
    """(N,): 1 of an image whose class the network says, less 1 of the images' commonest class: what
    it knows beyond that; None of a study that was begun before this was kept."""
    object_share: float | None
    """Mean share of the image that the object covers; None where none is known."""
    num_images: int
    """Images looked at."""
    num_others: int
    """Networks of other seeds."""


def run_study(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    folder: Path,
    *,
    masks: Tensor | None = None,
    methods: Sequence[str] = NETWORK_METHODS,
    looks: Mapping[str, Look] | None = None,
    others: Sequence[nn.Module] = (),
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """Measure the maps of several methods, or go on with what a killed process has left.

    The network is left as it was, but on ``device``.

    Args:
        model: A classifier.
        batches: Normalised images (B, C, H, W) and class numbers (B,), in order; the same ones
            when it is gone on with.
        folder: Where the batches' files are and go; exists.
        masks: The objects' pixels in what the network sees, (N, H, W) bool; None: not known.
        methods: Of ``NETWORK_METHODS``; what the network cannot is left out.
        looks: Further methods by name.
        others: Networks of other seeds, on the same device, with the same classes.
        protocol: None takes the default.
        device: Where to compute; None takes the GPU if there is one.
        progress: Called after each batch with the number of its images.

    Raises:
        ValueError: If a method is unknown, or the network can be asked by none.
        NonFiniteError: If its logits are no numbers.
    """
    device = default_device(device)
    plan = protocol or Protocol()
    parts: list[dict[str, Tensor]] = []
    possible: Possible | None = None
    ask: _Asking | None = None
    first = 0
    for network in (model, *others):
        network.to(device)
    with frozen_eval_mode(model):
        for number, (images, labels, *_) in enumerate(batches):
            images, labels = images.to(device), labels.to(device)
            if possible is None or ask is None:
                possible = possible_methods(model, images, methods)
                every = {**possible.looks, **(looks or {})}
                ask = _Asking(model, every, possible.cells, list(others), plan)
            file = folder / f"{number:06d}.safetensors"
            if not file.exists():
                there = None if masks is None else masks[first : first + len(images)].to(device)
                found = ask.batch(images, labels, there, first)
                with written_whole(file) as part:
                    save_file({name: value.contiguous() for name, value in found.items()}, part)
            parts.append(load_file(file))
            first += len(images)
            if progress is not None:
                progress(len(images))
    assert possible is not None
    return _study(parts, possible.left_out, len(others))


def _study(parts: Sequence[dict[str, Tensor]], left_out: Mapping[str, str], others: int) -> Study:
    whole = {name: torch.cat([part[name] for part in parts if name in part]) for name in parts[0]}
    correct, share = whole.pop("/correct"), whole.pop("/object_share", None)
    labels = whole.pop("/label", torch.empty(0))
    values: dict[str, dict[str, Tensor]] = {}
    for name, value in whole.items():
        method, measure = name.split("/")
        values.setdefault(method, {})[measure] = value
    order = [*NETWORK_METHODS, *(name for name in values if name not in YARDSTICKS), *YARDSTICKS]
    return Study(
        values={name: values[name] for name in dict.fromkeys(order) if name in values},
        left_out=left_out,
        top1=float(correct.mean()),
        knows=_beyond_commonest(correct, labels) if len(labels) == len(correct) else None,
        object_share=None if share is None else float(share.nanmean()),
        num_images=len(correct),
        num_others=others,
    )


def _beyond_commonest(correct: Tensor, labels: Tensor) -> Tensor:
    return correct - (labels == labels.mode().values).double()


class _Asking:
    """Asks a network about one batch after the other."""

    def __init__(
        self,
        model: nn.Module,
        looks: Mapping[str, Look],
        cells: Grid,
        others: Sequence[nn.Module],
        plan: Protocol,
    ) -> None:
        self._model, self._looks, self._cells, self._plan = model, looks, cells, plan
        self._others = others
        self._stages = randomised_copies(model, plan.num_stages, seed=plan.seed)

    def batch(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, first: int
    ) -> dict[str, Tensor]:
        """Every measure of every method, by "method/measure"; "/..." is of the network.

        Args:
            images: (B, C, H, W).
            labels: (B,).
            masks: (B, H, W) bool.
            first: Number of the first image.
        """
        with torch.no_grad():
            logits = self._model(images)
        check_finite(logits)
        predicted = logits.argmax(1)
        found = {"/correct": (predicted == labels).double(), "/label": labels}
        if masks is not None:
            share = masks.flatten(1).double().mean(1)
            found["/object_share"] = torch.where(share > 0, share, torch.nan)
        dear = min(max(self._plan.num_dear - first, 0), len(images))
        seed = self._plan.seed * _SEEDS_A_STUDY + first
        for name in (*self._looks, *YARDSTICKS):
            look = self._looks.get(name)
            if look is None:
                maps, grid = yardstick_maps(name, images, self._cells, seed)
            else:
                maps, grid = look(self._model, images, predicted)
            values = self._of_all(images, predicted, maps, grid)
            if masks is not None:
                true = self._true_maps(look, images, labels, predicted, maps)
                values |= _on_objects(true, masks, grid)
            if dear:
                few = images[:dear], predicted[:dear], maps[:dear]
                values |= self._road(*few, grid, seed)
                if look is not None:
                    values |= self._sanity(look, *few, logits.shape[1], seed)
            if name in ("evidence", "integrated_gradients"):
                values["sum_error"] = self._sum_error(name, images, predicted, maps, logits)
            found |= {f"{name}/{measure}": value for measure, value in values.items()}
        return {name: value.double().cpu() for name, value in found.items()}

    def _of_all(
        self, images: Tensor, predicted: Tensor, maps: Tensor, grid: Grid
    ) -> dict[str, Tensor]:
        steps = self._plan.num_steps
        curves = deletion_insertion(
            self._model, images, grid.heat(maps), predicted, num_steps=steps
        )
        return {"deletion": curves.deletion_area, "insertion": curves.insertion_area}

    def _true_maps(
        self, look: Look | None, images: Tensor, labels: Tensor, predicted: Tensor, maps: Tensor
    ) -> Tensor:
        """The true classes' maps; asked for only where they are not the predicted ones'."""
        wrong = predicted != labels
        if look is None or not bool(wrong.any()):
            return maps
        true = maps.clone()
        true[wrong] = look(self._model, images[wrong], labels[wrong])[0]
        return true

    def _road(
        self, images: Tensor, predicted: Tensor, maps: Tensor, grid: Grid, seed: int
    ) -> dict[str, Tensor]:
        value = measures.road(
            self._model,
            images,
            grid.heat(maps),
            predicted,
            percentiles=self._plan.percentiles,
            seed=seed,
        )
        return {"road": value}

    def _sanity(
        self,
        look: Look,
        images: Tensor,
        predicted: Tensor,
        maps: Tensor,
        num_classes: int,
        seed: int,
    ) -> dict[str, Tensor]:
        plan, model = self._plan, self._model
        stages = [look(stage, images, predicted)[0] for stage in self._stages]
        values = {
            "randomised": agreements(maps, stages),
            "max_sensitivity": measures.max_sensitivity(
                lambda moved: look(model, moved, predicted)[0],
                images,
                maps,
                measures.small_moves(images, plan.num_samples, plan.radius, seed),
            ),
        }
        if num_classes > 1:
            classes = other_classes(predicted, num_classes, seed)
            values["other_class"] = rank_correlation(maps, look(model, images, classes)[0])
        if self._others:
            seen = []
            for other in self._others:
                with frozen_eval_mode(other):
                    seen.append(look(other, images, predicted)[0])
            values["agreement"] = agreements(maps, seen)
        return values

    def _sum_error(
        self, name: str, images: Tensor, predicted: Tensor, maps: Tensor, logits: Tensor
    ) -> Tensor:
        if name == "evidence":
            every = range(logits.shape[1])
            rest = evidence_of_classes(self._model, images[:1], list(every))[1]
        else:
            with torch.no_grad():
                rest = self._model(torch.zeros_like(images[:1]))[0]
        return measures.sum_error(maps, rest[predicted], logits, predicted)


def _on_objects(maps: Tensor, masks: Tensor, grid: Grid) -> dict[str, Tensor]:
    heats = grid.heat(maps)
    return {
        "pointing": measures.peak_in_mask(maps, masks, grid),
        "energy": measures.energy_in_mask(maps, masks, grid),
        "max_box_acc": measures.box_overlaps(heats, masks),
        "iou": measures.mask_overlaps(heats, masks),
    }
