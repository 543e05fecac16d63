import math

import pytest
import timm
import torch
from torch import nn

from convattn import augment
from convattn.layers import AAConv2d
from convattn.surgery import new_parameters
from convattn.train.optim import create_optimizer, create_schedule


def test_weight_decay_spares_vectors_and_the_class_token():
    model = timm.create_model("patchconvnet_nano", embed_dim=16, depth=1, num_classes=10)
    optimizer = create_optimizer(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    spared = {name for name, _ in model.named_parameters()} - names
    assert model.no_weight_decay() <= spared
    assert model.no_weight_decay()
    assert all(model.get_parameter(name).ndim > 1 for name in names)
    assert {name for name in spared if model.get_parameter(name).ndim > 1} == set(
        model.no_weight_decay()
    )


def test_layer_decay_slows_the_stem():
    model = timm.create_model("test_resnet", num_classes=10)
    optimizer = create_optimizer(model, opt="sgd", lr=1.0, layer_decay=0.5)
    scales = {
        id(parameter): group["lr_scale"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert scales[id(model.fc.weight)] == 1
    assert scales[id(model.conv1[0].weight)] < 0.5


def test_betas_and_further_arguments_reach_the_optimiser():
    optimizer = create_optimizer(
        nn.Linear(2, 2), opt="adamw", lr=1e-3, betas=(0.8, 0.9), opt_args={"eps": 1e-3}
    )
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-3


def test_unknown_optimiser_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'adamw'"):
        create_optimizer(nn.Linear(2, 2), opt="adamww", lr=1)


def test_unknown_argument_names_the_optimiser():
    with pytest.raises(ValueError, match="'sgd' refuses"):
        create_optimizer(nn.Linear(2, 2), opt="sgd", lr=1, opt_args={"foo": 1})


def rates(steps, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(optimizer, steps_per_epoch=10, **arguments)
    found = []
    for step in range(steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_with_warmup_is_the_formula():
    found = rates(100, schedule="cosine", epochs=10, warmup_epochs=2, min_lr=0.1)
    for step, rate in enumerate(found):
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2
        assert rate == pytest.approx(step / 20 if step < 20 else cosine)


def test_multistep_falls_at_its_epochs():
    found = rates(40, schedule="multistep", epochs=4, decay_milestones=(1, 3), decay_rate=0.1)
    assert found == pytest.approx([1.0] * 10 + [0.1] * 20 + [0.01] * 10)


def test_schedule_keeps_no_state():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(optimizer, schedule="cosine", epochs=2, steps_per_epoch=10)
    schedule.step_update(13)
    assert optimizer.param_groups[0]["lr"] == rates(14, schedule="cosine", epochs=2)[13]


@pytest.fixture(scope="module")
def augmented():
    plain = timm.create_model("test_resnet", num_classes=10)
    return augment(plain, pool="attention", conv="layer2.0.conv2", input_size=64, num_heads=2)


def by_parameter(optimizer, key):
    """What each parameter's group holds under ``key``."""
    return {id(p): group.get(key) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("opt", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("freeze", [False, True])
def test_new_layers_learn_faster_at_every_step(opt, layer_decay, freeze, augmented):
    new = new_parameters(augmented)
    for name, parameter in augmented.named_parameters():
        parameter.requires_grad_(name in new or not freeze)
    common = {"opt": opt, "lr": 0.5, "weight_decay": 0.1, "layer_decay": layer_decay}
    warmup = {"schedule": "cosine", "epochs": 3, "warmup_epochs": 1, "warmup_lr": 0.1}
    found = []
    for factor in (1.0, 4.0):
        optimizer = create_optimizer(augmented, **common, new_lr_scale=factor)
        schedule = create_schedule(optimizer, steps_per_epoch=4, min_lr=0.01, **warmup)
        rates = []
        for step in range(12):
            schedule.step_update(step)
            rates.append(by_parameter(optimizer, "lr"))
        found.append((rates, by_parameter(optimizer, "weight_decay")))
    (plain, plain_decay), (scaled, scaled_decay) = found
    assert scaled_decay == plain_decay
    for name, parameter in augmented.named_parameters():
        factor = 4 if name in new else 1
        if parameter.requires_grad:
            for step in range(12):
                before = plain[step][id(parameter)]
                assert scaled[step][id(parameter)] == pytest.approx(factor * before)
        else:
            assert id(parameter) not in scaled_decay


@pytest.mark.parametrize("opt", ["sgd", "adamw", "muon"])
def test_step_of_new_layers_is_so_many_times_longer(opt):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), AAConv2d(8, 40, 3, num_heads=2, feat_size=4))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    images, steps = torch.randn(2, 3, 8, 8), []
    for factor in (1.0, 3.0):
        model.load_state_dict(start, strict=False)
        optimizer = create_optimizer(model, opt=opt, lr=1e-2, new_lr_scale=factor)
        create_schedule(optimizer, schedule="constant", epochs=1, steps_per_epoch=1)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        steps.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
    new = new_parameters(model)
    assert new < set(start)
    for name in start:
        factor = 3 if name in new else 1
        torch.testing.assert_close(steps[1][name], factor * steps[0][name], atol=1e-6, rtol=1e-3)


def test_groups_are_timms_own_without_a_scale(augmented):
    ours = create_optimizer(augmented, opt="adamw", lr=1e-3, weight_decay=0.1).param_groups
    theirs = timm.optim.create_optimizer_v2(augmented, "adamw", lr=1e-3, weight_decay=0.1)
    assert ours == theirs.param_groups
