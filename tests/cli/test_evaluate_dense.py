"""``convattn evaluate`` of detectors and segmenters on people's own folders."""

import csv
import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from convattn.cli import main
from tests.data.layouts import Picture, Thing, write_coco

SIZE = 48
FLAGS = ["--data.batch-size", "2", "--epochs", "1", "--devices", "1", "--accelerator", "cpu"]
FLAGS += ["--model.backbone", "aa_resnet_nano"]
FLAGS += ["--data.scale-jitter", "1", "1", "--data.crop-size", "48", "48", "--data.image-size"]
FLAGS += ["48", "--logger", "csv"]
SMALL = {
    "finetune_retinanet": ["--model.model-args", "channels", "16", "head_convs", "1"],
    "finetune_upernet": ["--model.model-args", "channels", "16", "aux_channels", "8"],
}
COUNTS = {"train": 4, "val": 3, "test": 2}


def place(picture, folder):
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (SIZE, SIZE), (60, 60, 60))
    for thing in picture.things:
        image.paste((200, 40, 40) if thing.name == "red" else (40, 40, 200), thing.box)
    image.save(folder / picture.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Squares of two classes, and a third that is never shown."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    pictures = {
        split: [
            Picture(
                f"{split}{number}.png",
                SIZE,
                SIZE,
                [
                    Thing(name, (left, 8, left + 14, 24), [left, 8, left + 14, 8, left + 14, 24])
                    for name, left in (("red", 4), ("blue", 28))
                ],
            )
            for number in range(count)
        ]
        for split, count in COUNTS.items()
    }
    write_coco(folder, pictures, ["red", "blue", "green"], place)
    return folder


@pytest.fixture(scope="module", params=SMALL)
def run(request, root, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / request.param
    words = ["train", request.param, "--data.root", str(root), *FLAGS, *SMALL[request.param]]
    assert main([*words, "--out", str(folder)]) == 0
    return folder


def result_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def fails(capsys, *words):
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_training_tests_on_val_and_reports_every_class(run):
    assert result_of(run)["num_images"] == COUNTS["val"]
    report = (run / "report.md").read_text()
    for name in ("red", "blue", "green"):
        assert f"\n| {name} | " in report
    assert "![confusion](confusion.png)" in report


def test_the_other_split_gets_a_folder_of_its_own(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    (folder,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert result_of(folder)["num_images"] == COUNTS["test"]
    assert (run / "evaluation.json").read_bytes() == before
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert len(list((tmp_path / "runs" / "evaluate").iterdir())) == 2
    assert "green" in capsys.readouterr().out


def test_results_go_where_they_are_asked_for_and_replace_nothing(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["evaluate", str(run), "--out", str(out)]) == 0
    written = {file.name for file in out.iterdir()}
    assert written >= {"evaluation.json", "per_class.csv", "confusion.csv", "confusion.png"}
    printed = capsys.readouterr().out.split()
    assert all(str(out / name) in printed for name in written)
    line = fails(capsys, "evaluate", run, "--out", out)
    assert "exists and is never overwritten; give another --out" in line


def test_a_result_of_other_images_is_kept(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = (run / "evaluation.json").read_text()
    try:
        for change, words in (({"num_images": 7}, "is of 7 images"), ({"more": 1}, "tells what")):
            changed = json.dumps({**json.loads(before), **change})
            (run / "evaluation.json").write_text(changed)
            assert main(["evaluate", str(run)]) == 0
            assert words in capsys.readouterr().err
            assert (run / "evaluation.json").read_text() == changed
    finally:
        (run / "evaluation.json").write_text(before)


def test_an_unknown_split_is_one_sentence(run, capsys):
    line = fails(capsys, "evaluate", run, "--split", "tset")
    assert "no split 'tset' to test on: it has train and val and test; give --split val or" in line


def test_figures_of_the_classes_are_in_the_json(run, tmp_path):
    result = result_of(run)
    if "ap50" in result:
        assert result["ap50"] == result["map50"]
        assert set(result["per_class_ap50"]) == {"red", "blue"}
        assert result["per_class_objects"] == {"red": 3, "blue": 3, "green": 0}
        with (run / "precision_recall.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["class"] == "red"]
        mean = sum(float(row["precision"]) for row in rows) / len(rows)
        assert mean == pytest.approx(result["per_class_ap50"]["red"], abs=1e-5)
    else:
        assert result["per_class_pixels"]["green"] == 0
        assert "green" not in result["per_class_accuracy"]


def test_a_threshold_is_for_detectors(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--threshold", "0", "--out", str(tmp_path / "out")]
    if "upernet" in run.name:
        assert "is for detection" in fails(capsys, *words)
        return
    assert main(words) == 0
    with (tmp_path / "out" / "confusion.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["right class", "red", "blue", "green", "nothing"]
    assert [sum(map(int, row[1:])) for row in rows[:3]] == [3, 3, 0]


def test_classifiers_have_no_split_to_choose(tmp_path, capsys):
    line = fails(capsys, "evaluate", "resnet18", "--data", "folder", "--split", "test")
    assert "is for detection and segmentation" in line


# --- export and explain


@pytest.mark.slow  # half a minute and more each
def test_a_run_becomes_onnx_that_the_printed_lines_run(run, tmp_path, capsys):
    out = tmp_path / "x.onnx"
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = {"images": np.random.default_rng(0).random((2, 3, 48, 48), np.float32)}
    told = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    names["cfg"] = json.loads(told["pretrained_cfg"])
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    exec(
        "\n".join(line for line in lines if not line[:1].isdigit() and "pixels" not in line), names
    )
    if "upernet" in run.name:
        assert names["logits"].shape == (2, 3 + 1, 48, 48)
    else:
        assert set(names["found"]) == {"boxes", "labels", "scores"}


def test_what_a_file_of_them_cannot_be_is_one_sentence(run, capsys):
    for words in (["--attention"], ["--quantize", "int8"], ["--format", "safetensors"]):
        line = fails(capsys, "export", run, *words)
        assert "is for networks that classify images" in line


def test_an_image_is_explained(run, root, tmp_path, capsys):
    image = root / "test" / "test0.png"
    words = ["explain", str(run), str(image)]
    assert main([*words, "--query", "20", "30", "--out", str(tmp_path / "attention")]) == 0
    written = {file.name for file in (tmp_path / "attention").iterdir()}
    assert written == {"test0.png", "test0.npz", "explanations.json"}
    target = ["--target", "red"] if "upernet" in run.name else []
    assert main([*words, *target, "--out", str(tmp_path / "gradcam")]) in (0, 2)
    for more, said in (
        (["--method", "evidence"], "give gradcam, or attention with --query Y X"),
        (["--method", "attention"], "needs a point"),
        (["--head", "1"], "--head chooses attention"),
        (["--query", "1", "1", "--target", "red"], "of no class"),
        (["--view", "crop"], "is for networks that classify images"),
        (["--query", "900", "1"], "lies outside the image of 48 x 48"),
    ):
        assert said in fails(capsys, *words, *more)


def test_several_processes_are_refused_in_a_sentence(run, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "works in one process, and 2 were started: run it without torchrun or srun" in line
