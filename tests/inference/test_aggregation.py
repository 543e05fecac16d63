import copy

import pytest
import torch
from torch import nn

from convattn import LearnedAggregation2d, optimize_for_inference
from convattn.inference.aggregation import FoldedAggregation

HEADS = {
    "one token": {},
    "four heads": {"num_heads": 4},
    "another MLP": {"mlp_ratio": 1.7},
    "no classifier": {"num_classes": 0},
    "few class tokens": {"class_tokens": True},
    "many class tokens": {"class_tokens": True, "num_classes": 40},
}


def _trained(head):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.uniform_(-0.6, 1.0)
    return head.eval()


def _head(dtype=torch.float64, **options):
    return _trained(LearnedAggregation2d(24, **{"num_classes": 7, **options}).to(dtype))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (9, 8)])
def test_what_is_gathered_stays(kind, size):
    head = _head(**HEADS[kind])
    x = torch.randn(3, 24, *size, dtype=torch.float64)
    torch.testing.assert_close(FoldedAggregation(copy.deepcopy(head)).pool(x), head.pool(x))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("pre_logits", [False, True])
def test_the_output_stays(kind, pre_logits):
    head = _head(**HEADS[kind])
    x = torch.randn(3, 24, 4, 6, dtype=torch.float64)
    found = FoldedAggregation(copy.deepcopy(head))(x, pre_logits=pre_logits)
    torch.testing.assert_close(found, head(x, pre_logits=pre_logits))


@pytest.mark.parametrize("kind", HEADS)
def test_the_maps_stay(kind):
    head = _head(**HEADS[kind])
    x = torch.randn(2, 24, 4, 6, dtype=torch.float64)
    found = FoldedAggregation(copy.deepcopy(head)).attention_weights(x)
    torch.testing.assert_close(found, head.attention_weights(x))


def test_float32_rounds_as_before():
    head = _head(torch.float32)
    x = torch.randn(3, 24, 5, 5)
    expected = copy.deepcopy(head).double()(x.double())
    found = FoldedAggregation(copy.deepcopy(head))(x).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.std().item())


@pytest.mark.parametrize("options", [{"residual": True}, {"class_tokens": True, "num_heads": 4}])
def test_other_heads_are_left(options):
    network = nn.Sequential(nn.Conv2d(3, 24, 1), _head(torch.float32, **options)).eval()
    optimised = optimize_for_inference(network)
    assert type(optimised[1]) is LearnedAggregation2d
    with pytest.raises(ValueError, match="cannot be folded"):
        FoldedAggregation(network[1])


def test_a_wrong_map_is_told_as_before():
    with pytest.raises(ValueError, match=r"expected \(B, 24, H, W\)"):
        FoldedAggregation(_head())(torch.zeros(1, 25, 3, 3, dtype=torch.float64))


def test_gradients_with_respect_to_the_map_stay():
    head = _head()
    x = torch.randn(2, 24, 3, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(head(x).sin().sum(), x)
    folded = FoldedAggregation(copy.deepcopy(head))
    (found,) = torch.autograd.grad(folded(x).sin().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_head_alone_can_be_optimised():
    head = _head(torch.float32)
    x = torch.randn(2, 24, 3, 4)
    torch.testing.assert_close(optimize_for_inference(head)(x), head(x), rtol=1e-4, atol=1e-4)
