"""The folder that a finetuning leaves: the network, its test, the report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from convattn.classification.out_of_fold import OUT_OF_FOLD, out_of_fold_table
from convattn.config import DataConfig, FinetuneConfig, as_flags
from convattn.data import describe_skipped
from convattn.data.counts import by_severity, count, judge_counts
from convattn.files import replace_atomically
from convattn.finetuning.frozen import possible_pools
from convattn.finetuning.images import Images
from convattn.finetuning.network import Folds, Network, divided, predict
from convattn.finetuning.page import Judged, Told, render_report
from convattn.finetuning.results import FinetunedMultiLabelResult, FinetunedResult, judge
from convattn.finetuning.setup import Setup
from convattn.probing.network import save_network
from convattn.runs import Run
from convattn.runs.card import write_card
from convattn.text import aligned, list_names, markdown_text

REPORT = "report.html"
"""What has it has ended."""


@dataclass(frozen=True, kw_only=True)
class FinetunedRun:
    """A finished finetuning."""

    folder: Path
    """The run folder."""
    result: FinetunedResult | FinetunedMultiLabelResult
    """Of the saved network on the test images, or of all images out of fold."""
    report: Path
    """The page."""


def write_run(setup: Setup, folder: Path, network: Network, folds: Folds | None) -> FinetunedRun:
    """Test the network once and write the run folder, its report last.

    Args:
        setup: Of the finetuning.
        folder: The folder.
        network: The trained network.
        folds: What others said of images that they had not learnt, if there were any.
    """
    config, images, cfg = setup.config, setup.images, setup.cfg
    thresholds = network.thresholds
    if thresholds is not None:
        cfg = {**cfg, "thresholds": list(thresholds)}
    reject_below = network.reject_below(config.kept_target)
    if reject_below is not None:
        cfg = {**cfg, "reject_below": reject_below}
    tensors = divided(network.tensors, network.temperature)
    save_network(folder, tensors, cfg, setup.run_config)
    model = Run.open(folder).load_model()
    calibrated = predict(model, images, images.test, config, cfg, what="test")
    result = judge(
        calibrated * network.temperature,
        calibrated,
        images.labels[images.test],
        class_names=images.class_names,
        temperature=network.temperature,
        thresholds=thresholds,
        reject_below=reject_below,
        test_drawn=images.source.test_drawn,
    )
    if folds is not None:
        outside = judge(
            folds.logits,
            folds.calibrated,
            images.labels[folds.images],
            class_names=images.class_names,
            temperature=network.temperature,
            thresholds=thresholds,
            judged="out-of-fold",
            folds=folds.folds,
        )
        result = dataclasses.replace(result, out_of_fold=outside)  # type: ignore[arg-type]  # of its kind
        content = _out_of_fold(folds, images).encode(errors="surrogateescape")
        replace_atomically(folder / OUT_OF_FOLD, content)
    judged = Judged(
        numbers=images.test,
        probabilities=_probabilities(calibrated, images),
        labels=images.labels[images.test],
    )
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    write_card(folder)
    told = _told(setup, folder, network)
    page = render_report(result, judged, images, model, told, thresholds)
    replace_atomically(folder / "report.md", _markdown(result, told).encode())
    replace_atomically(folder / REPORT, page)  # the last: what has it has ended
    return FinetunedRun(folder=folder, result=result, report=folder / REPORT)


def _out_of_fold(folds: Folds, images: Images) -> str:
    numbers = folds.images
    return out_of_fold_table(
        [images.name(number) for number in numbers.tolist()],
        images.labels[numbers],
        folds.folds,
        _probabilities(folds.calibrated, images),
        images.class_names,
    )


def _probabilities(logits: Tensor, images: Images) -> Tensor:
    return logits.sigmoid() if images.source.multi_label else logits.softmax(1)


def _tried(config: FinetuneConfig) -> list[str]:
    """Pools of which validation images chose one, in words; none if one was asked for."""
    tried = possible_pools(config)
    return [list_names(tried)] if len(tried) > 1 else []


def _told(setup: Setup, folder: Path, network: Network) -> Told:
    config, images, frozen = setup.config, setup.images, setup.maps.frozen
    source, told = images.source, network.told
    skipped = describe_skipped(source.skipped, source.skipped_names)
    data = shlex.quote(config.data.root or source.name)
    return Told(
        title=f"{data}: {', '.join(images.class_names[:6])}"
        + (" ..." if len(images.class_names) > 6 else ""),
        summary=(
            f"{frozen.name} with {frozen.origin}, {len(source.train):,} training and "
            f"{len(source.test):,} test images of {len(images.class_names):,} classes; the test "
            "images were looked at once, at the end."
        ),
        findings=by_severity(judge_counts(count(source))),
        notes=[*([skipped] if skipped else []), *source.notes],
        settings=[
            ("backbone", f"{frozen.name}, {frozen.origin}"),
            ("images", str(setup.maps.view)),
            ("pool", " of ".join([setup.pool, *_tried(config)])),
            ("trained", "pool and classifier" if not network.epochs else "the whole network"),
            ("learning rate of the head", f"{told['rate']:.2g}"),
            ("dropout of the head", f"{network.drop_rate:.2g}"),
            ("epochs of the head", str(told["epochs"])),
            *([("epochs end to end", str(network.epochs))] if network.epochs else []),
            ("validated", told["validated"]),
            *_rejection_setting(config, network),
            ("seed", str(config.seed)),
        ],
        curves=[_grid_curve(told["grid"]), *_epoch_curves(told.get("curve", ()))],
        command=_command(config),
        folder=shlex.quote(str(folder)),
    )


def _rejection_setting(config: FinetuneConfig, network: Network) -> list[tuple[str, str]]:
    if network.labels.ndim == 2:
        return []
    below, target = network.reject_below(config.kept_target), f"{config.kept_target:.1%}"
    said = (
        f"none: no probability makes {target} of the validation images above it right"
        if below is None
        else f"below {below:.3f}, so that {target} of the validation images kept are right"
    )
    return [("rejected by predict --reject-below auto", said)]


def _command(config: FinetuneConfig) -> str:
    """What makes the same network again, in another folder."""
    data = config.data
    again = dataclasses.replace(config, out=None, data=dataclasses.replace(data, root=None))
    default = FinetuneConfig(data=DataConfig(name=data.name))
    words = [data.root or data.name, *as_flags(again, default)]
    return f"convattn finetune {shlex.join(words)}"


def _grid_curve(grid: Sequence[Sequence[float]]) -> dict[str, Any]:
    losses = [loss for _, loss in grid]
    top = max(losses) or 1.0
    steps = max(1, len(grid) - 1)
    points = [(place / steps, loss / top) for place, loss in enumerate(losses)]
    return {
        "title": "Validation loss by learning rate",
        "left": f"{grid[0][0]:.2g}",
        "right": f"{grid[-1][0]:.2g}",
        "top": f"{top:.3f}",
        "bottom": "0",
        "lines": [{"points": points}],
    }


def _epoch_curves(rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Losses of the second stage, if there was one."""
    if len(rows) < 2:
        return []
    epochs, training, validation = zip(*rows, strict=True)
    top = max(*training, *validation) or 1.0
    span = epochs[-1] - epochs[0]
    return [
        {
            "title": "Loss end to end: on validation images, and (amber) of the training",
            "left": f"epoch {epochs[0]:g}",
            "right": f"epoch {epochs[-1]:g}",
            "top": f"{top:.3f}",
            "bottom": "0",
            "lines": [
                {
                    "points": [
                        ((epoch - epochs[0]) / span, loss / top)
                        for epoch, loss in zip(epochs, losses, strict=True)
                    ]
                }
                for losses in (validation, training)
            ],
        }
    ]


def _markdown(result: FinetunedResult | FinetunedMultiLabelResult, told: Told) -> str:
    rows = "\n".join(f"    {line}" for line in aligned(result.rows()))
    title, summary = markdown_text(told.title), markdown_text(told.summary)
    return f"# {title}\n\n{summary}\n\n{rows}\n\nSee report.html.\n\n    {told.command}\n"
