"""The quickstart's results, out of finished runs: docs/results/quickstart.md.

convattn train quickstart --seed SEED          for seeds 0, 1, 2; quickstart_avgpool likewise
python benchmarks/quickstart.py RUN [RUN ...] [--check] [--out docs/results/quickstart.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pages
from convattn.text import markdown_table

POOLS = {"quickstart": "learned aggregation", "quickstart_avgpool": "average"}
HEAD = (
    "pool",
    "top-1, seeds {}",
    "mean",
    "attention peak inside the digit's box, seeds {}",
    "mean",
    "attention inside the box, mean",
)


def rows_of(groups: dict[str, dict[int, dict[str, float]]]) -> Iterator[tuple[str, ...]]:
    """A row a pool: per cent by seed, and their means.

    Args:
        groups: Recipe -> seed -> what ``evaluation.json`` says.
    """
    for recipe, by_seed in groups.items():
        results = [result for _, result in sorted(by_seed.items())]
        cells = [POOLS[recipe]]
        for key in ("top1", "peak_in_box", "energy_in_box"):
            shares = [100 * result[key] for result in results if result.get(key) is not None]
            listed = " / ".join(f"{share:.1f}" for share in shares)
            cells += [f"{listed} %", f"{fmean(shares):.1f} %"] if shares else ["", ""]
        yield (*cells[:5], cells[6])


def main() -> None:
    """Read and write."""
    pages.answer_check("quickstart")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=pages.RESULTS / "quickstart.md")
    given = parser.parse_args()
    groups: dict[str, dict[int, dict[str, float]]] = {}
    for run in given.runs:
        config = json.loads((run / "config.json").read_text())
        result = json.loads((run / "evaluation.json").read_text())
        groups.setdefault(config["recipe"], {})[config["seed"]] = result
    seeds = sorted(next(iter(groups.values())))
    head = [name.format(" / ".join(map(str, seeds))) for name in HEAD]
    text = f"# The quickstart's results\n\n{markdown_table(head, list(rows_of(groups)))}\n"
    commands = [f"convattn train {name} --seed SEED" for name in groups]
    command = "; ".join([*commands, "python benchmarks/quickstart.py RUN ..."])
    about = pages.provenance(command, "pools", seed=", ".join(map(str, seeds)))
    pages.publish(given.out, text, [about])


if __name__ == "__main__":
    main()
