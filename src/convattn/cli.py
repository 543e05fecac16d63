"""The command line: ``convattn list | train | evaluate``.

Every mistake of the user is one line on stderr and exit status 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import tyro

from convattn.evaluate import nearest
from convattn.train.config import DataConfig, TrainConfig
from convattn.train.exceptions import InterruptedTraining, NonFiniteError

if TYPE_CHECKING:
    from convattn.train.run import Run

T = TypeVar("T")

HELP = """\
usage: convattn COMMAND ...

Attention for any convolutional network: inside its convolutions and in place of its pool.

commands:
  list      show the models, the recipes (--recipes) or the data sets (--data)
  train     train a recipe and leave a run folder: convattn train quickstart
  evaluate  test a run, or a model by name, on its test pictures: convattn evaluate RUN

convattn COMMAND --help tells more; --debug shows the traceback of an error.
"""

TRAIN_HELP = """\
usage: convattn train RECIPE [OPTIONS]
       convattn train --resume RUN

Train a recipe and leave a run folder; every value of the recipe can be overridden by a flag:
convattn train RECIPE --help lists them. --resume goes on with a run that was stopped.

recipes:
"""

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
    data: bool = False
    """Show the data sets instead."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained network and write evaluation.json into its run folder."""

    checkpoint: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    data: DataConfig = field(default_factory=DataConfig)


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
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted before there was anything to resume", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        status = _status(error)
        if status is None:
            raise
        return _fail(_sentence(error), status)


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": _train,
        "evaluate": _evaluate,
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
        from convattn.data import DATASETS

        names, describe = list(DATASETS), lambda name: (name,)
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
        for file in (run.folder / "curves.png", run.attention, run.folder / "report.md"):
            if file is not None:
                print(file)
        if run.attention is None:
            print("no attention.png: the network has no attention layer")
    return 0


def _evaluate(arguments: list[str]) -> int:
    prog = "convattn evaluate"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN [OPTIONS]\n       {prog} MODEL --data NAME [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder or a model")
        _parse(EvaluateOptions, EvaluateOptions(), ["--help"], prog=f"{prog} RUN|MODEL")
    if arguments[0].startswith("-"):
        raise UsageError(f"name a run folder or a model before {arguments[0]}")
    target, rest = arguments[0], arguments[1:]
    rest = [
        "--data.name" + word.removeprefix("--data") if word.split("=")[0] == "--data" else word
        for word in rest
    ]
    folder = Path(target) if Path(target).is_dir() else None
    data = DataConfig() if folder is None else TrainConfig.load(folder / "config.json").data
    options = _parse(EvaluateOptions, EvaluateOptions(data=data), rest, prog=f"{prog} {target}")
    if folder is not None and options.checkpoint is not None:
        raise UsageError("--checkpoint goes with a model's name; a run has its own weights")

    from convattn.evaluate import (
        create_model,
        evaluate,
        load_run,
        load_weights,
        replace_atomically,
    )
    from convattn.train.inputs import open_source, test_batches

    if folder is not None:
        model, _ = load_run(folder)
        source = open_source(options.data, training=False)
    else:
        names = _model_names()
        if target not in names:
            raise UsageError(
                f"{target!r} is neither a run folder nor a model; the nearest model is "
                f"{nearest(target, names)!r}"
            )
        source = open_source(options.data, training=False)
        model = create_model(
            target,
            pretrained=options.checkpoint is None,
            num_classes=None if options.checkpoint is None else len(source.class_names),
            in_chans=source.in_chans,
        )
        if options.checkpoint is not None:
            load_weights(model, Path(options.checkpoint))
    sees = cast(Mapping[str, Any], model.pretrained_cfg)
    loader, boxes = test_batches(options.data, source, sees)
    result = evaluate(
        model, loader, class_names=source.class_names, boxes=boxes, device=options.device
    )
    print(result.table())
    if folder is not None:
        replace_atomically(folder / "evaluation.json", result.to_json().encode())
        print(f"\n{folder / 'evaluation.json'}")
    return 0


def _model_names() -> list[str]:
    import timm

    return [*timm.list_models(), *timm.list_pretrained()]


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
        names = [f"--{name}" for name in _flags(default)]
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
