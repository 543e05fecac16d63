"""What a probe found: intervals over seeds and over test images, tables, the report."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convattn.config import ProbeConfig
from convattn.data import Source
from convattn.probing.backbone import Frozen
from convattn.probing.scores import is_multi_label, per_image
from convattn.text import aligned, csv_text, markdown_table

REFERENCE, KNN = "avg", "knn"
_DRAWS = 10_000
_SHEET = (
    "![evidence](evidence.png)",
    "",
    "Where a map is red and blue, red speaks for the class above it and blue against; the dark rim "
    "of an image is cropped off before the network sees it.",
    "",
)


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as text.

    Args:
        rows: A mapping each.
        columns: In their order.
    """
    return csv_text([columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)])


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; None where there is none."""

    mean: float
    low: float | None
    high: float | None

    def percent(self, signed: bool = False) -> str:
        """In per cent, or in points with a sign."""
        form = "+.1f" if signed else ".1f"
        text = f"{100 * self.mean:{form}}"
        if self.low is None or self.high is None:
            return text
        return f"{text} ({100 * self.low:{form}} to {100 * self.high:{form}})"


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's interval of the mean over seeds; none of fewer than three.

    Args:
        values: One a seed.
    """
    mean = statistics.fmean(values)
    if len(values) < 3:
        return Interval(mean, None, None)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def over_images(values: Tensor) -> Interval:
    """The bootstrap's percentile interval of the mean over test images.

    Args:
        values: (N,), of each image the mean over the seeds.
    """
    return Interval(float(values.double().mean()), *bootstrap(values))


def bootstrap(values: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, by 10,000 draws; the same for the same values.

    Args:
        values: (N,).
    """
    draws = np.random.default_rng(0)
    x = values.double().numpy()
    means = np.concatenate(
        [
            x[draws.integers(len(x), size=(part, len(x)))].mean(1)
            for part in _parts(_DRAWS, max(1, 10_000_000 // len(x)))
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _parts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What all seeds found."""

    rows: Sequence[Mapping[str, Any]]
    """Of ``probe.csv``."""
    labels: Tensor
    """Of the test images."""
    logits: Sequence[Mapping[str, Tensor]]
    """Of them, (N, K), by seed and pool."""
    images: int
    """Images that heads were trained on, counted anew for each head and epoch."""
    cached: int
    """Images that the backbone was run on."""
    times: Mapping[str, float]
    """Seconds of the last sitting, by what they were spent on."""
    num_valid: int | None = None
    """The data set's own validation images; None: each seed drew some."""

    @cached_property
    def pools(self) -> tuple[str, ...]:
        """In the order of the rows."""
        return tuple(dict.fromkeys(row["pool"] for row in self.rows))

    @cached_property
    def best(self) -> str:
        """The smallest trained pool whose validation loss is within a standard error of the least.

        Paired over the seeds; of one seed alone it is the one with the least.
        """
        losses = {pool: self.values(pool, "validation_loss") for pool in self.pools if pool != KNN}
        least = min(losses, key=lambda pool: statistics.fmean(losses[pool]))

        def is_near(pool: str) -> bool:
            gaps = [a - b for a, b in zip(losses[pool], losses[least], strict=True)]
            if len(gaps) < 2:
                return pool == least
            return statistics.fmean(gaps) <= statistics.stdev(gaps) / len(gaps) ** 0.5

        near = [pool for pool in losses if is_near(pool)]
        return min(near, key=lambda pool: (self.values(pool, "parameters")[0], pool != least))

    def values(self, pool: str, column: str) -> list[float]:
        """A column of a pool's rows, a value a seed.

        Args:
            pool: Its name.
            column: Of ``probe.csv``.
        """
        return [float(row[column]) for row in self.rows if row["pool"] == pool]

    def difference(self, pool: str, column: str) -> Interval:
        """Paired with the average pool over the seeds.

        Args:
            pool: Its name.
            column: Of ``probe.csv``.
        """
        pairs = zip(self.values(pool, column), self.values(REFERENCE, column), strict=True)
        return over_seeds([own - other for own, other in pairs])

    def difference_over_images(self, pool: str) -> Interval:
        """Of the accuracy, paired with the average pool over the test images."""
        gains = [
            per_image(found[pool], self.labels) - per_image(found[REFERENCE], self.labels)
            for found in self.logits
        ]
        return over_images(torch.stack(gains).mean(0))

    def accuracy_over_images(self, pool: str) -> Interval:
        """The accuracy with the bootstrap's interval."""
        found = [per_image(logits[pool], self.labels) for logits in self.logits]
        return over_images(torch.stack(found).mean(0))

    @property
    def measures(self) -> Mapping[str, str]:
        """Column -> what people call it."""
        if is_multi_label(self.labels):
            return {"map": "mAP", "macro_f1": "macro F1", "accuracy": "right yes or no"}
        return {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}

    def cells(self, pool: str) -> list[str]:
        """A line of the table."""
        rows = [row for row in self.rows if row["pool"] == pool]
        rates = sorted(row["lr"] for row in rows if row["lr"] != "")
        rate = "" if not rates else f"{statistics.median_low(rates):.2g}"
        if rates and rates[0] != rates[-1]:
            rate += f" ({rates[0]:.2g} to {rates[-1]:.2g})"
        own = pool == REFERENCE
        return [
            pool,
            f"{rows[0]['parameters']:,}",
            *(over_seeds(self.values(pool, column)).percent() for column in self.measures),
            f"{statistics.fmean(self.values(pool, 'cross_entropy')):.3f}",
            f"{100 * statistics.fmean(self.values(pool, 'ece')):.1f}",
            rate,
            *(
                "" if own else self.difference(pool, column).percent(signed=True)
                for column in list(self.measures)[:2]
            ),
            "" if own else self.difference_over_images(pool).percent(signed=True),
            f"{statistics.fmean(self.values(pool, 'seconds')):.1f}",
        ]

    @property
    def head(self) -> tuple[str, ...]:
        """The table's columns."""
        names = list(self.measures.values())
        return (
            *("pool", "parameters", *(f"{name}, %" for name in names), "cross-entropy"),
            *("ECE, %", "rate", *(f"{name}: points over avg" for name in names[:2])),
            *("over avg, over images", "seconds a seed"),
        )

    def table(self) -> str:
        """Pools, accuracies, differences, for a terminal."""
        first = next(iter(self.measures))
        lines = [
            (
                pool,
                over_seeds(self.values(pool, first)).percent(),
                "" if pool == REFERENCE else self.difference(pool, first).percent(signed=True),
            )
            for pool in self.pools
        ]
        return "\n".join(aligned([("pool", f"{first}, %", "points over avg"), *lines]))

    def reading(self) -> str:
        """What the differences say, in a sentence or two."""
        first, name = next(iter(self.measures.items()))
        better, worse = [], []
        for pool in self.pools:
            if pool == REFERENCE:
                continue
            found = self.difference(pool, first)
            if found.low is not None and found.low > 0:
                better.append(pool)
            if found.high is not None and found.high < 0:
                worse.append(pool)
        if len(self.logits) < 3:
            return "Fewer than three seeds have no interval: the differences say little."
        said = f"By {name}, the interval over seeds lies above the average pool's for "
        said += f"{', '.join(better) or 'no pool'}, and below for {', '.join(worse) or 'no pool'}."
        return said + self._too_brief()

    def _too_brief(self) -> str:
        losses = {p: statistics.fmean(self.values(p, "validation_loss")) for p in self.pools}
        if losses.pop(KNN, math.inf) > min(losses.values()):
            return ""
        return (
            " No head's validation loss is below that of knn: they took too few steps; give them "
            "more with a smaller --batch-size, as 16, or more --epochs."
        )


def write_report(
    findings: Findings,
    config: ProbeConfig,
    folder: Path,
    *,
    network: Frozen,
    source: Source,
    grids: Mapping[str, Mapping[float, float]],
) -> str:
    """``report.md``.

    Args:
        findings: What was found.
        config: What was asked for.
        folder: The run folder.
        network: The frozen network.
        source: The data.
        grids: Pool -> learning rate -> validation loss, of seed 0.
    """
    shown, best = shlex.quote(str(folder)), findings.best
    seeds = f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
    norm = ", BatchNorm between them" if config.norm else ""
    lines = [
        f"# Probe of {network.name} on {config.data.root or source.name}",
        "",
        f"The {network.backbone.layer} map of {network.name} with {network.origin}, frozen, and on "
        f"it each pool with a linear classifier{norm}: "
        f"{len(source.train):,} training and {len(source.test):,} test images of "
        f"{len(source.class_names)} classes, {seeds}.",
        "",
        markdown_table(findings.head, [findings.cells(pool) for pool in findings.pools]),
        "",
        f"{findings.reading()} Brackets are 95 % intervals: of means over seeds by Student's t, "
        "over images by 10,000 bootstrap draws of the test images. `knn` asks the nearest training "
        "images on averaged maps.",
        "",
        "![accuracy against parameters](accuracy.png)",
        "",
        "## The network in this folder",
        "",
        f"`{best}` is the smallest pool whose validation loss is within a standard error of the "
        "least, paired over the seeds; this is its head of seed 0 behind the whole backbone.",
        "",
        *(_SHEET if (folder / "evidence.png").exists() else []),
        "```sh",
        f"convattn evaluate {shown}        # test it again",
        f"convattn explain {shown} IMAGE   # where it looks",
        f"convattn predict {shown} FOLDER  # the classes of your images",
        "```",
        "",
        "## How it was trained",
        "",
        _how(findings, config, network),
        "",
        "Validation loss by learning rate, seed 0:",
        "",
        markdown_table(("pool", "rate: loss"), [(p, _grid(grid)) for p, grid in grids.items()]),
        "",
    ]
    return "\n".join(lines)


def _grid(grid: Mapping[float, float]) -> str:
    return ", ".join(f"{rate:.2g}: {loss:.3f}" for rate, loss in grid.items())


def _how(findings: Findings, config: ProbeConfig, network: Frozen) -> str:
    size = network.cfg["input_size"][1]
    ratio = findings.images / max(1, findings.cached)
    times = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in findings.times.items())
    return (
        f"Images at {size} x {size} as the weights want them; maps in {config.cache_dtype}, "
        f"{config.views} view{'s' if config.views > 1 else ''}. AdamW, weight decay "
        f"{', '.join(f'{decay:g}' for decay in config.weight_decays)}, dropout "
        f"{', '.join(f'{rate:g}' for rate in config.drop_rates)}, batches of "
        f"{config.batch_size}, a cosine over {_epochs(config.epochs)}. Rates of factor 3, widened "
        "until a pool's best lies inside its grid; rate and epochs are those of the least loss on "
        f"{_validated(findings, config)}, after "
        f"{_epochs(config.patience)} without a better one a head ends; the chosen head is then "
        "trained on all training images and tested once.\n\n"
        f"The backbone was run on {findings.cached:,} images. The heads were trained on "
        f"{findings.images:,}: had each been trained by itself behind the network, it would have "
        f"been run {ratio:,.0f} times as often. Last sitting: {times}."
    )


def _validated(findings: Findings, config: ProbeConfig) -> str:
    if findings.num_valid is not None:
        return f"the data set's own {findings.num_valid:,} validation images"
    return f"{config.val_share:.0%} of the training images, drawn anew by each seed"


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"
