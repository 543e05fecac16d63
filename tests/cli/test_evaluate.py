import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from convattn.classification import figures
from convattn.classification.predictions import PredictionsFile
from convattn.cli import main
from convattn.data import load_source, transform_of
from convattn.data.imagenet import imagenet_wnids
from convattn.ownership import owned
from convattn.runs import Run

WNIDS = imagenet_wnids()
CFG = {
    "input_size": (3, 16, 16),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2),
}


class Quick(nn.Module):
    """The mean colours of four quarters, and a linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = CFG
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@timm.models.register_model
def quick_for_tests(pretrained=False, **arguments):
    return Quick(arguments.get("num_classes", 1000))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """An image a class, as in the validation set's folders; the names' numbers are 1 to 1000."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for number, wnid in enumerate(WNIDS):
        folder = root / "val" / wnid
        folder.mkdir(parents=True)
        quarters = Image.fromarray(generator.integers(256, size=(2, 2, 3), dtype=np.uint8))
        file = folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        quarters.resize((18, 20), Image.Resampling.NEAREST).save(file, "PNG")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory, imagenet):
    """Weights that are right about two thirds of the images, since a third of them is cut."""
    transform = transform_of(CFG)
    files = sorted(imagenet.rglob("*.JPEG"))
    features = torch.stack(
        [
            nn.functional.adaptive_avg_pool2d(transform(Image.open(file)), 2).flatten()
            for file in files
        ]
    )
    model = Quick(1000)
    with torch.no_grad():  # the nearest of the features, by the largest product less half a square
        model.fc.weight.copy_(features * (torch.arange(1000) % 3 > 0)[:, None])
        model.fc.bias.copy_(-model.fc.weight.square().sum(1) / 2)
    file = tmp_path_factory.mktemp("weights") / "quick.pth"
    torch.save(model.state_dict(), file)
    return file


def command(imagenet, weights, *more):
    return [
        *("evaluate", "quick_for_tests", "--data", "imagenet", "--data.root", str(imagenet)),
        *("--weights", str(weights), "--data.num-test", "100", "--data.batch-size", "16"),
        *("--device", "cpu", *more),
    ]


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def fails(capsys, *arguments):
    """The one line that a mistake leaves on stderr."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def whole(imagenet, weights, tmp_path_factory):
    """The folder of a test that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(imagenet, weights, "--out", str(folder))) == 0
    return folder


@pytest.fixture(autouse=True)
def _quick_drawing(whole, monkeypatch):
    """The figure, a second each, is drawn once, by ``whole``; tests/explain looks at it."""

    def draw(labels, taken, names, out, *, title):
        out.write_bytes((whole / "confusion.png").read_bytes())

    monkeypatch.setattr(figures, "draw_confusion", draw)


def test_folder_holds_everything(whole):
    assert sorted(file.name for file in whole.iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "evaluation_config.json",
        "per_class.csv",
        "predictions.csv",
    ]


def test_accuracy_is_that_of_the_predictions(whole, imagenet, weights):
    model = Quick(1000)
    model.load_state_dict(torch.load(weights))
    transform = transform_of(CFG)
    first, fifth = 0, 0
    for row in rows_of(whole / "predictions.csv"):
        label = WNIDS.index(Path(row["image"]).parent.name)
        image = transform(Image.open(imagenet / row["image"]))
        ranked = model(image[None])[0].argsort(descending=True).tolist()
        first += ranked[0] == label
        fifth += label in ranked[:5]
    found = json.loads((whole / "evaluation.json").read_text())
    assert (found["num_images"], found["num_classes"]) == (100, 1000)
    assert 30 < first < 90
    assert (found["top1"], found["top5"]) == (first / 100, fifth / 100)


def test_real_accuracy_is_the_slow_loop(whole):
    rows = rows_of(whole / "predictions.csv")
    folder = Path(timm.__file__).parent / "data" / "_info"
    real = json.loads((folder / "imagenet_real_labels.json").read_text())
    numbers = [int(row["image"][-13:-5]) - 1 for row in rows]
    right = [
        int(row["rank1"]) in real[number]
        for row, number in zip(rows, numbers, strict=True)
        if real[number]
    ]
    found = json.loads((whole / "evaluation.json").read_text())
    assert found["num_real"] == len(right) < 100
    assert found["real_top1"] == sum(right) / len(right)


def test_predictions_name_images_from_the_root(whole):
    for row in rows_of(whole / "predictions.csv"):
        label = int(row["label"])
        assert row["image"] == f"val/{WNIDS[label]}/ILSVRC2012_val_{label + 1:08d}.JPEG"


def test_classes_carry_id_and_name(whole):
    row = rows_of(whole / "per_class.csv")[1]
    assert (row["wnid"], row["name"]) == ("n01443537", "goldfish, Carassius auratus")


def test_files_are_told(imagenet, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(imagenet, weights, "--out", str(out))) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-4:] == [
        str(out / name)
        for name in ("evaluation.json", "per_class.csv", "confusion.png", "predictions.csv")
    ]
    assert "1,000 images; ImageNet's validation set has 50,000" in printed.err


def test_model_by_name_gets_a_numbered_folder(imagenet, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(command(imagenet, weights, "--data.num-test", "5")) == 0
    folders = sorted(str(file) for file in Path().glob("runs/evaluate/*/predictions.csv"))
    assert folders == [
        "runs/evaluate/quick_for_tests-2/predictions.csv",
        "runs/evaluate/quick_for_tests/predictions.csv",
    ]


# --- a test that is killed


class KilledError(BaseException):
    """No handler of ours knows it."""


def kill_after(monkeypatch, batches):
    """The process dies when the rows of the next batch would be written."""
    real = PredictionsFile.append
    left = iter(range(batches))

    def append(self, predictions):
        if next(left, None) is None:
            raise KilledError
        real(self, predictions)

    monkeypatch.setattr(PredictionsFile, "append", append)


def kill(monkeypatch, arguments, batches):
    with monkeypatch.context() as patch:
        kill_after(patch, batches)
        with pytest.raises(KilledError):
            main(arguments)


def without_speed(folder):
    found = json.loads((folder / "evaluation.json").read_text())
    del found["images_per_second"]
    return found


@pytest.mark.parametrize("torn", [b"", b"val/n0", b"val/n01440764/a.JPEG,1,0.123,1,2,3,4,5"])
def test_killed_test_ends_as_if_it_never_had_been(
    torn, whole, imagenet, weights, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "out"
    kill(monkeypatch, command(imagenet, weights, "--out", str(folder)), 4)
    with (folder / "predictions.part.csv").open("ab") as file:
        file.write(torn)
    assert not (folder / "evaluation.json").exists()
    capsys.readouterr()
    assert main(["evaluate", "--resume", str(folder)]) == 0
    assert "goes on after 64 of 100 images" in capsys.readouterr().err
    assert without_speed(folder) == without_speed(whole)
    for name in ("predictions.csv", "per_class.csv", "evaluation_config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        file.name for file in whole.iterdir()
    )


def test_only_the_rest_is_computed(imagenet, weights, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    kill(monkeypatch, command(imagenet, weights, "--out", str(folder)), 6)
    seen = []
    forward = Quick.forward
    monkeypatch.setattr(Quick, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    assert main(["evaluate", "--resume", str(folder)]) == 0
    assert seen == [4]


def test_resume_comes_first_and_alone(whole, capsys):
    line = fails(capsys, "evaluate", str(whole), "--resume")
    assert line.endswith("--resume takes no model and no data: convattn evaluate --resume FOLDER")


def test_test_that_ended_is_not_resumed(whole, capsys):
    assert "holds no test that was stopped" in fails(capsys, "evaluate", "--resume", str(whole))


def test_resuming_takes_no_flags(whole, capsys):
    line = fails(capsys, "evaluate", "--resume", str(whole), "--device", "cpu")
    assert "takes no --device" in line


def test_resuming_with_other_weights_is_refused(imagenet, weights, tmp_path, monkeypatch, capsys):
    file = tmp_path / "weights.pth"
    file.write_bytes(weights.read_bytes())
    kill(monkeypatch, command(imagenet, file, "--out", str(tmp_path / "out")), 1)
    torch.save(Quick(1000).state_dict(), file)
    capsys.readouterr()
    assert main(["evaluate", "--resume", str(tmp_path / "out")]) == 2
    assert "was begun with weights_sha256" in capsys.readouterr().err


def linked(imagenet, data):
    """A folder with links to the validation images, which may be renamed."""
    for wnid in WNIDS:
        (data / wnid).mkdir(parents=True)
        for file in (imagenet / "val" / wnid).iterdir():
            (data / wnid / file.name).symlink_to(file)
    return data


def test_resuming_with_other_images_is_refused(imagenet, weights, tmp_path, monkeypatch, capsys):
    data = linked(imagenet, tmp_path / "data")
    kill(monkeypatch, command(data, weights, "--out", str(tmp_path / "out")), 1)
    with (tmp_path / "out" / "predictions.part.csv").open(newline="") as file:
        fourth = list(csv.DictReader(file))[3]["image"]
    moved = data / fourth
    moved.rename(moved.with_name("ILSVRC2012_val_00040000.JPEG"))
    capsys.readouterr()
    assert main(["evaluate", "--resume", str(tmp_path / "out")]) == 2
    assert "row 4 of" in capsys.readouterr().err


def test_resuming_with_images_renamed_behind_what_is_done_is_refused(
    imagenet, weights, tmp_path, monkeypatch, capsys
):
    data = linked(imagenet, tmp_path / "data")
    kill(monkeypatch, command(data, weights, "--out", str(tmp_path / "out")), 1)
    with (tmp_path / "out" / "predictions.part.csv").open(newline="") as content:
        done = {row["image"].rpartition("/")[2] for row in csv.DictReader(content)}
    for number, file in enumerate(sorted(data.glob("*/*"))):
        if file.name not in done:
            file.rename(file.with_name(f"ILSVRC2012_val_{40_000 + number:08d}.JPEG"))
    capsys.readouterr()
    assert main(["evaluate", "--resume", str(tmp_path / "out")]) == 2
    assert "was begun on other images" in capsys.readouterr().err


def test_second_test_in_a_folder_is_told_who_is_there(
    imagenet, weights, tmp_path, monkeypatch, capsys
):
    kill(monkeypatch, command(imagenet, weights, "--out", str(tmp_path / "out")), 1)
    rows = (tmp_path / "out" / "predictions.part.csv").read_bytes()
    capsys.readouterr()
    with owned(tmp_path / "out"):
        assert main(["evaluate", "--resume", str(tmp_path / "out")]) == 2
    assert f"out is being written by process {os.getpid()} since" in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.part.csv").read_bytes() == rows


def test_ctrl_c_says_how_to_go_on(imagenet, weights, tmp_path, monkeypatch, capsys):
    def interrupt(self, predictions):
        raise KeyboardInterrupt

    monkeypatch.setattr(PredictionsFile, "append", interrupt)
    out = tmp_path / "out"
    assert main(command(imagenet, weights, "--out", str(out))) == 130
    assert f"convattn evaluate --resume {out}" in capsys.readouterr().err


# --- runs


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    flags = [
        *("--data.num-train", "32", "--data.num-test", "20", "--data.image-size", "32"),
        *("--data.batch-size", "8", "--epochs", "1", "--accelerator", "cpu", "--devices", "1"),
        *("--model.model-args", "embed_dim", "16", "depth", "1"),
    ]
    assert main(["train", "quickstart", *flags, "--out", str(folder)]) == 0
    return folder


def test_runs_folder_gets_the_results_and_the_same_words_go_on(run, monkeypatch, capsys):
    words = ["evaluate", str(run), "--device", "cpu"]
    assert main(words) == 0
    before, rows = without_speed(run), (run / "predictions.csv").read_bytes()
    assert before["peak_in_box"] is not None
    assert rows.splitlines()[0].endswith(b",peak_in_box,energy_in_box")
    kill(monkeypatch, words, 1)
    capsys.readouterr()
    assert main(words) == 0
    assert "goes on after 8 of 20 images" in capsys.readouterr().err
    assert without_speed(run) == before
    assert (run / "predictions.csv").read_bytes() == rows
    kill(monkeypatch, words, 1)
    assert main([*words, "--data.num-test", "10"]) == 0
    assert "goes on" not in capsys.readouterr().err


# --- bad input


def test_missing_classes_are_one_line_and_leave_nothing(imagenet, weights, tmp_path, capsys):
    for wnid in WNIDS[:10]:
        (tmp_path / "data" / "val" / wnid).mkdir(parents=True)
        for file in (imagenet / "val" / wnid).iterdir():
            (tmp_path / "data" / "val" / wnid / file.name).symlink_to(file)
    out = tmp_path / "out"
    words = [*command(tmp_path / "data", weights, "--out", str(out)), "--data.num-test", "9"]
    line = fails(capsys, *words)
    assert "10 of the 1,000 classes; missing: n01530575" in line
    assert not out.exists()
    assert main([*words, "--allow-missing-classes"]) == 0
    printed = capsys.readouterr()
    assert "classes with images" in printed.out
    assert "9 of 1,000" in printed.out
    assert "chooses among all of them" in printed.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--real", "x.json", "--data", "folder"], "--real is for imagenet; the data are folder"),
        (["--allow-missing-classes"], "--allow-missing-classes is for imagenet; the data are"),
        (["--data", "imagenet"], "imagenet needs root (--data.root)"),
        (["--data", "imagenet", "--data.root", "nowhere"], "root=nowhere does not exist"),
        (["--data.val-share", "0.2"], "--data.val-share is about training; a test has no use"),
        (["--data.num-train", "20"], "--data.num-train is about training"),
        (["--dtype", "float16"], "--dtype float16; expected float32 or bfloat16"),
    ],
)
def test_mistake_is_one_line(words, expected, capsys):
    assert expected in fails(capsys, "evaluate", "quick_for_tests", *words)


def test_existing_folder_is_kept(whole, imagenet, weights, capsys):
    line = fails(capsys, *command(imagenet, weights, "--out", str(whole)))
    assert "never overwritten; give another --out, or go on" in line


def test_network_of_other_classes_is_refused_before_anything_is_made(
    imagenet, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = "patchconvnet_nano.cluttered_digits"
    line = fails(capsys, "evaluate", model, "--data", "imagenet", "--data.root", str(imagenet))
    assert "the model has 10 classes and the data 1000" in line
    assert list(tmp_path.iterdir()) == []


# --- number formats


def test_bfloat16_is_nearly_the_same(whole, imagenet, weights, tmp_path):
    out = tmp_path / "out"
    words = command(imagenet, weights, "--out", str(out), "--dtype", "bfloat16", "--channels-last")
    assert main(words) == 0
    ours, exact = without_speed(out), without_speed(whole)
    assert ours["loss"] != exact["loss"]
    assert ours["loss"] == pytest.approx(exact["loss"], rel=0.05)


# --- other data


@pytest.mark.data
def test_tiny_imagenet_is_tested_alike(data_dir, tmp_path, monkeypatch):
    torch.save(Quick(40).state_dict(), tmp_path / "forty.pth")
    words = [
        *("evaluate", "quick_for_tests", "--weights", str(tmp_path / "forty.pth")),
        *("--data", "tiny_imagenet", "--data.root", str(data_dir / "tiny_imagenet_40")),
        *("--data.num-test", "200", "--data.batch-size", "32", "--out", str(tmp_path / "out")),
    ]
    kill(monkeypatch, words, 3)
    assert main(["evaluate", "--resume", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "per_class.csv")
    assert len(rows) == 40
    assert sum(int(row["images"]) for row in rows) == 200
    assert rows[0]["wnid"] == ""


# --- classes by name


def coloured(root, names, count=3):
    """Images whose colour tells their class: cats are red everywhere."""
    colours = {"cat": (200, 20, 20), "dog": (20, 200, 20), "emu": (20, 20, 200)}
    for name in names:
        for number in range(count):
            file = root / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(c + number for c in colours[name])).save(file)


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    """A run that has learnt to tell cats from dogs by their colours."""
    root = tmp_path_factory.mktemp("colours")
    for split in ("train", "val"):
        coloured(root / "data" / split, ("cat", "dog"), 8)
    words = (
        f"train quickstart --data.name folder --data.root {root}/data --data.num-train None "
        "--data.num-test None --data.image-size 32 --data.batch-size 8 --epochs 4 "
        f"--model.model-args embed_dim 16 depth 1 --accelerator cpu --out {root}/run"
    )
    assert main(words.split()) == 0
    assert json.loads((root / "run" / "evaluation.json").read_text())["top1"] == 1
    return root / "run"


def test_classes_in_another_order_are_tested_by_name(colour_run, tmp_path, capsys):
    coloured(tmp_path / "data" / "Test", ("cat",), 5)
    words = ["evaluate", colour_run, "--data.root", tmp_path / "data", "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["num_images"], result["top1"]) == (5, 1.0)
    assert result["per_class"] == {"cat": 1.0}
    assert "classes with images" in capsys.readouterr().out


def test_other_data_do_not_replace_the_result_on_its_own(colour_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coloured(tmp_path / "data" / "Test", ("cat",), 5)
    before = {file: file.read_bytes() for file in colour_run.iterdir() if file.is_file()}
    assert main(["evaluate", str(colour_run), "--data.root", str(tmp_path / "data")]) == 0
    assert {file: file.read_bytes() for file in colour_run.iterdir() if file.is_file()} == before
    found = tmp_path / "runs" / "evaluate" / "run"
    assert json.loads((found / "evaluation.json").read_text())["num_images"] == 5
    assert (found / "predictions.csv").is_file()


def test_a_result_that_tells_more_is_kept(colour_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colour_run, tmp_path / "tuned")
    file = tmp_path / "tuned" / "evaluation.json"
    file.write_text('{"num_images": 16, "top1": 1.0, "temperature": 1.3}')
    assert main(["evaluate", "tuned"]) == 0
    assert f"{Path('tuned/evaluation.json')} is kept" in capsys.readouterr().err
    assert "temperature" in file.read_text()
    found = tmp_path / "runs" / "evaluate" / "tuned" / "evaluation.json"
    assert json.loads(found.read_text())["top1"] == 1


def test_unknown_class_is_refused_or_left_out(colour_run, tmp_path, capsys):
    coloured(tmp_path / "data" / "val", ("cat", "emu"), 4)
    words = ["evaluate", colour_run, "--data.root", tmp_path / "data", "--out", tmp_path / "out"]
    words = [*map(str, words)]
    assert main(words) == 2
    assert "the class 'emu', which the network does not know" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--ignore-unknown"]) == 0
    assert "left out: 4 x image of an unknown class (emu" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["num_images"], result["per_class"]) == (4, {"cat": 1.0})


def test_what_is_left_out_is_told_at_the_start(colour_run, tmp_path, capsys):
    coloured(tmp_path / "data" / "val", ("cat", "dog"), 2)
    (tmp_path / "data" / "val" / "cat" / "list.txt").write_text("no image")
    words = ["evaluate", colour_run, "--data.root", tmp_path / "data", "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    assert "1 x no image by its name (val/cat/list.txt)" in capsys.readouterr().err


def result_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_all_of_other_data_without_splits_is_tested(colour_run, tmp_path, capsys):
    coloured(tmp_path / "data", ("cat", "dog"), 5)
    words = ["evaluate", colour_run, "--data.root", tmp_path / "data", "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    assert (result_of(tmp_path / "out")["num_images"], result_of(tmp_path / "out")["top1"]) == (
        10,
        1.0,
    )
    assert "has no splits: all its 10 images are tested" in capsys.readouterr().err


@pytest.fixture(scope="module")
def unsplit_run(tmp_path_factory):
    """A run on class folders, a fifth of which is set aside."""
    root = tmp_path_factory.mktemp("unsplit")
    coloured(root / "data", ("cat", "dog"), 10)
    words = (
        f"train quickstart --data.name folder --data.root {root}/data --data.num-train None "
        "--data.num-test None --data.image-size 32 --data.batch-size 8 --epochs 1 "
        f"--model.model-args embed_dim 16 depth 1 --accelerator cpu --out {root}/run"
    )
    assert main(words.split()) == 0
    return root


def test_of_its_own_data_a_run_is_tested_on_what_it_has_not_seen(unsplit_run, tmp_path, capsys):
    trained = Run.open(unsplit_run / "run")
    learnt = {Path(path) for path in load_source("folder", root=unsplit_run / "data").train.paths}
    (tmp_path / "link").symlink_to(unsplit_run)
    words = ["evaluate", trained.folder, "--data.root", tmp_path / "link" / "data"]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 4
    assert not {unsplit_run / "data" / row["image"] for row in rows} & learnt
    assert "4 of its 20 images, about a fifth of each class" in capsys.readouterr().err


def test_a_table_of_other_data_is_tested_whole(colour_run, tmp_path, capsys):
    coloured(tmp_path, ("cat", "dog"), 3)
    lines = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    words = ["evaluate", colour_run, "--data.root", tmp_path / "labels.csv"]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    assert result_of(tmp_path / "out")["num_images"] == 6
    assert "labels.csv has no splits: all its 6 images are tested" in capsys.readouterr().err


def test_a_test_parts_nothing(colour_run, tmp_path, capsys):
    line = fails(
        capsys, "evaluate", str(colour_run), "--group", "cat", "--out", str(tmp_path / "o")
    )
    assert "group='cat' (--data.group) parts images for a training" in line


def test_classes_of_a_model_by_name_are_told_to_be_numbers(tmp_path, capsys):
    coloured(tmp_path / "data", ("cat", "dog"), 2)
    torch.save(Quick(2).state_dict(), tmp_path / "two.pth")
    words = ["evaluate", "quick_for_tests", "--weights", tmp_path / "two.pth", "--data", "folder"]
    words += ["--data.root", tmp_path / "data", "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    assert result_of(tmp_path / "out")["num_images"] == 4
    assert "in sorted order: 0 'cat' to 1 'dog'; a run's" in capsys.readouterr().err
