"""Python 3.10: what refuses it says which Python is needed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SENTENCE = (
    "convattn needs Python 3.11 or newer, this is 3.10.13; name another: make PYTHON=python3.12"
)


@pytest.mark.parametrize(
    ("version", "taken"), [("3.10.13", False), ("3.11.0", True), ("3.12.1", True), ("3.14.0", True)]
)
def test_what_the_package_requires(version, taken):
    assert (version in SpecifierSet(PROJECT["requires-python"])) is taken


def test_told_versions_are_those_required():
    told = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line}
    assert told
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in told)


@pytest.fixture
def python310(tmp_path):
    """An interpreter that takes itself for Python 3.10."""
    file = tmp_path / "python3"
    code = "import sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; "
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}exec(sys.argv[1])" "$2"\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("target", ["test", "quickstart", "test-lowest", "test-latest", "interop"])
def test_make_refuses_before_it_makes_anything(python310, tmp_path, target):
    places = [f"{name}={tmp_path / name}" for name in ("VENV", "LOWEST", "LATEST", "INTEROP")]
    command = ["make", "-C", str(ROOT), f"PYTHON={python310}", *places, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert SENTENCE in done.stderr
    assert sorted(tmp_path.iterdir()) == [python310]


def test_pip_refuses(tmp_path):
    """By a wheel with the project's own requirement, as an index tells it."""
    wheel = tmp_path / "convattn-0-py3-none-any.whl"
    required = PROJECT["requires-python"]
    metadata = f"Metadata-Version: 2.1\nName: convattn\nVersion: 0\nRequires-Python: {required}\n"
    about = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("convattn-0.dist-info/METADATA", metadata)
        file.writestr("convattn-0.dist-info/WHEEL", about)
        file.writestr("convattn-0.dist-info/RECORD", "")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    command += ["--python-version", "3.10", "--only-binary=:all:", "--target", str(tmp_path / "to")]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "requires a different Python: 3.10.0 not in '>=3.11'" in done.stderr
