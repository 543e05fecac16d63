"""Which maps can be believed? Nine methods by twelve measures, three seeds.

    python benchmarks/truth_table.py --root DIR [--runs DIR] [--sets ...] [--seeds N] [--cost]
        [--page | --check]

DIR holds tiny_imagenet_40 and magnetic_tiles; cluttered digits are made. A small PatchConvNet with
the default attention pool is trained from scratch on digits and photographs, a trained Lite0 with
that pool is finetuned on tiles, of which a network from scratch learns nothing in minutes; seed
after seed, then each is asked by ``convattn explain --truth``, the other seeds beside it. Runs and
results are kept in --runs; what is there is not made again. Every figure is a row of
docs/results/truth_table.csv, whose page, truth_table.md, is written from the rows alone (--page);
--check says whether it is what they give.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.explanation.truth import MEASURES, NETWORK_METHODS, YARDSTICKS
from convattn.text import markdown_table
from rows import append_rows, read_rows

METHODS = (*NETWORK_METHODS, "trained", *YARDSTICKS)
COLUMNS = (
    "data",
    "seed",
    "top1",
    "method",
    "measure",
    "value",
    "low",
    "high",
    "num_images",
    "verdict",
)
TABLE = "## Tables"
TRAINED_STEPS = 100


@dataclass(frozen=True)
class Kind:
    """Images, and how a network is trained on them."""

    training: str
    """Command and flags; {root} is the data's folder."""
    asking: str = ""
    """Flags of ``explain --truth``."""
    minutes: tuple[float, float] = (2, 3)
    """Of a training and of a study, on one core."""


KINDS: Mapping[str, Kind] = {
    "cluttered_digits": Kind(
        "train quickstart --data.num-train 8000 --model.model-args global_pool attention",
        "--num-images 150",
    ),
    "tiny_imagenet_40": Kind(
        "train patchconvnet_tiny_imagenet --data.root {root}/tiny_imagenet_40"
        " --model.model-args global_pool attention --epochs 5",
        "--num-images 150",
        (6, 4),
    ),
    "tiny_imagenet_40_16_epochs": Kind(
        "train patchconvnet_tiny_imagenet --data.root {root}/tiny_imagenet_40"
        " --model.model-args global_pool attention",
        "--num-images 150",
        (20, 6),
    ),
    "magnetic_tiles": Kind(
        "finetune {root}/magnetic_tiles/images --data.group num_([0-9]+) --image-size 128"
        " --pool attention --class-weights balanced --epochs 4 --minutes 90",
        "--num-images 150 --masks {root}/magnetic_tiles/masks",
        (5, 12),
    ),
}


def convattn(words: Sequence[str]) -> None:
    """Run a command; its progress is shown.

    Raises:
        CalledProcessError: If it fails.
    """
    subprocess.run([sys.executable, "-m", "convattn", *words], check=True)


def train_all(name: str, arguments: argparse.Namespace) -> list[Path]:
    """The runs of every seed, trained if they are not there."""
    kind, runs = KINDS[name], []
    for seed in range(arguments.seeds):
        run = arguments.runs / f"{name}-{seed}"
        runs.append(run)
        if (run / "model.safetensors").exists():
            continue
        if run.exists():
            convattn([kind.training.split()[0], "--resume", str(run)])
            continue
        words = kind.training.format(root=arguments.root.resolve()).split()
        convattn([*words, "--seed", str(seed), "--out", str(run)])
    return runs


def ask(name: str, seed: int, runs: Sequence[Path], arguments: argparse.Namespace) -> None:
    """The study of one seed, and its rows."""
    out = arguments.runs / f"truth-{name}-{seed}"
    if not (out / "truth.json").exists():
        others = [str(run) for run in runs if run != runs[seed]]
        flags = f"{KINDS[name].asking} --trained-steps {TRAINED_STEPS}"
        words = flags.format(root=arguments.root.resolve()).split()
        more = ["--others", *others] if others else []
        convattn(["explain", str(runs[seed]), "--truth", *words, *more, "--out", str(out)])
    told = json.loads((out / "truth.json").read_text())
    with (out / "truth.csv").open(newline="") as file:
        rows = [
            {
                **row,
                "data": name,
                "seed": seed,
                "top1": f"{told['top1']:.4f}",
                "verdict": told["methods"][row["method"]]["verdict"],
            }
            for row in csv.DictReader(file)
        ]
    append_rows(arguments.docs / "truth_table.csv", COLUMNS, rows)


def make_rows(arguments: argparse.Namespace) -> None:
    """Every study that is asked for and has no rows yet."""
    there = {(row["data"], row["seed"]) for row in read_rows(arguments.docs / "truth_table.csv")}
    missing = [
        (name, seed)
        for name in arguments.sets
        for seed in range(arguments.seeds)
        if (name, str(seed)) not in there
    ]
    minutes = sum(sum(KINDS[name].minutes) for name, _ in missing)
    print(f"{len(missing)} networks to train and to ask: about {minutes:.0f} minutes of one core")
    if arguments.cost:
        return
    for name in dict.fromkeys(name for name, _ in missing):
        runs = train_all(name, arguments)
        for seed in (seed for own, seed in missing if own == name):
            ask(name, seed, runs, arguments)


# ------------------------------------------------------------------------------------- the page


def page_of(rows: Sequence[Mapping[str, str]], written: str) -> str:
    """The page: what stands between its first heading and its tables is kept."""
    head = written.partition(TABLE)[0].rstrip()
    parts = [head, TABLE]
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        seeds = sorted({row["seed"] for row in own})
        top1 = [float(next(r["top1"] for r in own if r["seed"] == seed)) for seed in seeds]
        parts += [
            f"### {name}",
            f"Top-1 {', '.join(f'{100 * one:.1f}' for one in top1)} %; mean over the seeds, in "
            "brackets the least and the greatest.",
            _table(own),
        ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    values: dict[tuple[str, str], list[float]] = {}
    words: dict[str, list[str]] = {}
    for row in rows:
        if not row["value"].startswith("n/a"):
            values.setdefault((row["method"], row["measure"]), []).append(float(row["value"]))
        if row["measure"] == "deletion":
            words.setdefault(row["method"], []).append(row["verdict"])
    shown = [name for name in MEASURES if any(measure == name for _, measure in values)]
    lines = [
        (
            method,
            *(_cell(values.get((method, name))) for name in shown),
            ", ".join(
                f"{word} {words[method].count(word)}" for word in dict.fromkeys(words[method])
            ),
        )
        for method in METHODS
        if method in words
    ]
    return markdown_table(("map", *(f"`{name}`" for name in shown), "verdicts"), lines)


def _cell(values: Sequence[float] | None) -> str:
    if values is None:
        return "n/a"
    mean = sum(values) / len(values)
    if max(map(abs, values)) < 1e-3:
        return f"{mean:.0e}"
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


HEAD = """# Which maps can be believed: nine methods, twelve measures, three seeds

```sh
python benchmarks/truth_table.py --root DIR
```

"""


def main() -> None:
    """Make what is missing, and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/truth"))
    parser.add_argument("--sets", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--cost", action="store_true", help="tell the cost alone")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--check", action="store_true", help="is the page what the rows give?")
    arguments = parser.parse_args()
    file = arguments.docs / "truth_table.md"
    if not (arguments.page or arguments.check):
        if arguments.root is None:
            parser.error("--root names the folder of the data sets")
        make_rows(arguments)
        if arguments.cost:
            return
    written = file.read_text() if file.exists() else HEAD
    page = page_of(read_rows(arguments.docs / "truth_table.csv"), written)
    if arguments.check:
        if page != written:
            sys.exit(f"{file} is not what its rows give; write it anew by --page")
        return
    file.write_text(page)


if __name__ == "__main__":
    main()
