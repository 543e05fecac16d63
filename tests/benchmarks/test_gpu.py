"""The one call for a GPU, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import FOLDER


@pytest.fixture
def gpu(load):
    return load("gpu")


def test_a_failed_part_keeps_its_rows_and_leaves_the_others(gpu, tmp_path: Path) -> None:
    def broken():
        yield gpu.Row("before", 1.0, "ms")
        raise RuntimeError("no such kernel")

    def whole():
        yield gpu.Row("after", 2.0, "ms", (1.5, 2.5))

    about = gpu.describe("cpu")
    assert gpu.run({"layer": broken, "memory": whole}, about, tmp_path) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [(part["name"], part["status"]) for part in parts] == [
        ("layer", "failed"),
        ("memory", "done"),
    ]
    assert "no such kernel" in parts[0]["error"]
    assert [part["rows"][0]["name"] for part in parts] == ["before", "after"]
    page = (tmp_path / "gpu.md").read_text()
    assert "no such kernel" in page
    assert "2 (1.5 to 2.5)" in page


def test_without_a_failure_the_exit_status_is_zero(gpu, tmp_path: Path) -> None:
    assert gpu.run({"layer": lambda: iter(())}, gpu.describe("cpu"), tmp_path) == 0


@pytest.mark.long
def test_a_run_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--cpu", "--out", str(tmp_path / "page")]
    words = [*command, "--parts", "layer", "finetune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "page" / "gpu.json").read_text())
    assert written["cpu"] is True
    assert {"torch", "timm", "python"} <= written["versions"].keys()
    assert [part["name"] for part in written["parts"]] == ["layer", "finetune"]
    for row in (row for part in written["parts"] for row in part["rows"]):
        assert row.keys() >= {"name", "value", "unit", "spread"}
        assert row["value"] > 0
    again = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode == 2
    assert "name a new folder by --out" in again.stderr
