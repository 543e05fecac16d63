"""Converters that are not installed with the project: pnnx, Core ML, NNCF."""

import pytest
import timm
import torch

from convattn.export import export_openvino
from convattn.export.openvino_file import import_openvino
from tests.interop.networks import NETWORKS, difference, images, woken

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", ["plain", "aa_resnet_nano", "patchconvnet_nano", "augmented"])
def test_pnnx_is_right_in_evaluation_mode(name, tmp_path, monkeypatch):
    pnnx = pytest.importorskip("pnnx")
    monkeypatch.chdir(tmp_path)
    model, x = woken(name), images(1)
    with torch.no_grad():
        again = pnnx.export(model, "network.pt", x)
        assert again.training  # its own fault, which moves the batch norms
        assert difference(again.eval()(x), model(x)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_core_ml_converts_an_exported_program(name):
    coremltools = pytest.importorskip("coremltools")
    program = torch.export.export(woken(name), (images(1),)).run_decompositions({})
    made = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17)
    (image,) = made.get_spec().description.input
    assert list(image.type.multiArrayType.shape) == [1, 3, 64, 64]


def test_int8_by_nncf_stays_near(tmp_path):
    """Of a trained network; accuracy and time: docs/results/int8_accuracy.md."""
    openvino = import_openvino()
    nncf = pytest.importorskip("nncf")
    model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
    export_openvino(model, tmp_path / "exact.xml")
    x = images(8)
    exact = openvino.Core().read_model(tmp_path / "exact.xml")
    small = nncf.quantize(exact, nncf.Dataset([x.numpy()]), subset_size=1)
    compiled = openvino.compile_model(small, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(next(iter(compiled(x.numpy()).values())))
    with torch.no_grad():
        assert 1e-4 < difference(found, model(x)) < 0.1
