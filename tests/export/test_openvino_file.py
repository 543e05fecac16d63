import json
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.data import transform_of
from convattn.export import TOLERANCE, export_openvino
from convattn.export.openvino_file import import_openvino

EXAMPLE = Path(__file__).parents[2] / "examples" / "classify_openvino.py"

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is missing")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing may be told to anyone."""

    def connect(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.ReLU(), convattn.LearnedAggregation2d(8, 5, num_heads=2)
    )
    with torch.no_grad():
        for parameter in model.parameters():  # some begin at zero and would hide the rest
            parameter += 0.1 * torch.randn(parameter.shape)
    model.pretrained_cfg = {"input_size": (3, 32, 32), "label_names": list("vwxyz")}
    return model.eval()


def difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, file = network(), tmp_path_factory.mktemp("openvino") / "model.xml"
    return model, file, export_openvino(model, file, attention=True)


@pytest.mark.long
def test_openvino_gives_logits_and_maps_of_the_network_at_any_size(exported):
    model, file, _ = exported
    compiled = import_openvino().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in [(1, 3, 32, 32), (2, 3, 40, 52), (3, 3, 64, 33)]:
        images = torch.randn(batch, generator=torch.Generator().manual_seed(1))
        logits, attention = (torch.from_numpy(one) for one in compiled(images.numpy()).values())
        with torch.no_grad(), convattn.capture_attention(model, queries="mean") as maps:
            expected = model(images)
        assert difference(logits, expected) < TOLERANCE
        (wanted,) = maps.values()
        assert difference(attention, wanted.flatten(1, 2)) < TOLERANCE


def test_two_files_with_names_and_metadata_and_nothing_else(exported):
    _, file, found = exported
    names = {one.name: one.stat().st_size for one in file.parent.iterdir()}
    assert sorted(names) == ["model.bin", "model.xml"]
    assert found.size == sum(names.values())
    assert str(file.parent) not in file.read_text()
    model = import_openvino().Core().read_model(file)
    assert [one.any_name for one in [*model.inputs, *model.outputs]] == [
        "images",
        "logits",
        "attention",
    ]
    cfg = json.loads(model.get_rt_info(["convattn", "pretrained_cfg"]).astype(str))
    assert cfg["label_names"] == list("vwxyz")


def test_the_example_says_what_the_network_says(exported, tmp_path):
    model, file, _ = exported
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, EXAMPLE, file, tmp_path / "image.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    image = transform_of(model.pretrained_cfg)(Image.open(tmp_path / "image.png"))
    with torch.no_grad():
        share, label = model(image[None]).softmax(1).max(1)
    path, name, told = run.stdout.split()
    assert (path, name) == (str(tmp_path / "image.png"), "vwxyz"[label])
    assert float(told) == pytest.approx(share.item(), abs=0.01)  # some CPUs take bfloat16


def test_importing_tells_nobody():
    import_openvino()
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


@pytest.mark.parametrize("taken", ["model.xml", "model.bin"])
def test_neither_file_is_overwritten(taken, tmp_path):
    (tmp_path / taken).touch()
    with pytest.raises(FileExistsError, match=f"{taken} exists and is never overwritten"):
        export_openvino(network(), tmp_path / "model.xml")
    assert not (tmp_path / taken).stat().st_size


@pytest.mark.long
def test_a_file_that_differs_leaves_nothing(tmp_path, monkeypatch):
    def forward(self, x):
        return x if torch.compiler.is_exporting() else x.relu()

    monkeypatch.setattr(nn.ReLU, "forward", forward)
    with pytest.raises(ValueError, match="differs from the network by"):
        export_openvino(network(), tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())
