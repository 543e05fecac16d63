"""The page of the loader's benchmark says what its rows give."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"


@pytest.mark.long
def test_page_is_of_its_rows():
    subprocess.run([sys.executable, SCRIPT, "--check"], check=True)
