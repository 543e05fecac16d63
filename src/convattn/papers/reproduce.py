"""The rows of both papers' tables beside what is known of them here.

Parameters and multiply-adds are counted anew each time; accuracy is read from what tests have left
in run folders. What is in neither is not claimed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convattn.config import TrainConfig
from convattn.papers.costs import count_macs
from convattn.papers.tables import HEADLINE, TABLES, RecipeRow, Table
from convattn.runs import Run
from convattn.surgery.records import num_params
from convattn.tasks import build_network
from convattn.text import aligned, json_text, markdown_table
from convattn.weights import RELEASES, cached_path

_CLASSES = {"imagenet": 1000, "cifar100": 100, "coco": 90, "ade20k": 150}
_VALIDATION = 50_000  # ImageNet's validation images
# Of these no value changes what a run is to be compared with.
_OF_NO_EFFECT = frozenset(
    {
        *("out", "recipe", "seed", "accelerator", "devices", "strategy", "num_nodes"),
        *("accumulate", "channels_last", "compile", "deterministic", "eval_every", "log_every"),
        *("checkpoint_every", "checkpoint_minutes", "data.root", "data.download"),
        *("data.num_workers", "model.num_classes", "model.checkpoint", "model.pretrained"),
        "model.backbone_weights",
    }
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A score that was found here."""

    score: float
    """Per cent."""
    folder: str
    """Of the run, or of the test of released weights."""
    remark: str
    """What was tested."""
    as_published: bool
    """Whether that is the row itself: its recipe, or its weights on all of the test images."""


@dataclass(frozen=True, kw_only=True)
class RowStatus:
    """What is known here of a row."""

    row: RecipeRow
    table: Table
    parameters: int
    """Of our network."""
    macs: int
    """Of our network, for one image."""
    weights_here: bool
    """Whether the released file is on this machine."""
    measured: tuple[Measured, ...]
    """Every score that was found."""

    @property
    def cost(self) -> float:
        """In the table's unit."""
        return self.table.flops * self.macs / 1e9

    @property
    def paper(self) -> str:
        """The paper's score, in words."""
        if self.row.score_known:
            return f"{self.row.score} % {self.table.metric}"
        return f"about {self.row.score} % {self.table.metric}, unconfirmed"

    @property
    def parameters_cell(self) -> str:
        """Ours in millions, beside the paper's."""
        return _beside(self.parameters / 1e6, self.row.parameters, self.row.cost_known)

    @property
    def cost_cell(self) -> str:
        """Ours in the table's unit, beside the paper's."""
        return _beside(self.cost, self.row.cost, self.row.cost_known)

    @property
    def weights_cell(self) -> str:
        """Whether there are released ones, and whether they are here."""
        if self.row.release is None:
            return "none released"
        return f"`{self.row.release}`, {'here' if self.weights_here else 'not downloaded'}"

    @property
    def measured_cell(self) -> str:
        """Every score found here, in words."""
        found = [f"{one.score:.2f} % ({one.remark}, `{one.folder}`)" for one in self.measured]
        return "; ".join(found) or "not measured"

    @property
    def verified(self) -> str:
        """What of the row holds here, in words."""
        row, verified = self.row, []
        if row.parameters:
            verified.append(f"parameters {_verdict(self.parameters / 1e6, row.parameters)}")
        if row.cost:
            full = self.cost + self.table.flops * row.left_out / 1e9
            verdict = _verdict(full, row.cost)
            counted = f", counting {row.left_out / 1e9:.2f} that ours does without"
            verified.append(f"{self.table.unit} {verdict}{counted if row.left_out else ''}")
        if not verified:
            verified.append("that the network builds: the paper gives no cost")
        if any(one.as_published for one in self.measured):
            verified.append(f"{self.table.metric} measured")
        return ", ".join(verified)

    @property
    def commands(self) -> tuple[str, ...]:
        """What trains it, and what tests the released weights."""
        config = self.row.config
        train = f"convattn train {self.row.recipe} --data.root DIR"
        if config.data.name != "cifar100":
            train += " --devices 8"
        if config.model.name in RELEASES:
            train += " --model.pretrained"
        elif self.row.from_weights:
            train += " --model.checkpoint FILE"
        test = f"convattn evaluate {self.row.release} --data imagenet --data.root DIR"
        return (train,) if self.row.release is None else (test, train)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        row = self.row
        return {
            "table": self.table.title,
            "name": row.name,
            "headline": row.recipe in HEADLINE,
            "recipe": row.recipe,
            "metric": self.table.metric,
            "paper": {
                "score": float(row.score),
                "score_confirmed": row.score_known,
                "parameters_m": float(row.parameters) if row.parameters else None,
                "cost": float(row.cost) if row.cost else None,
                "cost_unit": self.table.unit,
                "cost_confirmed": row.cost_known,
            },
            "ours": {"parameters": self.parameters, "macs": self.macs},
            "verified": self.verified,
            "release": row.release,
            "weights_here": self.weights_here,
            "measured": [dataclasses.asdict(one) for one in self.measured],
            "commands": self.commands,
        }


def _beside(ours: float, paper: str, known: bool) -> str:
    counted = f"{ours:.{max(2, _digits(paper))}f}"
    if not paper:
        return counted
    return f"{counted} / {paper}" if known else f"{counted} / about {paper}"


def _digits(printed: str) -> int:
    return len(printed.partition(".")[2])


def _verdict(ours: float, paper: str) -> str:
    """Equal to the digits that are printed, or by how much it is not."""
    if f"{ours:.{_digits(paper)}f}" == paper:
        return "equal"
    return f"differ by {ours / float(paper) - 1:+.1%}".replace("%", " %")


def check_rows(
    runs: Sequence[Path] = (), *, progress: Callable[[int, int, str], Any] | None = None
) -> list[RowStatus]:
    """What is known here of every row.

    Args:
        runs: Folders with run folders and tests of released weights in them, at any depth.
        progress: Called with the rows done, their total, and the next one's name.

    Raises:
        ValueError: If a folder holds no test, or a file in it cannot be understood.
        FileNotFoundError: If a folder is not there.
    """
    tests = [test for folder in runs for test in _read_tests(folder)]
    total = sum(len(table.rows) for table in TABLES)
    counted: dict[str, tuple[int, int]] = {}
    found: list[RowStatus] = []
    for table in TABLES:
        for row in table.rows:
            if progress is not None:
                progress(len(found), total, row.name)
            key = _network_of(row)
            if key not in counted:
                counted[key] = _count(row)
            parameters, macs = counted[key]
            found.append(
                RowStatus(
                    row=row,
                    table=table,
                    parameters=parameters,
                    macs=macs,
                    weights_here=row.release is not None
                    and cached_path(RELEASES[row.release].url).is_file(),
                    measured=tuple(_measured(row, table, tests)),
                )
            )
    return found


def _size(row: RecipeRow) -> tuple[int, int]:
    """Height and width of the image that its cost is counted for."""
    data = row.config.data
    side = data.image_size or 0
    return row.size or data.crop_size or (side, side)


def _network_of(row: RecipeRow) -> str:
    """The same for rows of one network at one size, which are counted once."""
    model = row.config.model
    return f"{model.name.partition('.')[0]} {model.model_args} {_size(row)}"


def _count(row: RecipeRow) -> tuple[int, int]:
    """Parameters and multiply-adds."""
    size = _size(row)
    with torch.device("meta"):
        network = build_network(
            row.config, num_classes=_CLASSES[row.config.data.name], input_size=size
        )
    return num_params(network), count_macs(network, (3, *size))


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What a folder holds of a test."""

    folder: Path
    evaluation: Mapping[str, Any]
    config: TrainConfig | None
    """Of the run that was tested; None for a model by name."""
    arguments: tuple[str, ...] = ()
    """Of ``convattn evaluate``, for a model by name."""


def _read_tests(folder: Path) -> Iterator[_Test]:
    """Every test in a folder and those below it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name one that holds run folders")
    files = sorted(folder.rglob("evaluation.json"))
    if not files:
        raise ValueError(
            f"{folder} holds no evaluation.json; name a folder that holds finished runs, or tests "
            "of released weights"
        )
    for file in files:
        place, config = file.parent, file.parent / "config.json"
        arguments = file.parent / "evaluation_config.json"
        evaluation = _read_json(file)
        if config.is_file():
            run = Run.open(place).config
            yield _Test(folder=place, evaluation=evaluation, config=run)
        elif arguments.is_file():
            words = tuple(_read_json(arguments)["arguments"])
            yield _Test(folder=place, evaluation=evaluation, config=None, arguments=words)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; test that run again") from None
    return content


def _measured(row: RecipeRow, table: Table, tests: Sequence[_Test]) -> Iterator[Measured]:
    for test in tests:
        score = test.evaluation.get(table.field)
        if score is None:
            continue
        if test.config is None:
            if not _is_of_release(row, test.arguments):
                continue
            number = test.evaluation["num_images"]
            whole, remark = number == _VALIDATION, f"released weights on {number:,} images"
        elif test.config.recipe == row.recipe:
            changed = sorted({*_changes(test.config, row.config)} - _OF_NO_EFFECT)
            whole, remark = not changed, "trained"
            if changed:
                remark = f"trained with another {', '.join(changed)}"
        else:
            continue
        yield Measured(
            score=100 * score, folder=test.folder.name, remark=remark, as_published=whole
        )


def _is_of_release(row: RecipeRow, arguments: Sequence[str]) -> bool:
    """Whether ``convattn evaluate`` was given the row's released weights and ImageNet."""
    if row.release is None or not arguments or "imagenet" not in arguments:
        return False
    release = RELEASES[row.release]
    given = any(Path(word).name == release.file for word in arguments[1:])
    return arguments[0] == release.name or (arguments[0] == release.model and given)


def _changes(config: Any, other: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(config):
        mine, theirs = getattr(config, item.name), getattr(other, item.name)
        if dataclasses.is_dataclass(mine):
            yield from _changes(mine, theirs, f"{prefix}{item.name}.")
        elif mine != theirs:
            yield f"{prefix}{item.name}"


def to_markdown(found: Sequence[RowStatus]) -> str:
    """All rows, the best known first, as a page.

    Args:
        found: What ``check_rows`` gave.
    """
    best = [one for recipe in HEADLINE for one in found if one.row.recipe == recipe]
    parts = [_PREFACE, _section("The rows that the papers are known by", best)]
    for table in dict.fromkeys(one.table for one in found):
        parts.append(_section(table.title, [one for one in found if one.table is table]))
    return "\n".join(parts)


_PREFACE = """\
# The papers' tables, row by row

Written by `convattn reproduce --out docs/results/reproduce.md`; `--runs DIR` adds what was measured
in that folder's runs. Ours stands before the paper's: parameters in millions, and the cost of one
image in multiply-adds (GMACs) or, as Bello et al. count, two FLOPs for each. Both are counted when
the page is written; "equal" is to the digits that the paper prints, and
[models.md](../explanation/models.md) tells why others differ. PatchConvNets are counted at the size
in their row, else 224; RetinaNet at 640 x 640, UPerNet at 512 x 512, Mask R-CNN at 800 x 1344 with
1,000 boxes and 100 masks.

"About" and "unconfirmed" mark figures that no second source confirms. An accuracy is the paper's
claim until a number stands under "measured here". Every training command is a recipe whose inferred
settings are marked ([recipes.md](../howto/recipes.md)).
"""

_TITLES = (
    *("row", "paper", "parameters (M)", "cost", "released weights"),
    *("measured here", "verified here"),
)


def _section(title: str, found: Sequence[RowStatus]) -> str:
    rows = [
        (
            one.row.name,
            one.paper,
            one.parameters_cell,
            f"{one.cost_cell} {one.table.unit}",
            one.weights_cell,
            one.measured_cell,
            one.verified,
        )
        for one in found
    ]
    commands = dict.fromkeys(command for one in found for command in one.commands)
    table = markdown_table(_TITLES, rows)
    return "\n".join([f"## {title}\n", table, "", "```sh", *commands, "```", ""])


def to_text(found: Sequence[RowStatus]) -> str:
    """All rows as aligned columns, for a terminal.

    Args:
        found: What ``check_rows`` gave.
    """
    lines = []
    for table in dict.fromkeys(one.table for one in found):
        titles = ("", "paper", "parameters (M)", table.unit, "released weights", "measured here")
        rows = [titles] + [
            (
                one.row.name,
                one.paper,
                one.parameters_cell,
                one.cost_cell,
                one.weights_cell.replace("`", ""),
                one.measured_cell.replace("`", ""),
            )
            for one in found
            if one.table is table
        ]
        lines += [table.title, *aligned(rows)]
        lines.append("")
    return "\n".join(lines)


def to_json(found: Sequence[RowStatus]) -> str:
    """All rows for programs.

    Args:
        found: What ``check_rows`` gave.
    """
    return json_text([one.to_dict() for one in found], indent=2) + "\n"
