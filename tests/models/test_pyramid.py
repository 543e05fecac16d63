import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import convattn
from convattn.models.pyramid import CoarserLevels, FeaturePyramid, feature_levels

STRIDES = (4, 8, 16, 32)
BACKBONES = {
    "aa_resnet_nano": {},
    "patchconvnet_nano": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},  # its stem drops rows that do not fill a patch
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 12,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "strict_img_size": False,  # channels last inside
    },
    "vit_tiny_patch16_224": {"embed_dim": 12, "depth": 3, "dynamic_img_size": True},
}


def levels_of(name, **kwargs):
    torch.manual_seed(0)
    return feature_levels(name, **BACKBONES.get(name, {}), **kwargs)


CHEAP = {name: levels_of(name).eval() for name in ("aa_resnet_nano", "patchconvnet_nano")}


@pytest.mark.parametrize("name", CHEAP)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@settings(max_examples=12, deadline=None)
def test_levels_have_the_sizes_of_any_image(name, height, width):
    model = CHEAP[name]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(model.channels, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("name", BACKBONES)
def test_any_kind_of_backbone_gives_the_same_sizes(name):
    with torch.no_grad():
        maps = levels_of(name).eval()(torch.randn(1, 3, 33, 50))
    assert [m.shape[-2:] for m in maps] == [(9, 13), (5, 7), (3, 4), (2, 2)]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("strides", [STRIDES, (8, 16)])
def test_every_parameter_gets_a_gradient(name, strides):
    model = levels_of(name, strides=strides)
    sum(level.sin().sum() for level in model(torch.randn(2, 3, 64, 96))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_hierarchical_network_gives_its_own_deepest_maps():
    model = levels_of("mobilenetv3_small_050", strides=(8, 16, 32)).eval()
    x = torch.randn(1, 3, 64, 96)
    net = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    net.load_state_dict(
        {name.removeprefix("body.model."): p for name, p in model.state_dict().items()}
    )
    torch.testing.assert_close(model(x), net(x)[2:], rtol=0, atol=0)


def test_levels_of_a_trunk_are_maps_of_evenly_spaced_blocks():
    # Level of the trunk's own stride: the map itself; coarser: the largest of four.
    model = levels_of("patchconvnet_nano", strides=(8, 16)).eval()
    net = timm.create_model("patchconvnet_nano", global_pool="").eval()
    net.load_state_dict(
        {name.removeprefix("body.model."): p for name, p in model.state_dict().items()}
    )
    x = torch.randn(1, 3, 64, 96)
    second, fourth = net.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    largest = fourth.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    torch.testing.assert_close(model(x), [second, largest], rtol=0, atol=0)


def test_a_trunk_s_finest_level_is_enlarged_twice_with_a_norm_between():
    model = levels_of("patchconvnet_nano", strides=(2, 4))
    twice, once = model.resample
    kinds = [nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.ConvTranspose2d]
    assert [type(layer) for layer in twice] == kinds
    assert [type(layer) for layer in once] == kinds[:1]


def test_a_trunk_of_fewer_blocks_than_levels_is_used_again():
    model = levels_of("patchconvnet_nano", strides=STRIDES, depth=2).eval()
    assert len(model(torch.randn(1, 3, 32, 32))) == 4


@pytest.mark.parametrize(
    "name", ["resnet18", "regnetx_002", "convnext_atto", "mobilenetv3_small_050"]
)
def test_convolutions_of_any_backbone_can_attend(name):
    model = levels_of(name, augment={"conv": "last-2-stages", "input_size": 64})
    plain = levels_of(name).eval()
    model.eval()
    assert any(isinstance(layer, convattn.AAConv2d) for layer in model.modules())
    x = torch.randn(1, 3, 64, 64)
    # preserve=True adds attention through projections that start at zero.
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


def test_attention_of_the_backbone_is_captured():
    model = levels_of("aa_resnet_nano").eval()
    with torch.no_grad(), convattn.capture_attention(model) as maps:
        model(torch.randn(1, 3, 64, 64))
    assert [name.rsplit(".", 3)[1] for name in maps] == ["layer2", "layer3", "layer4"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone):
    model, x = CHEAP["patchconvnet_nano"], torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(clone(model)(x), model(x), rtol=0, atol=0)


def test_checkpointing_changes_no_gradient():
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    grads = []
    for enable in (False, True):
        model = levels_of("patchconvnet_nano").double()
        model.set_grad_checkpointing(enable)
        sum(level.sin().sum() for level in model(x)).backward()
        assert model.body.model.grad_checkpointing is enable
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet5O", {}, "unknown backbone 'resnet5O'; the nearest is 'resnet50'"),
        ("aa_wide_resnet_nano", {}, "no map of stride 8; it has strides 1, 2, 4"),
        ("patchconvnet_nano", {"strides": (8, 24)}, "stride 24 cannot .* 8, 16, 32"),
        ("patchconvnet_nano", {"strides": (8, 4)}, r"strides=\(8, 4\) do not rise"),
        ("resnet_nano", {"strides": ()}, r"strides=\(\) do not rise"),
        ("resnet_nano", {"depth": 3}, "refuses its arguments: .*'depth'"),
        ("resnet_nano", {"augment": {"pool": "attention"}}, "pool='attention', but .* no pool"),
        ("resnet_nano", {"augment": {"cnov": "all"}}, "augment of backbone .*'cnov'"),
        ("resnet_nano", {"augment": {"conv": "layer9"}}, "layer9"),
        ("resnet_nano", {"pretrained": True}, "no released weights of 'resnet_nano'"),
    ],
)
def test_what_cannot_be_is_said(name, kwargs, said):
    with pytest.raises(ValueError, match=said):
        feature_levels(name, **kwargs)


def test_size_that_the_backbone_refuses_is_said():
    model = feature_levels("vit_tiny_patch16_224", embed_dim=12, depth=1, strides=(16,))
    with pytest.raises(ValueError, match=r"refuses images of 32 x 48: .* dynamic_img_size"):
        model(torch.randn(1, 3, 32, 48))


def test_network_without_intermediate_maps_is_said(monkeypatch):
    monkeypatch.delattr(timm.models.resnet.ResNet, "feature_info", raising=False)
    create = timm.create_model

    def without(*args, **kwargs):
        model = create(*args, **kwargs)
        del model.feature_info
        return model

    monkeypatch.setattr(timm, "create_model", without)
    with pytest.raises(ValueError, match="'resnet_nano' does not hand out intermediate maps"):
        feature_levels("resnet_nano")


def test_coarser_levels_are_torchvisions():
    torch.manual_seed(0)
    ours, theirs = CoarserLevels(8, (6, 7)), LastLevelP6P7(8, 8)
    theirs.load_state_dict(ours.state_dict())
    p5 = torch.randn(1, 8, 5, 7)
    (got, names), (expected, their_names) = (block([p5], [p5], ["0"]) for block in (ours, theirs))
    assert names == their_names
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_pyramid_is_torchvisions_on_the_levels():
    levels = CHEAP["aa_resnet_nano"]
    pyramid = FeaturePyramid(levels, 8).eval()
    x = torch.randn(1, 3, 32, 64)
    fpn = FeaturePyramidNetwork([16, 32, 64, 128], 8)
    fpn.load_state_dict(pyramid.fpn.state_dict())
    expected = fpn({str(i): level for i, level in enumerate(levels(x))})
    assert pyramid.out_channels == 8
    torch.testing.assert_close(dict(pyramid(x)), dict(expected), rtol=0, atol=0)
