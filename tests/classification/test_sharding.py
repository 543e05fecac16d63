import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from convattn.classification import sharding
from convattn.classification.sharding import shard_data
from convattn.cli import main
from convattn.config import DataConfig
from convattn.data import shard_writing
from convattn.files import sha256_of
from tests.data.test_sources import make_classes

FORMATS = ["webdataset", "litdata"]


@pytest.fixture
def folder(tmp_path):
    make_classes(tmp_path / "images" / "train", ants=9, bees=7, wasps=4)
    make_classes(tmp_path / "images" / "test", ants=3, bees=2, wasps=2)
    return tmp_path / "images"


def contents(out):
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def need(format):
    if format == "litdata":
        pytest.importorskip("litdata")


def shard(root, out, **options):
    shard_data(DataConfig(name="folder", root=str(root)), out, **{"shard_size": 4, **options})
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_processes_writes_the_same_bytes(format, folder, tmp_path):
    need(format)
    one, two = (
        contents(shard(folder, tmp_path / str(number), format=format, num_workers=number))
        for number in (0, 2)
    )
    assert one == two
    assert len(one) > 14


@pytest.mark.parametrize("format", FORMATS)
def test_stopped_at_any_place_it_ends_with_the_same_bytes(format, folder, tmp_path, monkeypatch):
    need(format)
    whole = contents(shard(folder, tmp_path / "whole", format=format))
    replace = shard_writing.replace_atomically
    written = []

    def stop_later(path, content):
        if len(written) == stop:
            raise RuntimeError("power cut")
        written.append(path)
        replace(path, content)

    for stop in (0, 1, 4, 8):
        out = tmp_path / f"stopped{stop}"
        written.clear()
        with monkeypatch.context() as patch:
            patch.setattr(shard_writing, "replace_atomically", stop_later)
            with pytest.raises(RuntimeError, match="power cut"):
                shard(folder, out, format=format)
        begun = {file: os.stat(out / file).st_mtime_ns for file in contents(out)}
        finished = [file for file in begun if f"{file}.json" in begun]
        assert contents(shard(folder, out, format=format)) == whole
        for file in finished:
            assert os.stat(out / file).st_mtime_ns == begun[file]


@pytest.mark.long
def test_killed_and_called_again_it_ends_with_the_same_bytes(tmp_path):
    make_classes(tmp_path / "images" / "train", ants=150, bees=150)
    make_classes(tmp_path / "images" / "test", ants=3, bees=2)
    words = ["shard", str(tmp_path / "images"), str(tmp_path / "out"), "--shard-size", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "convattn", *words, "--num-workers", "1"],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while len(list((tmp_path / "out").glob("*.tar.json"))) < 5:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not json.loads((tmp_path / "out" / "index.json").read_text())["finished"]
    assert main(words) == 0
    whole = shard(tmp_path / "images", tmp_path / "whole", shard_size=2)
    assert contents(tmp_path / "out") == contents(whole)


def test_index_has_the_hash_and_size_of_every_shard(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["shard", str(folder), str(out), "--shard-size", "6"]
    assert main(words) == 0
    assert "train: 20 images in 4 shards, test: 7 images in 2 shards" in capsys.readouterr().out
    index = json.loads((out / "index.json").read_text())
    assert index["splits"]["train"]["images"] == 20
    for split in index["splits"].values():
        for one in split["shards"]:
            assert sha256_of(out / one["file"]) == one["sha256"]
            assert (out / one["file"]).stat().st_size == one["size"]


def test_finished_folder_is_checked_and_left_as_it_is(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    before = contents(out)
    assert contents(shard(folder, out)) == before
    damaged = out / "train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"train-000001.tar is not the file that was written"):
        shard(folder, out)
    (out / "train-000001.tar.json").unlink()
    assert contents(shard(folder, out)) == before


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shard_size": 5}, "shard_size"),
        ({"format": "litdata"}, "shard_format"),
        ({}, "images, classes or parts"),
    ],
)
def test_other_call_is_refused(change, what, folder, tmp_path):
    need(change.get("format"))
    out = shard(folder, tmp_path / "out")
    before = contents(out)
    if not change:
        next((folder / "train" / "ants").iterdir()).unlink()
    with pytest.raises(ValueError, match=f"holds shards that differ in {what}"):
        shard(folder, out, **change)
    assert contents(out) == before


def test_folder_of_something_else_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds something else than shards"):
        shard(folder, folder)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="holds something else than shards"):
        shard(folder, tmp_path / "file")


def test_validation_part_gets_shards_of_its_own_and_parts_no_group(folder, tmp_path):
    out = tmp_path / "out"
    words = ["--val-share", "0.2", "--group", r"(.)\.png"]
    assert main(["shard", str(folder), str(out), "--shard-size", "99", *words]) == 0
    paths = {}
    for split in ("train", "val", "test"):
        with tarfile.open(out / f"{split}-000000.tar") as tar:
            notes = [json.load(tar.extractfile(one)) for one in tar if one.name.endswith("json")]
        paths[split] = {note["path"] for note in notes}
    assert len(paths["train"] | paths["val"]) == 20
    assert {path[-5] for path in paths["train"]}.isdisjoint(path[-5] for path in paths["val"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a folder of images, and the folder of the shards"),
        (["images"], "and the folder of the shards, first"),
        (["images", "--format", "webdataset"], "and the folder of the shards, first"),
        (["images", "out", "--shard-size", "0"], "shard_size=0; expected images, at least 1"),
        (["images", "out", "--num-workers", "-1"], "num_workers=-1; expected 0 or more"),
        (["nothing", "out"], "nothing does not exist"),
    ],
)
def test_mistakes_are_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["shard", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_channels_that_shards_are_not_read_with_are_refused(folder, tmp_path):
    for file in folder.rglob("*.png"):
        Image.new("LA", (6, 5), (40, 50)).save(file)
    with pytest.raises(ValueError, match=r"is read with 2 channels .* with 1 or 3"):
        shard_data(DataConfig(name="folder", root=str(folder), in_chans=2), tmp_path / "out")


def test_image_that_has_gone_is_told(folder, tmp_path, monkeypatch):
    opened = sharding.open_data

    def lose_one(config):
        source = opened(config)
        Path(source.train.paths[0]).unlink()
        return source

    monkeypatch.setattr(sharding, "open_data", lose_one)
    with pytest.raises(FileNotFoundError, match=r"000.png"):
        shard(folder, tmp_path / "out")


def test_without_litdata_its_package_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs litdata: pip install 'convattn\[shards\]'"
    ):
        shard(folder, tmp_path / "out", format="litdata")
    assert not (tmp_path / "out").exists()
