import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.surgery.trace import check_runs, trace
from tests.surgery.networks import TIMM, CallsMean, Plain, images, timm_network

SIZE = (3, 64, 64)


def test_bottlenecks_are_what_every_path_goes_through():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            x = self.a(x)
            return (x + self.b(x).relu()).mean((2, 3))

    run = trace(Residual(), SIZE, count_macs=False)
    assert [run.values[n].op for n in run.bottlenecks()] == ["input", "conv2d", "add", "mean"]


def test_a_value_nobody_uses_is_no_bottleneck():
    class Idle(nn.Module):
        def forward(self, x):
            x.square()
            return x.mean((2, 3))

    run = trace(Idle(), SIZE, count_macs=False)
    assert [run.values[n].op for n in run.bottlenecks()] == ["input", "mean"]


def test_writing_into_a_part_of_a_map_counts_as_making_it():
    class Writes(nn.Module):
        def forward(self, x):
            x = x.relu()
            x[:, :1].add_(x.mean())
            return x.mean((2, 3))

    run = trace(Writes(), SIZE, count_macs=False)
    assert "relu" in [run.values[n].op for n in run.bottlenecks()]
    assert [run.values[n].op for n in run.bottlenecks()][-2:] == ["add_", "mean"]


def test_calls_know_what_they_were_given_and_returned():
    run = trace(Plain(), SIZE, count_macs=False)
    body = next(call for call in run.calls if call.name == "body")
    assert run.values[body.source].shape == (1, 8, 32, 32)
    assert run.values[body.result].shape == (1, 16, 16, 16)


@pytest.mark.parametrize("name", TIMM)
def test_macs_are_pytorchs_count(name):
    model = timm_network(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(batch=1))
    assert trace(model, SIZE, count_macs=True).macs == counter.get_total_flops() // 2


def test_the_network_is_left_as_it_was():
    model = timm_network("test_resnet").train()
    model.layer1.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    trace(model, SIZE, count_macs=True)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_failing_network_is_left_as_it_was():
    model = Plain().train()
    with pytest.raises(ValueError, match="cannot run on an image of 7 x 64 x 64"):
        trace(model, (7, 64, 64), count_macs=False)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_network_that_looks_at_its_numbers_runs_for_real():
    class Looks(Plain):
        def forward(self, x):
            x = self.features(x)
            return self.say(self.gather(x * 2 if x.sum() > 0 else x).flatten(1))

    run = trace(Looks(), SIZE, count_macs=True)
    assert run.values[run.output].shape == (1, 5)


def test_several_outputs_are_no_logits():
    class Two(CallsMean):
        def forward(self, x):
            x = self.trunk(x)
            return x, x.mean((2, 3))

    assert trace(Two(), SIZE, count_macs=False).output is None


def test_check_runs_names_what_is_wrong():
    class Wrong(nn.Module):
        def forward(self, x):
            return F.linear(x.mean((2, 3)), torch.zeros(2, 5))

    with pytest.raises(ValueError, match="give the size it takes as input_size"):
        check_runs(Wrong(), SIZE)
