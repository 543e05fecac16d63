"""The page and the API of a detector or segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image
from torch import nn

from convattn.demo import dense_page, page
from convattn.demo.dense import Finder, heat_overlay
from convattn.demo.handling import (
    MEAN,
    OPACITY,
    AttentionHandlers,
    head_number,
    picked_file,
    read,
    show_errors,
)
from convattn.demo.network import Query, mark_pixel
from convattn.demo.samples import Sample, photographs, scenes
from convattn.tasks import Dense

Shown = tuple[bytes, Any, Query | None, str, str, str]
"""The image's file, what was found, the pixel asked about, and what stands on the page."""


class DenseHandlers(AttentionHandlers[Finder]):
    """What happens on the page and through its API."""

    def __init__(self, network: Finder, samples: Sequence[Sample]) -> None:
        self.network = network
        self.samples = samples

    @show_errors
    def first(self) -> Shown:
        """An image to begin with."""
        return self._show(self.samples[0].file)

    @show_errors
    def sampled(self, event: gr.EventData) -> Shown:
        """One of the samples was clicked."""
        return self._show(self.samples[event.sample].file)

    @show_errors
    def picked(self, event: gr.EventData) -> Shown:
        """A file was dropped, pasted or chosen."""
        return self._show(picked_file(event))

    @show_errors
    def chosen(self, file: bytes | None, found: Any, event: gr.EventData) -> tuple[str, str]:
        """One of the things that were found was clicked in the list."""
        return self._explained(read(file), found, event.index)

    @show_errors
    def pointed(self, file: bytes | None, found: Any, event: gr.EventData) -> tuple[str, str]:
        """A pixel of what was found was clicked: what lies there is explained."""
        image = read(file)
        number = found.choice_at(event.y, event.x)
        if number is None:
            raise ValueError("there is no box here; click inside one")
        return self._explained(image, found, number)

    @show_errors
    def find(self, image: bytes | None) -> tuple[list[dict[str, Any]], Image.Image]:
        """What is on an image.

        Returns the things that are found, the surest or largest first, and a drawing of them.
        """
        seen = read(image)
        found = self.network.find(seen)
        things = [{"class": name, "share": share} for name, share, _ in found.choices()]
        return things, self.network.draw(seen, found)

    @show_errors
    def explain(
        self, image: bytes | None, number: int, opacity: float
    ) -> tuple[dict[str, Any], Image.Image]:
        """What speaks for one of the things that are found, counted from 0.

        Returns what it is, and the image with its heat map.
        """
        seen = read(image)
        explained = self.network.explain(seen, self.network.find(seen), number)
        return explained.to_dict(), explained.mark(heat_overlay(explained, opacity))

    @show_errors
    def attend(
        self, image: bytes | None, y: int, x: int, layer: str, head: str, opacity: float
    ) -> Image.Image:
        """What an attention convolution looks at from a pixel.

        Returns the image with its heat map, the pixel marked.
        """
        seen = read(image)
        explained = self.network.attend(seen, layer, head_number(head), (y, x))
        return mark_pixel(heat_overlay(explained, opacity), (y, x), seen.size)

    def _show(self, file: bytes) -> Shown:
        image = read(file)
        found = self.network.find(image)
        asked = dense_page.answer(image, None, None) if self.network.convs else ""
        return file, found, None, *self._explained(image, found, 0), asked

    def _explained(self, image: Image.Image, found: Any, number: int) -> tuple[str, str]:
        is_there = bool(found.choices())
        explained = self.network.explain(image, found, number) if is_there else None
        views = dense_page.views(image, self.network.draw(image, found), explained)
        return dense_page.choices(found, number if is_there else None), views

    def _answer(self, image: Image.Image, layer: str, head: str | int, query: Query | None) -> str:
        if query is None:
            return dense_page.answer(image, None, None)
        explained = self.network.attend(image, layer, head_number(head), query)
        return dense_page.answer(image, explained, query)


def lay_out_dense(blocks: gr.Blocks, name: str, model: nn.Module, task: Dense) -> None:
    """Fill the page.

    Args:
        blocks: The page, being built.
        name: What it calls the network.
        model: A detector or segmenter.
        task: What it is for.
    """
    network = Finder(model, task)
    handlers = DenseHandlers(network, scenes() if network.knows_digits else photographs())
    _lay_out(blocks, name, handlers)
    _offer_api(handlers)


def _lay_out(blocks: gr.Blocks, name: str, handlers: DenseHandlers) -> None:
    network = handlers.network
    layers = list(network.convs)
    last = layers[-1] if layers else None
    image, found, query = gr.State(), gr.State(), gr.State()
    gr.HTML(page.heading(name, network.describe()))
    with gr.Row():
        with gr.Column(scale=2, min_width=220):
            chooser = gr.HTML(page.chooser(handlers.samples), js_on_load=page.CHOOSER_JS)
            things = gr.HTML(js_on_load=page.CLASSES_JS)
        with gr.Column(scale=5, min_width=400):
            views = gr.HTML(js_on_load=page.ASKED_JS)
            opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Strength of the colours")
            with gr.Column(visible=bool(layers)):
                gr.HTML(dense_page.ASK_HEADING, js_on_load=None)
                with gr.Row():
                    layer = gr.Dropdown(layers, value=last, label="Layer")
                    head = gr.Dropdown(handlers.heads(last), value=MEAN, label="Head")
                answer = gr.HTML(js_on_load=page.ASKED_JS)

    def listen(event: Any, handler: Any, inputs: list[Any], outputs: list[Any]) -> None:
        event(
            handler,
            inputs,
            outputs,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=[views if views in outputs else answer],
            trigger_mode="always_last",
        )

    choice = [layer, head]
    everything = [image, found, query, things, views, answer]
    listen(blocks.load, handlers.first, [], everything)
    listen(chooser.picked, handlers.picked, [], everything)
    listen(chooser.sampled, handlers.sampled, [], everything)
    listen(things.chosen, handlers.chosen, [image, found], [things, views])
    listen(views.asked, handlers.pointed, [image, found], [things, views])
    listen(answer.asked, handlers.asked, [image, *choice], [query, answer])
    listen(layer.input, handlers.layer_chosen, [image, layer, query], [head, answer])
    listen(head.input, handlers.head_chosen, [image, *choice, query], [answer])
    opacity.input(None, opacity, None, js=page.SET_OPACITY)


def _offer_api(handlers: DenseHandlers) -> None:
    """What `gradio_client` can call; the components are there for their types alone."""
    with gr.Column(visible=False):
        image = gr.File(type="binary", label="Image")
        number = gr.Number(0, precision=0, label="Place among what is found, from 0")
        opacity = gr.Number(OPACITY, label="Opacity of the heat, 0 to 1")
        things = gr.JSON(label="Found")
        drawing = gr.Image(format="png", label="Drawing")
        button = gr.Button()
        button.click(handlers.find, [image], [things, drawing])
        button.click(handlers.explain, [image, number, opacity], [things, drawing])
        layers = list(handlers.network.convs)
        if layers:
            y = gr.Number(None, precision=0, label="Row of the pixel")
            x = gr.Number(None, precision=0, label="Its column")
            layer = gr.Dropdown(layers, value=layers[-1], label="Layer")
            head = gr.Textbox(MEAN, label="Number of the head, or mean")
            button.click(handlers.attend, [image, y, x, layer, head, opacity], drawing)
