import json

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import convattn
from convattn.export import TOLERANCE, export_int8


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        convattn.LearnedAggregation2d(16, 5, num_heads=2),
    )
    with torch.no_grad():
        for parameter in model[-1].parameters():  # some begin at zero and would hide the rest
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def evidence_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def random_images(number, size=32, seed=0):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def run(file, images):
    outputs = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    return [torch.from_numpy(one) for one in outputs]


def difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    model, file = network(), tmp_path_factory.mktemp("int8") / "model.onnx"
    return model, file, export_int8(model, file, random_images(32), attention=True, size=(32, 32))


@pytest.mark.long
def test_every_convolution_has_int8_weights_and_every_product_after_it_float32(int8):
    graph = onnx.load(int8[1]).graph
    constants = {one.name: one for one in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        weight = made_by[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        stored, scale = (constants[name] for name in weight.input[:2])
        assert stored.data_type == TensorProto.INT8
        assert numpy_helper.to_array(scale).shape == (16,)  # by channel
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
    others = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Einsum")]
    assert others
    for node in others:
        assert not any(
            made_by[name].op_type == "DequantizeLinear" for name in node.input if name in made_by
        )


def test_a_file_in_int8_is_near_the_network_at_any_size(int8):
    model, file, exported = int8
    for number, size in [(1, 32), (2, 45), (5, 64)]:
        images = random_images(number, size, seed=1)
        logits, attention = run(file, images)
        with torch.no_grad():
            assert TOLERANCE < difference(logits, model(images)) < 0.1
        assert attention.shape[0] == number
    assert [(one.batch_size, one.height) for one in exported.checks[:3]] == [
        (1, 32),
        (3, 32),
        (1, 41),
    ]


@pytest.mark.long
def test_its_ranges_are_those_of_the_images(int8, tmp_path):
    model, images = int8[0], random_images(8, seed=1)
    export_int8(model, tmp_path / "dark.onnx", 0.05 * random_images(32), size=(32, 32))
    with torch.no_grad():
        expected = model(images)
    dark, right = (
        difference(run(file, images)[0], expected) for file in (tmp_path / "dark.onnx", int8[1])
    )
    assert dark > 3 * right


@pytest.mark.long
def test_evidence_still_sums_to_the_logits(tmp_path):
    file = tmp_path / "model.onnx"
    export_int8(evidence_network(), file, random_images(8), evidence=True, size=(32, 32))
    (text,) = [one.value for one in onnx.load(file).metadata_props if one.key == "pretrained_cfg"]
    logits, maps = run(file, random_images(3, 40, seed=1))
    bias = torch.tensor(json.loads(text)["evidence_bias"])
    torch.testing.assert_close(maps.sum((2, 3)) + bias, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "images", "expected"),
    [
        (network, random_images(2), r"\(2, 3, 32, 32\) were given to calibrate by"),
        (network, random_images(3)[0], r"expected \(N, C, H, W\), N at least 3"),
        (
            lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
            random_images(3),
            "has no convolution that int8 could make faster",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_told_and_leaves_nothing(model, images, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        export_int8(model(), tmp_path / "model.onnx", images, size=(32, 32))
    assert not list(tmp_path.iterdir())
