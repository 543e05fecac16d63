"""``convattn predict RUN FOLDER --out FILE.csv``, as a person types it."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from convattn.cli import main
from convattn.config import ModelConfig, TrainConfig
from convattn.runs import Run
from tests.classification.runs import make_run, paint, paint_folder

CLASSES = ["one", "two", "three"]

KILLED = """
import os, pathlib, random, signal, sys, time
import convattn.classification.table, convattn.cli.predict, convattn.tasks
from convattn.cli import main

journal, draws = pathlib.Path(sys.argv[1]), random.Random(0)

def batches_done():
    return journal.read_bytes().count(b"\\n") if journal.exists() else 0

for least in (0, 5, 20, 35, 50, 65):
    child = os.fork()
    if not child:
        workers = "1" if least == 35 else "0"  # which outlive their parent a little
        os._exit(main([*sys.argv[2:], "--num-workers", workers]))
    while batches_done() < least:
        time.sleep(0.001)
    time.sleep(draws.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(make_run(tmp_path_factory.mktemp("runs") / "run", CLASSES))


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "images")


def fails(capsys, *arguments):
    assert main(["predict", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convattn: ")
    return lines[0]


def test_a_folder_becomes_a_table(run, folder, tmp_path, capsys):
    out, vectors = tmp_path / "new" / "t.csv", tmp_path / "v.npy"
    words = ["predict", run, str(folder), "--out", str(out), "--embeddings", str(vectors)]
    assert main([*words, "--reject-below", "0.6", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    predictions = list(Run.open(run).predict(folder, reject_below=0.6, device="cpu"))
    for row, one, vector in zip(rows, predictions, np.load(vectors), strict=True):
        assert (row["path"], row["prediction"]) == (one.path, one.prediction)
        assert row["probability"] == f"{one.probability:.6f}"
        assert row["rejected"] == str(one.rejected).lower()
        np.testing.assert_allclose(vector, one.embedding.numpy(), rtol=1e-5, atol=1e-5)
    rejected = sum(one.rejected for one in predictions)
    assert 0 < rejected < 7
    assert f"{out}: 7 of 7 images, {rejected} of them rejected" in captured.out
    assert f"embeddings: {vectors}" in captured.out
    assert "7 of 7 images" in captured.err
    assert "2 x hidden" in captured.err


def test_bad_files_are_told_counted_and_have_no_row(run, folder, tmp_path, capsys):
    (folder / "b.png").write_bytes(b"broken")
    out = tmp_path / "t.csv"
    assert main(["predict", run, str(folder), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert f"{folder / 'b.png'} cannot be read as an image" in captured.err
    assert captured.err.strip().splitlines()[-1] == (
        "convattn: 1 of 7 files could not be read as an image and have no row"
    )
    assert f"{out}: 6 of 7 images" in captured.out
    assert "b.png" not in out.read_text()


def test_a_finished_table_is_not_overwritten(run, folder, tmp_path, capsys):
    out = tmp_path / "t.csv"
    assert main(["predict", run, str(folder), "--out", str(out)]) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert "never overwritten" in fails(capsys, run, folder, "--out", out)
    assert out.read_bytes() == before


def test_flags_without_effect_are_refused(run, folder, tmp_path, capsys):
    out = tmp_path / "out"
    for flag, value in (
        ("--embeddings", "v.npy"),
        ("--reject-below", "0.5"),
        ("--batch-size", "3"),
        ("--num-workers", "0"),
    ):
        for words in ([], ["--out", out]):
            told = fails(capsys, run, folder, flag, value, *words)
            assert f"{flag} is for tables: give --out FILE.csv" in told
    table = ["--out", f"{out}.csv"]
    assert "--threshold is for detection" in fails(capsys, run, folder, "--threshold", ".1", *table)
    assert "must end in .npy or" in fails(capsys, run, folder, "--embeddings", "v.txt", *table)
    assert "at most at 1" in fails(capsys, run, folder, "--reject-below", "50", *table)
    assert "batch_size=0" in fails(capsys, run, folder, "--batch-size", "0", *table)
    assert {file.name for file in tmp_path.iterdir()} == {"images"}


def test_other_networks_and_places_are_refused(run, folder, tmp_path, capsys):
    detector = tmp_path / "detector"
    detector.mkdir()
    config = TrainConfig(model=ModelConfig(name="retinanet", backbone="resnet_nano"))
    (detector / "config.json").write_text(config.to_json())
    table = ["--out", tmp_path / "t.csv"]
    assert "does detection: name a folder" in fails(capsys, detector, folder, *table)
    told = fails(capsys, detector, folder, "--embeddings", "v.npy")
    assert "--embeddings is for classification" in told
    several = make_run(tmp_path / "several", CLASSES, multi_label=True)
    assert "may find several" in fails(capsys, several, folder, "--reject-below", ".5", *table)
    assert "does not exist" in fails(capsys, run, tmp_path / "nothing", *table)
    (tmp_path / "empty").mkdir()
    assert "holds no image" in fails(capsys, run, tmp_path / "empty", *table)
    assert "takes an image or a folder" in fails(capsys, run, *table)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_killed_at_any_moment_it_ends_in_the_same_bytes(run, tmp_path):
    images = tmp_path / "images"
    for number in range(150):
        paint(images / f"{number % 7}" / f"{number}.png", number)
    (images / "3" / "10.png").write_bytes(b"broken")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def words(top):
        files = ["--out", str(top / "t.csv"), "--embeddings", str(top / "v.safetensors")]
        return ["predict", run, str(images), *files, "--batch-size", "2", "--device", "cpu"]

    assert main(words(whole)) == 2
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed / "t.csv.journal"), *words(killed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "goes on after" in done.stderr
    assert "1 of 150 files could not be read" in done.stderr
    for name in ("t.csv", "v.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert {file.name for file in killed.iterdir()} == {"t.csv", "v.safetensors"}
