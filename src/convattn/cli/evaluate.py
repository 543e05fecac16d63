"""``convattn evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from convattn.cli.targets import (
    Weights,
    check_weights,
    check_window,
    data_of,
    find_target,
    task_of_run,
    with_data_name,
)
from convattn.cli.words import UsageError, parse
from convattn.train.config import DataConfig, finds_masks

if TYPE_CHECKING:
    from convattn.results import Findings


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained network and write evaluation.json into its run folder."""

    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that pictures are cut into; None: whole."""
    data: DataConfig = field(default_factory=DataConfig)


def command(arguments: list[str]) -> int:
    """Run ``convattn evaluate``.

    Args:
        arguments: Words behind the command.
    """
    prog = "convattn evaluate"
    target, folder = find_target(
        EvaluateOptions(), arguments, prog=prog, model="MODEL --data NAME", dense=True
    )
    default = EvaluateOptions(data=data_of(folder))
    options = parse(
        EvaluateOptions, default, with_data_name(arguments[1:]), prog=f"{prog} {target}"
    )
    check_weights(folder, options.weights)
    task = task_of_run(folder)
    check_window(options.window, target, task)

    from convattn.evaluate import replace_atomically

    if folder is not None and task != "classification":
        result: Findings = _evaluate_dense(folder, task, options)
    else:
        result = _evaluate_classifier(target, options)
    print(result.table())
    if folder is not None:
        replace_atomically(folder / "evaluation.json", result.to_json().encode())
        print(f"\n{folder / 'evaluation.json'}")
    return 0


def _evaluate_classifier(target: str, options: EvaluateOptions) -> Findings:
    from convattn.evaluate import evaluate, open_model
    from convattn.train.inputs import open_source, test_batches

    source = open_source(options.data, training=False)
    model = open_model(
        target,
        checkpoint=options.weights,
        num_classes=None if options.weights is None else len(source.class_names),
        in_chans=source.in_chans,
    )
    sees = cast(Mapping[str, Any], model.pretrained_cfg)
    loader, boxes = test_batches(options.data, source, sees)
    return evaluate(
        model, loader, class_names=source.class_names, boxes=boxes, device=options.device
    )


def _evaluate_dense(folder: Path, task: str, options: EvaluateOptions) -> Findings:
    """Test a detector or segmenter; data of other classes than its own are refused."""
    from convattn.evaluate import load_run
    from convattn.train import dense_inputs as inputs

    model, config = load_run(folder)
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    if task == "detection":
        from convattn.detection.evaluation import evaluate_detection

        masks = finds_masks(config["model"]["name"])
        found = inputs.open_detection(options.data, masks=masks, training=False)
        _check_classes(folder, cfg, found.class_names, options.data.name)
        return evaluate_detection(
            model,
            inputs.detection_batches(options.data, found),
            class_names=found.class_names,
            has_masks=masks,
            device=options.device,
        )
    from convattn.segmentation.evaluation import evaluate_segmentation

    source = inputs.open_segmentation(options.data, training=False)
    _check_classes(folder, cfg, source.class_names, options.data.name)
    return evaluate_segmentation(
        model,
        inputs.segmentation_batches(options.data, source, cfg),
        class_names=source.class_names,
        window=options.window,
        device=options.device,
    )


def _check_classes(
    folder: Path, cfg: Mapping[str, Any], class_names: Sequence[str], data: str
) -> None:
    if list(cfg["label_names"]) != list(class_names):
        raise UsageError(
            f"{folder} knows {cfg['num_classes']} classes, {', '.join(cfg['label_names'][:3])} "
            f"..., and {data} has {len(class_names)}, {', '.join(class_names[:3])} ...; name data "
            "with the same classes in the same order"
        )
