import json
from dataclasses import replace

import pytest

import convattn.papers.reproduce
from convattn.cli import main
from convattn.papers.tables import TABLES
from convattn.recipes import RECIPES


@pytest.fixture(autouse=True)
def one_row(monkeypatch):
    """All rows take a minute to count."""
    table = TABLES[1]
    monkeypatch.setattr(convattn.papers.reproduce, "TABLES", (replace(table, rows=table.rows[:1]),))


def fails(capsys, *arguments):
    """The one line that a mistake leaves on stderr."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_table_is_printed(capsys):
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr()
    assert "ResNet-34  73.6 % top-1  21.80 / 21.8    7.33 / 7.4" in printed.out
    assert printed.err == ""


def test_page_and_json_are_written_anew(capsys, tmp_path):
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("of before")
    assert main(["reproduce", "--out", str(page), "--json", str(rows)]) == 0
    assert page.read_text().startswith("# The papers' tables")
    assert json.loads(rows.read_text())[0]["recipe"] == "resnet34_imagenet"
    assert str(page) in capsys.readouterr().out


def test_runs_are_looked_through(capsys, tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.json").write_text(RECIPES["resnet34_imagenet"]().to_json())
    (run / "evaluation.json").write_text('{"top1": 0.7, "num_images": 50000}')
    assert main(["reproduce", "--runs", str(tmp_path / "runs")]) == 0
    assert "70.00 % (trained, one)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--runs", "nowhere"], "nowhere is no folder"),
        (["--out", "nowhere/page.md"], "there is no folder nowhere"),
        (["--json", "nowhere/rows.json"], "there is no folder nowhere"),
        (["--outt", "x"], "unknown flag --outt; the nearest is --out"),
    ],
)
def test_mistake_is_one_line(arguments, expected, capsys):
    assert expected in fails(capsys, "reproduce", *arguments)


def test_dry_run_tells_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--data.num-train", "48", "--data.batch-size", "16", "--epochs", "2"]
    assert main(["train", "quickstart", *flags, "--dry-run", "--gpu", "v100"]) == 0
    printed = capsys.readouterr()
    assert "2 epochs x 3 = 6 steps of 16 images" in printed.out
    assert "V100 SXM2 has 32 GiB: it fits" in printed.out
    assert printed.out.endswith("Nothing was run.\n")
    assert printed.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpu", "v100"], "--gpu goes with --dry-run"),
        (["--dry-run", "--gpu", "h1000"], "--gpu h1000; expected "),
        (["--dry-run", "--data.name", "folder", "--data.root", "nowhere"], "nowhere"),
        (["--dry-run", "--model.name", "patchconvnet_nan"], "the nearest is 'patchconvnet_nano'"),
        (["--dry-run", "--data.num-train", "8"], "choose at most 8"),
        (["--dry-run", "--data.crop-size", "8", "8"], "data.crop_size=(8, 8) has no meaning"),
    ],
)
def test_mistake_in_a_dry_run_is_one_line(arguments, expected, capsys):
    assert expected in fails(capsys, "train", "quickstart", *arguments)
