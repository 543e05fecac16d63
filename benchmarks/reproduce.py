"""The papers' tables, row by row: docs/results/reproduce.md out of ``convattn reproduce``.

python benchmarks/reproduce.py [--runs DIR] [--check] [--out docs/results/reproduce.md]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pages


def main() -> None:
    """Count and write."""
    pages.answer_check("reproduce")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=pages.RESULTS / "reproduce.md")
    given = parser.parse_args()
    runs = [] if given.runs is None else ["--runs", str(given.runs)]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "reproduce.md"
        command = [sys.executable, "-m", "convattn", "reproduce", *runs, "--out", str(page)]
        subprocess.run(command, check=True)
        text = page.read_text()
    about = pages.provenance("python benchmarks/reproduce.py", seed="none: nothing is random")
    pages.publish(given.out, text, [about])


if __name__ == "__main__":
    main()
