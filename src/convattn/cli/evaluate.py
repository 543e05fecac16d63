"""``convattn evaluate``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from convattn.cli.targets import (
    Weights,
    check_weights,
    check_window,
    data_of,
    find_target,
    new_folder,
    task_of_run,
    with_data_name,
)
from convattn.cli.words import INTERRUPTED, UsageError, fail, parse, show_progress
from convattn.config import DataConfig, finds_masks

if TYPE_CHECKING:
    from torch import nn

    from convattn.classification.predictions import Predictions, PredictionsFile
    from convattn.data import ImageFiles, Source, TensorImages
    from convattn.results import Results

_PROG = "convattn evaluate"
_SETTINGS = "evaluation_config.json"
_STOPPED = "predictions.part.csv"
"""The rows of a test that goes on; it becomes predictions.csv at the very end."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained network and write what was found into its run folder, or a new one.

    convattn evaluate --resume FOLDER goes on with a test that was stopped.
    """

    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format; bfloat16 is autocast's, over the weights as they are."""
    channels_last: bool = False
    """Keep kernels channels-last, which is faster on recent GPUs."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    allow_missing_classes: bool = False
    """ImageNet: test on the classes that are there; the network chooses among all it knows."""
    real: str | None = None
    """ImageNet: ReaL's real.json; None takes the one in data.root, else timm's copy."""
    out: str | None = None
    """Folder to make; None takes the run's own, for a model runs/evaluate/NAME or NAME-2 ..."""
    data: DataConfig = field(default_factory=DataConfig)


_OF_CLASSIFIERS = ("dtype", "channels_last", "allow_missing_classes", "real", "out")
_OF_IMAGENET = ("allow_missing_classes", "real")


def command(arguments: list[str]) -> int:
    """Run ``convattn evaluate``.

    Args:
        arguments: Words behind the command.
    """
    if arguments and arguments[0].split("=")[0] == "--resume":
        return _resume(arguments)
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        raise UsageError(f"--resume takes no model and no data: {_PROG} --resume FOLDER")
    target, run, options = _parse(arguments)
    task = task_of_run(run)
    if run is None or task == "classification":
        return _test_classifier(target, run, options, arguments)

    from convattn.files import replace_atomically

    result = _evaluate_dense(run, task, options)
    print(result.table())
    replace_atomically(run / "evaluation.json", result.to_json().encode())
    print(f"\n{run / 'evaluation.json'}")
    return 0


def _parse(arguments: list[str]) -> tuple[str, Path | None, EvaluateOptions]:
    """Run or model, the run's folder, and the options."""
    target, run = find_target(
        EvaluateOptions(), arguments, prog=_PROG, model="MODEL --data NAME", dense=True
    )
    options = parse(
        EvaluateOptions,
        EvaluateOptions(data=data_of(run)),
        with_data_name(arguments[1:]),
        prog=f"{_PROG} {target}",
    )
    check_weights(run, options.weights)
    task = task_of_run(run)
    check_window(options.window, target, task)
    if task != "classification":
        _check_unused(options, _OF_CLASSIFIERS, f"is for classification; {target} does {task}")
    if options.data.name != "imagenet":
        _check_unused(options, _OF_IMAGENET, f"is for imagenet; the data are {options.data.name}")
    if options.out is not None and Path(options.out).exists():
        raise UsageError(
            f"{options.out} exists and is never overwritten; give another --out, or go on with a "
            f"test that was stopped there: {_PROG} --resume {options.out}"
        )
    return target, run, options


def _check_unused(options: EvaluateOptions, names: Sequence[str], reason: str) -> None:
    for name in names:
        if getattr(options, name) != getattr(EvaluateOptions(), name):
            raise UsageError(f"--{name.replace('_', '-')} {reason}")


def _resume(arguments: list[str]) -> int:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) < 2:
        raise UsageError(
            f"--resume needs the folder of a test that was stopped: {_PROG} --resume RUN"
        )
    folder = Path(words[1])
    if len(words) > 2:
        raise UsageError(f"--resume goes on as {folder / _SETTINGS} says and takes no {words[2]}")
    if not (folder / _STOPPED).is_file() or not (folder / _SETTINGS).is_file():
        raise UsageError(
            f"{folder} holds no test that was stopped (no {_STOPPED}); name the folder that "
            f"`{_PROG}` told"
        )
    arguments = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))["arguments"]
    target, run, options = _parse(arguments)
    return _test_classifier(target, run, options, arguments, stopped=folder)


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What a classifier is tested on."""

    source: Source
    wnids: Sequence[str] | None = None
    real: Sequence[Sequence[int]] | None = None
    notes: Sequence[str] = ()


def _test_classifier(
    target: str,
    run: Path | None,
    options: EvaluateOptions,
    arguments: list[str],
    *,
    stopped: Path | None = None,
) -> int:
    """Test, or go on with the test in the folder ``stopped``."""
    from convattn.classification.predictions import PredictionsFile
    from convattn.evaluate import check_num_classes, chosen_device
    from convattn.files import replace_atomically

    model, test = _open(target, run, options)
    images = test.source.test
    check_num_classes(cast(Any, model).num_classes, len(test.source.class_names))
    settings = {
        "arguments": _without_out(arguments),
        "device": str(chosen_device(options.device)),
        "weights_sha256": _digest(model),
        "transform": _transform(model),
        "batch_size": options.data.batch_size,
        "num_images": len(images),
    }
    for note in test.notes:
        fail(note, 0)
    if stopped is not None:
        _check_same(stopped, settings)
    folder = stopped or (
        run if run and not options.out else new_folder(options.out, f"runs/evaluate/{target}")
    )
    part = folder / _STOPPED
    if not part.is_file() or _settings_of(folder) != settings:
        part.unlink(missing_ok=True)
        replace_atomically(folder / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        part.touch()
    file = PredictionsFile(part, _names(images, options.data.root))
    try:
        predictions, speed = _predict(model, test.source, options, file)
    except KeyboardInterrupt:
        again = f"{_PROG} --resume {shlex.quote(str(folder))}"
        return fail(f"interrupted; go on with: {again}", INTERRUPTED)
    _finish(folder, predictions, speed, test, title=f"{Path(target).name} on {options.data.name}")
    return 0


def _without_out(arguments: list[str]) -> list[str]:
    """The words that say what is tested, not where the results go."""
    words = [word for word in arguments if not word.startswith("--out=")]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with another test than the one that was stopped."""
    before = _settings_of(folder)
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"{folder} was begun with {name} {before.get(name)}, which now is {value}; bring "
                "that back, or test anew into another folder"
            )


def _settings_of(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _digest(model: nn.Module) -> str:
    """SHA-256 of names and values of all tensors."""
    import torch

    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _transform(model: nn.Module) -> dict[str, Any]:
    """What is done to an image, in timm's words and JSON's types."""
    from timm.data import resolve_data_config

    return json.loads(json.dumps(resolve_data_config(pretrained_cfg=model.pretrained_cfg)))


def _names(images: TensorImages | ImageFiles, root: str | None) -> list[str]:
    from convattn.data import ImageFiles

    if not isinstance(images, ImageFiles):
        return [str(number) for number in range(len(images))]
    return [os.path.relpath(path, Path(root or ".").expanduser()) for path in images.paths]


def _open(target: str, run: Path | None, options: EvaluateOptions) -> tuple[nn.Module, _Test]:
    from convattn.classification.dataset import open_source
    from convattn.evaluate import open_model

    if options.data.name == "imagenet":
        return _open_imagenet(target, run, options)
    source = open_source(options.data, training=False)
    model = open_model(
        target,
        checkpoint=options.weights,
        num_classes=None if options.weights is None else len(source.class_names),
        in_chans=source.in_chans,
    )
    return model, _Test(source=source)


def _open_imagenet(
    target: str, run: Path | None, options: EvaluateOptions
) -> tuple[nn.Module, _Test]:
    """A model by name is taken for one of ImageNet's 1,000 classes, a run for one of its own."""
    import torch

    from convattn.data import load_imagenet_validation
    from convattn.data.sources import Source, draw_indices, find_root
    from convattn.evaluate import open_model

    root = find_root("imagenet", options.data.root, download=False)
    model = open_model(
        target, checkpoint=options.weights, num_classes=1000 if options.weights else None
    )
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    found = load_imagenet_validation(
        root,
        class_names=None if run is None else cfg["label_names"],
        allow_missing_classes=options.allow_missing_classes,
        real=options.real,
    )
    if options.data.num_test is not None:
        count = len(found.images)
        found = found.select(draw_indices(count, options.data.num_test, 0, "imagenet: num_test"))
    source = Source(
        name="imagenet",
        class_names=found.class_names,
        train=found.images.select(torch.arange(0)),
        test=found.images,
        image_size=None,
        in_chans=3,
        mean=cfg["mean"],
        std=cfg["std"],
    )
    return model, _Test(source=source, wnids=found.wnids, real=found.real, notes=found.notes)


def _predict(
    model: nn.Module, source: Source, options: EvaluateOptions, file: PredictionsFile
) -> tuple[Predictions, float]:
    """All predictions, those that the file has already among them, and images a second."""
    import torch

    from convattn.classification.dataset import test_batches
    from convattn.classification.predictions import Predictions
    from convattn.evaluate import predict_batches

    labels, total = source.test.labels, len(source.test)
    before = file.rewind(labels, options.data.batch_size)
    parts = [] if before is None else [before]
    start = done = sum(map(len, parts))
    rest = dataclasses.replace(source, test=source.test.select(torch.arange(done, total)))
    loader, boxes = test_batches(options.data, rest, cast(Mapping[str, Any], model.pretrained_cfg))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if start:
        fail(f"goes on after {start:,} of {total:,} images", 0)
    progress = _Progress(total, start)
    try:
        for batch in predict_batches(
            model,
            loader,
            num_classes=len(source.class_names),
            boxes=boxes,
            device=options.device,
            dtype=getattr(torch, options.dtype),
        ):
            file.append(batch)
            parts.append(batch)
            done += len(batch)
            progress.show(done)
    finally:
        progress.end()
    return Predictions.cat(parts), progress.speed(done)


class _Progress:
    """A line on a terminal: images, images a second, time left."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.first = done
        self.started = time.monotonic()
        self.drawn = 0.0

    def speed(self, done: int) -> float:
        """Images a second of this sitting."""
        return (done - self.first) / max(1e-9, time.monotonic() - self.started)

    def show(self, done: int) -> None:
        """Redraw the line twice a second."""
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self.drawn < 0.5 and done < self.total):
            return
        self.drawn = now
        speed = self.speed(done)
        minutes, seconds = divmod(round((self.total - done) / max(speed, 1e-9)), 60)
        show_progress(
            f"{done:,} of {self.total:,} images  {speed:,.0f} a second  "
            f"{minutes}:{seconds:02d} left"
        )

    def end(self) -> None:
        """Leave the line as it stands."""
        if self.drawn:
            print(file=sys.stderr, flush=True)


def _finish(
    folder: Path, predictions: Predictions, speed: float, test: _Test, *, title: str
) -> None:
    """Print and write what was found; the rows get their name last, and with it the test ends."""
    from convattn.classification.predictions import per_class_table
    from convattn.evaluate import summarize
    from convattn.explanation.figures import draw_confusion
    from convattn.files import replace_atomically

    names = test.source.class_names
    result = summarize(predictions, class_names=names, real=test.real, images_per_second=speed)
    print(f"{result.table()}\n")
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    table = per_class_table(predictions, names, test.wnids)
    replace_atomically(folder / "per_class.csv", table.encode())
    drawing = folder / "confusion.tmp.png"
    draw_confusion(
        predictions.labels.numpy(),
        predictions.classes[:, 0].numpy(),
        names,
        drawing,
        title=f"{title}: {result.top1:.1%} right",
    )
    drawing.replace(folder / "confusion.png")
    (folder / _STOPPED).replace(folder / "predictions.csv")
    for name in ("evaluation.json", "per_class.csv", "confusion.png", "predictions.csv"):
        print(folder / name)


def _evaluate_dense(folder: Path, task: str, options: EvaluateOptions) -> Results:
    """Test a detector or segmenter; data of other classes than its own are refused."""
    from convattn.data import dense_dataset as inputs
    from convattn.evaluate import load_run

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
