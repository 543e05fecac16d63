import os

import pytest
import safetensors.torch
import torch

from convattn.files import read_json, reading, written_whole


def test_whoever_may_read_new_files_may_read_one_that_was_written_whole(tmp_path):
    (tmp_path / "ordinary").touch()
    file = tmp_path / "model.safetensors"
    with written_whole(file) as part:
        safetensors.torch.save_file({"weight": torch.ones(2)}, part)
    assert file.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_fails_leaves_nothing_and_the_old_file(tmp_path):
    file = tmp_path / "model.txt"
    file.write_text("old")

    def stop_halfway():
        with written_whole(file) as part:
            part.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_halfway()
    assert file.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["model.txt"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda file: os.symlink("/dev/zero", file)])
def test_what_is_no_file_is_not_read(make, tmp_path):
    file = tmp_path / "config.json"
    make(file)
    with pytest.raises(ValueError, match=r"config\.json is damaged \(it is no file\); restore it"):
        read_json(file, "restore it")


def test_what_is_missing_stays_missing(tmp_path):
    with pytest.raises(FileNotFoundError), reading(tmp_path / "config.json", "restore it"):
        (tmp_path / "config.json").read_bytes()
