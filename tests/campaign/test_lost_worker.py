import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.campaign.counting import RIGHT
from tests.campaign.runs import TRAIN

pytestmark = pytest.mark.timeout(3600)
_SECONDS = 30.0


def _start(words):
    return subprocess.Popen(
        [sys.executable, "-m", "convattn", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _child_of(pid):
    """The other worker, which the first has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and b"convattn" in (stat.parent / "cmdline").read_bytes():
            return int(stat.parent.name)
    return None


def _gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _kill_one(run, rank):
    """What is wrong with how the other of two workers ends, and with the resumed run."""
    long = ["--epochs", "12"]
    first = _start([*TRAIN[:-1], *long, "--devices", "2", "--strategy", "ddp", "--out", run])
    try:
        checkpoint = run / "checkpoints" / "last.ckpt"
        while not checkpoint.exists():
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        second = _child_of(first.pid)
        killed, other = (first.pid, second) if rank == 0 else (second, first.pid)
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        while not _gone(other):
            if time.monotonic() - began > _SECONDS:
                os.kill(other, signal.SIGKILL)
                return f"rank {1 - rank} still runs after {_SECONDS:.0f} s"
            time.sleep(0.05)
    finally:
        first.kill()
    _, errors = first.communicate()
    status = first.returncode
    last = errors.strip().splitlines()[-1]
    if "Traceback" in errors:
        return f"traceback: {last}"
    wanted = (f"process {1 - rank} of 2 lost process {rank}", f"convattn train --resume {run}")
    if not last.startswith("convattn: ") or any(words not in last for words in wanted):
        return f"it says {last!r}"
    if rank == 1 and status in (0, -signal.SIGKILL):
        return f"exit status {status}"
    return RIGHT


def _resume(run):
    """What is wrong with the training that is gone on with."""
    resumed = _start(["train", "--resume", run])
    _, errors = resumed.communicate(timeout=600)
    return RIGHT if resumed.returncode == 0 else f"resume: {errors.strip()[-300:]}"


@pytest.mark.campaign("lost worker", 4)
def test_one_of_two_workers_is_killed(row, tmp_path):
    """One of two processes of a training (gloo, CPU) is killed with SIGKILL: the other ends within
    30 s with a sentence that names both and the command that resumes, its exit status is not 0,
    and that command goes on to the end."""
    for number in range(row.total // 2):
        run = tmp_path / f"run{number}"
        row.add(f"rank {number} is killed", _kill_one(run, number))
        row.add(f"resume after rank {number} was killed", _resume(run))
    row.check()
