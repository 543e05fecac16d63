"""The page of detectors and segmenters, and its API."""

import io

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from torch import nn

from convattn.demo import build, start
from convattn.demo.dense import Finder
from convattn.demo.dense_app import DenseHandlers
from convattn.demo.handling import MEAN
from convattn.demo.samples import scenes
from convattn.detection.explanation import explain_boxes
from convattn.detection.prediction import detect
from convattn.segmentation.explanation import attention_of_point, explain_pixels
from convattn.segmentation.prediction import segment
from convattn.tasks import TASKS
from tests.demo import GRADIO_WARNINGS
from tests.dense_networks import detector, segmenter

pytestmark = GRADIO_WARNINGS


def picture():
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(256, size=(60, 90, 3), dtype=np.uint8))


def file_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def event(**data):
    return gr.EventData(None, data)


def blind():
    model = detector()
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -50.0)
    return model


def handlers(model, task):
    return DenseHandlers(Finder(model, TASKS[task]), scenes())


@pytest.fixture(scope="module")
def detecting():
    return handlers(detector(), "detection")


@pytest.fixture(scope="module")
def segmenting():
    return handlers(segmenter(), "segmentation")


def buttons(html):
    """Name and mark of every row of the list."""
    rows = html.split("<button")[1:]
    return [(row.split("<span>")[1].split("<")[0], "pressed='true'" in row) for row in rows]


def test_boxes_are_listed_the_surest_first_and_that_is_explained(detecting):
    _, _, query, things, views, asked = detecting._show(file_of(picture()))
    own = detect(detector(), picture())
    names = [("a", "b", "c")[label - 1] for label in own.labels.tolist()]
    assert len(names) > 20
    assert buttons(things) == [(name, place == 0) for place, name in enumerate(names[:20])]
    assert f"and {len(names) - 20} more" in things
    assert (query, views.count("class='heat'"), asked.count("class='heat'")) == (None, 1, 0)
    assert f"<b>HiResCAM</b> for {names[0]}" in views


def test_a_box_is_chosen_in_the_list_and_on_the_image(detecting):
    file = file_of(picture())
    found = detecting.network.find(picture())
    things, listed = detecting.chosen(file, found, event(index=4))
    assert [pressed for _, pressed in buttons(things)].index(True) == 4
    left, top, right, bottom = found.boxes.T
    area = (right - left) * (bottom - top)
    smallest = int(area.argmin())
    y, x = ((top + bottom) / 2)[smallest], ((left + right) / 2)[smallest]
    _, pointed = detecting.pointed(file, found, event(y=float(y), x=float(x)))
    _, same = detecting._explained(picture(), found, smallest)
    assert pointed == same != listed


def test_another_box_has_another_map(detecting):
    found = detecting.network.find(picture())
    several = explain_boxes(detector(), picture(), count=6)
    for place in (0, 5):
        explained = detecting.network.explain(picture(), found, place)
        assert explained.box == pytest.approx(several[place].box, abs=1e-3)
        np.testing.assert_allclose(explained.heat, several[place].heat, atol=1e-6)


def test_classes_of_pixels_are_listed_the_largest_first(segmenting):
    _, found, _, things, _, _ = segmenting._show(file_of(picture()))
    classes = segment(segmenter(), picture()).classes
    counts = classes.flatten().long().bincount(minlength=3)
    order = [k for k in counts.argsort(descending=True).tolist() if counts[k]]
    assert buttons(things) == [(("a", "b", "c")[k], place == 0) for place, k in enumerate(order)]
    y, x = map(int, (classes == order[-1]).nonzero()[0])
    things, _ = segmenting.pointed(file_of(picture()), found, event(y=y, x=x))
    assert buttons(things)[-1][1]
    explained = segmenting.network.explain(picture(), found, len(order) - 1)
    (own,) = explain_pixels(segmenter(), picture(), [order[-1]])
    np.testing.assert_allclose(explained.heat, own.heat, atol=1e-6)


def test_nothing_found_is_said():
    shown = handlers(blind(), "detection")._show(file_of(picture()))
    assert "Nothing is found on this image." in shown[3]
    assert "class='heat'" not in shown[4]


def test_a_click_beside_all_boxes_is_one_sentence(detecting):
    found = detecting.network.find(picture())
    with pytest.raises(gr.Error, match="there is no box here; click inside one"):
        detecting.pointed(file_of(picture()), found, event(y=-9, x=-9))


def test_a_pixel_has_its_answer(segmenting):
    layer = next(iter(segmenting.network.convs))
    query, html = segmenting.asked(file_of(picture()), layer, MEAN, event(y=20, x=30))
    assert query == (20, 30)
    assert "<b>From row 20, column 30.</b>" in html
    _, other = segmenting.asked(file_of(picture()), layer, 1, event(y=20, x=30))
    assert other != html
    found = segmenting.network.attend(picture(), layer, 1, (20, 30))
    own = attention_of_point(segmenter(), picture(), (20, 30), layer=layer, head=1)
    np.testing.assert_allclose(found.heat, own.heat, atol=1e-6)


def test_names_of_classes_are_text():
    model = detector()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ("a", "<img src=x>", "c")}
    shown = handlers(model, "detection")._show(file_of(picture()))
    assert "<img src=x" not in shown[3] + shown[4]
    assert "&lt;img src=x&gt;" in shown[3]


def test_a_large_image_is_shown_smaller(segmenting):
    image = picture().resize((2100, 700))
    drawn = segmenting.network.draw(image, segmenting.network.find(image))
    assert drawn.size == (1024, 341)


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def served(request, tmp_path_factory):
    model = {"detection": detector, "segmentation": segmenter}[request.param]()
    blocks = build(model, name="x", task=TASKS[request.param])
    folder = tmp_path_factory.mktemp("drawings")
    client = Client(start(blocks), verbose=False, download_files=folder)
    yield client, request.param
    client.close()
    blocks.close(verbose=False)


def test_the_api_finds_explains_and_attends(served, tmp_path):
    client, task = served
    picture().save(tmp_path / "x.png")
    image = handle_file(tmp_path / "x.png")
    things, drawing = client.predict(image, api_name="/find")
    found = TASKS[task].find({"detection": detector, "segmentation": segmenter}[task](), picture())
    assert [one["class"] for one in things] == [name for name, _, _ in found.choices()]
    with Image.open(drawing) as drawn:
        assert min(drawn.size) >= 60
    told, drawing = client.predict(image, 1, 0.5, api_name="/explain")
    assert told["class"] == things[1]["class"]
    assert told["score"] == pytest.approx(things[1]["share"], abs=0.01)
    drawing = client.predict(image, y=5, x=6, api_name="/attend")
    with Image.open(drawing) as shown:
        assert shown.size == (450, 300)
    with pytest.raises(AppError, match=r"number=9999; \d+ things are found, counted from 0"):
        client.predict(image, 9999, 0.5, api_name="/explain")


def test_a_network_without_attention_has_no_pixel_to_ask():
    torch.manual_seed(0)
    plain = handlers(detector("resnet_nano"), "detection")
    assert plain.network.describe() == "detection of 3 classes; no attention of its own"
    assert plain._show(file_of(picture()))[5] == ""
