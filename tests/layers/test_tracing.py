"""Whoever records or transforms a layer gets it for every size, or is told that it cannot be."""

import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convattn import AAConv2d, LearnedAggregation2d
from convattn.export.tracing import POOLS_ANY_SIZE
from convattn.layers.pools import create_pool
from convattn.models.patchconvnet import PatchConvBlock

C = 8
SIZES = [(2, 2), (3, 4), (4, 4), (5, 6), (9, 7)]
LAYERS = {
    "relative": lambda: AAConv2d(C, 16, 3, padding=1, num_heads=2, feat_size=(4, 4)),
    "sine": lambda: AAConv2d(C, 16, 3, padding=1, num_heads=2, position="sine", feat_size=4),
    "coord": lambda: AAConv2d(C, 16, 3, padding=1, num_heads=2, position="coord", feat_size=4),
    "stride": lambda: AAConv2d(
        C, 16, 3, stride=2, padding=1, num_heads=2, feat_size=2, residual=True
    ),
    "smaller attention": lambda: AAConv2d(
        C, 16, 3, padding=1, num_heads=2, feat_size=4, attn_downsample=2
    ),
    "block": lambda: PatchConvBlock(C, layer_scale=0.5),
    "aggregation": lambda: LearnedAggregation2d(C, 5, layer_scale=1.0),
    "residual": lambda: create_pool("residual", C, gate=0.5),
    "query": lambda: create_pool("query", C),
    "class": lambda: create_pool("class", C, num_classes=5),
    "ep": lambda: create_pool("ep", C, num_queries=4),
    "simpool": lambda: create_pool("simpool", C, num_heads=2),
    "abmil": lambda: create_pool("abmil", C, hidden=4),
    "map": lambda: create_pool("map", C, num_heads=2),
}
HALVED = {"stride", "smaller attention"}
"""Their attention runs on half of the map: a single position for an image of 2 x 2."""


def woken(kind: str) -> nn.Module:
    """With values in every gate and projection that starts at zero."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.normal_()
    return layer


def check_sizes(found, layer, sizes=SIZES):
    for size in sizes:
        x = torch.randn(3, C, *size)
        with torch.no_grad():
            torch.testing.assert_close(found(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported)")
@pytest.mark.parametrize("traced_at", [4, 6])
@pytest.mark.parametrize("kind", LAYERS)
def test_traced(kind, traced_at):
    layer = woken(kind)
    with torch.no_grad():
        side = torch.randn(2, C, traced_at, traced_at)
        traced = torch.jit.trace(layer, side, check_trace=False)
    check_sizes(traced, layer)


@pytest.mark.long
@pytest.mark.parametrize("kind", LAYERS)
def test_exported_program(kind):
    layer, free = woken(kind), torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    exported = torch.export.export(layer, (torch.randn(2, C, 4, 4),), dynamic_shapes=shapes)
    check_sizes(
        exported.module(check_guards=POOLS_ANY_SIZE),
        layer,
        SIZES[1:] if kind in HALVED else SIZES,
    )
    if kind in HALVED:  # PyTorch takes a free size for more than one, and says so
        with pytest.raises(AssertionError, match="Guard failed"):
            exported.module()(torch.randn(2, C, 2, 2))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the older of PyTorch's two ways
@pytest.mark.filterwarnings("ignore:Constant folding")
@pytest.mark.parametrize("kind", LAYERS)
def test_onnx_by_tracing(kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, file = woken(kind), io.BytesIO()
    torch.onnx.export(
        nn.Sequential(layer).eval(),  # which passes on no argument that has a default
        (torch.randn(2, C, 4, 4),),
        file,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}},
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    check_sizes(lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), layer)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # PyTorch's own call
@pytest.mark.parametrize("kind", LAYERS)
def test_packaged(kind):
    layer, file = woken(kind), io.BytesIO()
    with torch.package.PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("layers", "layer.pkl", layer)
    file.seek(0)
    check_sizes(torch.package.PackageImporter(file).load_pickle("layers", "layer.pkl"), layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_fake_tensors_have_the_real_ones_shapes(kind):
    layer = woken(kind)
    with torch.no_grad():
        shapes = {size: layer(torch.randn(3, C, *size)).shape for size in SIZES}
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert {size: layer(torch.randn(3, C, *size)).shape for size in SIZES} == shapes


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # no rule for fused attention
@pytest.mark.parametrize("size", [(3, 4), (4, 4)])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_an_image_by_vmap(kind, size):
    layer, x = woken(kind), torch.randn(3, C, *size)
    parameters = dict(layer.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, image[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="error")(parameters, x)
    for index, image in enumerate(x):
        expected = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is (deprecated|not supported)")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_scripts_are_refused_in_a_sentence(kind, inside):
    layer = woken(kind)
    expected = f"torch.jit.script cannot compile {type(layer).__name__}; .*convattn export"
    with pytest.raises(NotImplementedError, match=expected):
        torch.jit.script(nn.Sequential(nn.ReLU(), layer) if inside else layer)
