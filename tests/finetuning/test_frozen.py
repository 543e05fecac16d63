"""The first stage: how much images count, and what chooses its head."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from convattn.config import DataConfig, FinetuneConfig
from convattn.data import TensorImages
from convattn.finetuning import frozen
from convattn.finetuning.frozen import Maps, View, choose, image_weights, possible_views
from convattn.finetuning.images import Images
from convattn.probing.backbone import Frozen
from convattn.probing.heads import Outcome, Trial


def _maps(labels: list[Any], weights: list[float] | None) -> Maps:
    cache = SimpleNamespace(labels=torch.tensor(labels))
    given = None if weights is None else torch.tensor(weights)
    return cast(Maps, SimpleNamespace(cache=cache, weights=given))


def _config(**words: str) -> FinetuneConfig:
    return FinetuneConfig(data=DataConfig(name="folder", root="x"), **words)  # type: ignore[arg-type]


def test_images_count_alike_unless_somebody_says_otherwise() -> None:
    fit = torch.tensor([0, 1, 2, 3])
    assert image_weights(_maps([0, 0, 0, 1, 1], None), fit, _config(), 2) is None


def test_balanced_classes_count_the_same_among_the_images_that_are_learnt() -> None:
    fit = torch.tensor([0, 1, 2, 3])
    config = _config(class_weights="balanced")
    weights = image_weights(_maps([0, 0, 0, 1, 1, 1], None), fit, config, 2)
    assert weights is not None
    assert weights[:3].sum() == pytest.approx(float(weights[3]))
    assert float(weights[fit].mean()) == pytest.approx(1)


def test_weights_of_the_data_multiply_those_of_the_classes() -> None:
    fit = torch.tensor([0, 1, 2, 3])
    given = [1.0, 2.0, 3.0, 4.0, 9.0]
    alone = image_weights(_maps([0, 0, 0, 1, 1], given), fit, _config(), 2)
    both = image_weights(_maps([0, 0, 0, 1, 1], given), fit, _config(class_weights="balanced"), 2)
    assert alone is not None
    assert both is not None
    torch.testing.assert_close(alone[fit], torch.tensor([0.4, 0.8, 1.2, 1.6]))
    expected = torch.tensor([1 / 3, 2 / 3, 3 / 3, 4])
    torch.testing.assert_close(both[fit], expected / expected.mean())


def test_the_yes_of_a_rare_class_counts_as_much_as_all_its_noes() -> None:
    labels = [[1, 0], [1, 1], [1, 0], [0, 0], [0, 1]]
    fit = torch.tensor([0, 1, 2, 3])  # three yes and a no, one yes and three noes
    config = _config(class_weights="balanced")
    weights = image_weights(_maps(labels, None), fit, config, 2)
    assert weights is not None
    third = 1 / 3
    expected = torch.tensor([[third, 1.0], [third, 3.0], [third, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(weights[fit], expected / expected.mean())
    yes = torch.tensor(labels)[fit].bool()
    torch.testing.assert_close((weights[fit] * yes).sum(0), (weights[fit] * ~yes).sum(0))
    doubled = image_weights(_maps(labels, [2.0, 1.0, 1.0, 1.0, 1.0]), fit, config, 2)
    assert doubled is not None
    torch.testing.assert_close(doubled[0] / doubled[2], torch.tensor([2.0, 2.0]))


def test_several_splits_choose_by_the_mean_over_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Alone, the first split would take the middle rate after an epoch, the second the last.
    losses = {
        5e-4: ([1.0, 0.9], [1.0, 0.6]),
        1.5e-3: ([0.1, 0.5], [1.2, 0.7]),
        4.5e-3: ([2.0, 2.0], [0.5, 0.9]),
    }
    sizes = (10, 30)

    def train(
        maps: object,
        trials: list[Trial],
        fit: torch.Tensor,
        valid: torch.Tensor,
        *_: object,
        **__: object,
    ) -> SimpleNamespace:
        place = sizes.index(len(valid))
        outcomes = {trial: Outcome(valid_losses=losses[trial.lr][place]) for trial in trials}
        return SimpleNamespace(run=lambda: outcomes)

    monkeypatch.setattr(frozen, "_training", train)
    splits = [(torch.arange(5), torch.arange(size)) for size in sizes]
    choice = choose(_maps([0], None), "attention", splits, _config(), 2)
    means = {
        rate: [(10 * a + 30 * b) / 40 for a, b in zip(*two, strict=True)]
        for rate, two in losses.items()
    }
    assert choice.grid == {rate: pytest.approx(min(mean)) for rate, mean in means.items()}
    assert choice.trial.lr == 1.5e-3
    assert choice.outcome.epoch == 2
    assert choice.outcome.loss == pytest.approx(0.65)


def test_dropout_is_chosen_with_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {(5e-4, 0.0): 1.0, (5e-4, 0.5): 0.9, (1.5e-3, 0.0): 0.8, (1.5e-3, 0.5): 0.7}

    def train(maps: object, trials: list[Trial], *_: object, **__: object) -> SimpleNamespace:
        outcomes = {
            trial: Outcome(loss=losses.get((trial.lr, trial.drop_rate), 2.0), epoch=1)
            for trial in trials
        }
        return SimpleNamespace(run=lambda: outcomes)

    monkeypatch.setattr(frozen, "_training", train)
    choice = choose(
        _maps([0], None), "attention", [(torch.arange(5), torch.arange(3))], _config(), 2
    )
    assert (choice.trial.lr, choice.trial.drop_rate) == (1.5e-3, 0.5)
    assert choice.grid == {5e-4: 0.9, 1.5e-3: 0.7, 4.5e-3: 2.0}


@pytest.mark.parametrize(
    ("side", "asked", "views"),
    [
        # smaller than the larger size, which shows more all the same
        (300, None, [View(224), View(320), View(320, whole=True)]),
        (224, None, [View(224), View(320), View(320, whole=True)]),
        (223, None, [View(224)]),
        (64, None, [View(224)]),
        (300, 256, [View(256)]),
    ],
)
def test_larger_views_are_tried_where_images_fill_the_first(
    side: int, asked: int | None, views: list[View]
) -> None:
    pictures = TensorImages(torch.zeros(2, 3, side, side + 100, dtype=torch.uint8), torch.arange(2))
    images = cast(Images, SimpleNamespace(all=pictures))
    config = FinetuneConfig(data=DataConfig(name="folder", root="x"), image_size=asked)
    own = cast(Frozen, SimpleNamespace(cfg={"input_size": (3, asked or 224, asked or 224)}))
    assert possible_views(config, images, own) == views
