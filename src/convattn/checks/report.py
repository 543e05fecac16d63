"""What a check of a data set found: facts and findings, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convattn.data.counts import SEVERITIES, SHOWN, Finding, Severity
from convattn.text import aligned, json_text, list_names, printable

_CLASSES_SHOWN = 30  # rows of the text's table
_BINS = 12


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number is spread over images."""

    least: float
    """The smallest."""
    median: float
    """Of half the images it is no more than this."""
    most: float
    """The largest."""
    edges: tuple[float, ...]
    """Edges of the bins."""
    images: tuple[int, ...]
    """How many images are in each bin, one fewer than edges."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of some values; None if there are none.

        Args:
            values: One an image.
        """
        if not values:
            return None
        images, edges = np.histogram(values, bins=_BINS if len(set(values)) > 1 else 1)
        return cls(
            least=min(values),
            median=float(np.median(values)),
            most=max(values),
            edges=tuple(edges.tolist()),
            images=tuple(images.tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """The images of training, of validation or of the test."""

    num_images: int
    """All, those that cannot be read among them."""
    images_of: Mapping[str, int] | None
    """Class -> images of it, or that show it; None if nobody looked."""
    amount_of: Mapping[str, int] | None
    """Class -> its boxes or its pixels, None where an image is of one class."""
    width: Spread | None
    """In pixels, of upright images."""
    height: Spread | None
    """Alike."""
    aspect: Spread | None
    """Width over height."""
    formats: Mapping[str, int]
    """Format of the files -> how many."""
    traits: Mapping[str, int]
    """What is changed when they are read, as "turned" -> how many."""
    unreadable: Mapping[str, str]
    """Name of an image that cannot be read -> why."""


@dataclass(frozen=True, kw_only=True)
class LabelDoubt:
    """An image whose label a network doubts."""

    image: str
    """Its name."""
    given: str
    """The class that it has."""
    suggested: str
    """The class that the network takes it for."""
    confidence: float
    """Probability that the network gives the class that it has, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class LabelCheck:
    """Whether a network that did not learn them believes the labels of some images."""

    run: str
    """The run's folder."""
    judged: str
    """Which images were judged, and which not, in a sentence."""
    num_images: int
    """How many were judged."""
    doubts: tuple[LabelDoubt, ...]
    """The most doubtful first."""


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All that was found in a data set."""

    root: str
    """Where it lies."""
    task: str
    """What it is for."""
    class_names: tuple[str, ...]
    """The classes in the order of their numbers."""
    unit: str | None
    """What ``amount_of`` counts: boxes or pixels."""
    parts: Mapping[str, Part]
    """train, val if the data set has one, and test."""
    findings: tuple[Finding, ...]
    """The worst first."""
    notes: tuple[str, ...]
    """What the reader of the data had to say."""
    not_looked_at: tuple[str, ...]
    """What this check did not do, and how to have it done, a sentence each."""
    labels: LabelCheck | None
    """None if no run was given."""

    @property
    def num_images(self) -> int:
        """Of all parts."""
        return sum(part.num_images for part in self.parts.values())

    def of(self, severity: Severity) -> list[Finding]:
        """The findings that are as bad as that."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def verdict(self) -> str:
        """How many findings there are, by severity.

        Example: ``1 error, 2 warnings``.
        """
        counts = [(len(self.of(severity)), severity) for severity in SEVERITIES]
        found = [f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts if n]
        return ", ".join(found) or "nothing is wrong"

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"

    def text(self) -> str:
        """All of it for a terminal; of long lists the first."""
        number = len(self.class_names)
        lines = [
            f"{self.root}: {self.task}, {self.num_images:,} images, {number:,} "
            f"class{'' if number == 1 else 'es'}",
            "",
            *self._class_lines(),
            "",
            *self._size_lines(),
            "",
            f"{self.verdict}",
        ]
        for finding in self.findings:
            lines.append(f"{finding.severity:<9}{finding.sentence}")
            if finding.images:
                lines.append(f"{'':9}  {list_names(finding.images, SHOWN)}")
        if self.labels is not None:
            lines += ["", *self._label_lines(self.labels)]
        lines += ["", *self.notes] if self.notes else []
        lines += ["", *self.not_looked_at] if self.not_looked_at else []
        return "\n".join(map(printable, lines))

    def _class_lines(self) -> list[str]:
        columns: list[tuple[str, Mapping[str, int]]] = []
        for name, part in self.parts.items():
            if part.images_of is not None:
                columns.append((f"{name} images", part.images_of))
            if part.amount_of is not None:
                columns.append((f"{name} {self.unit}", part.amount_of))
        rows = [("class", *(head for head, _ in columns))]
        for name in self.class_names[:_CLASSES_SHOWN]:
            rows.append((printable(name), *(f"{column[name]:,}" for _, column in columns)))
        totals = (f"{part.num_images:,} {name} images" for name, part in self.parts.items())
        lines = [", ".join(totals)] if not columns else aligned(rows)
        more = len(self.class_names) - _CLASSES_SHOWN
        return [*lines, f"and {more:,} classes more"] if more > 0 else lines

    def _size_lines(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("", "least", "median", "most")]
        others = []
        for name, part in self.parts.items():
            for what, spread, digits in (
                ("width", part.width, 0),
                ("height", part.height, 0),
                ("width / height", part.aspect, 2),
            ):
                if spread is not None:
                    numbers = (spread.least, spread.median, spread.most)
                    rows.append((f"{name} {what}", *(f"{one:,.{digits}f}" for one in numbers)))
            kinds = {**part.formats, **part.traits}
            told = (f"{count:,} {kind}" for kind, count in kinds.items())
            others.append(f"{name} files: {', '.join(told)}" if kinds else "")
        return [*(aligned(rows) if len(rows) > 1 else []), *filter(None, others)]

    def _label_lines(self, labels: LabelCheck) -> list[str]:
        rows = [("image", "label", "network", "probability of the label")]
        rows += [
            (printable(one.image), one.given, one.suggested, f"{one.confidence:.1%}")
            for one in labels.doubts[:_CLASSES_SHOWN]
        ]
        return [labels.judged, *(aligned(rows) if labels.doubts else ())]
