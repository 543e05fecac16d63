import dataclasses
import json

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch

from convattn.cli import main
from convattn.config import ModelConfig, TrainConfig
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
        (["aa_resnet50"], "no released weights of 'aa_resnet50'"),
        (["run", "--weights", "x.pth"], "--weights goes with a model's name"),
        (["run", "--num-classes", 3], "--num-classes goes with a model's name"),
        (["run", "--out", "run"], "run exists and is never overwritten"),
        (["run", "--out", "run.pth"], "run.pth must end in .onnx"),
        (["run", "--format", "safetensors", "--attention"], "is for onnx and torch-export, not"),
        (["run", "--format", "torch-export", "--opset", 20], "--opset is for onnx, not"),
        (["run", "--device", "cpu"], "--device is for torch-export, not onnx"),
        (["run", "--format", "torch-export", "--device", "gpu"], "--device gpu cannot be used"),
        (["run", "--size", 0, 40], "--size 0 40: expected 1 pixel or more"),
        (["run", "--opset", 3], "opset=3 is not one of 18 to"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(run, capsys, arguments, expected):
    assert expected in fails(capsys, *arguments)
    assert [one.name for one in run.parent.iterdir()] == ["run"]
