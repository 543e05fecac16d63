import os
import random
import signal
import time

import pytest

from tests.campaign.running import call, start_command, wait, wait_for
from tests.campaign.runs import TRAIN, digest, resume_to_the_end, without_figures

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.campaign("kills", 20)
def test_killed_runs_resume_to_the_same_weights(row, runs, tmp_path):
    """A training is killed with SIGKILL at a random moment and resumed, every third one killed
    again while it resumes; its weights must be those of a run that nobody killed, and nothing
    half-written may stay."""
    draw = random.Random(24)
    began = time.monotonic()
    whole = call([*TRAIN, tmp_path / "whole"], tmp_path / "words", before=without_figures)
    assert whole.status == 0, whole.errors
    seconds = time.monotonic() - began
    for number in range(row.total):
        run, words = tmp_path / f"run{number}", tmp_path / f"words{number}"
        _kill_after(draw.uniform(0.05, 1) * seconds, [*TRAIN, run], run, words)
        if number % 3 == 0 and (run / "checkpoints" / "last.ckpt").exists():
            _kill_after(draw.uniform(0.05, 1) * seconds, ["train", "--resume", run], run, words)
        outcome = resume_to_the_end(run, TRAIN, words, digest(runs.finished))
        row.add(f"kill {number}", outcome)
    row.check()


def _kill_after(seconds, words, run, folder):
    """Kill a command so long after it began to write its run folder."""
    child = start_command(words, folder, before=without_figures)
    wait_for(run.exists, child)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    wait(child, folder)
