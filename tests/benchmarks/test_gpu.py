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


def row(name, value, unit="ms", note=""):
    return {"name": name, "value": value, "unit": unit, "spread": None, "note": note}


def invented(**changes):
    """What a run on a GPU might have written."""
    title = "8 x 160 x 32 x 32, bfloat16"
    correctness = [
        row("sdpa, bfloat16, 9 x 33", 1e-3, "relative error", "at most 0.02"),
        row("experimental_triton, bfloat16, 9 x 33", 1e-3, "relative error", "at most 0.02"),
        row("plain, bfloat16, 9 x 33", 0.5, "relative error", "WRONG: 0.5 over 0.02"),
        row("plain, bfloat16, 14 x 14", 1e-3, "relative error", "at most 0.02"),
    ]
    layer = [
        row(f"{title}, forward: ours, sdpa", 2.0),
        row(f"{title}, forward: ours, experimental_triton", 1.0),
        row(f"{title}, forward: ours, experimental_triton", 0.1, "times"),
        row(f"{title}, forward: ours, plain", 0.5),
        row(f"{title}, forward: plain convolution", 0.2),
        row(f"{title}, forward + backward: ours, sdpa", 3.0),
        row(f"{title}, forward + backward: ours, experimental_triton", None),
        row(f"{title}, forward + backward: ours without positions", 1.0),
    ]
    parts = [{"name": "correctness", "rows": correctness}, {"name": "layer", "rows": layer}]
    return {"cpu": False, "device": "Invented 9000", "parts": parts, **changes}


def test_the_fastest_backend_that_is_right_is_adopted(gpu, tmp_path: Path) -> None:
    file, table = tmp_path / "gpu.json", tmp_path / "measured.json"
    table.write_text('{"Other": {}}')
    file.write_text(json.dumps(invented()))
    gpu.adopt(file, table)
    found = {"bfloat16": {"inference": "experimental_triton", "training": "sdpa"}}
    assert json.loads(table.read_text()) == {"Invented 9000": found, "Other": {}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cpu": True}, "a run on the CPU"),
        ({"parts": []}, "no time of a backend that was found right"),
        ({"parts": invented()["parts"][1:]}, "no time of a backend that was found right"),
    ],
)
def test_what_says_nothing_of_a_gpu_is_not_adopted(
    gpu, tmp_path: Path, monkeypatch, capsys, changes, sentence
) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(invented(**changes)))
    before = gpu.measured.FILE.read_text()
    monkeypatch.setattr("sys.argv", ["gpu.py", "--adopt", str(file)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert gpu.measured.FILE.read_text() == before
