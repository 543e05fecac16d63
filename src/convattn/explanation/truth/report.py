"""What a study found: as a CSV file, as JSON, as a table and as a page for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from convattn.explanation.truth.intervals import FEWEST_IMAGES, Interval, interval
from convattn.explanation.truth.measures import OVERLAPS
from convattn.explanation.truth.methods import YARDSTICKS
from convattn.explanation.truth.study import Protocol, Study
from convattn.explanation.truth.verdict import Verdict, judge
from convattn.text import aligned, csv_text, json_text, markdown_table


@dataclass(frozen=True)
class Measure:
    """One number of a method."""

    meaning: str
    """In words, for people."""
    truer: str
    """Which values are a true map's."""


MEASURES: Mapping[str, Measure] = {
    "pointing": Measure("share of images whose map peaks on the object", "high"),
    "energy": Measure("share of the map that lies on the object", "high"),
    "max_box_acc": Measure("MaxBoxAccV2: the map's box overlaps the object's", "high"),
    "iou": Measure("overlap of the map with the object, at the threshold that is best", "high"),
    "deletion": Measure("area under the probability as the hottest pixels go", "low"),
    "insertion": Measure("area under the probability as the hottest pixels come", "high"),
    "road": Measure("probability that the hottest pixels keep more than the coldest", "high"),
    "randomised": Measure("rank correlation with the maps of random layers", "near 0"),
    "other_class": Measure("rank correlation with the map of a random other class", "below 0.9"),
    "max_sensitivity": Measure("change of the map when the image hardly moves", "low"),
    "sum_error": Measure("distance of the map's sum from the logit", "0"),
    "agreement": Measure("rank correlation with the maps of networks of other seeds", "high"),
}
"""In the order of tables."""

_OBJECTS = ("pointing", "energy", "max_box_acc", "iou")
_ASKING = ("randomised", "other_class", "max_sensitivity", "agreement")
NO_OBJECTS = (
    "no boxes or masks of the objects are known: cluttered_digits and tiny_imagenet bring boxes, "
    "--masks names a folder of masks"
)


def _max_box_acc(means: Tensor) -> Tensor:
    """(R, overlaps * thresholds) -> (R,): the best threshold of each overlap, and their mean."""
    return means.unflatten(1, (len(OVERLAPS), -1)).amax(2).mean(1)


_REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "max_box_acc": _max_box_acc,
    "iou": lambda means: means.amax(1),
}


def summarise(measure: str, values: Tensor, seed: int = 0) -> Interval | None:
    """A measure over all images, None if too few have an answer.

    Args:
        measure: Of ``MEASURES``.
        values: (N,), or (N, K): a column a threshold, a stage or a network.
        seed: Of the draws.
    """
    if measure == "max_box_acc":
        reached = torch.cat([(values >= overlap).double() for overlap in OVERLAPS], 1)
        values = torch.where(values.isnan().any(1, keepdim=True), torch.nan, reached)
    elif measure not in _REDUCTIONS and values.ndim == 2:
        values = values.mean(1)
    return interval(values, _REDUCTIONS.get(measure), seed=seed)


@dataclass(frozen=True, kw_only=True)
class TruthReport:
    """A study, summed up."""

    study: Study
    """What was measured."""
    protocol: Protocol
    """How."""
    cells: Mapping[str, Mapping[str, Interval | str]]
    """By method and measure: the figure, or why there is none."""
    verdicts: Mapping[str, Verdict]
    """By method."""

    @classmethod
    def of(cls, study: Study, protocol: Protocol) -> TruthReport:
        """Intervals and verdicts of a study.

        Args:
            study: Of at least ``FEWEST_IMAGES`` images.
            protocol: That it followed.

        Raises:
            ValueError: If there are fewer.
        """
        check_enough(study.num_images)
        return cls(
            study=study,
            protocol=protocol,
            cells={
                method: {name: _cell(study, method, name, protocol.seed) for name in MEASURES}
                for method in study.values
            },
            verdicts={
                method: judge(method, study.values, protocol.seed, knows=study.knows)
                for method in study.values
            },
        )

    def csv(self) -> str:
        """``method,measure,value,low,high,num_images``; a value that is none says why."""
        return csv_text(
            [["method", "measure", "value", "low", "high", "num_images"], *self._rows()]
        )

    def _rows(self) -> Iterator[list[object]]:
        for method, cells in self.cells.items():
            for name, cell in cells.items():
                if isinstance(cell, str):
                    yield [method, name, f"n/a: {cell}", "", "", 0]
                else:
                    figures = (cell.value, cell.low, cell.high)
                    yield [method, name, *(f"{one:.6g}" for one in figures), cell.num_images]

    def to_json(self, about: Mapping[str, Any]) -> str:
        """Verdicts, their reasons and the protocol.

        Args:
            about: What was measured, in JSON's types.
        """
        study = self.study
        found = {
            **about,
            "num_images": study.num_images,
            "top1": study.top1,
            "object_share": study.object_share,
            "num_networks": 1 + study.num_others,
            "methods": {
                name: {"verdict": verdict.word, "reasons": verdict.reasons}
                for name, verdict in self.verdicts.items()
            },
            "left_out": study.left_out,
            "protocol": self.protocol.to_dict(),
            "measures": {name: asdict(measure) for name, measure in MEASURES.items()},
        }
        return json_text(found, indent=2) + "\n"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        shown = [
            name
            for name in MEASURES
            if any(isinstance(cells[name], Interval) for cells in self.cells.values())
        ]
        rows = [
            [method, *(_short(cells[name]) for name in shown), self.verdicts[method].word]
            for method, cells in self.cells.items()
        ]
        return ["map", *shown, "verdict"], rows

    def _head(self) -> str:
        study = self.study
        share = study.object_share
        objects = "" if share is None else f", objects cover {share:.1%}"
        return f"{study.num_images:,} images, top-1 {study.top1:.2%}{objects}"

    def _missing(self) -> list[str]:
        """What has no figure, and why, a sentence each."""
        told = [f"{name} is left out: {why}" for name, why in self.study.left_out.items()]
        for name in MEASURES:
            why = {cell for cells in self.cells.values() if isinstance(cell := cells[name], str)}
            if len(why) == 1 and all(isinstance(c[name], str) for c in self.cells.values()):
                told.append(f"{name} is left out: {why.pop()}")
        return told

    def table(self) -> str:
        """The report as a table and sentences for people."""
        head, rows = self._table()
        lines = [self._head(), "", *aligned([head, *rows]), ""]
        for name, verdict in self.verdicts.items():
            lines.append(f"{name}: {verdict.word}")
            lines += [f"  {reason}" for reason in verdict.reasons]
        return "\n".join([*lines, "", *self._missing()]).rstrip()

    def markdown(self, title: str, plot: str) -> str:
        """The report as a page.

        Args:
            title: Of the page.
            plot: Name of the plot beside it.
        """
        head, rows = self._table()
        parts = [
            f"# {title}",
            self._head() + "; in brackets 95 % intervals.",
            f"![{title}]({plot})",
        ]
        parts.append(markdown_table(head, rows))
        for name, verdict in self.verdicts.items():
            parts.append(f"## {name}: {verdict.word}")
            parts.append("\n".join(f"- {reason}" for reason in verdict.reasons))
        parts.append("## What the measures are")
        parts.append(
            markdown_table(
                ("measure", "meaning", "a true map's is"),
                [(name, one.meaning, one.truer) for name, one in MEASURES.items()],
            )
        )
        parts.append("\n".join(f"- {sentence}" for sentence in self._missing()))
        parts.append("## Protocol")
        words = ((name, str(value)) for name, value in self.protocol.to_dict().items())
        parts.append(markdown_table(("", "what scores depend on"), words))
        return "\n\n".join(filter(None, parts)) + "\n"


def check_enough(num_images: int) -> None:
    """Refuse images that are too few for an interval.

    Args:
        num_images: That there are.

    Raises:
        ValueError: If they are.
    """
    if num_images < FEWEST_IMAGES:
        raise ValueError(
            f"there are {num_images} images, and an interval needs at least {FEWEST_IMAGES}; give "
            "more test images"
        )


def _cell(study: Study, method: str, name: str, seed: int) -> Interval | str:
    values = study.values[method].get(name)
    if values is not None:
        found = summarise(name, values, seed)
        if found is not None:
            return found
        known = int((~values.reshape(len(values), -1).isnan().any(1)).sum())
        return f"{known} images have an answer, and an interval needs {FEWEST_IMAGES}"
    if name in _OBJECTS:
        return NO_OBJECTS
    if method in YARDSTICKS:
        return f"{method} asks no network"
    if name == "sum_error":
        return f"{method} claims no sum"
    if name == "agreement":
        return "one network; name runs of other seeds by --others"
    assert name in _ASKING
    return "the network has one class"


def _short(cell: Interval | str) -> str:
    """A figure as short as it can be read."""
    if isinstance(cell, str):
        return "n/a"
    if 0 < abs(cell.value) < 1e-3:
        return f"{cell.value:.0e}"
    return f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
