import base64
import contextlib
import inspect
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import timm
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import convattn
from convattn import augment
from convattn.data import read_image
from convattn.demo import build, handling, launch, page, start
from convattn.demo.app import MEAN, Handlers
from convattn.demo.network import ImageExplanations, Network, mark_pixel, resize_for_display
from convattn.demo.samples import digits, photographs
from convattn.demo.serving import is_known_host
from convattn.explanation import Explanation, Prediction, explain
from tests.demo import GRADIO_WARNINGS
from tests.demo.images import READABLE, RGB, UNREADABLE, encoded, png_of_zeros

pytestmark = GRADIO_WARNINGS


def bundled():
    return timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()


def untrained(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10).eval()


def handlers(model):
    return Handlers(Network(model), digits())


def event(**data):
    return gr.EventData(None, data)


def stages(html):
    """The heat maps on a piece of the page, as bytes."""
    maps = [part.split("'")[0] for part in html.split("class='heat' src='")[1:]]
    return [base64.b64decode(one.partition(",")[2]) for one in maps]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def of_digits():
    return handlers(bundled())


@pytest.fixture(scope="module")
def of_convs():
    return handlers(untrained("aa_wide_resnet_nano"))


# --- what the page shows


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (bundled, "learned aggregation, 8 x 8 cells at 64 x 64, the same map for every class"),
        (lambda: untrained("patchconvnet_nano_multi"), "a map for each class"),
        (lambda: untrained("aa_wide_resnet_nano"), "attention in 3 convolutions"),
        (
            lambda: untrained("test_resnet"),
            "no attention of its own; the map shows what speaks for a class",
        ),
    ],
    ids=["one token", "class tokens", "convolutions", "none"],
)
def test_the_page_says_what_attention_there_is(model, line):
    assert line in Network(model()).describe()


def test_the_classes_are_those_of_explain(of_digits):
    _, _, classes, _, _ = of_digits.first(None, MEAN)
    found = explain(bundled(), io.BytesIO(digits()[0].file))
    shown = [int(part.split("'")[0]) for part in classes.split("data-class='")[1:]]
    assert shown == [one.index for one in found.top]


def test_another_class_changes_gradcam_alone_where_there_is_one_token(of_digits):
    file, _, _, views, _ = of_digits.first(None, MEAN)
    _, others = of_digits.chosen(file, event(index=5))
    (attention, gradcam), (same, other) = stages(views), stages(others)
    assert attention == same
    assert gradcam != other
    assert "the same for every class" in views


def test_another_class_changes_both_where_each_has_its_token():
    page_of = handlers(untrained("patchconvnet_nano_multi"))
    file = digits()[0].file
    maps = [stages(page_of.chosen(file, event(index=index))[1]) for index in (1, 2)]
    assert maps[0][0] != maps[1][0]
    assert maps[0][1] != maps[1][1]


def test_the_chosen_class_is_marked(of_digits):
    second = of_digits.network.explain_all(RGB).prediction.top[1].index
    classes, _ = of_digits.chosen(encoded(RGB), event(index=second))
    pressed = [part for part in classes.split("<button")[1:] if "aria-pressed='true'" in part]
    assert [f"data-class='{second}'" in one for one in pressed] == [True]


def test_a_network_without_attention_shows_evidence_alone():
    _, _, _, views, answer = handlers(untrained("test_resnet")).first(None, MEAN)
    assert len(stages(views)) == 1
    assert "exact share of the logit" in views
    assert ": logit " in views
    assert answer == ""


def test_a_network_with_a_light_pool_shows_evidence_beside_its_attention():
    model = augment(untrained("test_resnet"), pool="class")
    shown = handlers(model)
    file, _, _, views, _ = shown.first(None, MEAN)
    assert len(stages(views)) == 2
    _, others = shown.chosen(file, event(index=3))
    assert "class 3" in others
    assert stages(others)[0] != stages(views)[0]


def test_a_network_without_evidence_or_attention_shows_gradcam_and_says_so():
    _, _, _, views, _ = handlers(untrained("test_convnext")).first(None, MEAN)
    assert len(stages(views)) == 1
    assert "no attention to show" in views


def test_a_network_without_a_map_for_gradcam_says_why():
    found = Network(bundled()).explain(RGB)
    views = page.views(ImageExplanations(None, found, "No Grad-CAM: the images are too small."))
    assert len(stages(views)) == 1
    assert "No Grad-CAM: the images are too small." in views


def test_each_pixel_has_its_own_answer(of_convs):
    layer, file = "layer3.0.conv1", digits()[0].file
    (upper, one), (lower, other) = (
        of_convs.asked(file, layer, MEAN, event(y=y, x=8)) for y in (8, 56)
    )
    assert (upper, lower) == ((8, 8), (56, 8))
    assert stages(one) != stages(other)


def test_another_layer_offers_its_own_heads(of_convs):
    layer = next(iter(of_convs.network.convs))
    heads, _ = of_convs.layer_chosen(digits()[0].file, layer, None)
    assert [value for _, value in heads.choices] == [
        MEAN,
        *range(of_convs.network.convs[layer]),
    ]


def test_another_head_has_its_own_answer(of_convs):
    layer, file = "layer3.0.conv1", digits()[0].file
    answers = [of_convs.head_chosen(file, layer, head, (8, 8)) for head in (MEAN, 0)]
    assert stages(answers[0]) != stages(answers[1])


def test_the_ring_lies_round_the_pixel():
    ring = np.asarray(mark_pixel(Image.new("RGB", (400, 200)), (10, 30), (80, 40)))
    rows, columns = ring.any(2).nonzero()
    assert rows.mean() == pytest.approx(10.5 * 5, abs=0.6)
    assert columns.mean() == pytest.approx(30.5 * 5, abs=0.6)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), (512, 512)), ((300, 100), (300, 100)), ((3000, 1000), (1024, 341))],
)
def test_an_image_is_shown_at_a_useful_size_in_its_own_shape(size, shown):
    found = Network(bundled()).explain(Image.new("RGB", size))
    assert resize_for_display(found).image.size == shown


def test_what_was_seen_grows_with_the_image():
    found = resize_for_display(Network(bundled()).explain(Image.new("RGB", (96, 64))))
    assert found.region == (80.0, 0.0, 400.0, 320.0)


def test_names_of_classes_are_text_not_html():
    found = Network(bundled()).explain(RGB)
    evil = Prediction(0, "<img src=x onerror=alert(1)>", 1.0)
    shown = Explanation(**{**vars(found), "target": evil, "top": (evil,)})
    explanations = ImageExplanations(None, shown, shown)
    assert "<img src=x" not in page.classes(explanations) + page.views(explanations)


def test_samples_are_of_the_kind_that_the_network_knows():
    assert Network(bundled()).knows_digits
    model = bundled()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": tuple("abcdefghij")}
    assert not Network(model).knows_digits
    assert {one.label for one in photographs()}.isdisjoint(one.label for one in digits())


def test_requests_at_the_same_time_do_not_mix(of_convs):
    network, queries = of_convs.network, [(4, 4), (60, 60)]

    def ask(query):
        return network.attend(RGB.resize((64, 64)), "layer3.0.conv1", None, query).map

    alone = [ask(query) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, queries * 8))
    for found, expected in zip(together, alone * 8, strict=True):
        torch.testing.assert_close(found, expected)


# --- files that are dropped on the page


def dropped(file, size=None):
    url = "data:application/octet-stream;base64," + base64.b64encode(file).decode()
    return event(image=url, size=len(file) if size is None else size)


@pytest.mark.parametrize("name", READABLE)
def test_a_dropped_image_is_read_as_explain_reads_it(of_digits, name):
    file, _, classes, _, _ = of_digits.picked(None, MEAN, dropped(READABLE[name]))
    found = explain(bundled(), read_image(io.BytesIO(READABLE[name])))
    assert file == READABLE[name]
    assert f"data-class='{found.target.index}' aria-pressed='true'" in classes


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_image_is_one_sentence(of_digits, name):
    file, reason = UNREADABLE[name]
    with pytest.raises(gr.Error) as raised:
        of_digits.picked(None, MEAN, dropped(file))
    assert reason in raised.value.message
    assert "\n" not in raised.value.message


def test_a_file_above_the_limit_is_refused(of_digits):
    with pytest.raises(gr.Error, match="at most 20 MB"):
        of_digits.picked(None, MEAN, event(image="", size=page.MAX_FILE_BYTES + 1))
    with pytest.raises(gr.Error, match="at most 20 MB"):
        of_digits.picked(None, MEAN, dropped(bytes(page.MAX_FILE_BYTES + 1), size=5))


def test_a_page_that_was_forgotten_asks_for_an_image(of_digits):
    with pytest.raises(gr.Error, match="no image yet"):
        of_digits.chosen(None, event(index=5))


# --- the server and its API


class Served:
    """A page on a free port, and a client of it."""

    def __init__(self, model, name, folder):
        self.blocks = build(model, name=name)
        self.url = start(self.blocks, port=free_port())
        self.client = Client(self.url, verbose=False, download_files=folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    page_of = Served(bundled(), "digits", tmp_path_factory.mktemp("digits"))
    yield page_of
    page_of.client.close()
    page_of.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def served_convs(tmp_path_factory):
    page_of = Served(untrained("aa_wide_resnet_nano"), "convs", tmp_path_factory.mktemp("convs"))
    yield page_of
    page_of.client.close()
    page_of.blocks.close(verbose=False)


def test_it_listens_on_this_machine_alone_unless_told(served):
    assert served.url.startswith("http://127.0.0.1:")
    for function in (start, launch):
        assert inspect.signature(function).parameters["host"].default == "127.0.0.1"


def test_the_api_offers_what_there_is_and_no_more(served, served_convs):
    for page_of, offered in ((served, {"/explain"}), (served_convs, {"/explain", "/attend"})):
        assert set(page_of.client.view_api(return_format="dict")["named_endpoints"]) == offered
        assert not page_of.client.view_api(return_format="dict")["unnamed_endpoints"]


@pytest.mark.parametrize("name", READABLE)
def test_the_api_answers_as_explain_does(served, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(READABLE[name])
    told, overlay = served.client.predict(handle_file(path), api_name="/explain")
    found = explain(bundled(), path)
    assert [one["name"] for one in told["classes"]] == [one.name for one in found.top]
    assert told["classes"][0]["probability"] == pytest.approx(found.top[0].probability)
    with Image.open(overlay) as image:
        assert image.size == resize_for_display(found).image.size


def test_the_api_explains_the_class_that_it_is_asked_for(served, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(digits()[3].file)
    told, overlay = served.client.predict(
        handle_file(path), target="7", method="gradcam", opacity=1, api_name="/explain"
    )
    expected = resize_for_display(explain(bundled(), path, "7", method="gradcam")).overlay(
        opacity=1
    )
    assert (told["explained"]["name"], told["method"]) == ("7", "gradcam")
    with Image.open(overlay) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_an_unknown_class_is_answered_with_the_nearest(served, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(RGB))
    with pytest.raises(AppError, match="unknown class 'cat'; the nearest are"):
        served.client.predict(handle_file(path), target="cat", api_name="/explain")


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_api_answers_what_is_no_image_with_one_sentence(served, tmp_path, name):
    file, reason = UNREADABLE[name]
    (tmp_path / name).write_bytes(file)
    with pytest.raises(AppError, match=reason) as raised:
        served.client.predict(handle_file(tmp_path / name), api_name="/explain")
    assert "\n" not in str(raised.value)
    assert tempfile.gettempdir() not in str(raised.value)


def test_attend_answers_for_a_pixel_a_layer_and_a_head(served_convs, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(digits()[3].file)
    overlay = served_convs.client.predict(
        handle_file(path), y=8, x=50, layer="layer2.0.conv1", head="0", api_name="/attend"
    )
    network = Network(untrained("aa_wide_resnet_nano"))
    found = network.attend(read_image(path), "layer2.0.conv1", 0, (8, 50))
    expected = mark_pixel(resize_for_display(found).overlay(opacity=0.7), (8, 50), (64, 64))
    with Image.open(overlay) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    ("head", "sentence"), [("first", "expected the number of a head, or mean"), ("9", "head=9")]
)
def test_attend_refuses_a_head_that_there_is_not(served_convs, tmp_path, head, sentence):
    path = tmp_path / "image.png"
    path.write_bytes(digits()[3].file)
    with pytest.raises(AppError, match=sentence):
        served_convs.client.predict(handle_file(path), y=8, x=5, head=head, api_name="/attend")


def test_attend_refuses_a_pixel_outside_the_image(served_convs, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(digits()[3].file)
    with pytest.raises(AppError, match="lies outside"):
        served_convs.client.predict(handle_file(path), y=640, x=5, api_name="/attend")


@pytest.mark.parametrize("where", ["", "config", "gradio_api/info", "theme.css"])
def test_the_page_shows_no_folder_of_the_server(served, where):
    text = httpx.get(served.url + where).raise_for_status().text
    for folder in (tempfile.gettempdir(), str(Path(convattn.__file__).parents[1]), sys.prefix):
        assert folder not in text


def test_a_file_of_the_server_cannot_be_fetched(served):
    answer = httpx.get(f"{served.url}gradio_api/file={convattn.__file__}")
    assert answer.status_code == 403


def test_a_file_of_the_server_cannot_be_explained(served, tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(RGB))
    data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}, "", "auto", 0.7]
    call = httpx.post(f"{served.url}gradio_api/call/explain", json={"data": data}).json()
    answer = httpx.get(f"{served.url}gradio_api/call/explain/{call['event_id']}").text
    assert "event: error" in answer
    assert str(tmp_path) not in answer


def test_an_upload_above_the_limit_is_refused(served):
    files = {"files": ("large.png", bytes(page.MAX_FILE_BYTES + 1))}
    assert httpx.post(f"{served.url}gradio_api/upload", files=files).status_code == 413


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}"):
            start(gr.Blocks(analytics_enabled=False), port=port)


def test_a_host_of_another_machine_is_one_sentence():
    with pytest.raises(OSError, match="cannot listen on 192"):
        start(gr.Blocks(analytics_enabled=False), host="192.0.2.1")


def test_a_number_that_is_no_port_is_one_sentence():
    with pytest.raises(ValueError, match="port=70000; expected 1 to 65535"):
        start(gr.Blocks(analytics_enabled=False), port=70000)


@pytest.mark.long
def test_ctrl_c_ends_it_quietly():
    port = free_port()
    # What a shell starts in the background would ignore Ctrl-C, and its children too.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeds}; from convattn.demo import launch; launch(port={port})"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_small_file_of_many_pixels_is_refused_by_its_header(served, tmp_path):
    (tmp_path / "large.png").write_bytes(png_of_zeros(6400))
    with pytest.raises(AppError, match="6400 x 6400 pixels, where at most 40 million are read"):
        served.client.predict(handle_file(tmp_path / "large.png"), api_name="/explain")


def test_a_jpeg_of_many_pixels_is_decoded_smaller(monkeypatch):
    content = io.BytesIO()
    Image.new("RGB", (400, 300)).save(content, "JPEG")
    monkeypatch.setattr(handling, "MAX_PIXELS", 40_000)
    assert handling.read(content.getvalue()).size == (200, 150)
    monkeypatch.setattr(handling, "MAX_PIXELS", 1_000)
    with pytest.raises(ValueError, match="is too large: 50 x 38 pixels"):
        handling.read(content.getvalue())


@pytest.mark.parametrize("path", ["call/explain", "queue/join", "run/explain", "cancel"])
def test_a_body_that_gradio_fails_at_is_refused_in_a_line(served, path, capfd):
    answer = httpx.post(
        f"{served.url}gradio_api/{path}",
        content=b'{"data": NaN}',
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.text) == (400, "the call is not as the API has it\n")
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: a request could not be answered: ")


def test_a_stream_of_no_call_ends_without_a_traceback(served, capfd):
    answer = httpx.get(f"{served.url}gradio_api/call/explain/none")
    assert answer.status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:7860", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:80", 400),
        ("", 400),
    ],
)
@pytest.mark.parametrize("path", ["", "gradio_api/info"])
def test_a_request_for_another_host_is_refused(served, host, status, path):
    assert httpx.get(served.url + path, headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("host", "served_at", "known"),
    [
        ("192.168.1.7:80", "0.0.0.0", True),
        ("[::1]:80", "::", True),
        ("demo.example", "0.0.0.0", False),
        ("demo.example:80", "demo.example", True),
        ("192.168.1.7", "127.0.0.1", False),
    ],
)
def test_hosts_are_known_by_what_the_server_listens_on(host, served_at, known):
    assert is_known_host(host, served_at) is known


def test_a_body_above_the_limit_is_refused_before_it_is_read(served):
    large = b'{"data": ["' + b"x" * (30 << 20) + b'"]}'
    answer = httpx.post(f"{served.url}gradio_api/queue/join", content=large)
    assert answer.status_code == 413

    def pieces():
        for _ in range(32):
            yield b" " * (1 << 20)

    with contextlib.suppress(httpx.HTTPError):  # cut off
        answer = httpx.post(f"{served.url}gradio_api/queue/join", content=pieces())
        assert answer.status_code >= 400


@pytest.mark.parametrize("data", [[], ["no file", "", "auto", 0.7], [None, 3, "none such", "x"]])
def test_a_call_that_is_not_as_the_api_has_it_is_one_line_of_the_log(served, data, capfd):
    call = httpx.post(f"{served.url}gradio_api/call/explain", json={"data": data}).json()
    answer = httpx.get(f"{served.url}gradio_api/call/explain/{call['event_id']}").text
    assert "event: error" in answer
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) <= 1
    assert not any("Traceback" in line for line in told)
