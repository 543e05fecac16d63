import csv
import dataclasses
import json

import pytest
import safetensors.torch
import timm
from PIL import Image

from convattn import augment
from convattn.bench import Costs
from convattn.cli import main
from convattn.config import ModelConfig, TrainConfig

TINY = {"embed_dim": 16, "depth": 1}
TINY_FLAGS = ["--model-args", "embed_dim", "16", "depth", "1"]
QUICK = ["--repeats", "1", "--batch-size", "2", "--no-training"]


def bench(*arguments):
    return main(["bench", *map(str, arguments)])


def fails(capsys, *arguments):
    """The one line that a mistake leaves on stderr."""
    assert bench(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: ")
    return line


def rows(folder):
    with (folder / "bench.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_model_leaves_a_table_and_files_and_names_the_folder_last(capsys, tmp_path):
    out = tmp_path / "out"
    assert bench("patchconvnet_nano", *TINY_FLAGS, "--sizes", 32, 48, *QUICK, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.strip().splitlines()
    assert lines[0].startswith("patchconvnet_nano on ")
    assert lines[-1] == str(out)
    assert {file.name for file in out.iterdir()} == {"bench.csv", "bench.json", "bench.png"}
    size = sum(p.numel() for p in timm.create_model("patchconvnet_nano", **TINY).parameters())
    assert [(one["height"], one["batch_size"], one["parameters"]) for one in rows(out)] == [
        (side, batch, str(size)) for side in ("32", "48") for batch in ("1", "2")
    ]
    told = json.loads((out / "bench.json").read_text())
    assert [one["median_ms"] for one in told["rows"]] == [
        float(one["median_ms"]) for one in rows(out)
    ]
    with Image.open(out / "bench.png") as image:
        assert image.format == "PNG"


def test_folders_are_numbered(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert bench("patchconvnet_nano", *TINY_FLAGS, "--sizes", 16, *QUICK) == 0
    names = {folder.name for folder in (tmp_path / "runs" / "bench").iterdir()}
    assert names == {"patchconvnet_nano", "patchconvnet_nano-2"}


def test_a_layer_takes_its_arguments_as_flags(tmp_path):
    flags = ["--args.in-channels", 24, "--args.out-channels", 48, "--args.num-heads", 2]
    assert bench("AAConv2d", *flags, "--sizes", 8, *QUICK, "--out", tmp_path / "out") == 0
    conv, qkv, proj = 9 * 24 * 44 + 44, 24 * 84 + 84, 4 * 4 + 4
    tables = 2 * 63 * 20
    assert rows(tmp_path / "out")[0]["parameters"] == str(conv + qkv + proj + tables)


def test_a_model_can_be_given_attention(tmp_path):
    flags = ["--augment.pool", "attention", "--augment.conv", "layer3.*", "--sizes", 32]
    assert bench("test_resnet", *flags, *QUICK, "--out", tmp_path / "out") == 0
    ours = augment(timm.create_model("test_resnet"), pool="attention", conv="layer3.*")
    size = sum(parameter.numel() for parameter in ours.parameters())
    assert rows(tmp_path / "out")[0]["parameters"] == str(size)


def test_a_run_is_measured_at_the_size_it_was_trained_for(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = TrainConfig(model=ModelConfig(name="patchconvnet_nano", model_args=TINY))
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    cfg = {"num_classes": 7, "input_size": [3, 40, 40]}
    network = timm.create_model("patchconvnet_nano", num_classes=7, **TINY)
    safetensors.torch.save_file(
        network.state_dict(), run / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    assert bench(run, *QUICK, "--out", tmp_path / "out") == 0
    first = rows(tmp_path / "out")[0]
    assert (first["name"], first["height"]) == ("run", "40")
    assert first["parameters"] == str(sum(p.numel() for p in network.parameters()))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["patchconvnet_nan"], "the nearest name is 'patchconvnet_nano'"),
        (["AAConv"], "the nearest name is 'AAConv2d'"),
        (["retinanet_resnet50"], "does detection: measure its backbone"),
        (["vit_tiny_patch16_224", "--sizes", "225"], "vit_tiny_patch16_224 refuses sizes=225"),
        (["test_resnet", "--size", "32"], "unknown flag --size; the nearest is --sizes"),
        (["test_resnet", "--dtypes", "float16"], "--dtypes float16; expected "),
        (["test_resnet", "--args.num-heads", "2"], "unknown flag --args.num-heads"),
        (["test_resnet", "--augment.freeze"], "unknown flag --augment.freeze"),
        (["test_resnet", "--model-args", "widht", "2"], "refuses its arguments"),
        (["AAConv2d", "--args.num-head", "2"], "the nearest is --args.num-heads"),
        (["AAConv2d", "--args.v-ratio", "7"], "v_ratio=7.0 is not between 0 and 1"),
        (["AAConv2d", "--model-args", "x", "2"], "unknown flag --model-args"),
        (["test_resnet", "--out", "."], "is never overwritten"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_is_right(arguments, expected, capsys):
    assert expected in fails(capsys, *arguments)


def interrupted(subject, **words):
    return Costs(
        name=subject.name, device="cpu", threads=1, torch="2.11", rows=(), interrupted=True
    )


def test_ctrl_c_before_the_first_row_leaves_no_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("convattn.bench.measure", interrupted)
    out = tmp_path / "out"
    assert bench("AAConv2d", "--out", out) == 130
    assert "interrupted before anything was measured" in capsys.readouterr().err
    assert not out.exists()


def test_ctrl_c_later_keeps_the_rows(capsys, tmp_path, monkeypatch):
    from convattn import bench as module

    measure = module.measure
    monkeypatch.setattr(
        module,
        "measure",
        lambda *args, **words: dataclasses.replace(measure(*args, **words), interrupted=True),
    )
    out = tmp_path / "out"
    assert bench("AAConv2d", "--sizes", 8, *QUICK, "--out", out) == 130
    assert f"interrupted; {out} holds what was measured" in capsys.readouterr().err
    assert len(rows(out)) == 2
