"""A training goes on from what it wrote, or says in a sentence why it does not."""

import os
import shutil
import tempfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.config import DataConfig
from convattn.files import UnwritableError
from convattn.ownership import owned
from convattn.tasks import resume, train
from convattn.train.callbacks import read_metrics
from convattn.weights import read_checkpoint
from tests.train.conftest import digest, tiny
from tests.train.test_run import at_step

pytestmark = pytest.mark.usefixtures("no_images")


def crash(loss):
    raise RuntimeError("power cut")


def stop(folder, **changes):
    """Leave a run that crashed after its step 11."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 11, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(folder, **changes))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop(folder)
    return folder


@pytest.fixture
def case(stopped, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "case")


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def test_one_flipped_bit_of_a_tensor_is_noticed(case):
    content = bytearray(last(case).read_bytes())
    with zipfile.ZipFile(last(case)) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    start = content.find(largest.filename.encode()) + len(largest.filename)
    content[start + largest.file_size // 2] ^= 8
    last(case).write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged \(.* have changed\)"):
        resume(case)


def entries(content, prefix=()):
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from entries(value, (*prefix, key))


@pytest.mark.long
def test_no_entry_can_be_missing(stopped, tmp_path):
    whole = torch.load(last(stopped), weights_only=True)
    paths = list(entries(whole))
    assert ("state_dict",) in paths
    assert len(paths) > 100
    for path in paths[:: len(paths) // 40]:
        content = torch.load(last(stopped), weights_only=True)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=r"x\.ckpt is not as the training wrote it.*; redo"):
            read_checkpoint(tmp_path / "x.ckpt", "redo")


@pytest.mark.parametrize("content", [[1], {}, {3: 4}, "text", None, torch.ones(2)])
def test_what_is_no_checkpoint_is_refused(content, case):
    torch.save(content, last(case))
    with pytest.raises(ValueError, match=r"last\.ckpt is no(t as| checkpoint)"):
        resume(case)


def test_text_is_no_checkpoint(case):
    last(case).write_text("hello")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged \(it is not what torch"):
        resume(case)


def test_run_that_goes_on_elsewhere_is_left_alone(case):
    before = last(case).read_bytes()
    with owned(case), pytest.raises(ValueError, match="is being written by process"):
        resume(case)
    assert last(case).read_bytes() == before


@pytest.mark.long
def test_nothing_goes_through_the_system_s_temporary_files(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    train(tiny(tmp_path / "run"))
    assert digest(tmp_path / "run") == digest(finished.folder)


def test_run_folder_removed_meanwhile_ends_the_training_and_stays_away(tmp_path, monkeypatch):
    def remove(loss):
        shutil.rmtree(tmp_path / "run")
        return loss

    at_step(monkeypatch, 5, remove)
    with pytest.raises(UnwritableError, match=rf"there is no folder {tmp_path / 'run'}"):
        train(tiny(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_full_disk_ends_the_training_and_keeps_the_checkpoint_before(case, monkeypatch):
    before = last(case).read_bytes()
    save = torch.save

    def to_full_disk(content, stream):
        with open("/dev/full", "wb") as full:
            save(content, full)

    monkeypatch.setattr(torch, "save", to_full_disk)
    with pytest.raises(UnwritableError, match=r"last\.ckpt could not be written: the disk is full"):
        resume(case)
    assert last(case).read_bytes() == before
    assert os.listdir(case / "checkpoints") == ["last.ckpt"]


def test_resumed_run_clears_away_what_the_killed_one_left(case, finished):
    part = case / "checkpoints" / f"last.{2**22 + 1}.part.ckpt"
    part.write_bytes(b"half")
    resume(case)
    assert not list(case.rglob("*.part*"))
    assert digest(case) == digest(finished.folder)


def images(root):
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return DataConfig(name="folder", root=str(root), image_size=32, batch_size=2)


def added(root):
    shutil.copy(root / "train/a/0.png", root / "train/a/new.png")


def removed(root):
    (root / "train/b/7.png").unlink()


def renamed(root):
    (root / "train/b/7.png").rename(root / "train/b/70.png")


def moved(root):
    (root / "train/b/7.png").rename(root / "train/a/70.png")


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """A stopped run on image files, and these."""
    folder = tmp_path_factory.mktemp("files")
    stop(folder / "run", data=images(folder / "images"))
    return folder


@pytest.mark.parametrize("change", [added, removed, renamed, moved])
def test_other_training_images_are_refused(change, of_files, tmp_path):
    folder = shutil.copytree(of_files, tmp_path / "case")
    change(folder / "images")
    config = folder / "run" / "config.json"
    config.write_text(config.read_text().replace(str(of_files), str(folder)))
    with pytest.raises(ValueError, match=r"last\.ckpt was made with 16 training images and there"):
        resume(folder / "run")


def test_images_that_were_moved_as_a_whole_are_the_same(of_files, tmp_path):
    folder = shutil.copytree(of_files, tmp_path / "case")
    (folder / "images").rename(folder / "elsewhere")
    config = folder / "run" / "config.json"
    config.write_text(
        config.read_text().replace(str(of_files / "images"), str(folder / "elsewhere"))
    )
    resume(folder / "run")
    assert (folder / "run" / "report.md").exists()


METRICS = "step,epoch,train_loss\n3,0.5,1.25\n6,1,\n"


def test_rows_of_metrics_are_read_but_for_a_torn_one(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(METRICS + "9,1.5,0.2")
    assert read_metrics(file) == [
        {"step": 3, "epoch": 0.5, "train_loss": 1.25},
        {"step": 6, "epoch": 1},
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("3,0.5,1.25\n6,1,\n", "its columns are"),
        ("when,epoch\n1,2\n", "its columns are"),
        (METRICS + "9,1.5,0.2,7\n", "line 4 has 4 cells, expected 3"),
        (METRICS + "9\n", "line 4 has 1 cells, expected 3"),
        (METRICS + "9,1.5,low\n", "could not convert string to float: 'low'"),
        (METRICS + "nan,1.5,1\n", "line 4 tells no step"),
        (METRICS + ",1.5,1\n", "line 4 tells no step"),
        ('step,epoch,train_loss\n"3,0.5\n', "unexpected end of data"),
        ("\udc80\udcff\n", "codec can't decode"),
    ],
)
def test_other_metrics_are_refused_with_their_name(content, reason, tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"metrics\.csv is damaged \(.*{reason}"):
        read_metrics(file)


def test_resume_refuses_metrics_of_other_columns(case):
    (case / "metrics.csv").write_text(METRICS)
    with pytest.raises(
        ValueError, match=r"metrics\.csv is damaged \(its columns are .*expected st"
    ):
        resume(case)
