import pytest
import timm
import torch

import convattn
from convattn.layers import LearnedAggregation2d, Pool
from convattn.models.pooling import OUR_POOLS

FAMILIES = ("resnet18_nano", "aa_wide_resnet_nano", "aa_mnasnet_nano", "patchconvnet_nano")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def create(name, pool, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, global_pool=pool, num_classes=6, **arguments).eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pool", ["attention", "class", "ep", "abmil"])
def test_logits_have_exact_shares(name, pool):
    model = create(name, pool)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        logits = model(X)
    maps, bias = convattn.evidence(model, X)
    error = (maps.sum((2, 3)) + bias - logits).abs().max() / logits.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pool", ["attention", "class", "aggregation"])
def test_another_classifier_keeps_the_pool(name, pool):
    model = create(name, pool)
    model.reset_classifier(3)
    assert model(X).shape == (2, 3)
    kept = [m for m in model.modules() if isinstance(m, Pool | LearnedAggregation2d)]
    assert len(kept) == 1
    model.reset_classifier(5, "avg")
    assert model(X).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        *((FAMILIES[0], pool) for pool in sorted(set(OUR_POOLS) - {"map", "simpool"})),
        *((name, "class") for name in FAMILIES[1:3]),
    ],
)
def test_it_is_what_augment_makes(name, pool):
    ours = create(name, pool)
    theirs = convattn.augment(create(name, "avg"), pool=pool, preserve=False)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(X), theirs(X))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_need_no_pool(name):
    maps = timm.create_model(name, global_pool="attention", features_only=True)(X)
    assert all(one.dim() == 4 for one in maps)


def test_patchconvnet_knows_the_papers_pool_by_both_names():
    first, second = create("patchconvnet_nano", "attn"), create("patchconvnet_nano", "aggregation")
    assert first.state_dict().keys() == second.state_dict().keys()
    with pytest.raises(ValueError, match="is class_tokens=True here"):
        create("patchconvnet_nano", "class-attention")


def test_features_before_the_classifier():
    for pool in ("attention", "class"):
        model = create("patchconvnet_nano", pool)
        features = model.forward_features(X)
        assert model.forward_head(features, pre_logits=True).shape == (2, 64)
