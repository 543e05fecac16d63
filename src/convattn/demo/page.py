"""What the page is made of: HTML, style and the little script that it needs.

Every image is part of the page itself, as a data URL. So no file of the server is handed out,
nothing that somebody drops on the page touches its disk, and no folder shows in an address.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from convattn.demo.network import ImageExplanations, Query, mark_pixel, resize_for_display
from convattn.demo.samples import Sample
from convattn.explanation import Explanation

MAX_FILE_BYTES = 20 * 2**20
"""Larger files are refused: room for any camera's JPEG, and a session keeps one in memory."""

_THUMBNAIL_SIDE = 96  # twice what is shown, for sharp screens
_WIDE = 2  # times as wide as high: two of them stand one above the other

CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0; }
.gradio-container { --quiet: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
/* Gradio says it twice: here, and with the reason in a corner. */
[data-testid="status-tracker"] > :is(.error, .clear-status) { display: none; }
footer .divider { display: none !important; }
.name h1 { font-size: 1.5rem; font-weight: 600; margin: .5rem 0 .1rem; overflow-wrap: anywhere; }
.name p, .ask p, .note { color: var(--quiet); margin: 0; }
.drop { display: block; padding: 1.4rem 1rem; text-align: center; cursor: pointer;
  border: 1.5px dashed var(--quiet); border-radius: 10px; }
.drop:hover, .drop.over, .drop:focus-within { border-color: var(--color-accent); }
.drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.drop small { color: var(--quiet); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(44px, 1fr)); gap: 6px;
  margin-top: 10px; }
.samples button { padding: 0; border: 0; border-radius: 6px; overflow: hidden; cursor: pointer;
  aspect-ratio: 1; background: none; }
.samples button:hover, .samples button:focus-visible { outline: 2px solid var(--color-accent); }
.samples img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
.classes { display: grid; gap: 4px; }
.classes h3, .ask h3 { font-size: .95rem; font-weight: 600; margin: .2rem 0; }
.classes button { display: grid; grid-template-columns: 1fr auto; gap: 2px 8px; width: 100%;
  padding: 6px 8px; border: 1px solid transparent; border-radius: 8px; background: none;
  color: inherit; font: inherit; text-align: left; cursor: pointer; }
.classes button:hover { background: var(--background-fill-secondary); }
.classes button[aria-pressed=true] { border-color: var(--color-accent);
  background: var(--background-fill-secondary); }
.classes i { grid-column: 1 / -1; height: 5px; border-radius: 3px; background: var(--color-accent);
  min-width: 2px; }
.views { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.views.one, .views.wide { grid-template-columns: minmax(0, 1fr); }
.views figure { margin: 0; }
.views figcaption { margin-top: 6px; line-height: 1.35; color: var(--quiet); }
.views figcaption b { color: var(--body-text-color); font-weight: 600; }
.stage { position: relative; width: fit-content; max-width: 100%; }
.stage img { display: block; margin: 0; max-width: 100%; max-height: 560px; border-radius: 8px; }
.stage .heat { position: absolute; inset: 0; width: 100%; height: 100%; max-height: none;
  opacity: var(--heat, .7); }
.asking .stage { cursor: crosshair; }
"""

SET_OPACITY = "opacity => { document.documentElement.style.setProperty('--heat', opacity); }"

# What a browser cannot read or what is too large is sent on without its content: the server says
# what is wrong, in one place for all.
CHOOSER_JS = """
const zone = element.querySelector('.drop'), input = zone.querySelector('input');
const send = file => {
  if (!file) return;
  const told = {size: file.size, image: ''};
  if (file.size > MAX_FILE_BYTES) { trigger('picked', told); return; }
  const reader = new FileReader();
  reader.onload = () => trigger('picked', {...told, image: reader.result});
  reader.onerror = () => trigger('picked', told);
  reader.readAsDataURL(file);
};
input.addEventListener('change', () => { send(input.files[0]); input.value = ''; });
for (const kind of ['dragover', 'dragleave', 'drop'])
  zone.addEventListener(kind, event => {
    event.preventDefault();
    zone.classList.toggle('over', kind === 'dragover');
  });
zone.addEventListener('drop', event => send(event.dataTransfer.files[0]));
document.addEventListener('paste', event => send(event.clipboardData.files[0]));
element.addEventListener('click', event => {
  const button = event.target.closest('[data-sample]');
  if (button) trigger('sampled', {sample: Number(button.dataset.sample)});
});
""".replace("MAX_FILE_BYTES", str(MAX_FILE_BYTES))

CLASSES_JS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-class]');
  if (button) trigger('chosen', {index: Number(button.dataset.class)});
});
"""

ASKED_JS = """
element.addEventListener('click', event => {
  const stage = event.target.closest('.stage');
  if (!stage) return;
  const box = stage.getBoundingClientRect();
  const pixel = (share, size) => Math.min(Math.max(Math.floor(share * size), 0), size - 1);
  trigger('asked', {
    y: pixel((event.clientY - box.top) / box.height, Number(stage.dataset.height)),
    x: pixel((event.clientX - box.left) / box.width, Number(stage.dataset.width)),
  });
});
"""

ASK_HEADING = (
    "<div class='ask'><h3>Ask a pixel</h3>"
    "<p>Click the image: what does the network look at from there?</p></div>"
)


def data_url(image: Image.Image) -> str:
    """An image as an address that holds all of it.

    Args:
        image: RGB.
    """
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def heading(name: str, description: str) -> str:
    """The top of the page.

    Args:
        description: What attention it has.
    """
    return f"<div class='name'><h1>{escape(name)}</h1><p>{escape(description)}</p></div>"


def chooser(samples: Sequence[Sample]) -> str:
    """Where an image is dropped or picked."""
    buttons = "".join(
        f"<button type='button' data-sample='{number}' title='{escape(one.label)}'>"
        f"<img src='{_thumbnail(one)}' alt='Try {escape(one.label)}'></button>"
        for number, one in enumerate(samples)
    )
    return (
        "<label class='drop'><input type='file' accept='image/*' aria-label='Image'>"
        "Drop an image, paste it, or click to choose one<br>"
        f"<small>up to {MAX_FILE_BYTES // 2**20} MB</small></label>"
        f"<div class='samples'>{buttons}</div>"
    )


def classes(explanations: ImageExplanations) -> str:
    """The likeliest classes; a click explains one."""
    found = explanations.prediction
    rows = "".join(
        f"<button type='button' data-class='{one.index}' "
        f"aria-pressed='{str(one.index == found.target.index).lower()}'>"
        f"<span>{escape(one.name)}</span><span>{percent(one.probability)}</span>"
        f"<i style='width: {one.probability:.2%}'></i></button>"
        for one in found.top
    )
    return f"<div class='classes'><h3>Taken for</h3>{rows}</div>"


def views(explanations: ImageExplanations) -> str:
    """Evidence, attention and Grad-CAM side by side, as far as the network has them."""
    name = escape(explanations.prediction.target.name)
    figures = []
    if explanations.evidence is not None:
        total = escape(explanations.evidence.describe_sum())
        text = (
            f"<b>Evidence</b> for class {name} in red, against it in blue: every place's exact "
            f"share of the logit. {total}."
        )
        figures.append(_figure(explanations.evidence, text))
    if explanations.attention is not None:
        specific = explanations.attention.class_specific
        text = f"for class {name}." if specific else "The map is the same for every class."
        figures.append(_figure(explanations.attention, f"<b>Attention</b> {text}"))
    if isinstance(explanations.gradcam, Explanation):
        alone = (
            "" if explanations.attention is not None else " This network has no attention to show."
        )
        figures.append(_figure(explanations.gradcam, f"<b>Grad-CAM</b> for class {name}.{alone}"))
    elif explanations.gradcam is not None:
        figures.append(f"<p class='note'>{escape(explanations.gradcam)}</p>")
    return grid(figures, explanations.prediction.image.size)


def answer(found: Explanation, query: Query | None) -> str:
    """What an attention convolution looks at; a click asks for another pixel.

    Args:
        query: The pixel that looks, None for the mean over all.
    """
    text = (
        "<b>From all pixels together.</b> Bright is what is looked at."
        if query is None
        else f"<b>From row {query[0]}, column {query[1]}.</b> Bright is what it looks at."
    )
    return grid([_figure(found, text, query)], found.image.size, "asking")


def grid(figures: Sequence[str], size: tuple[int, int], kind: str = "") -> str:
    """Figures side by side, wide ones one above the other.

    Args:
        figures: Of one image.
        size: Its width and height.
        kind: A class of the page's style.
    """
    wide = size[0] >= _WIDE * size[1]
    shape = "one" if len(figures) == 1 else "wide" if wide else ""
    return f"<div class='views {shape} {kind}'>{''.join(figures)}</div>"


def _figure(found: Explanation, caption: str, query: Query | None = None) -> str:
    """The image, its heat over it at an opacity that the browser mixes, and a caption."""
    shown, size = resize_for_display(found), found.image.size
    below, above = (
        data_url(mark_pixel(shown.overlay(opacity=opacity), query, size)) for opacity in (0, 1)
    )
    return _stage(below, above, size, caption)


def figure(
    below: Image.Image, above: Image.Image | None, size: tuple[int, int], caption: str
) -> str:
    """An image with a caption, and what lies over it at an opacity that the browser mixes.

    Args:
        below: RGB.
        above: RGB, of the same size; None for nothing.
        size: Width and height of the image that was looked at, in whose pixels clicks are told.
        caption: HTML.
    """
    return _stage(data_url(below), None if above is None else data_url(above), size, caption)


def _stage(below: str, above: str | None, size: tuple[int, int], caption: str) -> str:
    heat = f"<img class='heat' src='{above}' alt='Its heat map'>" if above is not None else ""
    return (
        f"<figure><div class='stage' data-width='{size[0]}' data-height='{size[1]}'>"
        f"<img src='{below}' alt='The image'>{heat}"
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def percent(probability: float) -> str:
    """A share for people, as HTML.

    Args:
        probability: 0 to 1.
    """
    return "&lt; 0.1%" if probability < 0.001 else f"{probability:.1%}"


def _thumbnail(sample: Sample) -> str:
    with Image.open(io.BytesIO(sample.file)) as image:
        image.thumbnail((2 * _THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        return data_url(image)
