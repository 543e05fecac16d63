"""``--config FILE`` and ``--print-config`` of every command: flags kept in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
import yaml

from convattn import __version__
from convattn.text import nearest, one_line

_VERSION = "convattn"
"""The key of the version."""
_NOT_KEPT = {tyro.conf.Positional, tyro.conf.Fixed, tyro.conf.Suppress}
"""Marks of fields that are no flags, or are not kept: what a command is about stands before it."""


@dataclass
class ConfigFile:
    """What ``--config`` named."""

    path: str
    root: yaml.MappingNode
    version: str = __version__
    """Of the convattn that wrote it."""
    read: bool = False
    """Whether the command has asked for it."""
    lines: dict[str, int] = field(default_factory=dict)
    """Flag -> the line of its key, from 1."""

    @classmethod
    def open(cls, path: str) -> ConfigFile:
        """Read a YAML or JSON file.

        Raises:
            ValueError: If it is neither, or no mapping.
            FileNotFoundError: If it is not there.
        """
        try:
            root = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
        except FileNotFoundError:
            raise FileNotFoundError(f"--config {path} does not exist; give a YAML file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} cannot be read as YAML ({one_line(error)}); expected a line for each "
                "flag, as --print-config writes them"
            ) from None
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(
                f"{path} holds no flags; expected lines as `seed: 1`, as --print-config writes them"
            )
        version = next((v.value for k, v in root.value if k.value == _VERSION), __version__)
        root.value = [pair for pair in root.value if pair[0].value != _VERSION]
        return cls(path, root, version=str(version))

    def fault(self, line: int, message: str) -> ValueError:
        """An error that names file and line."""
        if self.version != __version__:
            message += f"; the file is of convattn {self.version}, and this is {__version__}"
        return ValueError(f"{self.path}, line {line}: {message}")


@dataclass(frozen=True)
class _Field:
    default: Any
    """A dataclass where there are flags below it."""
    kept: bool
    is_switch: bool
    """Whether the flag takes no value."""


def _fields(config: Any) -> dict[str, _Field]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    found = {}
    for item in dataclasses.fields(config):
        marks = set(getattr(hints[item.name], "__metadata__", ()))
        plain = typing.get_args(hints[item.name])[0] if marks else hints[item.name]
        found[item.name.replace("_", "-")] = _Field(
            default=getattr(config, item.name),
            kept=not any(mark in _NOT_KEPT for mark in marks if isinstance(mark, typing.Hashable)),
            is_switch=plain is bool,
        )
    return found


# --- in


_NAMED: ContextVar[ConfigFile | None] = ContextVar("_NAMED", default=None)


@contextlib.contextmanager
def named_in(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The words of the command line without ``--config FILE``, which ``words_of`` then knows.

    Args:
        arguments: Of the command line.

    Raises:
        ValueError: If there are two files or none, or no flag of the command was looked for.
        FileNotFoundError: If it is not there.
    """
    kept, files, words = [], [], iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config":
            files.append(value or next(words, ""))
        else:
            kept.append(word)
    if not files:
        yield kept
        return
    if len(files) > 1 or not files[0] or files[0].startswith("-"):
        raise ValueError("--config takes one file: convattn COMMAND --config FILE")
    file = ConfigFile.open(files[0])
    token = _NAMED.set(file)
    try:
        yield kept
    finally:
        _NAMED.reset(token)
    if not file.read:
        raise ValueError(f"--config {file.path} has no effect here; leave it out")


def words_of(default: Any, arguments: Sequence[str]) -> list[str]:
    """The flags of the file that ``--config`` named, but those that ``arguments`` give themselves.

    Args:
        default: The dataclass of the command's flags.
        arguments: Its words, which win.

    Raises:
        ValueError: If the file has a key or a value that is none.
    """
    file = _NAMED.get()
    if file is None:
        return []
    file.read = True
    given = {word.split("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    words = []
    for own in _words(file, file.root, default, ""):
        path, dot, name = own[0].removeprefix("--").rpartition(".")
        other = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
        if given.isdisjoint({own[0], f"--{path}{dot}{other}"}):
            words += own
    return words


def located(message: str) -> str:
    """A parser's message that begins with a flag, and where in the file that stands.

    Args:
        message: Of the parser.
    """
    file, flag = _NAMED.get(), message.split(maxsplit=1)[0].rstrip(":")
    if file is None or flag not in file.lines:
        return message
    return f"{file.path}, line {file.lines[flag]}: {message}"


def _words(
    file: ConfigFile, mapping: yaml.MappingNode, default: Any, prefix: str
) -> Iterator[list[str]]:
    known = {name: field for name, field in _fields(default).items() if field.kept}
    seen: set[str] = set()
    for key, node in mapping.value:
        line = key.start_mark.line + 1
        name = str(key.value).replace("_", "-")
        if name not in known:
            raise file.fault(
                line,
                f"unknown key {prefix + str(key.value)!r}; the nearest is "
                f"{prefix + nearest(name, known)!r}",
            )
        if name in seen:
            raise file.fault(line, f"{prefix + name!r} stands here a second time; leave one out")
        seen.add(name)
        file.lines[f"--{prefix}{name}"] = line
        own = known[name]
        if dataclasses.is_dataclass(own.default):
            if not isinstance(node, yaml.MappingNode):
                raise file.fault(line, f"{prefix + name!r} has keys of its own; expected those")
            yield from _words(file, node, own.default, f"{prefix}{name}.")
        elif own.is_switch:
            if node.tag != "tag:yaml.org,2002:bool":
                raise file.fault(line, f"{prefix + name!r} is true or false; expected one of them")
            yes = yaml.SafeLoader.bool_values[node.value.lower()]
            yield [f"--{prefix}{name}" if yes else f"--{prefix}no-{name}"]
        else:
            values = _values(file, line, prefix + name, node)
            # One word, or a negative number would look like a flag.
            yield (
                [f"--{prefix}{name}={values[0]}"]
                if len(values) == 1
                else [
                    f"--{prefix}{name}",
                    *values,
                ]
            )


def _values(file: ConfigFile, line: int, key: str, node: yaml.Node) -> list[str]:
    """What would stand behind the flag."""
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.rsplit(":", 1)[-1]
        if kind == "null":
            return ["None"]
        return [node.value.capitalize() if kind == "bool" else node.value]
    parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
    if not all(isinstance(part, yaml.ScalarNode) for part in parts):
        raise file.fault(line, f"{key!r} holds lists of lists; expected values, as its flag takes")
    return [value for part in parts for value in _values(file, line, key, part)]


# --- out


def as_yaml(config: Any) -> str:
    """Flags and their values, as ``--config`` reads them.

    Args:
        config: The dataclass that a command line was parsed into.
    """
    flags = {_VERSION: __version__, **_plain(config)}
    return yaml.safe_dump(flags, sort_keys=False, allow_unicode=True, width=100)


def _plain(config: Any) -> dict[str, Any]:
    return {
        name: _plain(field.default)
        if dataclasses.is_dataclass(field.default)
        else json.loads(json.dumps(field.default, default=str))
        for name, field in _fields(config).items()
        if field.kept
    }
