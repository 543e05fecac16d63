"""The page, its API and the server."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from PIL import Image
from torch import nn

from convattn.demo import page
from convattn.demo.dense_app import lay_out_dense
from convattn.demo.handling import (
    MEAN,
    OPACITY,
    AttentionHandlers,
    head_number,
    picked_file,
    read,
    show_errors,
)
from convattn.demo.network import Network, Query, mark_pixel, open_device, resize_for_display
from convattn.demo.samples import Sample, digits, photographs
from convattn.demo.serving import Page, guards
from convattn.explanation.heatmap import Method
from convattn.runs import Run, open_model
from convattn.tasks import Dense, Task, task_of

BUNDLED = "patchconvnet_nano.cluttered_digits"
"""The model that is shown where none is named."""

Shown = tuple[bytes, Query | None, str, str, str]
"""The image's file, the pixel asked about, and what stands on the page."""
_SESSIONS = 32  # kept at most, each with the file of its image
_CACHE_SECONDS = 3600  # files that the API was given and has made

_THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)


class Handlers(AttentionHandlers[Network]):
    """What happens on the page and through its API."""

    def __init__(self, network: Network, samples: Sequence[Sample]) -> None:
        self.network = network
        self.samples = samples

    @show_errors
    def first(self, layer: str | None, head: str | int) -> Shown:
        """An image to begin with."""
        return self._show(self.samples[0].file, layer, head)

    @show_errors
    def sampled(self, layer: str | None, head: str | int, event: gr.EventData) -> Shown:
        """One of the samples was clicked."""
        return self._show(self.samples[event.sample].file, layer, head)

    @show_errors
    def picked(self, layer: str | None, head: str | int, event: gr.EventData) -> Shown:
        """A file was dropped, pasted or chosen."""
        return self._show(picked_file(event), layer, head)

    @show_errors
    def chosen(self, file: bytes | None, event: gr.EventData) -> tuple[str, str]:
        """One of the classes was clicked."""
        explanations = self.network.explain_all(read(file), event.index)
        return page.classes(explanations), page.views(explanations)

    @show_errors
    def explain(
        self, image: bytes | None, target: str, method: Method, opacity: float
    ) -> tuple[dict[str, Any], Image.Image]:
        """What an image is taken for, and where the network looks.

        Returns the class explained, the five likeliest ones, and the image with its heat map.
        """
        found = self.network.explain(read(image), target or None, method=method)
        answer = {
            "explained": dataclasses.asdict(found.target),
            "classes": [dataclasses.asdict(one) for one in found.top],
            "method": found.method,
            "class_specific": found.class_specific,
        }
        return answer, resize_for_display(found).overlay(opacity=opacity)

    @show_errors
    def attend(
        self, image: bytes | None, y: int, x: int, layer: str, head: str, opacity: float
    ) -> Image.Image:
        """What an attention convolution looks at from a pixel.

        Returns the image with its heat map, the pixel marked.
        """
        found = self.network.attend(read(image), layer, head_number(head), (y, x))
        return mark_pixel(
            resize_for_display(found).overlay(opacity=opacity), (y, x), found.image.size
        )

    def _show(self, file: bytes, layer: str | None, head: str | int) -> Shown:
        image = read(file)
        explanations = self.network.explain_all(image)
        answer = self._answer(image, layer, head, None)
        return file, None, page.classes(explanations), page.views(explanations), answer

    def _answer(
        self, image: Image.Image, layer: str | None, head: str | int, query: Query | None
    ) -> str:
        if layer is None:
            return ""
        number = head if isinstance(head, int) else None
        return page.answer(self.network.attend(image, layer, number, query), query)


def launch(
    target: str | Run | None = None,
    *,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
) -> None:
    """Show a network on a page in the browser until Ctrl-C; prints the address.

    Args:
        target: A run, its folder, or a model's name; None takes the bundled one.
        checkpoint: Weights of a model that is given by name; None takes its released ones.
        num_classes: Number of classes of that checkpoint; None takes the model's own.
        host: Address to listen on; ``0.0.0.0`` lets other machines in.
        port: Port to listen on; None takes the first free one from 7860 on.

    Raises:
        FileNotFoundError: If there is no such run or checkpoint.
        OSError: If nothing can listen there.
        ValueError: If there is no such model, or the port is no port.
    """
    if isinstance(target, Run):
        name, model = str(target.folder), target.load_model()
    else:
        name = target or BUNDLED
        model = open_model(name, checkpoint=checkpoint, num_classes=num_classes)
    task = task_of(target.config.model.name) if isinstance(target, Run) else None
    blocks = build(model.to(open_device()), name=Path(name).resolve().name, task=task)
    address = start(blocks, host=host, port=port, open_browser=open_browser)
    with suppress(KeyboardInterrupt):
        print(f"{address} (Ctrl-C ends it)")
        threading.Event().wait()
    blocks.close(verbose=False)


def start(
    blocks: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
) -> str:
    """Serve a page in the background; its ``close()`` ends that.

    Args:
        host: Address to listen on.
        port: Port to listen on; None takes the first free one from 7860 on.

    Returns:
        The page's address.

    Raises:
        OSError: If nothing can listen there.
        ValueError: If the port is no port.
    """
    _check_address(host, port)
    blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inline=False,
        show_error=False,
        max_file_size=page.MAX_FILE_BYTES,
        state_session_capacity=_SESSIONS,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        app_kwargs={"middleware": guards(host)},
        theme=_THEME,
        css=page.CSS,
    )
    return str(blocks.local_url)


def build(model: nn.Module, *, name: str, task: Task | None = None) -> gr.Blocks:
    """The page of one network, not yet served.

    Args:
        model: A classifier that follows timm's contract, a detector or a segmenter, on the device
            that it shall run on.
        name: What the page calls it.
        task: What it is for; None: to classify.

    Raises:
        ValueError: If there is nothing to show of this network.
    """
    with Page(
        title=f"{name} · convattn",
        analytics_enabled=False,  # or Gradio would call home
        delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS),
    ) as blocks:
        if isinstance(task, Dense):
            lay_out_dense(blocks, name, model, task)
        else:
            network = Network(model)
            handlers = Handlers(network, digits() if network.knows_digits else photographs())
            _lay_out(blocks, name, handlers)
            _offer_api(handlers)
    return blocks


def _lay_out(blocks: gr.Blocks, name: str, handlers: Handlers) -> None:
    network = handlers.network
    layers = list(network.convs)
    last = layers[-1] if layers else None
    image, query = gr.State(), gr.State()
    gr.HTML(page.heading(name, network.describe()))
    with gr.Row():
        with gr.Column(scale=2, min_width=220):
            chooser = gr.HTML(page.chooser(handlers.samples), js_on_load=page.CHOOSER_JS)
            classes = gr.HTML(js_on_load=page.CLASSES_JS)
        with gr.Column(scale=5, min_width=400):
            views = gr.HTML(js_on_load=None)
            opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Strength of the colours")
            with gr.Column(visible=bool(layers)):
                gr.HTML(page.ASK_HEADING, js_on_load=None)
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
            show_progress_on=[answer if views not in outputs else views],
            trigger_mode="always_last",
        )

    choice = [layer, head]
    everything = [image, query, classes, views, answer]
    listen(blocks.load, handlers.first, choice, everything)
    listen(chooser.picked, handlers.picked, choice, everything)
    listen(chooser.sampled, handlers.sampled, choice, everything)
    listen(classes.chosen, handlers.chosen, [image], [classes, views])
    listen(answer.asked, handlers.asked, [image, *choice], [query, answer])
    listen(layer.input, handlers.layer_chosen, [image, layer, query], [head, answer])
    listen(head.input, handlers.head_chosen, [image, *choice, query], [answer])
    opacity.input(None, opacity, None, js=page.SET_OPACITY)


def _offer_api(handlers: Handlers) -> None:
    """What `gradio_client` can call; the components are there for their types alone."""
    with gr.Column(visible=False):
        image = gr.File(type="binary", label="Image")
        target = gr.Textbox("", label="Class by name or number; empty: the likeliest")
        method = gr.Radio(get_args(Method), value="auto", label="Method")
        opacity = gr.Number(OPACITY, label="Opacity of the heat, 0 to 1")
        explained = gr.JSON(label="Classes")
        overlay = gr.Image(format="png", label="Overlay")
        button = gr.Button()
        button.click(handlers.explain, [image, target, method, opacity], [explained, overlay])
        layers = list(handlers.network.convs)
        if layers:
            y = gr.Number(None, precision=0, label="Row of the pixel")
            x = gr.Number(None, precision=0, label="Its column")
            layer = gr.Dropdown(layers, value=layers[-1], label="Layer")
            head = gr.Textbox(MEAN, label="Number of the head, or mean")
            button.click(handlers.attend, [image, y, x, layer, head, opacity], overlay)


def _check_address(host: str, port: int | None) -> None:
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port={port}; expected 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(
            f"cannot listen on {where}: the port is taken, or the address is none of this "
            "machine's; choose another"
        ) from None
