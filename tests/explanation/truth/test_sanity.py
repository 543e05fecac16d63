import pytest
import timm
import torch
from scipy.stats import spearmanr

import convattn.models  # noqa: F401
from convattn.explanation.truth.sanity import other_classes, randomised_copies, rank_correlation


def test_rank_correlation_is_spearmans():
    torch.manual_seed(0)
    maps, others = torch.randn(6, 3, 5).round(decimals=0), torch.randn(6, 3, 5)
    found = rank_correlation(maps, others)
    for one, other, value in zip(maps, others, found, strict=True):
        expected = spearmanr(one.flatten(), other.flatten()).statistic
        assert float(value) == pytest.approx(float(expected))


def test_an_even_map_agrees_with_nothing():
    assert rank_correlation(torch.ones(1, 2, 2), torch.rand(1, 2, 2)).tolist() == [0.0]


@pytest.mark.parametrize("name", ["patchconvnet_nano", "aa_wide_resnet_nano", "resnet10t"])
def test_layers_become_random_from_the_logits_down(name):
    model = timm.create_model(name, num_classes=5).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    before = {key: value.clone() for key, value in model.named_parameters()}
    state = torch.get_rng_state()
    copies = randomised_copies(model, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    changed = [
        {key for key, value in copy.named_parameters() if not torch.equal(value, before[key])}
        for copy in copies
    ]
    assert changed[0] < changed[1] < changed[2] == set(before)
    assert next(reversed(before)) in changed[0]
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
    again = randomised_copies(model, 3, seed=1)[-1].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in copies[-1].state_dict().items())
    assert copies[-1](torch.randn(2, 3, 64, 64)).isfinite().all()


def test_another_class_is_never_the_own_one():
    targets = torch.arange(4).repeat(50)
    found = other_classes(targets, 4, seed=0)
    assert bool((found != targets).all())
    assert set(found.tolist()) == {0, 1, 2, 3}
