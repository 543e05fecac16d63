"""The command line: ``convattn list | train | evaluate | predict | explain | bench | ...``.

Every mistake of the user is one line on stderr and exit status 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from convattn.cli.config_file import named_in
from convattn.cli.words import choose, fail, refuse_several
from convattn.exceptions import INTERRUPTED, Interrupted, LostProcess, NonFiniteError
from convattn.text import cut

COMMANDS = {
    "list": "listing",
    "check-data": "check_data",
    "shard": "shard",
    "finetune": "finetune",
    "train": "train",
    "probe": "probe",
    "evaluate": "evaluate",
    "predict": "predict",
    "augment": "augment",
    "explain": "explain",
    "demo": "demo",
    "bench": "bench",
    "export": "export",
    "push": "push",
    "reproduce": "reproduce",
    "weights": "weights",
}
"""Command -> the file of this folder that holds it."""

_SHARED = ("train", "probe", "evaluate", "predict")
"""Commands whose work several processes share."""

HELP = """\
usage: convattn COMMAND ...

Attention for any convolutional network: inside its convolutions and in place of its pool.

commands:
  list        show the models, the recipes (--recipes) or the data sets (--data)
  check-data  tell what is wrong with a data set before training: convattn check-data IMAGES
  shard       write images as WebDataset or litdata shards: convattn shard IMAGES OUT
  finetune    from a folder of images to a tested classifier: convattn finetune IMAGES
  train       train a recipe and leave a run folder: convattn train quickstart
  probe       cache a frozen network's maps and train every pool on them: convattn probe IMAGES
  evaluate    test a run, or a model by name, on its test images: convattn evaluate RUN
  predict     find classes, objects, or every pixel's class: convattn predict RUN FOLDER
  augment     show where a network can get attention, and at what cost: convattn augment resnet50
  explain     show where a network looks, and test whether that is true: convattn explain RUN IMAGE
  demo        the same as a page in the browser: convattn demo
  bench       measure what a network or a layer costs: convattn bench resnet50
  export      write a network for other software: convattn export RUN --format onnx
  push        put a run's network on the Hugging Face hub: convattn push RUN REPO
  reproduce   show both papers' tables beside what is verified here: convattn reproduce
  weights     show released weights, get them, convert them: convattn weights

convattn COMMAND --help tells more; --config FILE reads flags of a YAML or JSON file, --print-config
writes them and ends; --debug shows the traceback of an error. convattn --print-completion bash
writes a script that completes commands and flags; zsh has one, too.
"""

_LONGEST_SENTENCE = 1_000  # characters; longer ones quote values as long, say a file's


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
        return fail("interrupted before there was anything to resume", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        mistake = _status(error)
        if mistake is None:
            raise
        return fail(_sentence(error), mistake, by_each=isinstance(error, LostProcess))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from convattn import __version__

        print(__version__)
        return 0
    if arguments[0] == "--print-completion":
        from convattn.cli.completion import script_of

        print(script_of(arguments[1:], COMMANDS, main), end="")
        return 0
    file = choose("command", arguments[0], COMMANDS)
    if arguments[0] not in _SHARED:
        refuse_several(f"convattn {arguments[0]}")
    module = import_module(f"convattn.cli.{file}")
    with named_in(arguments[1:]) as words:
        status: int = module.command(words)
    return status


def _status(error: Exception) -> int | None:
    """The exit status of an error that is the user's to mend, None for a fault of ours."""
    if isinstance(error, Interrupted):
        return INTERRUPTED
    if isinstance(error, ValueError | OSError | NonFiniteError):
        return 2
    return None


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    # A DataLoader's worker sends its traceback along, and the message at the end.
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return cut(" ".join(text.split()), _LONGEST_SENTENCE)
