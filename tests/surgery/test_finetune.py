import pytest
import torch
from torch import nn

from convattn import augment, freeze, param_groups
from convattn.surgery import new_parameters
from tests.surgery.networks import Plain, images, timm_network


@pytest.fixture
def model():
    return augment(
        timm_network("test_resnet"),
        pool="attention",
        conv="last-1-stage",
        input_size=64,
        num_heads=4,
        min_head_dim=4,
    )


def test_new_parameters_are_those_the_plain_network_has_not(model):
    plain = timm_network("test_resnet")
    carried = sum(p.numel() for p in plain.parameters())
    new = sum(p.numel() for n, p in model.named_parameters() if n in new_parameters(model))
    assert carried + new == sum(p.numel() for p in model.parameters())


def test_every_parameter_is_in_one_group(model):
    groups = param_groups(model, lr=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_new_layers_learn_faster(model):
    new = {id(p) for n, p in model.named_parameters() if n in new_parameters(model)}
    for group in param_groups(model, lr=0.1, new_lr_scale=5):
        rates = {0.5 if id(p) in new else 0.1 for p in group["params"]}
        assert rates == {group["lr"]}


def test_vectors_and_tokens_are_not_decayed(model):
    model.no_weight_decay = lambda: {"fc.weight"}
    groups = param_groups(model, lr=0.1, weight_decay=0.05)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in model.named_parameters() if p.dim() > 1 and n != "fc.weight"}


def test_groups_serve_an_optimiser(model):
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1, weight_decay=0.05))
    model(images()).sum().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_only_new_attention_learns_when_frozen(model):
    freeze(model.train(), trainable=["fc"])
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == new_parameters(model) | {"fc.weight", "fc.bias"}


def test_frozen_statistics_stay(model):
    freeze(model.train())
    before = {n: b.clone() for n, b in model.named_buffers()}
    model(images())
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_frozen_parameters_are_in_no_group(model):
    freeze(model)
    names = {id(p): n for n, p in model.named_parameters()}
    grouped = {names[id(p)] for group in param_groups(model, lr=0.1) for p in group["params"]}
    assert grouped == new_parameters(model)


@pytest.mark.parametrize(("word", "value"), [("lr", 0.0), ("new_lr_scale", -1.0)])
def test_rates_must_be_above_zero(model, word, value):
    with pytest.raises(ValueError, match=f"{word}={value} is not above 0"):
        param_groups(model, **{"lr": 0.1, word: value})


def test_nothing_to_train_is_refused():
    model = Plain().requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        param_groups(model, lr=0.1)


def test_a_trainable_name_must_exist(model):
    with pytest.raises(ValueError, match="trainable='head' names no module"):
        freeze(model, trainable=["head"])


def test_a_plain_network_has_nothing_new():
    assert new_parameters(nn.Linear(2, 2)) == set()
