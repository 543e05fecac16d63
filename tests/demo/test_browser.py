"""The page as somebody sees it, in real headless Chromium; its screenshots are kept."""

import os
from pathlib import Path

import pytest
import timm
import torch
from playwright.sync_api import expect

from convattn.demo import build, start
from convattn.demo.samples import digits, photographs
from convattn.tasks import TASKS
from tests.demo import GRADIO_WARNINGS
from tests.demo.images import UNREADABLE
from tests.dense_networks import detector

pytestmark = [pytest.mark.browser, *GRADIO_WARNINGS]

ATTENTION, GRADCAM = ".views:not(.asking) .heat >> nth=0", ".views:not(.asking) .heat >> nth=1"
ANSWER = ".asking .heat"


@pytest.fixture(scope="module")
def of_digits():
    model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True)
    blocks = build(model.eval(), name="patchconvnet_nano.cluttered_digits")
    yield start(blocks)
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def of_convs():
    torch.manual_seed(0)
    model = timm.create_model("aa_wide_resnet_nano", num_classes=10)
    # Untrained attention is nearly even; sharper, a pixel's answer can be seen.
    for name, parameter in model.named_parameters():
        if "rel" in name:
            torch.nn.init.normal_(parameter, std=2)
    blocks = build(model.eval(), name="aa_wide_resnet_nano, untrained")
    yield start(blocks)
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def of_boxes():
    blocks = build(detector(), name="retinanet, untrained", task=TASKS["detection"])
    yield start(blocks)
    blocks.close(verbose=False)


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser, url, folder, width=1280):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.folder, self.faults = folder, []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(url)
        self.page.locator(ATTENTION).wait_for()

    def _heard(self, message):
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _asked(self, request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"asked for {request.url}")

    def image(self, which):
        return self.page.locator(which).get_attribute("src")

    def drop(self, name, file):
        """Give the page a file, as its chooser does."""
        given = {"name": name, "mimeType": "image/png", "buffer": file}
        self.page.set_input_files(".drop input", given)

    def changes(self, which, action):
        """Do something, and wait until that image is another one."""
        before = self.image(which)
        action()
        expect(self.page.locator(which)).not_to_have_attribute("src", before, timeout=20_000)

    def keep(self, name):
        self.page.wait_for_timeout(800)  # what has just come is still fading in
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


@pytest.fixture
def visit(chromium, tmp_path):
    folder = Path(os.environ.get("CONVATTN_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    visits = []

    def open_page(url, **options):
        visits.append(Visit(chromium, url, folder, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.close()
        assert one.faults == []


def test_an_image_is_taken_for_something_and_shown(visit, of_digits):
    seen = visit(of_digits)
    seen.changes(ATTENTION, lambda: seen.drop("seven.png", digits()[7].file))
    expect(seen.page.locator("[data-class]")).to_have_count(5)
    expect(seen.page.locator("[aria-pressed=true]")).to_contain_text("7")
    expect(seen.page.get_by_text("The map is the same for every class.")).to_be_visible()
    expect(seen.page.get_by_text("Ask a pixel")).to_be_hidden()
    seen.keep("digits")


def test_a_click_on_a_class_explains_it(visit, of_digits):
    seen = visit(of_digits)
    attention = seen.image(ATTENTION)
    seen.changes(GRADCAM, seen.page.locator("[data-class]").nth(1).click)
    assert seen.image(ATTENTION) == attention
    expect(seen.page.locator("[data-class]").nth(1)).to_have_attribute("aria-pressed", "true")
    seen.keep("another_class")


def test_a_click_on_a_sample_shows_it(visit, of_digits):
    seen = visit(of_digits)
    seen.changes(ATTENTION, seen.page.locator("[data-sample]").nth(4).click)
    expect(seen.page.locator("[aria-pressed=true]")).to_contain_text("4")


def test_the_slider_sets_how_strong_the_colours_are(visit, of_digits):
    seen = visit(of_digits)
    heat = seen.page.locator(ATTENTION)
    expect(heat).to_have_css("opacity", "0.7")
    seen.page.locator("input[type=number]").first.fill("0.2")
    expect(heat).to_have_css("opacity", "0.2")
    seen.keep("faint")


def test_a_photograph_keeps_its_shape(visit, of_digits):
    seen = visit(of_digits)
    seen.changes(ATTENTION, lambda: seen.drop("temple.png", photographs()[0].file))
    box = seen.page.locator(ATTENTION).bounding_box()
    assert box["width"] / box["height"] == pytest.approx(640 / 427, rel=0.01)
    seen.keep("photograph")


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_image_is_answered_with_a_sentence(visit, of_digits, name):
    seen = visit(of_digits)
    before = seen.image(ATTENTION)
    file, reason = UNREADABLE[name]
    seen.drop(name, file)
    expect(seen.page.get_by_text(reason)).to_be_visible()
    assert seen.image(ATTENTION) == before
    assert "Traceback" not in seen.page.content()
    seen.keep(f"refused_{name}")


def test_a_click_on_a_pixel_shows_what_it_looks_at(visit, of_convs):
    seen = visit(of_convs)
    image = seen.page.locator(".asking .stage")
    for name, place in (("left", {"x": 40, "y": 200}), ("right", {"x": 400, "y": 300})):
        seen.changes(ANSWER, lambda place=place: image.click(position=place))
        expect(seen.page.get_by_text("From row")).to_be_visible()
        seen.keep(f"pixel_{name}")


def test_layers_and_heads_can_be_chosen(visit, of_convs):
    seen = visit(of_convs)
    for label, choice in (("Layer", "layer2.0.conv1"), ("Head", "1")):
        seen.page.get_by_label(label).click()
        option = seen.page.get_by_role("option", name=choice, exact=True)
        seen.changes(ANSWER, option.click)
    seen.keep("layer_and_head")


def test_a_narrow_window_shows_all_of_it(visit, of_convs):
    seen = visit(of_convs, width=800)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 800
    seen.keep("narrow")


@pytest.mark.parametrize("width", [1280, 420])
def test_a_box_is_chosen_in_the_list_and_on_the_image(visit, of_boxes, width):
    seen = visit(of_boxes, width=width)
    seen.changes(ATTENTION, lambda: seen.page.locator(".classes button").nth(2).click())
    expect(seen.page.locator(".classes button").nth(2)).to_have_attribute("aria-pressed", "true")
    found = seen.page.locator(".views:not(.asking) .stage").first
    seen.changes(ATTENTION, found.click)  # in its middle, where an untrained one has boxes
    seen.page.locator(".asking .stage").click(position={"x": 30, "y": 40})
    seen.page.locator(ANSWER).wait_for()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.keep(f"boxes_{width}")
