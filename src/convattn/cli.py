"""The command line: ``convattn list | train | evaluate | predict | explain | bench | ...``.

Every mistake of the user is one line on stderr and exit status 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import tyro

from convattn.data import UnreadableImageError
from convattn.train.config import AugmentConfig, DataConfig, Scalar, TrainConfig, finds_masks
from convattn.train.exceptions import InterruptedTraining, NonFiniteError
from convattn.wording import nearest

if TYPE_CHECKING:
    from torch import nn

    from convattn.bench import Layer, Subject
    from convattn.explain import Explanation
    from convattn.results import Findings
    from convattn.train.run import Run

T = TypeVar("T")

HELP = """\
usage: convattn COMMAND ...

Attention for any convolutional network: inside its convolutions and in place of its pool.

commands:
  list      show the models, the recipes (--recipes) or the data sets (--data)
  train     train a recipe and leave a run folder: convattn train quickstart
  evaluate  test a run, or a model by name, on its test pictures: convattn evaluate RUN
  predict   find objects, or every pixel's class, on pictures: convattn predict RUN PICTURE
  augment   show where a network can get attention, and at what cost: convattn augment resnet50
  explain   show where a network looks, and test whether that is true: convattn explain RUN PICTURE
  demo      the same as a page in the browser: convattn demo
  bench     measure what a network or a layer costs: convattn bench resnet50

convattn COMMAND --help tells more; --debug shows the traceback of an error.
"""

TRAIN_HELP = """\
usage: convattn train RECIPE [OPTIONS]
       convattn train --resume RUN

Train a recipe and leave a run folder; every value of the recipe can be overridden by a flag:
convattn train RECIPE --help lists them. --resume goes on with a run that was stopped.

recipes:
"""

# Of the sheet that shows all pictures at once; every picture has files of its own.
_MOST_ROWS, _MOST_COLUMNS = 24, 6

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C has ended


class UsageError(ValueError):
    """The command line itself is wrong."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Show convattn's models: their parameters at 1,000 classes, and what they are."""

    filter: Annotated[str | None, tyro.conf.Positional] = None
    """Show only names that contain this."""
    recipes: bool = False
    """Show the recipes instead."""
    dense: bool = False
    """Show the detectors and segmenters instead."""
    data: bool = False
    """Show the data sets instead."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained network and write evaluation.json into its run folder."""

    checkpoint: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that pictures are cut into; None: whole."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Find objects, or the class of every pixel, on a picture or on every picture of a folder."""

    picture: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE|FOLDER")
    ] = None
    """A picture, or a folder of pictures."""
    threshold: float = 0.5
    """Detection: least score of what is drawn and written, from 0 to 1."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that pictures are cut into; None: whole."""
    out: str | None = None
    """Folder to make; None makes predicted, or predicted-2 where that is taken."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(AugmentConfig):
    """Attention that a network is given."""

    # How it is trained has no say in what is replaced.
    lr_scale: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 1.0
    freeze: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = False


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(AttentionOptions):
    """Show what attention would replace in a network, and at what cost; nothing is changed."""

    input_size: int | None = None
    """Height and width of the pictures, in pixels; None takes those of the network."""
    num_classes: int | None = None
    """Number of classes of a model that is given by name; None keeps its own."""
    json: bool = False
    """Print the plan as JSON, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Show where a network looks on a picture, or on every picture of a folder."""

    picture: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE|FOLDER")
    ] = None
    """A picture, or a folder of pictures."""
    target: tuple[str, ...] = ()
    """Classes to explain, by name or number; none: the likeliest one."""
    top_k: int | None = None
    """Explain so many of the likeliest classes instead."""
    method: Literal["auto", "attention", "gradcam"] = "auto"
    """How: attention, or gradcam for any network; auto takes attention where there is some."""
    view: Literal["auto", "crop", "whole"] = "auto"
    """crop: what the network is tested with; whole: all of it; auto: whole for panoramas only."""
    layer: str | None = None
    """Name of the layer whose attention is shown; None takes the pool, else the last layer."""
    head: int | None = None
    """Number of the attention head; None takes their mean."""
    query: tuple[float, float] | None = None
    """y and x of a pixel: what does an attention convolution look at from there?"""
    layers: bool = False
    """Also draw the picture through all attention convolutions."""
    out: str | None = None
    """Folder to make; None makes explained, or explained-2 where that is taken."""
    checkpoint: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    num_classes: int | None = None
    """Number of classes of that checkpoint; None takes the model's own."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    faithfulness: bool = False
    """Take no picture: test on a data set whether the maps tell the truth, beside Grad-CAM."""
    num_steps: int = 16
    """Steps of the deletion and insertion curves of that test."""
    seed: int = 0
    """Seed of its random maps."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures of that test; of a run, its own test pictures."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """A page in the browser that shows where a network looks."""

    checkpoint: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    num_classes: int | None = None
    """Number of classes of that checkpoint; None takes the model's own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int | None = None
    """Port to listen on; None takes the first free one from 7860 on."""
    browser: bool = False
    """Open the page in the browser."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure what a network or a layer costs: multiply-adds, activations, time and memory."""

    sizes: tuple[int, ...] = ()
    """Heights and widths of pictures, or of a layer's map, in pixels; none: its own."""
    batch_size: int = 8
    """Pictures at once, for throughput and training."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Number formats; training in bfloat16 keeps float32 weights."""
    compile: bool = False
    """Measure with torch.compile as well."""
    training: bool = True
    """Measure a training step as well."""
    device: str | None = None
    """Where to compute, cpu or cuda; None takes the GPU if there is one."""
    repeats: int = 10
    """Times that are taken of each row, in turns with the other rows."""
    threads: int | None = None
    """Threads on the CPU; None takes PyTorch's number."""
    out: str | None = None
    """Folder to make; None makes runs/bench/NAME, or NAME-2 where that is taken."""


@dataclass(frozen=True, kw_only=True)
class BenchModelOptions(BenchOptions):
    """Measure what a network costs: multiply-adds, activations, time and memory."""

    num_classes: int | None = None
    """Number of classes; None keeps the model's own."""
    model_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the model, for example img_size 384."""
    augment: AttentionOptions = field(default_factory=AttentionOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 2 for a mistake, 130 for a training that was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted before there was anything to resume", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        mistake = _status(error)
        if mistake is None:
            raise
        return _fail(_sentence(error), mistake)


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "augment": _augment,
        "explain": _explain,
        "demo": _demo,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from convattn import __version__

        print(__version__)
        return 0
    return _choose("command", arguments[0], commands)(arguments[1:])


def _list(arguments: list[str]) -> int:
    options = _parse(ListOptions, ListOptions(), arguments, prog="convattn list")
    describe: Callable[[str], tuple[str, ...]]
    names: list[str]
    if options.recipes:
        from convattn.train.recipes import RECIPES

        names, describe = list(RECIPES), lambda name: (name, _summary(RECIPES[name]))
    elif options.data:
        tasks = _tasks_of_data()
        names, describe = list(tasks), lambda name: (name, ", ".join(tasks[name]))
    elif options.dense:
        from convattn.detection import DETECTORS
        from convattn.segmentation import SEGMENTERS

        dense = DETECTORS | SEGMENTERS
        names, describe = list(dense), lambda name: (name, _summary(dense[name]))
    else:
        from convattn import OUR_MODELS

        names, describe = list(OUR_MODELS), _describe_model
    rows = [describe(name) for name in names if (options.filter or "") in name]
    if not rows:
        assert options.filter is not None
        raise UsageError(
            f"no name contains {options.filter!r}; the nearest is "
            f"{nearest(options.filter, names)!r}"
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return 0


def _tasks_of_data() -> dict[str, list[str]]:
    """Name of each data set -> what it can be used for."""
    from convattn.data import DATASETS
    from convattn.data.coco import DETECTION_DATASETS
    from convattn.data.masks import SEGMENTATION_DATASETS

    tasks: dict[str, list[str]] = {}
    for task, names in (
        ("classification", DATASETS),
        ("detection", DETECTION_DATASETS),
        ("segmentation", SEGMENTATION_DATASETS),
    ):
        for name in names:
            tasks.setdefault(name, []).append(task)
    return tasks


def _describe_model(name: str) -> tuple[str, str, str]:
    """Name, parameters in millions and sentence of a model."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return name, f"{size:7.2f} M", _summary(timm.model_entrypoint(name))


def _train(arguments: list[str]) -> int:
    from convattn.train.recipes import RECIPES

    if arguments and arguments[0] in ("-h", "--help"):
        width = max(map(len, RECIPES))
        lines = (f"  {name:<{width}}  {_summary(recipe)}" for name, recipe in RECIPES.items())
        print(TRAIN_HELP + "\n".join(lines))
        return 0
    if not arguments:
        raise UsageError("name a recipe, for example `convattn train quickstart`")
    if arguments[0].split("=")[0] == "--resume":
        return _resume(arguments)
    if arguments[0].startswith("-"):
        raise UsageError(f"name a recipe before {arguments[0]}: convattn train RECIPE [OPTIONS]")
    recipe = _choose("recipe", arguments[0], RECIPES)
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        raise UsageError("--resume takes no recipe: convattn train --resume RUN")
    config = _parse(
        TrainConfig,
        recipe(),
        arguments[1:],
        prog=f"convattn train {arguments[0]}",
        description=inspect.getdoc(recipe),
    )
    from convattn.train.run import train

    return _finish(train(config))


def _resume(arguments: list[str]) -> int:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) < 2:
        raise UsageError("--resume needs the run folder: convattn train --resume RUN")
    if len(words) > 2:
        raise UsageError(
            f"--resume goes on with RUN/config.json as it stands and takes no {words[2]}; edit "
            "that file if the data have moved"
        )
    from convattn.train.run import resume

    return _finish(resume(words[1]))


def _finish(run: Run | None) -> int:
    if run is not None:
        print(f"\n{run.result.table()}\n")
        for file in (*run.pictures, run.folder / "report.md"):
            print(file)
    return 0


def _evaluate(arguments: list[str]) -> int:
    prog = "convattn evaluate"
    target, folder = _target(
        EvaluateOptions(), arguments, prog=prog, model="MODEL --data NAME", dense=True
    )
    default = EvaluateOptions(data=_data_of(folder))
    options = _parse(
        EvaluateOptions, default, _with_data_name(arguments[1:]), prog=f"{prog} {target}"
    )
    _check_checkpoint(folder, options.checkpoint)
    task = _task_of_run(folder)
    _check_window(options.window, target, task)

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


def _task_of_run(folder: Path | None) -> str:
    """What the network of a run does; a model's name is a classifier's."""
    if folder is None:
        return "classification"
    from convattn.evaluate import task_of

    return task_of(TrainConfig.load(folder / "config.json").model.name)


def _evaluate_classifier(target: str, options: EvaluateOptions) -> Findings:
    from convattn.evaluate import evaluate, open_model
    from convattn.train.inputs import open_source, test_batches

    source = open_source(options.data, training=False)
    model = open_model(
        target,
        checkpoint=options.checkpoint,
        num_classes=None if options.checkpoint is None else len(source.class_names),
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


def _predict(arguments: list[str]) -> int:
    prog = "convattn predict"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN PICTURE|FOLDER [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder and a picture")
        _parse(PredictOptions, PredictOptions(), ["--help"], prog=f"{prog} RUN")
    target = arguments[0]
    if not Path(target).is_dir():
        raise UsageError(f"{target!r} is no run folder; name one that `convattn train` has made")
    options = _parse(PredictOptions, PredictOptions(), arguments[1:], prog=f"{prog} {target}")
    folder = Path(target)
    task = _task_of_run(folder)
    if options.picture is None:
        raise UsageError(f"{prog} {target} takes a picture or a folder of pictures")
    if task == "classification":
        raise UsageError(
            f"{target} classifies pictures: convattn explain {target} {options.picture} tells the "
            "classes and where they are seen"
        )
    _check_window(options.window, target, task)
    _check_free(options.out)

    import torch

    from convattn.evaluate import load_run
    from convattn.explain import read_picture
    from convattn.predict import predict_classes, predict_objects

    pictures = _pictures(Path(options.picture))
    if len(pictures) == 1:
        read_picture(pictures[0])  # the only one must be readable; of several, some may not be
    model, _ = load_run(folder)
    model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = _new_folder(options.out, "predicted")
    if task == "detection":
        told = predict_objects(model, pictures, out, threshold=options.threshold)
    else:
        told = predict_classes(model, pictures, out, window=options.window)
    failed = 0
    for number, (file, found) in enumerate(zip(pictures, told, strict=True), 1):
        if isinstance(found, Exception):
            failed += 1
            _fail(str(found), 2)
        else:
            print(f"{number}/{len(pictures)}  {file}  {found}", flush=True)
    print(f"\n{out}")
    if failed:
        return _fail(f"{failed} of {len(pictures)} files could not be read as a picture", 2)
    return 0


def _check_window(window: tuple[int, int] | None, target: str, task: str) -> None:
    if window is not None and task != "segmentation":
        raise UsageError(f"--window is for segmentation; {target} does {task}")


def _check_free(out: str | None) -> None:
    """Told before the work, not after it."""
    if out is not None and Path(out).exists():
        raise UsageError(f"{out} exists and is never overwritten; give another --out")


def _data_of(folder: Path | None) -> DataConfig:
    """The data set of a run, the default for a model's name."""
    return DataConfig() if folder is None else TrainConfig.load(folder / "config.json").data


def _with_data_name(words: list[str]) -> list[str]:
    """``--data NAME`` as short for ``--data.name NAME``."""
    return [
        "--data.name" + word.removeprefix("--data") if word.split("=")[0] == "--data" else word
        for word in words
    ]


def _check_checkpoint(folder: Path | None, checkpoint: str | None) -> None:
    if folder is not None and checkpoint is not None:
        raise UsageError("--checkpoint goes with a model's name; a run has its own weights")


def _target(
    options: Any,
    arguments: list[str],
    *,
    prog: str,
    model: str,
    rest: str = "",
    dense: bool = False,
    others: Iterable[str] = (),
) -> tuple[str, Path | None]:
    """What a command is about, its first word: the run's folder, or None for a model's name.

    Only with ``dense`` may the run be of a detector or segmenter. ``others`` are names beside the
    models'.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN {rest}[OPTIONS]\n       {prog} {model} {rest}[OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder or a model")
        _parse(type(options), options, ["--help"], prog=f"{prog} RUN|MODEL")
    target = arguments[0]
    if target.startswith("-"):
        raise UsageError(f"name a run folder or a model before {target}")
    if Path(target).is_dir():
        task = _task_of_run(Path(target))
        if task != "classification" and not dense:
            raise UsageError(
                f"{prog} is for networks that classify pictures; {target} does {task}: see "
                f"convattn predict {target} PICTURE"
            )
        return target, Path(target)
    import timm

    names = [*timm.list_models(), *timm.list_pretrained(), *others]
    if target not in names:
        raise UsageError(
            f"{target!r} is neither a run folder nor a model; the nearest "
            f"{'name' if others else 'model'} is {nearest(target, names)!r}"
        )
    return target, None


def _augment(arguments: list[str]) -> int:
    prog = "convattn augment"
    target, folder = _target(AugmentOptions(), arguments, prog=prog, model="MODEL")
    options = _parse(AugmentOptions, AugmentOptions(), arguments[1:], prog=f"{prog} {target}")
    if folder is not None and options.num_classes is not None:
        raise UsageError("--num-classes goes with a model's name; a run has its own classes")
    names = [item.name for item in dataclasses.fields(AugmentConfig)]
    wanted = AugmentConfig(**{name: getattr(options, name) for name in names})
    if wanted.pool is None and not wanted.conv:
        wanted = dataclasses.replace(wanted, pool="attention", conv=("all",))

    from convattn.evaluate import augment_arguments, load_run, plan_model
    from convattn.surgery import plan

    asked = augment_arguments(dataclasses.asdict(wanted), options.input_size)
    assert asked is not None
    if folder is None:
        found = plan_model(target, asked, num_classes=options.num_classes)
    else:
        found = plan(load_run(folder)[0], **asked)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    print(found)
    if found.replaced:
        possible = dataclasses.replace(
            wanted,
            pool=wanted.pool if found.pool.replaced else None,
            conv=wanted.conv if any(conv.replaced for conv in found.convs) else (),
        )
        if folder is None:
            print(f"\n{_how_to_train(target, possible, image_size=found.input_size[1])}")
        else:
            print(f"\n{_how_to_train_run(folder, possible, image_size=options.input_size)}")
    return 0


def _explain(arguments: list[str]) -> int:
    prog = "convattn explain"
    target, folder = _target(
        ExplainOptions(), arguments, prog=prog, model="MODEL", rest="PICTURE|FOLDER "
    )
    options = _parse(
        ExplainOptions,
        ExplainOptions(data=_data_of(folder)),
        _with_data_name(arguments[1:]),
        prog=f"{prog} {target}",
    )
    _check_checkpoint(folder, options.checkpoint)
    if options.faithfulness == (options.picture is not None):
        raise UsageError(
            f"{prog} {target} takes a picture or a folder of pictures, or else --faithfulness"
        )
    if options.target and options.top_k is not None:
        raise UsageError("--target and --top-k both choose classes; give one of them")
    _check_free(options.out)

    import torch

    from convattn.evaluate import open_model

    model = open_model(target, checkpoint=options.checkpoint, num_classes=options.num_classes)
    model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.faithfulness:
        return _test_faithfulness(model, target, folder, options)
    assert options.picture is not None
    pictures = _pictures(Path(options.picture))
    return _explain_pictures(model, target, pictures, options)


def _pictures(path: Path) -> list[Path]:
    """The file, or every picture file of the folder and those in it."""
    if not path.is_dir():
        return [path]
    from torchvision.datasets.folder import is_image_file

    found = sorted(file for file in path.rglob("*") if is_image_file(file.name))
    if not found:
        raise UsageError(f"{path} holds no picture; name a folder of .jpg, .png or similar files")
    return found


def _explain_pictures(
    model: nn.Module, name: str, pictures: Sequence[Path], options: ExplainOptions
) -> int:
    """Write an overlay and a map for every picture, a sheet of all, and what they were taken for.

    One picture that cannot be explained is the user's mistake; among several it is told, and the
    others go on.
    """
    import numpy as np

    from convattn.evaluate import replace_atomically, unused_name
    from convattn.explain import attention_through, explain_classes
    from convattn.explain.figures import FIGURE_SIDE, draw_explanations, draw_layers

    sheet: list[list[Explanation]] = []
    told: list[dict[str, Any]] = []
    used = {"sheet"}
    out: Path | None = None
    for number, file in enumerate(pictures, 1):
        try:
            found = explain_classes(
                model,
                file,
                options.target or None,
                top_k=1 if options.top_k is None else options.top_k,
                method=options.method,
                view=options.view,
                layer=options.layer,
                head=options.head,
                query=options.query,
            )
            if options.layers:
                picture, layers = attention_through(
                    model, file, query=options.query, view=options.view
                )
        except ValueError as error:
            # What fails for the first picture and is not its fault would fail for all of them.
            about_picture = isinstance(error, UnreadableImageError)
            if len(pictures) == 1 or (out is None and not about_picture):
                raise
            text = str(error)
            _fail(text if str(file) in text else f"{file}: {text}", 2)
            continue
        if out is None:
            out = _new_folder(options.out, "explained")
        for one in found:
            several = "" if len(found) == 1 else f"_{_file_name(one.target.name)}"
            stem = unused_name(file.stem + several, used)
            one.overlay().save(out / f"{stem}.png")
            np.savez_compressed(out / f"{stem}.npz", heat=one.heat, map=one.map.numpy())
        if options.layers:
            draw_layers(
                picture,
                layers,
                out / f"{unused_name(f'{file.stem}_layers', used)}.png",
                title=f"{file.name} through {Path(name).name}",
                query=options.query,
            )
        told.append({"picture": str(file), "explanations": [one.to_dict() for one in found]})
        if len(sheet) < _MOST_ROWS:
            row = found[: _MOST_COLUMNS if found[0].class_specific else 1]
            sheet.append([one.shrunk(FIGURE_SIDE) for one in row])
        best = found[0].top[0]
        print(f"{number}/{len(pictures)}  {file}  {best.name}  {best.probability:.1%}", flush=True)
    failed = len(pictures) - len(told)
    if out is None:
        raise UsageError(f"none of the {failed} files could be read as a picture")
    replace_atomically(out / "explanations.json", (json.dumps(told, indent=2) + "\n").encode())
    draw_explanations(sheet, out / "sheet.png", title=_sheet_title(sheet, name))
    print(f"\n{out / 'sheet.png'}")
    if failed:
        return _fail(f"{failed} of {len(pictures)} files could not be explained", 2)
    return 0


def _sheet_title(rows: Sequence[Sequence[Explanation]], name: str) -> str:
    how = "where it looks" if rows[0][0].method == "attention" else "Grad-CAM"
    return f"{Path(name).name}: {how}"


def _file_name(text: str) -> str:
    """A class's name as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", text.split(", ")[0]).strip("_") or "class"


def _new_folder(wanted: str | None, usual: str) -> Path:
    """Make the folder that is asked for, or the first free one of the usual name."""
    from convattn.evaluate import make_numbered_folder

    if wanted is None:
        return make_numbered_folder(Path(usual))
    folder = Path(wanted)
    folder.mkdir(parents=True)
    return folder


def _test_faithfulness(
    model: nn.Module, name: str, folder: Path | None, options: ExplainOptions
) -> int:
    """Measure the maps on test pictures; a run keeps the report, a model's gets a new folder."""
    from convattn.evaluate import replace_atomically
    from convattn.explain import faithfulness
    from convattn.explain.figures import draw_faithfulness
    from convattn.train.inputs import open_source, test_batches

    source = open_source(options.data, training=False)
    loader, boxes = test_batches(
        options.data, source, cast(Mapping[str, Any], model.pretrained_cfg)
    )
    num_classes, total = len(source.class_names), len(source.test)
    if model.num_classes != num_classes:
        raise UsageError(
            f"{name} has {model.num_classes} classes and {options.data.name} {num_classes}; name "
            "the data that it was trained on by --data"
        )

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done:,} of {total:,} pictures", end=end, file=sys.stderr, flush=True)

    report = faithfulness(
        model,
        loader,
        boxes=boxes,
        methods=None if options.method == "auto" else [options.method, "random", "centre"],
        num_steps=options.num_steps,
        seed=options.seed,
        device=options.device,
        progress=progress,
    )
    if folder is None or options.out is not None:
        folder = _new_folder(options.out, "explained")
    title = f"{Path(name).name} on {options.data.name}: do the maps tell the truth?"
    drawing = folder / "faithfulness.tmp.png"
    draw_faithfulness(report, drawing, title=title)
    drawing.replace(folder / "faithfulness.png")
    text = f"# {title}\n\n{report.markdown()}\n![curves](faithfulness.png)\n"
    replace_atomically(folder / "faithfulness.md", text.encode())
    replace_atomically(folder / "faithfulness.json", report.to_json().encode())
    print(f"{report.table()}\n")
    for suffix in ("json", "md", "png"):
        print(folder / f"faithfulness.{suffix}")
    return 0


def _demo(arguments: list[str]) -> int:
    prog = "convattn demo"
    named = bool(arguments) and not arguments[0].startswith("-")
    target: str | None = None
    folder: Path | None = None
    if named:
        target, folder = _target(DemoOptions(), arguments, prog=prog, model="MODEL")
    options = _parse(DemoOptions, DemoOptions(), arguments[named:], prog=prog)
    _check_checkpoint(folder, options.checkpoint)
    from convattn.demo import launch

    launch(
        target,
        checkpoint=options.checkpoint,
        num_classes=options.num_classes,
        host=options.host,
        port=options.port,
        open_browser=options.browser,
    )
    return 0


def _bench(arguments: list[str]) -> int:
    from convattn.bench import LAYERS, draw_costs, measure
    from convattn.evaluate import replace_atomically

    prog = "convattn bench"
    _check_no_dense_model(arguments, prog)
    target, run = _target(
        BenchModelOptions(),
        arguments,
        prog=prog,
        model=f"MODEL|{'|'.join(LAYERS)}",
        others=LAYERS,
    )
    subject, options = _subject(target, run, arguments[1:], prog=f"{prog} {target}")
    _check_free(options.out)

    def progress(done: int, total: int, what: str) -> None:
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns - 1
            text = f"{done:,} of {total:,}  {what}"
            print(f"\r{text[:columns].ljust(columns)}", end="", file=sys.stderr, flush=True)

    costs = measure(
        subject,
        sizes=options.sizes,
        batch_size=options.batch_size,
        dtypes=options.dtypes,
        compiled=options.compile,
        training=options.training,
        device=options.device,
        repeats=options.repeats,
        threads=options.threads,
        progress=progress,
        warn=lambda text: _fail(text, 0),
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not costs.rows:
        return _fail("interrupted before anything was measured", INTERRUPTED)
    if all(row.median_ms is None for row in costs.rows):
        return _fail(f"nothing could be measured: {costs.rows[0].error}", 2)
    print(f"{costs.table()}\n")
    folder = _new_folder(options.out, f"runs/bench/{subject.name}")
    replace_atomically(folder / "bench.csv", costs.to_csv().encode())
    replace_atomically(folder / "bench.json", costs.to_json().encode())
    drawing = folder / "bench.tmp.png"
    draw_costs(costs, drawing)
    drawing.replace(folder / "bench.png")
    print(folder)
    if costs.interrupted:
        return _fail(f"interrupted; {folder} holds what was measured", INTERRUPTED)
    return 0


def _check_no_dense_model(arguments: Sequence[str], prog: str) -> None:
    from convattn.evaluate import task_of

    task = task_of(arguments[0]) if arguments else "classification"
    if task != "classification":
        raise UsageError(
            f"{prog} is for networks that classify pictures, and for layers; {arguments[0]} does "
            f"{task}: measure its backbone"
        )


def _subject(
    target: str, run: Path | None, words: list[str], *, prog: str
) -> tuple[Subject, BenchOptions]:
    """What is to be measured, and how."""
    from convattn.bench import LAYERS, layer_subject, model_subject, run_subject
    from convattn.evaluate import augment_arguments

    if target in LAYERS:
        kind = _layer_options(target, LAYERS[target])
        options = _parse(kind, kind(), words, prog=prog)
        return layer_subject(target, **dataclasses.asdict(cast(Any, options).args)), options
    if run is not None:
        options = _parse(BenchOptions, BenchOptions(), words, prog=prog)
        return run_subject(run), options
    chosen = _parse(BenchModelOptions, BenchModelOptions(), words, prog=prog)
    subject = model_subject(
        target,
        num_classes=chosen.num_classes,
        augment=augment_arguments(dataclasses.asdict(chosen.augment), None),
        **chosen.model_args,
    )
    return subject, chosen


def _layer_options(name: str, layer: Layer) -> type[BenchOptions]:
    """The options with the layer's own arguments as flags."""
    parameters = inspect.signature(layer.kind).parameters.values()
    fields = [
        (one.name, one.annotation, field(default=layer.arguments.get(one.name, one.default)))
        for one in parameters
        if one.name not in ("device", "dtype")
    ]
    own = dataclasses.make_dataclass(
        f"{name}Arguments",
        fields,
        frozen=True,
        kw_only=True,
        namespace={"__doc__": inspect.getdoc(layer.kind)},
    )
    return dataclasses.make_dataclass(
        "BenchLayerOptions",
        [("args", own, field(default_factory=own))],
        bases=(BenchOptions,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": f"Measure what {name} costs: multiply-adds, time and memory."},
    )


def _how_to_train(name: str, augment: AugmentConfig, *, image_size: int) -> str:
    """The command that trains a model with attention on a folder of pictures."""
    import timm

    from convattn.train.recipes.classification import finetune

    default = finetune()
    config = dataclasses.replace(
        default,
        data=dataclasses.replace(default.data, root="DIR", image_size=image_size),
        model=dataclasses.replace(
            default.model, name=name, pretrained=timm.models.is_model_pretrained(name)
        ),
        augment=augment,
    )
    return _training_command(config, default)


def _how_to_train_run(folder: Path, augment: AugmentConfig, *, image_size: int | None) -> str:
    """The command that trains a run's weights further, with attention."""
    from convattn.train.recipes import RECIPES
    from convattn.train.recipes.classification import finetune

    config = TrainConfig.load(folder / "config.json")
    if config.augment.pool is not None or config.augment.conv:
        return f"{folder} has been given attention already; add more in Python, by augment()"
    default = RECIPES.get(config.recipe, finetune)()
    if image_size is None:
        image_size = config.data.image_size
    config = dataclasses.replace(
        config,
        recipe=default.recipe,
        data=dataclasses.replace(config.data, image_size=image_size),
        model=dataclasses.replace(
            config.model, num_classes=None, pretrained=False, checkpoint=str(folder)
        ),
        augment=augment,
        out=None,
    )
    return _training_command(config, default)


def _training_command(config: TrainConfig, recipe: TrainConfig) -> str:
    words = ["convattn", "train", recipe.recipe, *_as_flags(config, recipe)]
    return f"train it with:\n  {shlex.join(words)}"


def _as_flags(config: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """The flags that make ``config`` out of ``default``."""
    for item in dataclasses.fields(config):
        value, other = getattr(config, item.name), getattr(default, item.name)
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _as_flags(value, other, f"{prefix}{name}.")
        elif value is True or value is False:
            if value != other:
                yield f"--{prefix}{'' if value else 'no-'}{name}"
        elif value != other:
            yield f"--{prefix}{name}"
            if isinstance(value, dict):
                yield from (str(word) for pair in value.items() for word in pair)
            else:
                yield from map(str, value if isinstance(value, tuple) else [value])


def _parse(
    kind: type[T],
    default: T,
    arguments: list[str],
    *,
    prog: str,
    description: str | None = None,
) -> T:
    """Flags into a dataclass; a mistake is a ``UsageError`` instead of tyro's box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                kind,
                prog=prog,
                description=description,
                default=default,
                args=arguments,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UsageError(_unboxed(printed.getvalue())) from None
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UsageError(f"{prog} takes no {flag!r}; see {prog} --help")
        # A field that this command keeps fixed has a name, but no flag.
        names = [name for name in (f"--{name}" for name in _flags(default)) if name != flag]
        raise UsageError(f"unknown flag {flag}; the nearest is {nearest(flag, names)}")
    return parsed


def _unboxed(text: str) -> str:
    """The message inside the box that tyro draws round an error, on one line."""
    lines = [line.strip(" │╭╮╰╯├┤") for line in text.strip().splitlines()]

    def rule(line: str) -> bool:
        return not line.strip("-─")

    below_title = itertools.dropwhile(rule, lines[1:])
    message = " ".join(
        " ".join(itertools.takewhile(lambda line: not rule(line), below_title)).split()
    )
    # A class's own check names its field; which class it was adds nothing.
    return re.sub(r"^\w+: (?=[\w.]+=)", "", message.replace("Error parsing ", ""))


def _flags(config: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name.replace("_", "-")


def _choose(kind: str, name: str, known: dict[str, Callable[..., T]]) -> Callable[..., T]:
    if name not in known:
        raise UsageError(f"unknown {kind} {name!r}; the nearest is {nearest(name, known)!r}")
    return known[name]


def _summary(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring."""
    return (function.__doc__ or "").strip().split("\n")[0]


def _status(error: Exception) -> int | None:
    """The exit status of an error that is the user's to mend, None for a fault of ours."""
    if isinstance(error, InterruptedTraining):
        return INTERRUPTED
    if isinstance(error, ValueError | OSError | NonFiniteError):
        return 2
    return None


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    # A DataLoader's worker sends its traceback along, and the message at the end.
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return " ".join(text.split())


def _fail(message: str, status: int) -> int:
    # Processes that help the first one train would only say the same again.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"convattn: {message}", file=sys.stderr)
    return status
