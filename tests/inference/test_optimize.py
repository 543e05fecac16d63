import copy
import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from timm.layers import StdConv2d
from torch import fx, nn
from torch.nn.utils import prune

import convattn
from convattn.detection.mask_rcnn import mask_rcnn
from convattn.detection.retinanet import retinanet
from convattn.inference import optimize_for_inference
from convattn.inference.blocks import FoldedPatchConvBlock
from convattn.layers import AAConv2d
from convattn.segmentation.upernet import upernet


def _trained(model, seed=0):
    """Statistics, factors and shifts as training leaves them, instead of ones and zeros."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            like = (0.5, 1.5) if name.endswith("weight") or "gamma" in name else (-0.3, 0.3)
            nn.init.uniform_(parameter, *like)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "pruning"],
)
def test_weights_that_a_hook_computes_are_folded_and_left(change):
    model = _trained(timm.create_model("test_resnet", num_classes=5))
    change(model.layer1[0].conv2)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        fast = optimize_for_inference(model)
        torch.testing.assert_close(fast(images), before, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(images), before)
    assert model.layer1[0].conv2._forward_pre_hooks
    assert not fast.layer1[0].conv2._forward_pre_hooks


@pytest.mark.parametrize(
    "change",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
)
def test_parametrised_weights_keep_the_logits(change):
    model = _trained(timm.create_model("test_resnet", num_classes=5))
    change(model.layer1[0].conv2)
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            optimize_for_inference(model)(images), model(images), rtol=1e-4, atol=1e-4
        )


def test_graph_module_is_folded_in_its_own_mode():
    model = _trained(timm.create_model("test_resnet", num_classes=5))
    model = fx.symbolic_trace(model).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        fast = optimize_for_inference(model)
        torch.testing.assert_close(fast(images), before, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(images), before)
    assert not any(module.training for module in fast.modules())


def _create(name, **options):
    return _trained(timm.create_model(name, **options))


def _augmented_torchvision():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=7)
    return _trained(convattn.augment(model, input_size=64, pool="attention", conv="last-1-stages"))


NETWORKS = {
    "UPerNet": lambda: _trained(upernet("patchconvnet_nano", num_classes=5)),
    "PatchConvNet": lambda: _create("patchconvnet_nano", norm="layernorm"),
    "PatchConvNet, BatchNorm": lambda: _create("patchconvnet_nano"),
    "PatchConvNet, class tokens": lambda: _create("patchconvnet_nano_multi"),
    "AA-ResNet": lambda: _create("aa_resnet34", num_classes=5),
    "AA-Wide-ResNet": lambda: _create("aa_wide_resnet28_10", depth=10, widen=1),
    "AA-MnasNet": lambda: _create("aa_mnasnet_075", num_classes=5),
    "augmented ResNet": _augmented_torchvision,
    "timm's RegNet": lambda: _create("regnety_002", num_classes=5),
    "timm's DenseNet": lambda: _create("densenet121", num_classes=5, block_config=(1, 2)),
}


def _close(found, expected, tolerance=2e-5):
    scale = expected.float().std().clamp_min(1e-3)
    torch.testing.assert_close(
        found.float() / scale, expected.float() / scale, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_logits_stay(kind):
    model = NETWORKS[kind]()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        _close(optimize_for_inference(model)(x), expected)


@pytest.mark.parametrize(
    ("make", "backbone", "options"),
    [
        (retinanet, "resnet_nano", {}),
        (mask_rcnn, "patchconvnet_nano", {"box_channels": 64, "mask_channels": 16}),
    ],
)
def test_the_maps_of_a_detector_stay(make, backbone, options):
    model = _trained(make(backbone, num_classes=3, channels=32, **options))
    optimised = optimize_for_inference(model)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for found, expected in zip(
            optimised.backbone(x).values(), model.backbone(x).values(), strict=True
        ):
            _close(found, expected)
        image = torch.rand(3, 64, 96)
        assert optimised([image])[0].keys() == model([image])[0].keys()


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("PatchConvNet, BatchNorm", 0),
        ("AA-ResNet", 0),
        ("AA-MnasNet", 0),
        ("augmented ResNet", 0),
        ("timm's RegNet", 0),
        # Before every block, and before the pool, a norm reads a sum, which no convolution makes.
        ("AA-Wide-ResNet", 4),
    ],
)
def test_norms_that_are_left(kind, left):
    optimised = optimize_for_inference(NETWORKS[kind]())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in optimised.modules()) == left


@pytest.mark.parametrize(
    "options",
    [
        {"v_ratio": 0.5},
        {"v_ratio": 1.0},
        {"v_ratio": 0.5, "attn_downsample": 2},
        {"v_ratio": 0.5, "bias": False},
        {"v_ratio": 0.5, "residual": True},
        {"v_ratio": 0.5, "residual": True, "bias": False},
    ],
)
def test_norms_go_into_both_branches_of_augmented_convolutions(options):
    torch.manual_seed(0)
    conv = AAConv2d(6, 8, 3, padding=1, num_heads=2, feat_size=8, **options)
    nn.init.normal_(conv.proj.weight)
    model = _trained(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()).double())
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    optimised = optimize_for_inference(model)
    assert isinstance(optimised[1], nn.Identity)
    torch.testing.assert_close(optimised(x), model(x))


class _ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        made = self.conv(x)
        return made + self.bn(made)


class _NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.one(x)) + self.bn(self.two(x))


@pytest.mark.parametrize(
    "make",
    [_ReadTwice, _NormTwice, lambda: nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4))],
)
def test_norms_stay_where_folding_would_change_what_others_read(make):
    model = _trained(make())
    x = torch.randn(2, 3, 8, 8)
    optimised = optimize_for_inference(model)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in optimised.modules()) == 1
    torch.testing.assert_close(optimised(x), model(x))


def test_a_parametrized_convolution_stays():
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    model = _trained(nn.Sequential(conv, nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(optimize_for_inference(model)(x), model(x))


def test_the_model_is_left_alone():
    model = _create("patchconvnet_nano")
    before = copy.deepcopy(model.state_dict())
    optimised = optimize_for_inference(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in optimised.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(isinstance(m, FoldedPatchConvBlock) for m in model.modules())


def test_it_is_still_the_same_kind_of_network():
    model = _create("patchconvnet_nano")
    optimised = optimize_for_inference(model)
    x = torch.randn(2, 3, 64, 48)
    assert type(optimised) is type(model)
    assert optimised.pretrained_cfg == model.pretrained_cfg
    _close(optimised.forward_features(x), model.forward_features(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone):
    optimised = optimize_for_inference(_create("patchconvnet_nano"))
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(clone(optimised)(x), optimised(x), rtol=0, atol=0)


def test_attention_can_be_captured():
    model = _create("patchconvnet_nano")
    x = torch.randn(2, 3, 64, 48)
    with convattn.capture_attention(model) as expected:
        model(x)
    optimised = optimize_for_inference(model)
    with convattn.capture_attention(optimised) as maps:
        optimised(x)
    assert maps.keys() == expected.keys()
    for name in maps:
        torch.testing.assert_close(maps[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["PatchConvNet", "AA-ResNet"])
def test_number_formats_of_sixteen_bits(kind, dtype, monkeypatch):
    monkeypatch.setattr("convattn.inference.emulates", lambda *_: False)
    model = NETWORKS[kind]()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = optimize_for_inference(model, dtype=dtype)(x)
        assert logits.dtype == dtype
        _close(logits, model(x), tolerance=0.15 if dtype == torch.bfloat16 else 0.02)


def test_a_slow_number_format_is_said_and_float32_takes_its_place(monkeypatch):
    monkeypatch.setattr("convattn.inference.emulates", lambda *_: True)
    model = _create("patchconvnet_nano")
    with pytest.warns(UserWarning, match="no bfloat16 instructions.*float32 takes its place"):
        optimised = optimize_for_inference(model, dtype=torch.bfloat16)
    assert optimised(torch.randn(1, 3, 64, 64)).dtype == torch.float32


def test_images_of_other_floating_formats_are_taken():
    optimised = optimize_for_inference(_create("patchconvnet_nano"))
    assert optimised(torch.randn(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.long
@pytest.mark.parametrize("size", [32, pytest.param(256, marks=pytest.mark.slow)])
def test_compiled_logits_stay(size):
    model = _create("patchconvnet_nano", norm="layernorm", depth=1)
    optimised = optimize_for_inference(model, compile=True)
    x = torch.randn(2, 3, size, size)
    expected = optimised(x)
    _close(expected, model(x).detach())
    nn.init.zeros_(optimised.head.fc.weight)
    torch.testing.assert_close(optimised(x), expected, msg="its weights are not constants")


def test_without_a_compiler_it_runs_as_it_is_and_warns_once(monkeypatch):
    monkeypatch.setattr("convattn.inference.compiler_trouble", lambda _: "no C++ compiler")
    model = _create("patchconvnet_nano")
    x = torch.randn(2, 3, 64, 48)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimised = optimize_for_inference(model, compile=True)
        found = optimised(x)
    assert [str(w.message) for w in caught] == [
        "torch.compile does not work here, so the network runs as it is: no C++ compiler"
    ]
    _close(found, model(x))


def _with_hook(model):
    model.blocks[1].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda m: m.train(), {}, "the model is in training mode.*model.eval()"),
        (lambda m: m.blocks[2].train() and m, {}, r"'blocks.2' is in training mode"),
        (_with_hook, {}, r"'blocks.1' has hooks.*remove them"),
        (optimize_for_inference, {}, "optimised already"),
        (torch.compile, {}, "wrapped by torch.compile; optimise model._orig_mod"),
        (lambda _: 3, {}, "3 is no network"),
        (lambda m: m, {"dtype": torch.float64}, "float64 is not one of float32, bfloat16"),
        (
            lambda m: m,
            {"kernels": "warp"},
            "kernels='warp' is not one of torch, experimental_triton",
        ),
        (lambda m: m, {"kernels": "experimental_triton"}, "runs on cuda, and the model is on cpu"),
    ],
)
def test_what_is_refused(make, options, message):
    model = make(_create("patchconvnet_nano"))
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(model, **options)


def test_inside_capture_attention_it_is_refused():
    model = _create("patchconvnet_nano")
    with convattn.capture_attention(model), pytest.raises(ValueError, match="hooks"):
        optimize_for_inference(model)
