"""Pages that are one file each: a skeleton with its style, tables, sheets of pictures, bars.

A page asks nothing of any host: styles and pictures are inside. What comes from outside, as the
name of a class, is escaped wherever it stands. A page's own template begins with
``{% extends "pages/base.html" %}`` and takes what it shows from ``pages/parts.html``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from PIL import Image

from convattn.text import printable


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a sheet."""

    data: str
    """The ``data:`` address that holds it."""
    caption: str
    """What stands below it."""
    detail: str = ""
    """What stands below that, smaller."""


def render(package: str, template: str, values: Mapping[str, Any]) -> bytes:
    """A page as one file.

    Args:
        package: That holds the template, for example "convattn.checks".
        template: Its file there.
        values: What it shows, by name.
    """
    loader = PrefixLoader(
        {"pages": PackageLoader("convattn.pages", "."), "own": PackageLoader(package, ".")}
    )
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    text = environment.get_template(f"own/{template}").render(values)
    return text.encode(errors="backslashreplace")


def embed(image: Image.Image, side: int) -> str:
    """A picture as a ``data:`` address, a JPEG.

    Args:
        image: Of any size; not changed.
        side: Pixels of its longer side, at most.

    Examples:
        >>> embed(Image.new("RGB", (8, 8)), 4)[:23]
        'data:image/jpeg;base64,'
    """
    small = image.convert("RGB")
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
