import copy
import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from timm.layers import Conv2dSame, padding
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import fx, nn
from torch.nn.utils import prune

import convattn
from convattn.data import transform_of
from convattn.export import (
    METADATA_FILE,
    TOLERANCE,
    export_onnx,
    export_program,
    export_safetensors,
)
from convattn.layers import AAConv2d
from convattn.runs.build import load_weights
from tests.slow import slow_but
from tests.surgery.networks import CallsMeanOfRelu, Plain

SIZES = [(64, 64), (75, 75), (48, 101)]
BATCHES = [(batch_size, *size) for size in SIZES for batch_size in (1, 2)]
SMALL = {"num_heads": 2, "min_head_dim": 2, "input_size": 64}


def shake(model, scale=0.1):
    """Other values for factors that start at zero or nearly, which would hide what they scale."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter += scale * torch.randn(parameter.shape, generator=draw)
    return model


def augmented():
    torch.manual_seed(0)
    return shake(convattn.augment(Plain(), pool="attention", conv="body", **SMALL)).eval()


def same_padding():
    """Padding that depends on the size, as TensorFlow's "same" has it; a pool with evidence."""
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2dSame(3, 8, 3, 2),
        MaxPool2dSame(3, 2),
        AvgPool2dSame(2, 2),
        convattn.LearnedAggregation2d(8, 6, num_heads=2),
    ).eval()


def class_tokens():
    """A convolution, and a pool with a map a class."""
    torch.manual_seed(0)
    pool = convattn.LearnedAggregation2d(8, 5, class_tokens=True)
    return shake(nn.Sequential(nn.Conv2d(3, 8, 8, 8), pool)).eval()


def attention_convolutions():
    """No pool with attention, and a convolution that has some, of a smaller map, and strides."""
    torch.manual_seed(0)
    model = convattn.augment(Plain(), conv="body", attn_downsample=2, **SMALL)
    return shake(model).eval()


NETWORKS = {
    "class tokens": class_tokens,
    "augmented": augmented,
    "attention convolutions": attention_convolutions,
    "same padding": same_padding,
}


class Reads(nn.Module):
    """A classifier of the mean colours; what it does besides is the test's."""

    def __init__(self, spoil=lambda x: 0.0):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.spoil = spoil

    def forward(self, x):
        return self.fc(x.mean((2, 3))) + self.spoil(x)


def looks():
    """A convolution and the attention pool."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), convattn.LearnedAggregation2d(8, 5, num_heads=2))


def random_images(batch_size, height, width):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def difference(ours, theirs):
    """Largest difference, in units of the largest number."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def with_maps(model, images):
    """Logits, and the maps as users see them in Python."""
    with torch.no_grad(), convattn.capture_attention(model, queries="mean") as maps:
        logits = model(images)
    *_, last = maps.values()  # the pool where there is one
    return logits, last.flatten(1, 2)


@pytest.fixture(
    scope="module",
    params=slow_but(["class tokens", "augmented", "same padding"], NETWORKS),
)
def as_onnx(request, tmp_path_factory):
    """A network and its file."""
    model, file = NETWORKS[request.param](), tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, file, export_onnx(model, file, attention=True, size=(64, 64))


@pytest.fixture(scope="module")
def as_program(tmp_path_factory):
    model, file = looks(), tmp_path_factory.mktemp("program") / "model.pt2"
    return model, file, export_program(model, file, attention=True, size=(64, 64))


@pytest.mark.long
def test_onnxruntime_gives_logits_and_maps_of_the_network_at_any_size(as_onnx):
    model, file, _ = as_onnx
    session = onnxruntime.InferenceSession(file)
    for batch in BATCHES:
        images = random_images(*batch)
        ours = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        for found, expected in zip(ours, with_maps(model, images), strict=True):
            assert difference(found, expected) < TOLERANCE, batch


@pytest.mark.parametrize(
    "layers",
    [
        (Conv2dSame(3, 8, 3, 2), Conv2dSame(8, 8, 5, 2, dilation=2)),
        pytest.param(  # which leave pixels out
            (Conv2dSame(3, 8, 1, 2), Conv2dSame(8, 8, 2, 3)), marks=pytest.mark.slow
        ),
    ],
    ids=["wide", "narrow"],
)
def test_a_program_pads_as_the_network_does_at_any_size(layers, tmp_path):
    rounding, file = padding.get_same_padding, tmp_path / "model.pt2"
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export_program(model, file, size=(64, 64))
    assert padding.get_same_padding is rounding
    program = torch.export.load(file).module()
    for size in [(side, side + 7) for side in range(64, 71)]:
        images = random_images(2, *size)
        assert difference(program(images), model(images)) < TOLERANCE, size


def test_the_checks_cover_three_sizes_and_two_batches_within_the_tolerance(as_onnx):
    _, file, exported = as_onnx
    assert exported.file == file
    assert exported.size == file.stat().st_size
    seen = [(check.batch_size, check.height, check.width) for check in exported.checks]
    sizes = [(64, 64), (81, 81), (64, 95)]
    assert seen == [(batch_size, *size) for size in sizes for batch_size in (1, 3)]
    for check in exported.checks:
        assert list(check.differences) == ["logits", "attention"]
        assert 0 < max(check.differences.values()) < TOLERANCE  # computed by other kernels
    assert len(exported.table().splitlines()) == 7


def test_an_onnx_file_names_its_inputs_outputs_and_sizes(as_onnx):
    model, file, _ = as_onnx
    graph = onnx.load(file).graph
    onnx.checker.check_model(file, full_check=True)
    shapes = {
        value.name: [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    logits, maps = with_maps(model, random_images(1, 64, 64))
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "logits": ["batch", logits.shape[1]],
        "attention": ["batch", maps.shape[1], "map_height", "map_width"],
    }


def test_an_onnx_file_tells_nothing_of_the_machine_it_was_made_on(as_onnx):
    content = as_onnx[1].read_bytes()
    for module in (torch, convattn):
        assert str(Path(module.__file__).parent).encode() not in content


@pytest.mark.long
def test_a_program_gives_logits_and_maps_of_the_network_at_any_size(as_program):
    model, file, _ = as_program
    program = torch.export.load(file).module()
    for batch in BATCHES:
        images = random_images(*batch)
        ours = program(images)
        for found, expected in zip(ours, with_maps(model, images), strict=True):
            assert difference(found, expected) < TOLERANCE, batch


def onnx_metadata(file):
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


def program_metadata(file):
    extra = {METADATA_FILE: ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra[METADATA_FILE])


def safetensors_metadata(file):
    with safetensors.safe_open(file, framework="pt") as content:
        return content.metadata()


@pytest.mark.parametrize(
    ("export", "suffix", "read"),
    [
        (export_onnx, ".onnx", onnx_metadata),
        (export_program, ".pt2", program_metadata),
        (export_safetensors, ".safetensors", safetensors_metadata),
    ],
    ids=["onnx", "torch-export", "safetensors"],
)
def test_a_file_alone_tells_classes_and_what_images_need(export, suffix, read, tmp_path):
    model, file = Reads(), tmp_path / f"model{suffix}"
    model.pretrained_cfg = {
        "architecture": "reads",
        "url": "https://example.org/weights",
        "input_size": (3, 40, 40),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "label_names": tuple("wxyz"),
    }
    export(model, file, size=(32, 48))
    told = read(file)
    cfg = json.loads(told["pretrained_cfg"])
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    expected = transform_of(model.pretrained_cfg | {"input_size": (3, 32, 48)})(image)
    assert torch.equal(transform_of(cfg)(image), expected)
    assert cfg["label_names"] == list("wxyz")
    assert told["convattn_version"] == convattn.__version__
    assert "example.org" not in json.dumps(told)


def test_safetensors_fill_a_fresh_network(tmp_path):
    model, fresh = class_tokens(), class_tokens().requires_grad_(False)
    fresh[0].weight.zero_()
    images = random_images(2, 64, 64)
    assert not torch.equal(fresh(images), model(images))
    export_safetensors(model, tmp_path / "model.safetensors")
    load_weights(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh(images), model(images))


def everywhere(x):
    return 0.01 * torch.compiler.is_exporting()


def at_other_sizes(x):
    return (x.shape[2] - 64) * 1e-2 if torch.compiler.is_exporting() else 0.0


def with_other_batches(x):
    return (x.shape[0] - 1) * 1e-2 if torch.compiler.is_exporting() else 0.0


def nowhere_a_number(x):
    return x.sum() * float("nan") if torch.compiler.is_exporting() else 0.0


@pytest.mark.parametrize(
    ("export", "suffix", "spoil", "where"),
    [
        (export_onnx, ".onnx", everywhere, "1 images of 64 x 64"),
        (export_onnx, ".onnx", at_other_sizes, "1 images of 81 x 81"),
        (export_program, ".pt2", with_other_batches, "3 images of 64 x 64"),
        (export_program, ".pt2", nowhere_a_number, "by nan of the largest of the logits"),
    ],
)
def test_a_file_that_differs_from_the_network_is_not_kept(export, suffix, spoil, where, tmp_path):
    with pytest.raises(ValueError, match=where) as told:
        export(Reads(spoil), tmp_path / f"model{suffix}", size=(64, 64))
    assert "differs from the network by" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_tensors_that_were_not_written_whole_are_not_kept(tmp_path, monkeypatch):
    load = safetensors.torch.load_file
    monkeypatch.setattr(
        safetensors.torch,
        "load_file",
        lambda file: {name: 1.01 * tensor for name, tensor in load(file).items()},
    )
    with pytest.raises(ValueError, match="differs from the network by"):
        export_safetensors(looks(), tmp_path / "model.safetensors", size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_maps_are_compared_too(tmp_path, monkeypatch):
    weights = convattn.LearnedAggregation2d.attention_weights

    def other(self, x):
        return weights(self, x) * (1.01 if torch.compiler.is_exporting() else 1.0)

    monkeypatch.setattr(convattn.LearnedAggregation2d, "attention_weights", other)
    with pytest.raises(ValueError, match=r"by 1\.0e-02 of the largest of the attention"):
        export_program(looks(), tmp_path / "model.pt2", attention=True, size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_a_network_that_freezes_its_size_is_refused(tmp_path):
    def freeze(x):
        return float(x.shape[2] == 64)

    with pytest.raises(ValueError, match="Reads cannot be exported for any batch and image size"):
        export_program(Reads(freeze), tmp_path / "model.pt2", size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_a_network_for_one_size_is_refused(tmp_path):
    model = timm.create_model("test_vit", num_classes=4)
    with pytest.raises(ValueError, match="fails for 1 images of 201 x 201; only networks that"):
        export_safetensors(model, tmp_path / "model.safetensors")


@pytest.mark.long
def test_a_kernel_of_ours_does_not_reach_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVATTN_ATTENTION_BACKEND", "chunked")
    model = nn.Sequential(
        AAConv2d(3, 16, 3, 1, 1, num_heads=2, attn_backend="chunked"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    export_program(model, tmp_path / "model.pt2", size=(16, 16))
    graph = str(torch.export.load(tmp_path / "model.pt2").graph)
    assert "scaled_dot_product_attention" in graph
    assert "convattn" not in graph


def test_the_network_stays_as_it_was(tmp_path):
    model = looks().train()
    model[0].eval().requires_grad_(False)
    before = copy.deepcopy(model)
    export_program(model, tmp_path / "model.pt2", attention=True, size=(64, 64))
    assert [one.training for one in model.modules()] == [one.training for one in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not model[1]._forward_pre_hooks


def dense():
    return nn.Conv2d(3, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("model", "name", "wish", "expected"),
    [
        (Reads, "model.bin", {}, "must end in .onnx, as model.onnx does"),
        (Reads, "there.onnx", {}, "exists and is never overwritten"),
        (Reads, "no/model.onnx", {}, "no folder .*no for model.onnx; make it first"),
        (Reads, "m.onnx", {"attention": True}, "Reads has no attention whose .*convattn.augment"),
        (Reads, "m.onnx", {"opset": 7}, r"opset=7 is not one of 18 to \d+"),
        (lambda: Reads().half(), "m.onnx", {}, r"torch.float16; .*model\.float\(\)"),
        (lambda: Reads().compile, "m.onnx", {}, "is no network; give a torch.nn.Module"),
        (dense, "m.onnx", {}, "Conv2d gives no logits .*; only networks that classify"),
    ],
)
def test_what_cannot_be_exported_is_told_and_leaves_nothing(model, name, wish, expected, tmp_path):
    (tmp_path / "there.onnx").touch()
    with pytest.raises((ValueError, OSError), match=expected):
        export_onnx(model(), tmp_path / name, size=(32, 32), **wish)
    assert [one.name for one in tmp_path.iterdir()] == ["there.onnx"]
    assert not (tmp_path / "there.onnx").stat().st_size


PUBLISHED = {
    "aa_resnet50": lambda: timm.create_model("aa_resnet50"),
    "patchconvnet_s60": lambda: timm.create_model("patchconvnet_s60"),
    "patchconvnet_s60_multi": lambda: timm.create_model("patchconvnet_s60_multi"),
    "aa_mnasnet_100": lambda: timm.create_model("aa_mnasnet_100"),
    "aa_wide_resnet28_10": lambda: timm.create_model("aa_wide_resnet28_10"),
    "augmented torchvision resnet50": lambda: convattn.augment(
        torchvision.models.resnet50(), pool="attention", conv="last-3-stages"
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_agree_in_onnxruntime(name, tmp_path):
    torch.manual_seed(0)
    # More than this, and float32 itself is no longer exact to the tolerance in fifty layers.
    model = shake(PUBLISHED[name](), scale=0.03)
    exported = export_onnx(model, tmp_path / "model.onnx", attention=True)
    print(f"\n{name}: {exported.size / 1e6:.1f} MB\n{exported.table()}")
    assert max(max(check.differences.values()) for check in exported.checks) < TOLERANCE


EVIDENCE = {
    "average": Plain,
    "light pool": lambda: convattn.augment(Plain(), pool="attention", pool_norm=True),
    "a query a class": lambda: convattn.augment(Plain(), pool="class"),
    "function call": CallsMeanOfRelu,
}


@pytest.mark.long
@pytest.mark.parametrize("name", slow_but(["average", "light pool"], EVIDENCE))
def test_evidence_is_an_output_whose_sums_are_the_logits(name, tmp_path):
    torch.manual_seed(0)
    model = EVIDENCE[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    file = tmp_path / "model.onnx"
    exported = export_onnx(model, file, evidence=True, size=(64, 64))
    assert list(exported.checks[0].differences) == ["logits", "evidence"]
    (text,) = [one.value for one in onnx.load(file).metadata_props if one.key == "pretrained_cfg"]
    bias = torch.tensor(json.loads(text)["evidence_bias"])
    session = onnxruntime.InferenceSession(file)
    for batch in BATCHES:
        images = random_images(*batch)
        logits, maps = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        assert difference(maps.sum((2, 3)) + bias, logits) < TOLERANCE
        assert difference(maps, convattn.evidence(model, images).maps) < TOLERANCE


@pytest.mark.long
def test_a_program_gives_attention_and_evidence(tmp_path):
    file = tmp_path / "model.pt2"
    model = convattn.augment(Plain(), pool="attention").eval()
    exported = export_program(model, file, attention=True, evidence=True, size=(64, 64))
    assert list(exported.checks[0].differences) == ["logits", "attention", "evidence"]
    _, attention, evidence = torch.export.load(file).module()(random_images(2, 64, 96))
    assert attention.shape[:2] == (2, 1)
    assert evidence.shape == (2, 5, *attention.shape[2:])


def test_evidence_of_a_network_without_is_told(tmp_path):
    with pytest.raises(ValueError, match="is learned aggregation, with an MLP"):
        export_onnx(
            convattn.augment(Plain(), pool="aggregation"), tmp_path / "m.onnx", evidence=True
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_onnxruntime_can_quantise_a_file(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = timm.create_model("patchconvnet_nano", embed_dim=16, depth=1, num_classes=10)
    written = tmp_path / "net.onnx"
    export_onnx(shake(model).eval(), written)
    graph = onnx.load(written).graph
    assert not {v.name for v in graph.value_info} & {w.name for w in graph.initializer}
    small = tmp_path / "small.onnx"
    quantization.quantize_dynamic(written, small, op_types_to_quantize=["MatMul", "Gemm"])
    images = torch.randn(2, 3, 64, 64)
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        expected = model(images)
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("write", [export_safetensors, export_program])
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "pruning", "parametrised", "parametrised spectral_norm"],
)
def test_computed_weights_are_exported_and_left(change, write, tmp_path):
    model = Plain().eval()
    change(model.body)
    model(torch.ones(1, 3, 32, 32))
    model.eval()
    names = list(model.state_dict())
    suffix = ".pt2" if write is export_program else ".safetensors"
    write(model, tmp_path / f"network{suffix}", size=(32, 32))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("write", [export_safetensors, export_program])
def test_graph_module_is_exported_as_it_evaluates(write, tmp_path):
    model = fx.symbolic_trace(timm.create_model("test_resnet", num_classes=5)).eval()
    suffix = ".pt2" if write is export_program else ".safetensors"
    exported = write(model, tmp_path / f"network{suffix}", size=(64, 64))
    assert max(check.differences["logits"] for check in exported.checks) < TOLERANCE
