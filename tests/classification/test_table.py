"""The table of a folder's images: its cells beside the slow loop, and its bytes after every end."""

import contextlib
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from filelock import FileLock

from convattn.classification import table as tables
from convattn.classification.table import PredictedTable
from convattn.exceptions import Interrupted
from convattn.runs import Run
from convattn.text import csv_cell
from tests.classification.runs import CLASSES, IN_ORDER, make_run, paint, paint_folder, slowly


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, two of them broken, in four batches of two."""
    top = paint_folder(tmp_path_factory.mktemp("images"))
    for name in ("a-c.png", "d.png"):
        paint(top / name, 50)
        (top / name).write_bytes((top / name).read_bytes()[:50])
    return top


def predict(run, folder, out, **options):
    options = {"batch_size": 2, "num_workers": 0, "device": "cpu", **options}
    return Run.open(run).predict(folder, out=out, **options)


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def test_rows_hold_what_the_slow_loop_finds(run, folder, tmp_path, capsys):
    out = tmp_path / "table.csv"
    told = predict(run, folder, out)
    assert told == PredictedTable(
        out=out, embeddings=None, num_images=9, num_rows=7, num_rejected=0
    )
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [f"{folder}/{name}" for name in IN_ORDER]
    assert list(rows[0]) == ["path", "prediction", "probability"] + [
        f"{word}{rank}" for rank in range(2, 6) for word in ("prediction", "probability")
    ]
    for row in rows:
        shares, _ = slowly(run, row["path"])
        for rank, number in enumerate(shares.argsort(descending=True)[:5].tolist(), 1):
            own = "" if rank == 1 else str(rank)
            assert row[f"prediction{own}"] == csv_cell(CLASSES[number])
            assert float(row[f"probability{own}"]) == pytest.approx(float(shares[number]), abs=2e-6)
    told = capsys.readouterr().err
    for name in ("a-c.png", "d.png"):
        assert f"{folder}/{name} cannot be read as an image" in told
    assert "9 of 9 images" in told
    assert names_in(tmp_path) == {"table.csv"}


def test_rows_of_several_classes_hold_every_probability(several, folder, tmp_path):
    predict(several, folder, tmp_path / "table.csv")
    thresholds = Run.open(several).pretrained_cfg["thresholds"]
    found = set()
    for row in rows_of(tmp_path / "table.csv"):
        columns = [csv_cell(f"probability_{name}") for name in CLASSES]
        assert list(row)[3:] == columns
        shares = [float(row[column]) for column in columns]
        assert shares == pytest.approx(slowly(several, row["path"])[0].tolist(), abs=2e-6)
        taken = [number for number in range(len(CLASSES)) if shares[number] >= thresholds[number]]
        taken.sort(key=shares.__getitem__, reverse=True)
        assert row["prediction"] == csv_cell(";".join(CLASSES[number] for number in taken))
        assert row["probability"] == ";".join(f"{shares[number]:.6f}" for number in taken)
        found.add(len(taken))
    assert len(found) > 1


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_embeddings_have_a_row_for_each_of_the_tables(run, folder, tmp_path, suffix):
    file = tmp_path / "new" / f"vectors{suffix}"
    told = predict(run, folder, tmp_path / "table.csv", embeddings=file)
    assert told.embeddings == file
    if suffix == ".npy":
        found = torch.from_numpy(np.load(file))
    else:
        found = safetensors.torch.load_file(file)["embeddings"]
    assert found.dtype == torch.float32
    expected = [slowly(run, row["path"])[1] for row in rows_of(tmp_path / "table.csv")]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert names_in(tmp_path / "new") == {file.name}


def test_rejected_rows_are_marked_and_keep_what_was_said(run, folder, tmp_path):
    predict(run, folder, tmp_path / "plain.csv")
    told = predict(run, folder, tmp_path / "marked.csv", reject_below=0.45)
    rows = rows_of(tmp_path / "marked.csv")
    assert list(rows[0])[:4] == ["path", "prediction", "probability", "rejected"]
    for row in rows:
        assert row["rejected"] == ("true" if float(row["probability"]) < 0.45 else "false")
    assert 0 < told.num_rejected < len(rows)
    assert told.num_rejected == sum(row.pop("rejected") == "true" for row in rows)
    assert rows == rows_of(tmp_path / "plain.csv")


def test_one_image_and_few_classes_make_a_table_too(folder, tmp_path):
    run = make_run(tmp_path / "run", ["yes", "no"])
    predict(run, folder / "b.png", tmp_path / "table.csv")
    (row,) = rows_of(tmp_path / "table.csv")
    assert list(row) == ["path", "prediction", "probability", "prediction2", "probability2"]
    assert {row["prediction"], row["prediction2"]} == {"yes", "no"}


# ----------------------------------------------------------------------------- stopped and gone on


class _Killed(BaseException):
    pass


def _dies(function, count):
    """A function that works so many times, and then no more."""
    left = iter(range(count))

    def wrapped(*arguments, **options):
        if next(left, None) is None:
            raise _Killed
        return function(*arguments, **options)

    return wrapped


@pytest.fixture(scope="module")
def whole(run, folder, tmp_path_factory):
    """What a table that never was stopped, and its embeddings, consist of."""
    top = tmp_path_factory.mktemp("whole")
    predict(run, folder, top / "t.csv", embeddings=top / "v.npy", reject_below=0.45)
    return {file.name: file.read_bytes() for file in top.iterdir()}


def _go_on(run, folder, top):
    return predict(run, folder, top / "t.csv", embeddings=top / "v.npy", reject_below=0.45)


def _left(top):
    return {file.name: file.read_bytes() for file in top.iterdir() if file.suffix != ".lock"}


@pytest.mark.parametrize("place", ["_csv", "_line", "embeddings.append", "embeddings.begin",
                                   "embeddings.finish", "replace_atomically"])  # fmt: skip
@pytest.mark.parametrize("count", range(6))
def test_killed_before_any_step_it_ends_in_the_same_bytes(
    run, folder, whole, tmp_path, monkeypatch, place, count
):
    owner, _, name = place.rpartition(".")
    owner = getattr(tables, owner) if owner else tables
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, _dies(getattr(owner, name), count))
        try:
            _go_on(run, folder, tmp_path)
        except _Killed:
            assert "t.csv" not in names_in(tmp_path)
        else:
            assert _left(tmp_path) == whole
            return
    _go_on(run, folder, tmp_path)
    assert _left(tmp_path) == whole


@pytest.mark.parametrize("name", ["replace", "unlink"])
@pytest.mark.parametrize("count", range(3))
def test_killed_between_the_last_steps_it_ends_in_the_same_bytes(
    run, folder, whole, tmp_path, monkeypatch, name, count
):
    monkeypatch.setattr(tables, "replace_atomically", lambda file, text: file.write_bytes(text))
    with monkeypatch.context() as patched:
        patched.setattr(Path, name, _dies(getattr(Path, name), count))
        with contextlib.suppress(_Killed):
            _go_on(run, folder, tmp_path)
    if (tmp_path / "t.csv.journal").exists():
        told = _go_on(run, folder, tmp_path)
        assert (told.num_images, told.num_rows) == (9, 7)
    assert _left(tmp_path) == whole


@pytest.mark.parametrize("torn", ["t.csv.part", "v.npy.part", "t.csv.journal"])
@pytest.mark.parametrize("batches", range(1, 5))
def test_what_was_torn_is_cut_off(run, folder, whole, tmp_path, monkeypatch, torn, batches):
    with monkeypatch.context() as patched:
        patched.setattr(tables._Table, "append", _dies(tables._Table.append, batches))
        with pytest.raises(_Killed):
            _go_on(run, folder, tmp_path)
    with (tmp_path / torn).open("ab") as file:
        file.write(b'{"images": 8, "rows')
    _go_on(run, folder, tmp_path)
    assert _left(tmp_path) == whole


def test_only_the_rest_is_read_again(run, folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(tables._Table, "append", _dies(tables._Table.append, 3))
        with pytest.raises(_Killed):
            _go_on(run, folder, tmp_path)
    read = []
    original = tables.Pictures.__getitem__
    monkeypatch.setattr(
        tables.Pictures,
        "__getitem__",
        lambda self, index: read.append(self.images[index]) or original(self, index),
    )
    capsys.readouterr()
    _go_on(run, folder, tmp_path)
    assert [Path(path).name for path in read] == ["c,d.png", "d.png", "ä ö.png"]
    assert "goes on after 6 of 9 images" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(run, folder, whole, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tables.Progress, "update", interrupted)
        with pytest.raises(Interrupted, match="the same command again"):
            _go_on(run, folder, tmp_path)
    assert "t.csv.lock" not in names_in(tmp_path)
    _go_on(run, folder, tmp_path)
    assert _left(tmp_path) == whole


# ------------------------------------------------------------------------------------------ refused


def test_nothing_is_overwritten(run, folder, tmp_path):
    out, vectors = tmp_path / "t.csv", tmp_path / "v.npy"
    for taken in (out, vectors, tmp_path / "t.csv.part", tmp_path / "v.npy.part"):
        taken.write_text("mine")
        with pytest.raises(FileExistsError, match=r"never overwritten|without the t\.csv\.journal"):
            predict(run, folder, out, embeddings=vectors)
        assert names_in(tmp_path) == {taken.name}
        assert taken.read_text() == "mine"
        taken.unlink()
    predict(run, folder, out)
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        predict(run, folder, out)
    assert out.read_bytes() == before


def test_what_came_in_the_meantime_is_not_overwritten(run, folder, tmp_path, monkeypatch):
    original = tables._Table.append

    def append(self, *arguments):
        self.out.write_text("mine")
        original(self, *arguments)

    monkeypatch.setattr(tables._Table, "append", append)
    with pytest.raises(FileExistsError, match="never overwritten"):
        predict(run, folder, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "mine"


@pytest.fixture
def stopped(run, folder, tmp_path, monkeypatch):
    """A table of which two batches are there."""
    top = tmp_path / "stopped"
    top.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(tables._Table, "append", _dies(tables._Table.append, 2))
        with pytest.raises(_Killed):
            predict(run, folder, top / "t.csv", embeddings=top / "v.npy")
    return top


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch_size": 3}, "batch_size 2, which now is 3"),
        ({"reject_below": 0.5}, "reject_below None, which now is 0.5"),
        ({"embeddings": None}, "embeddings"),
    ],
)
def test_other_options_do_not_go_on(run, folder, stopped, changed, told):
    before = _left(stopped)
    options = {"embeddings": stopped / "v.npy", **changed}
    with pytest.raises(ValueError, match=told):
        predict(run, folder, stopped / "t.csv", **options)
    assert _left(stopped) == before


def test_another_network_or_folder_does_not_go_on(folder, stopped, tmp_path):
    out, vectors = stopped / "t.csv", stopped / "v.npy"
    other = make_run(tmp_path / "other", CLASSES, seed=1)
    with pytest.raises(ValueError, match="weights_sha256"):
        predict(other, folder, out, embeddings=vectors)
    other = make_run(tmp_path / "cropped", CLASSES, crop_pct=1.0)
    with pytest.raises(ValueError, match="transform"):
        predict(other, folder, out, embeddings=vectors)
    renamed = make_run(tmp_path / "renamed", [*CLASSES[1:], "new"])
    with pytest.raises(ValueError, match="classes"):
        predict(renamed, folder, out, embeddings=vectors)


def test_a_folder_that_has_changed_does_not_go_on(run, folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    with monkeypatch.context() as patched:
        patched.setattr(tables._Table, "append", _dies(tables._Table.append, 2))
        with pytest.raises(_Killed):
            predict(run, images, tmp_path / "t.csv")
    paint(images / "new.png", 1)
    with pytest.raises(ValueError, match="num_images 9, which now is 10"):
        predict(run, images, tmp_path / "t.csv")
    (images / "b.png").unlink()
    with pytest.raises(ValueError, match="paths_sha256"):
        predict(run, images, tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv.part", "v.npy.part"])
@pytest.mark.parametrize("shorter", [True, False])
def test_parts_that_are_gone_are_told(run, folder, stopped, name, shorter):
    part = stopped / name
    if shorter:
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()
    with pytest.raises(ValueError, match=rf"{name} is not what .*journal tells of"):
        predict(run, folder, stopped / "t.csv", embeddings=stopped / "v.npy")


@pytest.mark.parametrize("text", ["", "mine", "mine\n", "[1]\n[2]\n", "{}\n"])
def test_a_journal_of_something_else_is_told(run, folder, tmp_path, text):
    journal = tmp_path / "t.csv.journal"
    journal.write_text(text)
    with pytest.raises(ValueError, match="is not what convattn predict leaves"):
        predict(run, folder, tmp_path / "t.csv")
    assert journal.read_text() == text


def test_two_processes_do_not_write_one_table(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SECONDS_OF_ORPHANS", 0)
    with (
        FileLock(tmp_path / "t.csv.lock"),
        pytest.raises(ValueError, match="being written by another process"),
    ):
        predict(run, folder, tmp_path / "t.csv")
    predict(run, folder, tmp_path / "t.csv")


def test_a_folder_without_a_readable_image_leaves_nothing(run, tmp_path):
    images = tmp_path / "images"
    for number in range(3):
        paint(images / f"{number}.png", number)
        (images / f"{number}.png").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 3 files could be read"):
            predict(run, images, tmp_path / "t.csv", embeddings=tmp_path / "v.npy")
        assert names_in(tmp_path) == {"images"}


def test_a_table_that_cannot_be_there_is_refused(run, folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        predict(run, folder, tmp_path / "file" / "t.csv")
