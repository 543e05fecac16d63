"""``convattn evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convattn.cli.targets import Target, Weights, check_weights, find_target, with_data_flags
from convattn.cli.words import UsageError, parse, refuse_several
from convattn.config import OF_TRAINING, EvaluateConfig
from convattn.launching import is_first_process
from convattn.text import printable, say

_PROG = "convattn evaluate"
_OF_IMAGENET = ("allow_missing_classes", "real")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EvaluateConfig):
    """Test a trained network and write what was found into its run folder, or a new one.

    convattn evaluate --resume FOLDER goes on with a test that was stopped.
    """

    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""


def command(arguments: list[str]) -> int:
    """Run ``convattn evaluate``."""
    stopped = None
    if arguments and arguments[0].split("=")[0] == "--resume":
        stopped, arguments = _stopped(arguments)
    elif any(argument.split("=")[0] == "--resume" for argument in arguments):
        raise UsageError(f"--resume takes no model and no data: {_PROG} --resume FOLDER")
    target, options = _parse(arguments)
    if not target.task.shares_tests:
        refuse_several(f"{_PROG} of a network for {target.task.name}")
    result, files = target.task.test(target.name, target.run, options, arguments, stopped=stopped)
    if not is_first_process():
        return 0
    say(f"{result.table()}\n")
    say("\n".join(printable(str(file)) for file in files))
    return 0


def _stopped(arguments: list[str]) -> tuple[Path, list[str]]:
    """The folder of a test that was stopped, and the words that began it."""
    from convattn.classification.testing import stopped_test

    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) < 2:
        raise UsageError(
            f"--resume needs the folder of a test that was stopped: {_PROG} --resume RUN"
        )
    folder = Path(words[1])
    if len(words) > 2:
        raise UsageError(f"--resume goes on as {folder} was begun and takes no {words[2]}")
    return folder, stopped_test(folder)


def _parse(arguments: list[str]) -> tuple[Target, EvaluateOptions]:
    target = find_target(
        EvaluateOptions(), arguments, prog=_PROG, model="MODEL --data NAME", dense=True
    )
    options = parse(
        EvaluateOptions,
        EvaluateOptions(data=target.data),
        with_data_flags(arguments[1:], "split"),
        prog=f"{_PROG} {target.name}",
    )
    check_weights(target.run, options.weights)
    target.task.check_options(options, target.name)
    for name in OF_TRAINING:
        if getattr(options.data, name) != getattr(target.data, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--data.{flag} is about training; a test has no use for it")
    if options.data.name != "imagenet":
        for name in _OF_IMAGENET:
            if getattr(options, name) != getattr(EvaluateOptions(), name):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for imagenet; the data are {options.data.name}")
    if options.out is not None and Path(options.out).exists():
        raise UsageError(
            f"{options.out} exists and is never overwritten; give another --out, or go on with a "
            f"test that was stopped there: {_PROG} --resume {options.out}"
        )
    return target, options
