"""Numbers of a finetuned network against plain loops."""

import math

import numpy as np
import pytest
import torch

from convattn.finetuning.results import (
    FinetunedMultiLabelResult,
    FinetunedResult,
    fit_rejection,
    fit_temperature,
    fit_thresholds,
    judge,
    reliability,
)

NAMES = ("ant", "bee", "fly")


def _labels_and_logits(count: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    logits = 2 * torch.randn(count, 3, generator=generator)
    logits[torch.arange(count), labels] += 2
    return labels, logits


def test_shares_equal_those_of_a_loop_over_images() -> None:
    labels, logits = _labels_and_logits()
    found = judge(logits, logits / 1.5, labels, class_names=NAMES, temperature=1.5)
    assert isinstance(found, FinetunedResult)
    said = [max(range(3), key=row.__getitem__) for row in logits.tolist()]
    true = labels.tolist()
    recalls, f1s = [], []
    for number, name in enumerate(NAMES):
        hits = sum(s == t == number for s, t in zip(said, true, strict=True))
        recall, precision = hits / true.count(number), hits / said.count(number)
        recalls.append(recall)
        f1s.append(2 * recall * precision / (recall + precision))
        own = found.per_class[name]
        assert (own.num_images, own.recall, own.precision) == (
            true.count(number),
            recall,
            precision,
        )
    assert found.top1 == pytest.approx(np.mean(np.array(said) == np.array(true)))
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found.macro_f1 == pytest.approx(np.mean(f1s))
    rows = [
        torch.tensor(row).div(1.5).softmax(0)[t]
        for row, t in zip(logits.tolist(), true, strict=True)
    ]
    assert found.loss == pytest.approx(-np.mean([math.log(float(row)) for row in rows]), rel=1e-5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        right = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.8
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        labels = torch.zeros(200, dtype=torch.long)
        found = judge(logits, logits, labels, class_names=("a", "b"), temperature=1.0)
        assert isinstance(found, FinetunedResult)
        low, high = found.top1_interval
        covered += low <= 0.8 <= high
    assert 52 <= covered <= 60


def test_a_class_without_images_or_guesses_has_no_share() -> None:
    labels, logits = torch.tensor([0, 0, 1]), torch.tensor([[3.0, 0, 0], [3, 0, 0], [3, 0, 0]])
    found = judge(logits, logits, labels, class_names=NAMES, temperature=1.0)
    assert isinstance(found, FinetunedResult)
    bee, fly = found.per_class["bee"], found.per_class["fly"]
    assert (bee.recall, bee.precision, bee.f1) == (0, None, 0)
    assert (fly.recall, fly.precision, fly.f1) == (None, None, None)
    assert found.balanced_accuracy == pytest.approx(0.5)


def test_the_temperature_is_the_one_of_least_loss_and_stays_within_bounds() -> None:
    labels, logits = _labels_and_logits(400)
    for true in (0.8, 2.5):
        found = fit_temperature(logits * true, labels)
        steps = torch.linspace(-0.65, 1.6, 2000).exp()
        losses = [
            float(torch.nn.functional.cross_entropy(logits.double() * true / step, labels))
            for step in steps
        ]
        assert found == pytest.approx(float(steps[int(np.argmin(losses))]), rel=0.01)
    certain = 5 * torch.nn.functional.one_hot(labels, 3).float()
    assert fit_temperature(certain, labels) == pytest.approx(0.5, rel=0.01)


def test_thresholds_are_those_of_the_best_f1() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(50, 3, generator=generator) < 0.3
    scores = (torch.rand(50, 3, generator=generator) + 0.4 * labels).clamp(0, 1)
    scores = (scores * 20).round() / 20  # with equal ones
    labels[:, 2] = False
    found = fit_thresholds(scores, labels)
    assert found[2] == 0.5
    for number in range(2):

        def f1(threshold: float, number: int = number) -> float:
            taken, there = scores[:, number] >= threshold, labels[:, number]
            return float(2 * (taken & there).sum() / (taken.sum() + there.sum()))

        best = max(f1(float(one)) for one in scores[:, number].unique())
        assert f1(found[number]) == pytest.approx(best)


def test_map_and_f1_of_several_classes_equal_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(40, 3, generator=generator) < 0.4
    logits = torch.randn(40, 3, generator=generator) + labels.float()
    thresholds = (0.4, 0.5, 0.6)
    found = judge(logits, logits, labels, class_names=NAMES, temperature=1.0, thresholds=thresholds)
    assert isinstance(found, FinetunedMultiLabelResult)
    precisions, f1s = [], []
    for number in range(3):
        order = logits[:, number].argsort(descending=True).tolist()
        hits, shares = 0, []
        for rank, place in enumerate(order, start=1):
            if labels[place, number]:
                hits += 1
                shares.append(hits / rank)
        precisions.append(np.mean(shares))
        taken = logits[:, number].sigmoid() >= thresholds[number]
        both = int((taken & labels[:, number]).sum())
        f1s.append(2 * both / int(taken.sum() + labels[:, number].sum()))
    assert found.map == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found.macro_f1 == pytest.approx(np.mean(f1s))
    low, high = found.map_interval
    assert low < found.map < high


def test_folds_are_judged_each_by_itself() -> None:
    labels, logits = _labels_and_logits(30)
    folds = torch.arange(30) % 3
    found = judge(logits, logits, labels, class_names=NAMES, temperature=1.0, folds=folds)
    assert isinstance(found, FinetunedResult)
    said = logits.argmax(1) == labels
    assert found.top1_of_folds == tuple(float(said[folds == k].double().mean()) for k in range(3))


def test_bins_hold_all_images_by_confidence() -> None:
    confidences = torch.tensor([0.05, 0.95, 0.91, 1.0])
    found = reliability(confidences, torch.tensor([False, True, True, False]))
    assert [one.num_images for one in found] == [1, 3]
    assert found[1].right == pytest.approx(2 / 3)


def test_rejection_is_the_least_probability_that_reaches_the_target() -> None:
    generator = torch.Generator().manual_seed(3)
    confidences = (torch.rand(200, generator=generator) * 50).round() / 50  # many are equal
    right = torch.rand(200, generator=generator) < confidences
    pairs = list(zip(confidences.tolist(), right.tolist(), strict=True))
    for target in (0.5, 0.8, 0.9):
        reaching = [
            least
            for least, _ in pairs
            if sum(r for c, r in pairs if c >= least) >= target * sum(c >= least for c, _ in pairs)
        ]
        assert fit_rejection(confidences, right, target) == min(reaching)
    assert fit_rejection(confidences, torch.zeros(200, dtype=torch.bool), 0.5) is None
    assert fit_rejection(confidences, torch.ones(200, dtype=torch.bool), 1) == confidences.min()


def test_kept_images_are_those_that_are_probable_enough() -> None:
    labels, logits = _labels_and_logits()
    found = judge(logits, logits, labels, class_names=NAMES, temperature=1.0, reject_below=0.7)
    assert isinstance(found, FinetunedResult)
    shares = logits.double().softmax(1)
    kept = [place for place, row in enumerate(shares.tolist()) if max(row) >= 0.7]
    right = sum(int(shares[place].argmax()) == int(labels[place]) for place in kept)
    assert found.kept == pytest.approx(len(kept) / len(labels))
    assert 0 < found.kept < 1
    assert found.kept_top1 == pytest.approx(right / len(kept))
    assert "kept if at least 0.700 probable" in dict(found.rows())
    none = judge(logits, logits, labels, class_names=NAMES, temperature=1.0, reject_below=1.0)
    assert isinstance(none, FinetunedResult)
    assert (none.kept, none.kept_top1) == (0, None)
