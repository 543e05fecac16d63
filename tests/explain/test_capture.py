from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from convattn import AAConv2d, capture_attention
from convattn.models.patchconvnet import PatchConvNet
from convattn.weights import patchconvnet_from_released

GOLDEN = Path(__file__).parents[1] / "golden"


def test_captured_maps_equal_the_golden():
    golden = load_file(GOLDEN / "patchconvnet_multi_token.safetensors")
    model = PatchConvNet(embed_dim=64, depth=3, num_classes=10, class_tokens=True).double().eval()
    released = {n[6:]: t.double() for n, t in golden.items() if n.startswith("state/")}
    model.load_state_dict(patchconvnet_from_released(released))
    with capture_attention(model) as maps:
        model(golden["input"])
    torch.testing.assert_close(maps["head"].flatten(-2), golden["attention"], rtol=0, atol=1e-9)


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = timm.create_model("patchconvnet_nano").eval()
    x = torch.randn(1, 3, 32, 32)
    before, state = model(x), {n: t.clone() for n, t in model.state_dict().items()}
    with capture_attention(model) as maps:
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert list(maps) == ["head"]
    with pytest.raises(RuntimeError), capture_attention(model):
        model(torch.randn(1, 4, 32, 32))
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_every_layer_is_captured_without_gradients():
    net = nn.Sequential(AAConv2d(3, 8, 3, padding=1, num_heads=2), AAConv2d(8, 8, 3, num_heads=2))
    with capture_attention(net) as maps:
        net(torch.randn(2, 3, 6, 5)).sum().backward()
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (2, 2, 30, 30),
        "1": (2, 2, 12, 12),
    }
    assert not any(m.requires_grad for m in maps.values())


def test_a_network_without_attention_is_told_so():
    with (
        pytest.raises(ValueError, match="Linear holds no layer with attention"),
        capture_attention(nn.Linear(2, 2)),
    ):
        pass
