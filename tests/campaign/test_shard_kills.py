"""Trainings of two processes with two workers each on shards, killed and gone on with."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convattn.classification.sharding import shard_data
from convattn.config import DataConfig
from tests.campaign.counting import RIGHT
from tests.campaign.runs import digest
from tests.noise import write_noise

pytestmark = pytest.mark.timeout(3600)
_FLAGS = (
    "--data.num-train None --data.num-test None --data.image-size 32 --data.batch-size 8 "
    "--data.num-workers 2 --model.model-args embed_dim 16 depth 1 --epochs 3 --eval-every 3 "
    "--checkpoint-every 2 --log-every 1 --accelerator cpu --devices 2 --strategy ddp"
)
_QUICK = """
import os, sys
if "LOCAL_RANK" not in os.environ:
    os.setsid()
from convattn.cli import main
from convattn.classification import figures
from convattn.train import classification, run
run.draw_curves = lambda *_, **__: None
classification.draw_attention = lambda *_, **__: None
figures.draw_confusion = lambda labels, taken, names, out, **_: out.touch()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "format",
    [
        pytest.param("webdataset", marks=pytest.mark.campaign("kills on webdataset shards", 20)),
        pytest.param("litdata", marks=pytest.mark.campaign("kills on litdata shards", 20)),
    ],
)
def test_trainings_on_shards_end_in_the_same_weights(format, row, tmp_path):
    """A training of two processes with two workers each on uneven shards is killed with SIGKILL at
    a random moment, all its processes at once, every third one again while it goes on, and started
    by the same command with --auto-resume; its weights must be those of one that nobody killed."""
    if format == "litdata":
        pytest.importorskip("litdata")
    draw = random.Random(26)
    shards = _shards(tmp_path, format)
    script = tmp_path / "quick.py"
    script.write_text(_QUICK)

    def start(run):
        words = ["train", "quickstart", "--data.name", format, "--data.root", shards]
        words += [*_FLAGS.split(), "--out", run, "--auto-resume"]
        return subprocess.Popen(
            [sys.executable, script, *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(run):
        process = start(run)
        _, errors = process.communicate(timeout=300)
        return RIGHT if process.returncode == 0 else f"resume: {errors.strip()[-300:]}"

    began = time.monotonic()
    assert finish(tmp_path / "whole") == RIGHT
    seconds = time.monotonic() - began
    expected = digest(tmp_path / "whole")
    for number in range(row.total):
        run = tmp_path / f"run{number}"
        for _ in range(2 if number % 3 == 0 else 1):
            process = start(run)
            time.sleep(draw.uniform(0.3, 1) * seconds)
            _kill(process)
        outcome = finish(run)
        if outcome == RIGHT and digest(run) != expected:
            outcome = "other weights than a run never killed"
        row.add(f"kill {number}", outcome)
    row.check()


def _kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # not yet, or no longer, in a session of its own
    process.communicate()


def _shards(folder: Path, format: str) -> Path:
    """Shards of five of 42 images of noise."""
    write_noise(folder / "images", num_train=21)
    images = DataConfig(name="folder", root=str(folder / "images"))
    shard_data(images, folder / "shards", shard_size=5, format=format)
    return folder / "shards"
