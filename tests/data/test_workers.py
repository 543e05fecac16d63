"""Processes that read images end with the one that reads from them."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import convattn

READER = """
import os, sys
from multiprocessing import get_context
from torch.utils.data import DataLoader
from convattn.data.workers import end_with_reader

class Numbers:
    def __len__(self):
        return 1000
    def __getitem__(self, number):
        return os.getpid()

if __name__ == "__main__":
    loader = DataLoader(
        Numbers(),
        num_workers=1,
        multiprocessing_context=get_context(sys.argv[1]),
        worker_init_fn=end_with_reader,
    )
    for pids in loader:
        print(int(pids), flush=True)
        sys.stdin.read()
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork server")
@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
def test_a_killed_reader_leaves_nobody(start, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = subprocess.Popen(
        [sys.executable, str(script), start],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    worker = int(reader.stdout.readline())
    assert worker != reader.pid
    assert is_running(worker)
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    for _ in range(300):  # PyTorch's own watchdog looks every 5 s
        if not is_running(worker):
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker was still there")
    reader.stdin.close()
    reader.stdout.close()


def test_every_loader_with_workers_has_it():
    found = 0
    for file in Path(convattn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DataLoader":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                if "num_workers" in given:
                    found += 1
                    init = given.get("worker_init_fn")
                    assert getattr(init, "id", None) == "end_with_reader", (file, node.lineno)
    assert found >= 10
