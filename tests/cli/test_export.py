import dataclasses
import json
import re

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch

from convattn.cli import main
from convattn.config import DataConfig, ModelConfig, TrainConfig
from convattn.data import load_source, transform_of
from convattn.runs import Run

TINY = {"embed_dim": 16, "depth": 1}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run, beside which the command is called."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainConfig(model=ModelConfig(name="patchconvnet_nano", model_args=TINY))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    cfg = {"num_classes": 3, "input_size": [3, 40, 40], "label_names": ["ant", "bee", "cat"]}
    network = timm.create_model("patchconvnet_nano", num_classes=3, **TINY)
    safetensors.torch.save_file(
        network.state_dict(), folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    return folder


def export(*arguments):
    return main(["export", *map(str, arguments)])


def fails(capsys, *arguments):
    """The one line that a mistake leaves on stderr."""
    assert export(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: ")
    return line


def snippet(out):
    """The lines of what was printed that a user would copy."""
    return "\n".join(line.strip() for line in out.splitlines() if line.startswith("  "))


def test_a_run_becomes_onnx_that_the_printed_lines_run(run, capsys, tmp_path):
    assert export(run, "--attention") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    table, _, how, last = captured.out.strip().split("\n\n")
    assert [line.split()[:4] for line in table.splitlines()[1:3]] == [
        ["40", "x", "40", "1"],
        ["40", "x", "40", "3"],
    ]
    assert last.split() == ["run.onnx", f"{(tmp_path / 'run.onnx').stat().st_size / 1e6:.1f}", "MB"]
    images = torch.randn(2, 3, 50, 70)
    names = {"images": images.numpy()}
    exec(snippet(how), names)
    expected = Run.open(run).load_model()(images)
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, atol=1e-4, rtol=0)
    assert names["attention"].shape == (2, 1, 7, 9)
    told = onnxruntime.InferenceSession("run.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(told["pretrained_cfg"])["label_names"] == ["ant", "bee", "cat"]


@pytest.mark.long
def test_a_run_becomes_a_program_that_the_printed_lines_run(run, capsys, tmp_path):
    out = tmp_path / "to.pt2"
    assert export(run, "--format", "torch-export", "--size", 48, 32, "--out", out) == 0
    images = torch.randn(2, 3, 50, 70)
    names = {"images": images}
    printed = capsys.readouterr().out
    assert "48 x 32" in printed
    exec(snippet(printed.split("\n\n")[2]), names)
    torch.testing.assert_close(names["logits"], Run.open(run).load_model()(images))


def test_a_model_by_name_takes_weights_from_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = timm.create_model("patchconvnet_nano", num_classes=4).state_dict()
    torch.save(theirs, "theirs.pth")
    words = ["patchconvnet_nano", "--format", "safetensors", "--num-classes", 4]
    assert export(*words, "--weights", "theirs.pth") == 0
    ours = safetensors.torch.load_file("patchconvnet_nano.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert export(*words[:3], "--out", "released.safetensors") == 0
    assert len(safetensors.torch.load_file("released.safetensors")["head.fc.bias"]) == 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["patchconvnet_nan"], "the nearest model is 'patchconvnet_nano'"),
        (["/nowhere"], "'/nowhere' is a path, and there is no such run folder"),
        (["aa_resnet50"], "no released weights of 'aa_resnet50'"),
        (["run", "--weights", "x.pth"], "--weights goes with a model's name"),
        (["run", "--num-classes", 3], "--num-classes goes with a model's name"),
        (["run", "--out", "run"], "run exists and is never overwritten"),
        (["run", "--out", "run.pth"], "run.pth must end in .onnx"),
        (
            ["run", "--format", "safetensors", "--attention"],
            "is for onnx, openvino and torch-export, not",
        ),
        (["run", "--format", "torch-export", "--opset", 20], "--opset is for onnx, not"),
        (["run", "--device", "cpu"], "--device is for torch-export, not onnx"),
        (["run", "--format", "torch-export", "--device", "gpu"], "--device gpu cannot be used"),
        (["run", "--size", 0, 40], "--size 0 40: expected 1 pixel or more"),
        (["run", "--format", "torch-export", "--quantize", "int8"], "--quantize is for onnx, not"),
        (["patchconvnet_nano", "--quantize", "int8"], "--quantize needs a run, whose images"),
        (["run", "--opset", 3], "opset=3 is not one of 18 to"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(run, capsys, arguments, expected):
    assert expected in fails(capsys, *arguments)
    assert [one.name for one in run.parent.iterdir()] == ["run"]


@pytest.fixture
def digits(run):
    """The run's neighbour, whose data are there."""
    folder = run.parent / "digits"
    folder.mkdir()
    data = DataConfig(name="cluttered_digits", num_train=20, num_test=10, image_size=32)
    config = TrainConfig(model=ModelConfig(name="test_resnet", num_classes=10), data=data)
    (folder / "config.json").write_text(config.to_json())
    cfg = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.2] * 3, "std": [0.3] * 3}
    cfg |= {"num_classes": 10, "label_names": list("0123456789")}
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    safetensors.torch.save_file(
        network.state_dict(), folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    return folder


@pytest.mark.long
def test_a_run_in_int8_tells_what_that_costs(digits, capsys):
    assert export(digits, "--quantize", "int8", "--out", "int8.onnx") == 0
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("calibrated on")]
    before, after = (float(share) for share in re.findall(r"([\d.]+)% right", line))
    assert line.startswith("calibrated on 20 training images; of 10 test images: ")
    data = load_source("cluttered_digits", image_size=32, num_train=20, num_test=10)
    model = Run.open(digits).load_model()
    images = torch.stack([transform_of(model.pretrained_cfg)(one) for one in data.test.images])
    names = {"images": images.numpy()}
    exec(snippet(told.split("\n\n")[2]), names)
    for share, logits in [(before, model(images)), (after, torch.from_numpy(names["logits"]))]:
        assert share == 100 * (logits.argmax(1) == data.test.labels).double().mean()
