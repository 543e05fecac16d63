"""Configurations out of JSON text, and as flags."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from convattn.text import nearest

RESTORE = "restore it from the run's backup or train anew"
"""What to do when a run's `config.json` is not what was written."""


def parse(text: str, source: str) -> Any:
    """JSON's values.

    Args:
        text: JSON.
        source: Where it came from, for errors.

    Raises:
        ValueError: Whatever is wrong with the text, in one sentence.
    """
    try:
        return json.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        reason = str(error) if text.strip() else "it is empty"
    raise ValueError(f"{source} is not JSON: {reason}; {RESTORE}")


def build(cls: type[Any], values: Any, source: str, prefix: str) -> Any:
    """An instance of a configuration class out of parsed JSON.

    Args:
        cls: The class.
        values: The fields; what is left out keeps its default.
        source: Where they came from, for errors.
        prefix: Of the fields' names.

    Raises:
        ValueError: If there is no such field, or a value does not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{source}: {prefix.rstrip('.') or 'the whole'} must be an object of fields, "
            f"got {reprlib.repr(values)}; {RESTORE}"
        )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(
                f"{source}: unknown field {prefix}{key}; the nearest is "
                f"{prefix}{nearest(key, hints)}"
            )
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            arguments[key] = build(typing.cast("type[Any]", hint), value, source, f"{prefix}{key}.")
            continue
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(
                f"{source}: {prefix}{key} is {reprlib.repr(value)}, expected {expected}"
            )
        arguments[key] = value
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a parsed JSON value has the annotated type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, options[1]) for item in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def as_flags(config: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """The flags that make ``config`` out of ``default``.

    Args:
        config: A configuration.
        default: Another of its class.
        prefix: Of every flag.
    """
    for item in dataclasses.fields(config):
        value, other = getattr(config, item.name), getattr(default, item.name)
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from as_flags(value, other, f"{prefix}{name}.")
        elif value is True or value is False:
            if value != other:
                yield f"--{prefix}{'' if value else 'no-'}{name}"
        elif value != other:
            yield f"--{prefix}{name}"
            if isinstance(value, dict):
                yield from (str(word) for pair in value.items() for word in pair)
            else:
                yield from map(str, value if isinstance(value, tuple) else [value])
