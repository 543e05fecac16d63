"""What the page of a detector or segmenter is made of."""

from __future__ import annotations

from html import escape
from typing import Any

from PIL import Image

from convattn.demo.dense import enlarged, heat_overlay
from convattn.demo.network import Query, mark_pixel
from convattn.demo.page import figure, grid, percent
from convattn.explanation.dense import DenseExplanation

_MOST = 20  # rows

ASK_HEADING = (
    "<div class='ask'><h3>Ask a pixel</h3>"
    "<p>Click the image: what does the backbone look at from there?</p></div>"
)


def choices(found: Any, chosen: int | None) -> str:
    """What was found; a click explains it.

    Args:
        found: Objects, or the class of every pixel.
        chosen: The place of what is explained; None for nothing.
    """
    things = found.choices()
    rows = "".join(
        f"<button type='button' data-class='{number}' "
        f"aria-pressed='{str(number == chosen).lower()}'>"
        f"<span>{escape(str(name))}</span><span>{percent(share)}</span>"
        f"<i style='width: {share:.2%}; background: rgb{tuple(colour)}'></i></button>"
        for number, (name, share, colour) in enumerate(things[:_MOST])
    )
    more = f"<p class='note'>and {len(things) - _MOST} more</p>" if len(things) > _MOST else ""
    nothing = "" if things else "<p class='note'>Nothing is found on this image.</p>"
    return f"<div class='classes'><h3>Found</h3>{rows}{nothing}{more}</div>"


def views(image: Image.Image, drawn: Image.Image, explained: DenseExplanation | None) -> str:
    """What was found on the image, and what speaks for the chosen one.

    Args:
        image: That was looked at.
        drawn: With what was found on it.
        explained: None where nothing is found.
    """
    text = "<b>Found.</b> Click one of them: what speaks for it?"
    figures = [figure(drawn, None, image.size, text)]
    if explained is not None:
        name = escape(str(explained.name))
        text = f"<b>HiResCAM</b> for {name}: what of the backbone's maps speaks for it."
        if explained.box is not None:
            text += f" {percent(explained.share_inside(explained.box))} of it lies in the box."
        below, above = (explained.mark(heat_overlay(explained, opacity)) for opacity in (0, 1))
        figures.append(figure(below, above, image.size, text))
    return grid(figures, image.size)


def answer(image: Image.Image, explained: DenseExplanation | None, query: Query | None) -> str:
    """What an attention convolution looks at; a click asks for another pixel.

    Args:
        image: That was looked at.
        explained: None where no pixel was asked for.
        query: The pixel that looks.
    """
    if explained is None or query is None:
        shown = figure(enlarged(image), None, image.size, "No pixel has been asked yet.")
    else:
        below, above = (
            mark_pixel(heat_overlay(explained, opacity), query, image.size) for opacity in (0, 1)
        )
        text = f"<b>From row {query[0]}, column {query[1]}.</b> Bright is what it looks at."
        shown = figure(below, above, image.size, text)
    return grid([shown], image.size, "asking")
