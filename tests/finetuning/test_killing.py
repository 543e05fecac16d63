"""A finetuning that is killed at random moments, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finetuning.conftest import MODEL, SIDE

# The paths are the same in every run, since the report tells them.
KILLED = """
import os, random, signal, sys, threading, time
from pathlib import Path
from convattn.cli import main
from convattn.finetuning import end_to_end, frozen, run

frozen._MOST_EPOCHS = 8
end_to_end.is_better = lambda *arguments: True  # so that the second stage trains twice
top, words = Path(sys.argv[1]), sys.argv[2:]


def finetune(name, wait=None):
    place = top / name
    place.mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        os.chdir(place)
        if wait is not None:
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        begun = Path("run/finetune.json").exists()
        own = [*words, "--cache", "maps", "--out", "run"]
        os._exit(main(["finetune", *(["--resume", "run"] if begun else own)]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


started = time.monotonic()
assert finetune("whole") == 0
longest, draws = (time.monotonic() - started) / 5, random.Random(0)
kills, number = [], 0
while len(kills) < 10:
    name = f"killed{number}"
    code = finetune(name, draws.uniform(0, longest))
    if code != -signal.SIGKILL:
        assert (top / name / "run/report.html").exists(), code
        number += 1  # it has come to its end
        continue
    kills.append((top / name / "run/stages/frozen.safetensors").exists())
assert (top / name / "run/report.html").exists() or finetune(name) == 0
assert set(kills) == {False, True}, kills  # in either stage
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_change_nothing(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    words = ["--model", MODEL, "--weights", str(weights), "--image-size", str(SIDE)]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(images), *words, "--epochs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--device", "cpu", "--folds", "2"], env=environment, check=True)
    names = ["model.safetensors", "evaluation.json", "config.json", "out_of_fold.csv"]
    for killed in tmp_path.glob("killed*"):
        for name in (*names, "report.html", "report.md"):
            expected = (tmp_path / "whole" / "run" / name).read_bytes()
            assert (killed / "run" / name).read_bytes() == expected, name
