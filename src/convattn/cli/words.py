"""Words of the command line into dataclasses, and mistakes into sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import tyro

from convattn.cli.config_file import as_yaml, located, words_of
from convattn.launching import rank_and_count
from convattn.text import nearest, report

T = TypeVar("T")


_FILES = "--config FILE reads flags of a YAML or JSON file, --print-config writes them and ends."


class UsageError(ValueError):
    """The command line itself is wrong."""


def parse(
    kind: type[T],
    default: T,
    arguments: list[str],
    *,
    prog: str,
    description: str | None = None,
) -> T:
    """Flags into a dataclass; a mistake is a ``UsageError`` instead of tyro's box.

    Args:
        kind: The dataclass.
        default: Values of the flags that are not given.
        arguments: The words.
        prog: What the help calls the command.
        description: Stands above its flags; None takes the docstring of ``kind``.

    Raises:
        UsageError: If the words are no such flags.
    """
    printing = "--print-config" in arguments
    arguments = [word for word in arguments if word != "--print-config"]
    default, arguments = _into_defaults(default, [*words_of(default, arguments), *arguments])
    told = description or inspect.cleandoc(kind.__doc__ or "")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                kind,
                prog=prog,
                description=f"{told.strip()}\n\n{_FILES}",
                default=default,
                args=arguments,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:  # tyro ends with None once it has printed a completion
            raise
        raise UsageError(located(_unboxed(printed.getvalue()))) from None
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UsageError(f"{prog} takes no {flag!r}; see {prog} --help")
        # A field that this command keeps fixed has a name, but no flag.
        names = [name for name in (f"--{name}" for name in _flags(default)) if name != flag]
        raise UsageError(f"unknown flag {flag}; the nearest is {nearest(flag, names)}")
    if printing:
        print(as_yaml(parsed), end="")
        raise SystemExit(0)
    return parsed


def _into_defaults(default: T, arguments: list[str]) -> tuple[T, list[str]]:
    """Keyword arguments that are given to a mapping which has some already.

    tyro makes a flag a key of such a mapping, and none by which a key could be added.
    """
    words: list[str] = []
    while arguments:
        word, *arguments = arguments
        path = word.removeprefix("--").replace("-", "_").split(".")
        before = _value(default, path) if word.startswith("--") else None
        if not isinstance(before, dict) or not before:
            words.append(word)
            continue
        pairs = list(itertools.takewhile(lambda other: not other.startswith("--"), arguments))
        arguments = arguments[len(pairs) :]
        if not pairs or len(pairs) % 2:
            raise UsageError(
                f"{word} takes names and values in turn, for example {word} global_pool avg; got "
                f"{' '.join(pairs) or 'none'}"
            )
        values = {name: _scalar(text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}
        default = _replaced(default, path, {**before, **values})
    return default, words


def _value(config: Any, path: list[str]) -> Any:
    for name in path:
        config = getattr(config, name, None)
    return config


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    """A dataclass with one value, in one of its own perhaps, changed."""
    first, *rest = path
    value = _replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})


def _scalar(text: str) -> Any:
    """As tyro reads True, False, whole numbers, numbers and texts."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


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
    message = re.sub(
        r"^\w+(Options: |Config: |: (?=[\w.]+=))", "", message.replace("Error parsing ", "")
    )
    for pattern, expected in _NO_SUCH_VALUE:
        found = re.fullmatch(pattern, message)
        if found is not None:
            kinds = _spelled_out(expected or found["kinds"])
            return f"{found['flag']} {found['given'].replace(chr(39), '')}; expected {kinds}"
    return message


_NO_SUCH_VALUE = (
    (r"(?P<flag>\S+): could not convert string to float: '(?P<given>.*)'", "FLOAT"),
    (r"(?P<flag>\S+): invalid literal for int\(\) with base 10: '(?P<given>.*)'", "INT"),
    (
        r"(?P<flag>\S+): no type matching (?P<kinds>.+) could be instantiated from "
        r"\[(?P<given>.*)\]\.",
        "",
    ),
    (
        r"invalid choice (?P<given>.*) for argument '(?P<flag>\S+)'\. Expected one of "
        r"\((?P<kinds>.*)\)\.",
        "",
    ),
)
"""What tyro says of a value of another type, and its word for the type; "": it is in there."""

_KINDS = {
    "INT": ("a whole number", "whole numbers"),
    "FLOAT": ("a number", "numbers"),
    "STR": ("text", "texts"),
}


def _spelled_out(kinds: str) -> str:
    """What tyro calls types, as ``{None}|{FLOAT FLOAT}``, in English."""
    told = []
    for kind in re.findall(r"\{[^{}]*\}|[^|{}]+", kinds):
        own = kind.strip("{}").split()
        if own and own[0] in _KINDS and len(set(own)) == 1:
            one, several = _KINDS[own[0]]
            told.append(one if len(own) == 1 else f"{len(own)} {several}")
        else:
            told += re.findall(r"[^,'\s]+", kind.strip("{}"))
    return " or ".join(sorted(told, key=lambda word: word == "None"))


def _flags(config: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name.replace("_", "-")


def choose(kind: str, name: str, known: Mapping[str, T]) -> T:
    """What a name stands for.

    Args:
        kind: What an error calls it.
        known: All there are.

    Raises:
        UsageError: If it is not among them.
    """
    if name not in known:
        raise UsageError(f"unknown {kind} {name!r}; the nearest is {nearest(name, known)!r}")
    return known[name]


def summary(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring.

    Args:
        function: Whose.
    """
    return (function.__doc__ or "").strip().split("\n")[0]


def refuse_several(what: str) -> None:
    """Refuse to do, once a process, what is to be done once.

    Raises:
        UsageError: If torchrun or srun has started several processes.
    """
    _, count = rank_and_count()
    if count > 1:
        raise UsageError(
            f"{what} works in one process, and {count} were started: run it without torchrun or "
            "srun"
        )


def fail(message: str, status: int, *, by_each: bool = False) -> int:
    """Tell a mistake on stderr, in one line, and give the status back."""
    report(message, by_each=by_each)
    return status
