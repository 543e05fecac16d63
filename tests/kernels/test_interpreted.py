"""The Triton kernels' tests, which are for GPUs, on the CPU in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="no Triton for this machine")

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(VERSION < (3, 9), reason="its interpreter fails with current NumPy")
def test_kernels_are_right_in_the_interpreter():
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow"]
    done = subprocess.run(
        [
            *(*command, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"),
            *sorted(folder.rglob("test_experimental_triton.py")),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
