import json

import pytest
from PIL import Image

from convattn.cli import main
from tests.checks.faults import good_classes, photograph, save


def refused(capsys, *arguments):
    assert main(["check-data", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: ")
    return line


@pytest.fixture
def root(tmp_path):
    return good_classes(tmp_path / "data", 2, 1)


def test_without_out_only_text_is_printed(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", str(root)]) == 0
    assert "classification, 6 images, 2 classes" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_page_and_json_are_left(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["check-data", str(root), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["data.html", "data.json"]
    assert json.loads((out / "data.json").read_text())["task"] == "classification"
    assert capsys.readouterr().out.endswith(f"{out}/data.html\n{out}/data.json\n")


def test_a_class_with_markup_is_only_text(tmp_path):
    for split in ("train", "val"):
        for name in ("<b>", "=1+1"):
            save(photograph(len(name)), tmp_path / "data" / split / name, "<script>.png")
    out = tmp_path / "out"
    assert main(["check-data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "data.html").read_text()
    assert "<b>" not in page
    assert "<script" not in page
    assert "&lt;b&gt;" in page


def test_what_exists_is_not_overwritten(root, tmp_path, capsys):
    assert "exists and is never overwritten" in refused(capsys, root, "--out", tmp_path)


def test_one_class_is_refused_in_the_words_of_the_loader(tmp_path, capsys):
    save(photograph(1), tmp_path / "cat", "a.png")
    assert "holds one class, 'cat'" in refused(capsys, tmp_path)


def test_classes_that_differ_in_case_are_refused(tmp_path, capsys):
    for name in ("Cat", "cat"):
        save(photograph(1), tmp_path / name, "a.png")
    assert "differ only in capitals" in refused(capsys, tmp_path)


def test_an_empty_class_folder_is_named(tmp_path, capsys):
    save(photograph(1), tmp_path / "cat", "a.png")
    (tmp_path / "dog").mkdir()
    assert str(tmp_path / "dog") in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run", "nowhere"), "nowhere is no run folder"),
        (("--num-workers", "-1"), "num_workers=-1; expected 0 or more"),
        (("--quick", "--run", "x"), "give one of the two"),
        (("--data.group", "a"), "leave group out"),
        (("--data", "cifar_10"), "did you mean 'cifar10'"),
        (("--data", "cluttered_digits"), "is generated"),
        (("--tsk", "auto"), "unknown flag --tsk"),
    ],
)
def test_mistakes_are_one_sentence(root, capsys, arguments, words):
    assert words in refused(capsys, root, *arguments)


def test_nothing_there_is_said(tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "name a folder of images" in refused(capsys)


def test_training_tells_the_worst_at_its_start(root, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(root / "train" / "cat" / "more.png")
    flags = ["--data.root", str(root), "--data.batch-size", "2", "--dry-run"]
    assert main(["train", "finetune", *flags]) == 0
    err = capsys.readouterr().err
    assert "5 images to train (2 to 3 a class), 2 images to test (1 a class); 2 classes" in err
    assert f"see convattn check-data {root}" in err
