import itertools
import os
import random
import shutil

import pytest

from tests.campaign.running import Case, run_cases
from tests.mutations import mutate

pytestmark = pytest.mark.timeout(3600)


def _missing(file):
    file.unlink()


def _empty(file):
    file.write_bytes(b"")


def _halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _zeroed(file):
    file.write_bytes(bytes(file.stat().st_size))


def _noise(file):
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def _doubled(file):
    file.write_bytes(2 * file.read_bytes())


def _folder(file):
    file.unlink()
    file.mkdir()


def _pipe(file):
    file.unlink()
    os.mkfifo(file)


def _dangling(file):
    file.unlink()
    file.symlink_to("nowhere")


def _endless(file):
    file.unlink()
    file.symlink_to(file.name)


def _device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


def _text(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _changed(file):
    file.write_bytes(mutate(file.read_bytes(), 24))


DAMAGES = (
    *(_missing, _empty, _halved, _zeroed, _noise, _doubled, _folder, _pipe, _dangling, _endless),
    *(_device, _text, _flipped, _changed),
)
FILES = (
    *("config.json", "model.safetensors", "metrics.csv", "checkpoints/last.ckpt", "checkpoints"),
    *("evaluation.json", "README.md", ".lock"),
)
COMMANDS = {
    "predict": ["predict", "run", "IMAGE", "--out", "out"],
    "explain": ["explain", "run", "IMAGE", "--out", "out"],
    "export": ["export", "run", "--format", "safetensors", "--out", "x.safetensors"],
    "evaluate": ["evaluate", "run", "--device", "cpu"],
    "resume": ["train", "--resume", "run"],
    "resume of the stopped": ["train", "--resume", "run"],
}


def _damage(run, name, how):
    file = run / name
    if name == ".lock":
        file.write_text('{"host": "elsewhere", "pid": 1, "start": null, "since": "yesterday"}')
    if file.is_dir():
        shutil.rmtree(file)
        file.write_bytes(b"not a folder")
    if file.exists():
        how(file)


@pytest.mark.campaign("damaged run folders", 361)
def test_damaged_run_folders(row, runs, tmp_path):
    """A file of a finished or a stopped run missing, empty, halved, zeroed, of noise, written
    twice, with a flipped bit, or a folder, a named pipe, a device, a broken or endless link, a
    pointer of Git LFS in its place; then `predict`, `explain`, `export`, `evaluate`,
    `train --resume`."""
    everything = list(itertools.product(FILES, DAMAGES, COMMANDS))
    chosen = random.Random(24).sample(everything, row.total)

    def case(name, how, command):
        def words(folder):
            run = runs.copy(runs.stopped if "stopped" in command else runs.finished, folder)
            _damage(run, name, how)
            return [runs.image if word == "IMAGE" else word for word in COMMANDS[command]]

        return Case(f"{name} {how.__name__[1:]}: {command}", words)

    run_cases((case(*one) for one in chosen), row, tmp_path / "cases")
    row.check()
