"""What converters of other software make of the layers, at other sizes than the recorded."""

from importlib.util import find_spec

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.export.openvino_file import import_openvino
from convattn.export.tracing import POOLS_ANY_SIZE

TOLERANCE = 1e-4
SIZES = [(1, 3, 64, 64), (2, 3, 80, 52), (3, 3, 33, 96)]  # as recorded, and beside it


def pooled(pool, **options):
    return convattn.augment(
        timm.create_model("test_resnet", num_classes=5), pool=pool, input_size=64, **options
    )


NETWORKS = {
    "aa_resnet_nano": lambda: timm.create_model("aa_resnet_nano", num_classes=5),
    "patchconvnet_nano": lambda: timm.create_model("patchconvnet_nano", num_classes=5, depth=2),
    "convolutions": lambda: pooled(None, conv="last-2-stages"),
    "residual": lambda: pooled("attention"),
    "class": lambda: pooled("class"),
    "aggregation": lambda: pooled("aggregation"),
    "class-attention": lambda: pooled("class-attention"),
    "ep": lambda: pooled("ep", pool_queries=4),
    "simpool": lambda: pooled("simpool", pool_heads=4),
    "abmil": lambda: pooled("abmil"),
    "gem": lambda: pooled("gem"),
    "lse": lambda: pooled("lse"),
}


def woken(name) -> nn.Module:
    """With values in what starts at zero, which would hide all errors."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


TRACING = pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported)")


def images(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def check(model, converted):
    for shape in SIZES:
        x = images(shape)
        with torch.no_grad():
            expected = model(x)
        found = converted(x)
        difference = (found - expected).abs().max() / expected.abs().max()
        assert difference < TOLERANCE, (shape, float(difference))


def dynamic():
    free = torch.export.Dim.DYNAMIC
    return ({0: free, 2: free, 3: free},)


@pytest.mark.parametrize("name", NETWORKS)
@TRACING
def test_traced(name):
    model = woken(name)
    with torch.no_grad():
        traced = torch.jit.trace(model, images(SIZES[0]))
        check(model, traced)


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_program(name):
    model = woken(name)
    program = torch.export.export(model, (images((2, 3, 64, 64)),), dynamic_shapes=dynamic())
    with torch.no_grad():
        check(model, program.module(check_guards=POOLS_ANY_SIZE))


@pytest.mark.long
@TRACING
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is missing")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["module", "program"])
def test_openvino(name, way):
    openvino = import_openvino()
    model = woken(name)
    if way == "module":
        source, more = model, {"example_input": images(SIZES[0])}
    else:
        example = images((2, 3, 64, 64))
        source, more = torch.export.export(model, (example,), dynamic_shapes=dynamic()), {}
    made = openvino.convert_model(source, **more)
    compiled = openvino.compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(model, lambda x: torch.from_numpy(next(iter(compiled(x.numpy()).values()))))
