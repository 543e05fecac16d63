"""Nasty names of classes and files, through every output of a classifier's life."""

import csv
from pathlib import Path

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from convattn.cli import main
from convattn.text import csv_cell
from tests.nasty import NASTY
from tests.test_text import harmless

NAMES = sorted({name.replace("/", "") for name in NASTY if "\0" not in name})


def make_images(root: Path) -> Path:
    """Five training images a class, and a class a name."""
    for split, count, shade in (("train", 5, 0), ("val", 1, 250)):
        for number, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                colour = (11 * number, 255 - 11 * number, 40 * place + shade)
                Image.new("RGB", (32, 32), colour).save(folder / f"{place} {name[:20]}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "=root|<b>$x^$")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run trained on them, by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = f"train quickstart --epochs 1 --data.batch-size 16 --data.image-size 32 --out {folder}"
    model = ["--model.model-args", "embed_dim", "16", "depth", "1"]
    data = ["--data.name", "folder", "--data.root", str(root)]
    assert main([*words.split(), *data, *model]) == 0
    return folder


def check_text(text: str) -> None:
    assert all(map(harmless, text.splitlines()))
    assert len(text.splitlines()) == text.count("\n") + (not text.endswith("\n"))
    for mark in ("<img", "<script", "<b>", "![x](", "`code`"):
        assert mark not in text


@pytest.mark.parametrize("name", ["report.md", "README.md"])
def test_markdown_of_a_run(name, run):
    *_, text = (run / name).read_text().split("---\n", 2)  # what stands above is data in YAML
    check_text(text.replace("![curves](curves.png)", "").replace("![attention](attention.png)", ""))


def test_evaluation(run, capsys, tmp_path):
    assert main(["evaluate", str(run), "--out", str(tmp_path / "test")]) == 0
    told = capsys.readouterr()
    assert all(map(harmless, told.out.split("\n")))
    for file, column in (("per_class.csv", "name"), ("predictions.csv", "image")):
        lines = (tmp_path / "test" / file).read_text(errors="surrogateescape").splitlines()
        rows = list(csv.DictReader(lines))
        assert len(lines) == len(rows) + 1 == len(NAMES) + 1
        assert not [row[column] for row in rows if row[column][0] in "=+-@\t\r"]
    with (tmp_path / "test" / "per_class.csv").open(errors="surrogateescape") as content:
        assert [row["name"] for row in csv.DictReader(content)] == list(map(csv_cell, NAMES))


@pytest.mark.long
def test_predictions_and_explanations(run, root, capsys, tmp_path):
    images = str(root / "val")
    assert main(["predict", str(run), images, "--out", str(tmp_path / "table.csv")]) == 0
    assert main(["predict", str(run), images, "--out", str(tmp_path / "predicted")]) == 0
    assert main(["explain", str(run), images, "--out", str(tmp_path / "explained")]) == 0
    told = capsys.readouterr()
    assert all(map(harmless, told.out.split("\n")))
    lines = (tmp_path / "table.csv").read_text(errors="surrogateescape").splitlines()
    assert len(lines) == len(NAMES) + 1
    cells = [cell for row in csv.DictReader(lines) for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


@pytest.mark.slow
def test_finetuning(root, capsys, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    words = f"--model test_resnet --weights {weights} --minutes 1 --epochs 0"
    words += f" --out {tmp_path / 'run'}"
    assert main(["finetune", str(root), *words.split()]) == 0
    assert all(map(harmless, capsys.readouterr().out.split("\n")))
    text = (tmp_path / "run" / "report.md").read_text()
    assert all(map(harmless, text.splitlines()))
    check_text("\n".join(line for line in text.split("\n") if not line.startswith("    ")))  # code
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page


def test_page_of_the_demo():
    from convattn.demo import page

    shown = page.heading("<img src=x onerror=alert(1)>", "<script>alert(1)</script>")
    assert "<img" not in shown
    assert "<script" not in shown
