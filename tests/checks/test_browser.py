"""The page of a check as somebody sees it, in real headless Chromium; its screenshots are kept."""

import os
from pathlib import Path

import pytest

from convattn.cli import main
from tests.checks.faults import faulty_classes

pytestmark = pytest.mark.browser

REAL = {
    "hymenoptera": ("hymenoptera",),
    "magnetic_tiles": ("magnetic_tiles/images",),
    "coco128": ("coco128", "--data.annotations", "instances_from_panoptic"),
    "camvid": ("camvid",),
}


def look(chromium, page_file, name, folder):
    """Open the page at both widths, dark and light; what it asks for and complains of."""
    faults = []
    for width in (400, 1400):
        for scheme in ("dark", "light"):
            page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda request: faults.append(request.url))
            page.goto(page_file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
            page.screenshot(path=folder / f"{name}_{width}_{scheme}.png")
            page.close()
    return [url for url in faults if not url.startswith(("data:", page_file.as_uri()))]


@pytest.fixture
def folder(tmp_path):
    found = Path(os.environ.get("CONVATTN_ARTIFACTS") or tmp_path)
    found.mkdir(parents=True, exist_ok=True)
    return found


def test_a_page_of_faults_asks_for_nothing(chromium, tmp_path, folder):
    faulty_classes(tmp_path / "data")
    assert main(["check-data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    assert look(chromium, tmp_path / "out" / "data.html", "faulty", folder) == []


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_a_page_of_real_data_asks_for_nothing(chromium, data_dir, tmp_path, folder, name):
    place, *flags = REAL[name]
    assert main(["check-data", str(data_dir / place), *flags, "--out", str(tmp_path / "out")]) == 0
    assert look(chromium, tmp_path / "out" / "data.html", name, folder) == []
