"""Dense networks with and without attention: the table of finished runs.

    convattn train RECIPE --seed SEED --out DIR      for every recipe and seed
    python benchmarks/dense_study.py DIR [DIR ...] --out docs/results/dense_study.md

Runs of one recipe are its seeds; each row is their mean, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pages
from convattn.runs import Run

HEAD = """# Dense networks with and without attention

Mean over the seeds, in brackets the lowest and the highest. Every run starts from random weights.

"""
SHARES = {
    "map50": "box AP50",
    "map": "box AP",
    "segm_map50": "mask AP50",
    "segm_map": "mask AP",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and the range where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def minutes(folder: Path) -> float:
    """Training time, as the run's report has it."""
    found = re.search(r"last sitting \| ([\d.]+) minutes", (folder / "report.md").read_text())
    assert found is not None
    return float(found[1])


def row(recipe: str, folders: Sequence[Path]) -> str:
    """One recipe's line of the table."""
    run = Run.open(folders[0])
    model, config = run.load_model(), run.config
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    shares = [
        f"{name} {spread([100 * result[key] for result in results])}"
        for key, name in SHARES.items()
        if results[0].get(key) is not None
    ]
    seeds = sorted(json.loads((folder / "config.json").read_text())["seed"] for folder in folders)
    cells = (
        f"`{recipe}`",
        config.model.backbone or "",
        f"{size:.2f} M",
        ", ".join(map(str, seeds)),
        "<br>".join(shares),
        spread([minutes(folder) for folder in folders]),
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Write the table."""
    pages.answer_check("dense_study")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    groups: dict[str, list[Path]] = {}
    for folder in options.runs:
        recipe = json.loads((folder / "config.json").read_text())["recipe"]
        groups.setdefault(recipe, []).append(folder)
    table = "| recipe | backbone | parameters | seeds | per cent on the test set | minutes |\n"
    table += "|---|---|---|---|---|---|\n"
    table += "".join(row(recipe, folders) for recipe, folders in groups.items())
    command = "convattn train RECIPE --seed SEED; python benchmarks/dense_study.py DIR ..."
    pages.publish(options.out, HEAD + table, [pages.provenance(command, seed="as in the table")])
    print(table)


if __name__ == "__main__":
    main()
