"""How good a finetuned network is on images that it has not learnt, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convattn.classification.evaluation import average_precisions, macro_f1
from convattn.probing.report import bootstrap
from convattn.probing.scores import score, training_loss
from convattn.results import Results, Rows, percentages, worst_class

_DRAWS, _DRAWS_OF_MAP = 2_000, 500
NUM_BINS = 10
"""Of the diagram of calibration."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """What was found of a class; None where it is not defined."""

    num_images: int
    """That have it."""
    precision: float | None
    """Share of the images taken for it that have it."""
    recall: float | None
    """Share of the images that have it that are taken for it."""
    f1: float | None
    """Harmonic mean of both."""
    average_precision: float | None = None
    """Of images of several classes: the area under precision over recall."""
    threshold: float | None = None
    """Of images of several classes: probability from which on an image is taken to have it."""


@dataclass(frozen=True, kw_only=True)
class _Finetuned(Results):
    """What was found on images of one class each, or of several; shares lie between 0 and 1."""

    num_classes: int
    """Classes that the network tells apart."""
    judged: str
    """Which images these are: test, or out-of-fold."""
    test_drawn: bool = False
    """Whether these are test images that were drawn from data without splits."""
    macro_f1: float
    """Mean F1 of the classes; where images have several, at the classes' thresholds."""
    loss: float
    """Mean cross-entropy in nats; where images have several classes the binary one."""
    ece: float
    """Expected calibration error in 15 bins; of several classes of all yes and no."""
    ece_before: float
    """The same before the temperature."""
    temperature: float
    """What logits are divided by, chosen on validation images; the saved weights have it."""
    per_class: Mapping[str, ClassScores]
    """By the classes' names."""

    def _image_rows(self) -> Rows:
        drawn = ", drawn from data without splits" if self.test_drawn else ""
        return [(f"{self.judged} images", f"{self.num_images:,}{drawn}")]


@dataclass(frozen=True, kw_only=True)
class FinetunedResult(_Finetuned):
    """What was found on images of one class each; shares lie between 0 and 1."""

    top1: float
    """Share of images whose class is the likeliest."""
    top1_interval: Interval
    """Its 95 % interval over the images, by the bootstrap."""
    balanced_accuracy: float
    """Mean recall of the classes."""
    balanced_accuracy_interval: Interval
    """Alike."""
    reject_below: float | None = None
    """Probability below which ``predict --reject-below auto`` rejects, chosen on validation images;
    None where no probability reached the target."""
    kept: float | None = None
    """Share of the images that are not rejected."""
    kept_top1: float | None = None
    """Share of those that are right; None if there are none."""
    top1_of_folds: tuple[float, ...] = ()
    """Of each fold, where there are some."""
    out_of_fold: FinetunedResult | None = None
    """Of training images, each judged by a network that has not learnt it; None without folds."""

    @property
    def headline(self) -> str:
        """What counts most, in a few words."""
        low, high = self.top1_interval
        return f"{self.top1:.1%} right ({100 * low:.1f} to {100 * high:.1f})"

    def rows(self) -> Rows:
        """Names and values for people."""
        recalls = {name: one.recall for name, one in self.per_class.items()}
        return [
            *self._image_rows(),
            ("top-1", _with_interval(self.top1, self.top1_interval)),
            (
                "balanced accuracy",
                _with_interval(self.balanced_accuracy, self.balanced_accuracy_interval),
            ),
            *percentages({"macro F1": self.macro_f1}),
            *_fold_rows(self.top1_of_folds),
            ("cross-entropy", f"{self.loss:.4f}"),
            *percentages({"calibration error": self.ece}),
            *self._kept_rows(),
            *worst_class({name: one for name, one in recalls.items() if one is not None}),
            *_out_of_fold_rows(self.out_of_fold, "top-1"),
        ]

    def _kept_rows(self) -> Rows:
        if self.reject_below is None or self.kept is None:
            return []
        right = "" if self.kept_top1 is None else f", {self.kept_top1:.1%} of them right"
        return [(f"kept if at least {self.reject_below:.3f} probable", f"{self.kept:.1%}{right}")]


@dataclass(frozen=True, kw_only=True)
class FinetunedMultiLabelResult(_Finetuned):
    """What was found on images of several classes; shares lie between 0 and 1."""

    map: float
    """Mean of the classes' average precisions; a class without images is left out."""
    map_interval: Interval
    """Its 95 % interval over the images, by the bootstrap."""
    map_of_folds: tuple[float, ...] = ()
    """Of each fold, where there are some."""
    out_of_fold: FinetunedMultiLabelResult | None = None
    """Of training images, each judged by a network that has not learnt it; None without folds."""

    @property
    def headline(self) -> str:
        """What counts most, in a few words."""
        low, high = self.map_interval
        return f"mAP {self.map:.1%} ({100 * low:.1f} to {100 * high:.1f})"

    def rows(self) -> Rows:
        """Names and values for people."""
        precisions = {name: one.average_precision for name, one in self.per_class.items()}
        return [
            *self._image_rows(),
            ("mAP", _with_interval(self.map, self.map_interval)),
            *percentages({"macro F1": self.macro_f1}),
            *_fold_rows(self.map_of_folds),
            ("binary cross-entropy", f"{self.loss:.4f}"),
            *percentages({"calibration error": self.ece}),
            *worst_class({name: one for name, one in precisions.items() if one is not None}),
            *_out_of_fold_rows(self.out_of_fold, "mAP"),
        ]


def _with_interval(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{value:.2%} ({100 * low:.1f} to {100 * high:.1f})"


def _fold_rows(folds: Sequence[float]) -> Rows:
    if not folds:
        return []
    return [("of folds", " ".join(f"{share:.1%}" for share in folds))]


def _out_of_fold_rows(found: Results | None, name: str) -> Rows:
    if found is None:
        return []
    wanted = (name, "balanced accuracy", "of folds")
    rows = [(key, value) for key, value in found.rows() if key in wanted]
    return [(f"out of fold, {found.num_images:,} images: {key}", value) for key, value in rows]


def judge(
    logits: Tensor,
    calibrated: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    temperature: float,
    thresholds: Sequence[float] | None = None,
    reject_below: float | None = None,
    judged: str = "test",
    test_drawn: bool = False,
    folds: Tensor | None = None,
) -> FinetunedResult | FinetunedMultiLabelResult:
    """Sum up what a network says of images that it has not learnt.

    Args:
        logits: (N, K), before the temperature.
        calibrated: (N, K), after it.
        labels: (N,) class numbers, or (N, K) of 0 and 1.
        class_names: Name of each class number.
        temperature: Of the final network.
        thresholds: Of images of several classes: the probability from which on each counts.
        reject_below: Of images of one class: the probability below which they are rejected.
        judged: Which images these are.
        test_drawn: Whether they were drawn from data without splits, as the test.
        folds: (N,) numbers of the folds that they are from, if from several.
    """
    found, before = score(calibrated, labels), score(logits, labels)
    common: dict[str, Any] = {
        "num_images": len(labels),
        "num_classes": len(class_names),
        "judged": judged,
        "test_drawn": test_drawn,
        "loss": found["cross_entropy"],
        "ece": found["ece"],
        "ece_before": before["ece"],
        "temperature": temperature,
    }
    if labels.ndim == 2:
        assert thresholds is not None
        scores = calibrated.double().sigmoid()
        taken = scores >= torch.tensor(thresholds, dtype=scores.dtype)
        return FinetunedMultiLabelResult(
            **common,
            map=found["map"],
            map_interval=_interval_of_map(scores, labels),
            macro_f1=macro_f1(taken, labels),
            per_class=_scores_of_several(scores, taken, labels.bool(), class_names, thresholds),
            map_of_folds=_of_folds(
                folds, lambda part: score(calibrated[part], labels[part])["map"]
            ),
        )
    said = calibrated.argmax(1)
    right = (said == labels).double()
    return FinetunedResult(
        **common,
        top1=found["accuracy"],
        top1_interval=bootstrap(right),
        balanced_accuracy=found["balanced_accuracy"],
        balanced_accuracy_interval=_interval_of_recall(right.numpy(), labels),
        macro_f1=macro_f1(said, labels),
        per_class=_scores_of_classes(said, labels, class_names),
        top1_of_folds=_of_folds(folds, lambda part: float(right[part].mean())),
        **_kept(calibrated, right, reject_below),
    )


def _kept(logits: Tensor, right: Tensor, reject_below: float | None) -> dict[str, Any]:
    if reject_below is None:
        return {}
    kept = logits.double().softmax(1).amax(1) >= reject_below
    return {
        "reject_below": reject_below,
        "kept": float(kept.double().mean()),
        "kept_top1": float(right[kept].mean()) if kept.any() else None,
    }


def _of_folds(folds: Tensor | None, measure: Callable[[Tensor], float]) -> tuple[float, ...]:
    if folds is None:
        return ()
    return tuple(measure(folds == fold) for fold in folds.unique().tolist())


def _scores_of_classes(
    said: Tensor, labels: Tensor, names: Sequence[str]
) -> dict[str, ClassScores]:
    return {
        name: _class_scores(said == number, labels == number) for number, name in enumerate(names)
    }


def _scores_of_several(
    scores: Tensor,
    taken: Tensor,
    labels: Tensor,
    names: Sequence[str],
    thresholds: Sequence[float],
) -> dict[str, ClassScores]:
    precisions = average_precisions(scores, labels)
    return {
        name: _class_scores(
            taken[:, number],
            labels[:, number],
            average_precision=precisions.get(number),
            threshold=thresholds[number],
        )
        for number, name in enumerate(names)
    }


def _class_scores(taken: Tensor, there: Tensor, **more: float | None) -> ClassScores:
    hits, num_taken, num_there = (int(x.sum()) for x in (taken & there, taken, there))
    return ClassScores(
        num_images=num_there,
        precision=hits / num_taken if num_taken else None,
        recall=hits / num_there if num_there else None,
        f1=2 * hits / (num_taken + num_there) if num_taken + num_there else None,
        **more,
    )


def _interval_of_recall(right: NDArray[np.float64], labels: Tensor) -> Interval:
    """Of the mean recall, each class drawn from its own images."""
    random = np.random.default_rng(0)
    recalls = []
    for number in labels.unique():
        own = right[(labels == number).numpy()]
        # how often a draw of as many images is right
        recalls.append(random.binomial(len(own), own.mean(), _DRAWS) / len(own))
    low, high = np.quantile(np.mean(recalls, 0), (0.025, 0.975))
    return float(low), float(high)


def _interval_of_map(scores: Tensor, labels: Tensor) -> Interval:
    """Of the mean average precision, the images drawn with all their classes."""
    random, x, y = np.random.default_rng(0), scores.numpy(), labels.bool().numpy()
    draws = (random.integers(len(x), size=len(x)) for _ in range(_DRAWS_OF_MAP))
    found = [_mean_average_precision(x[draw], y[draw]) for draw in draws]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def _mean_average_precision(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Of the classes that are there; equal scores stand in any order."""
    order = np.argsort(-scores, axis=0, kind="stable")
    there = np.take_along_axis(labels, order, 0)
    precision = there.cumsum(0) / np.arange(1, len(there) + 1)[:, None]
    having = there.any(0)
    found = (precision * there).sum(0)[having] / there.sum(0)[having]
    return float(found.mean()) if having.any() else np.nan


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits have to be divided by for the least loss (Guo et al. 2017), from 0.5 to 5.

    Args:
        logits: (N, K), of images that the network has not learnt.
        labels: (N,) class numbers, or (N, K) of 0 and 1.
    """
    from scipy.optimize import minimize_scalar

    x = logits.double()

    def loss(log: float) -> float:
        return float(training_loss(x / float(np.exp(log)), labels))

    found = minimize_scalar(loss, bounds=(np.log(0.5), np.log(5.0)), method="bounded")
    return float(np.exp(found.x))


def fit_rejection(confidences: Tensor, right: Tensor, target: float) -> float | None:
    """The smallest probability so that a share of the images that reach it is right.

    One of those that the images have, so that images less probable than all of these are rejected
    in any case; None if even the most probable ones are not right often enough.

    Args:
        confidences: (N,) probabilities of the likeliest class of images that the network has not
            learnt.
        right: (N,) bool.
        target: The share.
    """
    for least in confidences.unique().tolist():
        kept = confidences >= least
        if float(right[kept].double().mean()) >= target:
            return least
    return None


def fit_thresholds(scores: Tensor, labels: Tensor) -> tuple[float, ...]:
    """For each class the probability from which on its F1 is best.

    Between the two scores that part the images; 0.5 for a class that no image has, or all.

    Args:
        scores: (N, K) probabilities of images that the network has not learnt.
        labels: (N, K) of 0 and 1.
    """
    return tuple(
        _best_threshold(scores[:, number].double(), labels[:, number].bool())
        for number in range(scores.shape[1])
    )


def _best_threshold(scores: Tensor, there: Tensor) -> float:
    if not there.any() or there.all():
        return 0.5
    ranked, order = scores.sort(descending=True)
    hits = there[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(ranked) + 1) + int(there.sum()))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold parts equal scores
    best = int(f1.argmax())
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return (float(ranked[best]) + below) / 2


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of about the same confidence."""

    confidence: float
    """Their mean."""
    right: float
    """Share of them that are right."""
    num_images: int
    """How many."""


def reliability(confidences: Tensor, right: Tensor) -> list[Bin]:
    """How often the network is right at each confidence; empty bins are left out.

    Args:
        confidences: (N,) probabilities of what was said.
        right: (N,) bool.
    """
    places = (confidences * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    return [
        Bin(
            confidence=float(confidences[own].mean()),
            right=float(right[own].double().mean()),
            num_images=int(own.sum()),
        )
        for own in (places == number for number in range(NUM_BINS))
        if own.any()
    ]
