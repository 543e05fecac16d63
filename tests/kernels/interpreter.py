"""What the tests of Triton kernels share: on the CPU, Triton's interpreter runs them."""

import os
import subprocess
import sys
from pathlib import Path

import triton

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"


def run_interpreted(file):
    """The file's tests that are for GPUs, in a process whose Triton interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", file],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
