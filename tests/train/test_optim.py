import math

import pytest
import timm
import torch
from torch import nn

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
    # timm counts one step ahead: the fall comes with the last step before the milestone.
    found = rates(40, schedule="multistep", epochs=4, decay_milestones=(1, 3), decay_rate=0.1)
    assert found == pytest.approx([1.0] * 9 + [0.1] * 20 + [0.01] * 11)


def test_schedule_keeps_no_state():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(optimizer, schedule="cosine", epochs=2, steps_per_epoch=10)
    schedule.step_update(13)
    assert optimizer.param_groups[0]["lr"] == rates(14, schedule="cosine", epochs=2)[13]
