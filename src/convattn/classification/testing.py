"""A classifier's test that can be stopped and gone on with, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from convattn.classification import figures
from convattn.classification.dataset import open_data, test_batches
from convattn.classification.evaluation import (
    ClassificationResult,
    MultiLabelResult,
    check_num_classes,
    predict_batches,
    summarize,
)
from convattn.classification.predictions import (
    MultiLabelPredictions,
    Predictions,
    PredictionsFile,
    average_precision_table,
    join,
    per_class_table,
)
from convattn.classification.settings import transform_words, weights_sha256
from convattn.config import DataConfig, EvaluateConfig
from convattn.data import ImageFiles, Source, TensorImages, load_imagenet_validation
from convattn.data.batches import UNREADABLE, report_skipped
from convattn.data.choosing import draw_indices, find_root
from convattn.data.images import digest_of_list, find_readable
from convattn.data.shards import folder_of
from convattn.exceptions import Interrupted
from convattn.files import new_folder, read_json, replace_atomically, written_whole
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.progress import Progress
from convattn.results import Results
from convattn.text import json_text, report, short_repr
from convattn.world import World, share, shared_work

_PROG = "convattn evaluate"
_RESULT, _SETTINGS = "evaluation.json", "evaluation_config.json"
_STOPPED = "predictions.part.csv"
"""The rows of a test that goes on; it becomes predictions.csv at the very end."""
_SHARE = "predictions.{}-of-{}.csv"
"""Those of one of several processes."""


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What a classifier is tested on."""

    source: Source
    wnids: Sequence[str] | None = None
    real: Sequence[Sequence[int]] | None = None
    notes: Sequence[str] = ()


def stopped_test(folder: Path) -> list[str]:
    """The words of the command line that began a test which was stopped.

    Args:
        folder: Where it keeps its rows.

    Raises:
        ValueError: If there is none.
    """
    if not (folder / _STOPPED).is_file() or not (folder / _SETTINGS).is_file():
        raise ValueError(
            f"{folder} holds no test that was stopped (no {_STOPPED}); name the folder that "
            f"`{_PROG}` told"
        )
    words = _read_settings(folder).get("arguments")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(
            f"{folder / _SETTINGS} does not tell with which words the test was begun; delete "
            f"{folder / _STOPPED} and test anew"
        )
    return words


class LoadModel(Protocol):
    """Loads the network that is tested."""

    def __call__(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """The trained network; classes and channels are those of the data, None its own."""
        ...


def run_test(
    name: str,
    load: LoadModel,
    options: EvaluateConfig,
    arguments: Sequence[str],
    *,
    run_folder: Path | None = None,
    trained_on: DataConfig | None = None,
    stopped: Path | None = None,
) -> tuple[ClassificationResult | MultiLabelResult, Sequence[Path]]:
    """Test a classifier, or go on with its test; the rows are on the disk while it runs.

    Processes that torchrun or srun has started share the images; the first writes what is found.

    Args:
        name: Of the run or the model.
        load: Loads it.
        options: What is tested, on what, and where the results go.
        arguments: The command line's words, kept so that ``--resume`` can repeat them.
        run_folder: Folder of the run; None for a model by name.
        trained_on: The run's own data; None for a model by name. What is found on others, or what
            tells less than is there, goes into a new folder.
        stopped: Folder of a test that was stopped.

    Returns:
        What was found, and the files that hold it.

    Raises:
        ValueError: If network and data do not fit, or the test that was stopped was another one.
        FileNotFoundError: If there are no such weights or data.
        Interrupted: If the user stopped it, or another of the processes is gone.
    """
    with shared_work() as world:
        return _run_test(
            name,
            load,
            options,
            arguments,
            world,
            run_folder=run_folder,
            trained_on=trained_on,
            stopped=stopped,
        )


def _run_test(
    name: str,
    load: LoadModel,
    options: EvaluateConfig,
    arguments: Sequence[str],
    world: World,
    *,
    run_folder: Path | None,
    trained_on: DataConfig | None,
    stopped: Path | None,
) -> tuple[ClassificationResult | MultiLabelResult, Sequence[Path]]:
    model, test = _open(load, options, trained_on)
    images = test.source.test
    check_num_classes(cast(Any, model).num_classes, len(test.source.class_names))
    settings = {
        "arguments": _without_out(arguments),
        "device": str(default_device(options.device)),
        "weights_sha256": weights_sha256(model),
        "transform": transform_words(model),
        "batch_size": options.data.batch_size,
        "num_images": len(images),
        "images_sha256": digest_of_list(images),
        "processes": world.count,
    }
    for note in test.notes:
        report(note)
    same = trained_on is not None and options.data.is_same(trained_on)
    own = run_folder if same and options.out is None else None
    if own is not None and tells_more(own / _RESULT, ClassificationResult, MultiLabelResult):
        report(f"{own / _RESULT} is kept: it tells what a test alone does not")
        own = None
    usual = f"runs/evaluate/{Path(name).resolve().name}"
    folder = stopped or own
    if folder is None:
        folder = Path(world.first_says(lambda: str(new_folder(options.out, usual))))
    world.advice = _advice(folder)
    title = f"{Path(name).name} on {options.data.name}"
    with owned(folder) if world.is_first else nullcontext():
        if world.is_first:
            _begin(folder, settings, test, options, is_stopped=stopped is not None)
        world.all_say("begun")
        predictions, speed = _go_on(folder, model, test, options, world)
        result = _summary(predictions, speed, test)
        if world.is_first:
            _write(folder, predictions, result, test, title=title)
            for file in _shares(folder, world.count):
                file.unlink(missing_ok=True)
        figure = _figure_of(predictions)
        files = (_RESULT, "per_class.csv", figure, "predictions.csv")
        return result, [folder / name for name in files]


def _advice(folder: Path) -> str:
    return f"go on with: {_PROG} --resume {shlex.quote(str(folder))}"


def _begin(
    folder: Path,
    settings: Mapping[str, Any],
    test: _Test,
    options: EvaluateConfig,
    *,
    is_stopped: bool,
) -> None:
    """Begin a test in a folder, or leave the one that it holds if that is the same."""
    if is_stopped:
        _check_same(folder, settings, test, options)
    part = folder / _STOPPED
    if not part.is_file() or _read_settings(folder) != settings:
        for old in folder.glob(_SHARE.format("*", "*")):
            old.unlink()
        part.unlink(missing_ok=True)
        replace_atomically(folder / _SETTINGS, (json_text(settings, indent=2) + "\n").encode())
        part.touch()


def _go_on(
    folder: Path, model: nn.Module, test: _Test, options: EvaluateConfig, world: World
) -> tuple[Predictions | MultiLabelPredictions, float]:
    """All predictions, and images a second; of several processes each adds a share of its own."""
    total, batch_size = len(test.source.test), options.data.batch_size
    images = world.share(total, batch_size)
    shares = _shares(folder, world.count)
    shares[world.rank].touch()
    started = time.monotonic()
    try:
        part, added = _predict(model, test, options, shares[world.rank], images)
        added = sum(map(int, world.all_say(str(added))))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_advice(folder)}") from None
    speed = added / max(1e-9, time.monotonic() - started)
    parts: list[Any] = [part]
    if world.count > 1:
        ranges = [share(rank, world.count, total, batch_size) for rank in range(world.count)]
        parts = [
            _open_rows(file, test, options, own)[1]
            for file, own in zip(shares, ranges, strict=True)
        ]
        if world.is_first:
            replace_atomically(folder / _STOPPED, _joined_rows(shares))
        world.all_say("read")  # from now on they may be removed
    return join([part for part in parts if part is not None]), speed


def _shares(folder: Path, count: int) -> list[Path]:
    """The rows of each process."""
    if count == 1:
        return [folder / _STOPPED]
    return [folder / _SHARE.format(rank, count) for rank in range(count)]


def _joined_rows(shares: Sequence[Path]) -> bytes:
    """The rows of all shares below one header."""
    header, rows = b"", b""
    for file in shares:
        own, line, more = file.read_bytes().partition(b"\n")
        header, rows = header or own + line, rows + more
    return header + rows


def tells_more(file: Path, *kinds: type[Results]) -> bool:
    """Whether a result is there that has figures which a test does not find.

    Args:
        file: The result.
        kinds: What a test finds.
    """
    if not file.is_file():
        return False
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return not known.issuperset(read_json(file, "delete it to test anew"))


def _without_out(arguments: Sequence[str]) -> list[str]:
    """The words that say what is tested, not where the results go."""
    words = [word for word in arguments if not word.startswith("--out=")]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def _check_same(
    folder: Path, settings: Mapping[str, Any], test: _Test, options: EvaluateConfig
) -> None:
    """Refuse to go on with another test than the one that was stopped."""
    before = _read_settings(folder)
    for name, value in settings.items():
        if before.get(name) != value and name == "images_sha256":
            for rank, file in enumerate(_shares(folder, count := settings["processes"])):
                if file.exists():  # names the row, if it is one of those that are done
                    own = share(rank, count, len(test.source.test), options.data.batch_size)
                    _open_rows(file, test, options, own)
            raise ValueError(
                f"{folder} was begun on other images: the data have changed, some were renamed or "
                "put into another class; bring them back, or test anew into another folder"
            )
        if before.get(name) != value:
            raise ValueError(
                f"{folder} was begun with {name} {short_repr(before.get(name))}, which now is "
                f"{short_repr(value)}; bring that back, or test anew into another folder"
            )


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS
    if not file.is_file():
        return {}
    return read_json(file, f"delete {folder / _STOPPED} to test anew")


def _names(images: TensorImages | ImageFiles, root: str | None) -> list[str]:
    if not isinstance(images, ImageFiles):
        return [str(number) for number in range(len(images))]
    base = Path(folder_of(root or ".")).expanduser()
    if base.is_file():
        base = base.parent
    return [os.path.relpath(path, base) for path in images.paths]


def _open(
    load: LoadModel, options: EvaluateConfig, trained_on: DataConfig | None
) -> tuple[nn.Module, _Test]:
    if options.data.name == "imagenet":
        return _open_imagenet(load, options, is_run=trained_on is not None)
    if options.data.group != (None if trained_on is None else trained_on.group):
        raise ValueError(
            f"group={options.data.group!r} (--data.group) parts images for a training; a test "
            "takes the run's own test images, or all of other data: leave it out"
        )
    if trained_on is not None:
        model = load()
        cfg = cast(Mapping[str, Any], model.pretrained_cfg)
        source = open_data(
            options.data,
            training=False,
            class_names=cfg.get("label_names"),
            multi_label=bool(cfg.get("multi_label")),
            test_all=not _is_own(options.data, trained_on),
        )
        return model, _Test(source=source)
    source = open_data(options.data, training=False, multi_label=False, test_all=True)
    names = source.class_names
    num_classes = None if options.weights is None else len(names)
    model = load(num_classes=num_classes, in_chans=source.in_chans)
    notes = []
    if options.data.name == "folder":
        notes.append(
            f"the model's classes are taken to be the folder's in sorted order: 0 {names[0]!r} to "
            f"{len(names) - 1} {names[-1]!r}; a run's are found by name"
        )
    return model, _Test(source=source, notes=notes)


def _is_own(data: DataConfig, trained_on: DataConfig) -> bool:
    """Whether these are the data that a run was trained on, a part of which it never saw."""
    return data.name == trained_on.name and _resolved(data.root) == _resolved(trained_on.root)


def _resolved(root: str | None) -> Path | None:
    return None if root is None else Path(root).expanduser().resolve()


def _open_imagenet(
    load: LoadModel, options: EvaluateConfig, *, is_run: bool
) -> tuple[nn.Module, _Test]:
    """A model by name is taken for one of ImageNet's 1,000 classes, a run for one of its own."""
    root = find_root("imagenet", options.data.root, download=False)
    model = load(num_classes=1000 if options.weights else None)
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    found = load_imagenet_validation(
        root,
        class_names=cfg["label_names"] if is_run else None,
        allow_missing_classes=options.allow_missing_classes,
        real=options.real,
    )
    if options.data.num_test is not None:
        count = len(found.images)
        found = found.select(draw_indices(count, options.data.num_test, 0, "imagenet: num_test"))
    if options.data.bad_images == "skip":
        readable, errors = find_readable(found.images)
        if errors:
            report_skipped({UNREADABLE: len(errors)}, {UNREADABLE: errors[:1]})
            found = found.select(readable)
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


def _open_rows(
    file: Path, test: _Test, options: EvaluateConfig, own: range
) -> tuple[PredictionsFile, Predictions | MultiLabelPredictions | None]:
    """The rows of a range of the test in a file, and what they tell, cut to whole batches."""
    images = test.source.test
    names = _names(images, options.data.root)[own.start : own.stop]
    rows = PredictionsFile(file, names)
    if not own:
        return rows, None
    return rows, rows.rewind(images.labels[own.start : own.stop], options.data.batch_size)


def _predict(
    model: nn.Module, test: _Test, options: EvaluateConfig, path: Path, own: range
) -> tuple[Predictions | MultiLabelPredictions | None, int]:
    """The predictions of a range of the test, those in the file among them, and how many are new.

    None if there are none.
    """
    file, before = _open_rows(path, test, options, own)
    source = test.source
    parts: list[Any] = [] if before is None else [before]
    start = sum(map(len, parts))
    rest = source.test.select(torch.arange(own.start + start, own.stop))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if start:
        report(f"goes on after {start:,} of {len(own):,} images")
    if len(rest):
        loader, boxes = test_batches(
            options.data,
            dataclasses.replace(source, test=rest),
            cast(Mapping[str, Any], model.pretrained_cfg),
        )
        with Progress(len(own), start) as progress:
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
                progress.update(len(batch))
    return (join(parts) if parts else None), len(rest)


def _summary(
    predictions: Predictions | MultiLabelPredictions, speed: float, test: _Test
) -> ClassificationResult | MultiLabelResult:
    names = test.source.class_names
    return summarize(predictions, class_names=names, real=test.real, images_per_second=speed)


def _figure_of(predictions: Predictions | MultiLabelPredictions) -> str:
    several = isinstance(predictions, MultiLabelPredictions)
    return "average_precision.png" if several else "confusion.png"


def _write(
    folder: Path,
    predictions: Predictions | MultiLabelPredictions,
    result: ClassificationResult | MultiLabelResult,
    test: _Test,
    *,
    title: str,
) -> None:
    """Write what was found; the rows get their name last, and with it the test ends."""
    names = test.source.class_names
    replace_atomically(folder / _RESULT, result.to_json().encode())
    title = f"{title}: {result.headline}"
    with written_whole(folder / _figure_of(predictions)) as drawing:
        if isinstance(predictions, MultiLabelPredictions):
            table = average_precision_table(predictions, names, result.per_class)
            figures.draw_average_precisions(result.per_class, drawing, title=title)
        else:
            table = per_class_table(predictions, names, test.wnids)
            figures.draw_confusion(
                predictions.labels.numpy(),
                predictions.classes[:, 0].numpy(),
                names,
                drawing,
                title=title,
            )
    replace_atomically(folder / "per_class.csv", table.encode(errors="surrogateescape"))
    (folder / _STOPPED).replace(folder / "predictions.csv")
