from functools import cache

import pytest
import timm
import torch

import convattn  # noqa: F401  (registers the models)
from convattn.weights import (
    architecture_of,
    patchconvnet_from_released,
    patchconvnet_to_released,
    remap_keys,
)
from tests.weights.checkpoints import LISTING


@cache
def on_meta(released_name):
    with torch.device("meta"):
        return timm.create_model(f"patchconvnet_{released_name.lower()}")


@pytest.mark.parametrize("name", sorted(LISTING))
def test_parameter_counts_are_the_released_ones(name):
    count = sum(p.numel() for p in on_meta(name).parameters())
    assert count == LISTING[name]["parameters"]


@pytest.mark.parametrize("name", sorted(LISTING))
def test_our_tensors_map_onto_the_released_ones(name):
    released = patchconvnet_to_released(on_meta(name).state_dict())
    assert {n: list(t.shape) for n, t in released.items()} == LISTING[name]["tensors"]


@pytest.mark.parametrize("name", sorted(LISTING))
def test_the_released_tensors_map_onto_ours(name):
    with torch.device("meta"):
        released = {n: torch.empty(s) for n, s in LISTING[name]["tensors"].items()}
    ours = patchconvnet_from_released(released)
    expected = on_meta(name).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("name", sorted(LISTING))
def test_tensors_tell_their_architecture(name):
    assert architecture_of(on_meta(name).state_dict()) == f"patchconvnet_{name.lower()}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("patchconvnet_s60", {"depth": 59}),
        ("patchconvnet_b60", {"class_tokens": True}),
        ("patchconvnet_s60", {"global_pool": "avg"}),
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {}),
    ],
)
def test_other_networks_are_no_published_architecture(name, words):
    with torch.device("meta"):
        model = timm.create_model(name, **words)
    assert architecture_of(model.state_dict()) is None


def test_other_networks_keep_their_names():
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224").state_dict()  # has a cls_token, too
    assert list(remap_keys(state)) == list(state)


@pytest.mark.parametrize("kind", [{}, {"class_tokens": True}])
def test_values_survive_both_ways(kind):
    ours = timm.create_model(
        "patchconvnet_s60", embed_dim=32, depth=2, num_classes=5, **kind
    ).state_dict()
    back = patchconvnet_from_released(patchconvnet_to_released(ours))
    assert list(back) != []
    for name, tensor in ours.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


def test_a_foreign_tensor_is_named():
    with pytest.raises(ValueError, match=r"'layer1\.0\.conv1\.weight' belongs to no released"):
        patchconvnet_from_released({"layer1.0.conv1.weight": torch.zeros(1)})


def test_another_network_has_no_released_names():
    with pytest.raises(ValueError, match=r"'conv1\.weight' belongs to no released PatchConvNet"):
        patchconvnet_to_released({"conv1.weight": torch.zeros(1)})


def test_a_missing_class_is_told():
    head = {f"head.{i}.bias": torch.zeros(1) for i in (0, 2)}
    with pytest.raises(
        ValueError, match=r"misses classes: 2 tensors head\.\*\.bias, the highest .* 2"
    ):
        patchconvnet_from_released(head)
