"""The gallery: each example runs, draws what its page shows, and the page says what it does."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from packaging.version import Version
from PIL import Image

ROOT = Path(__file__).parents[1]
gallery = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "gallery.py")))


def coarse(picture):
    """(h, w), means of 8 x 8 pixels: nearly the same on every machine."""
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=np.float64)
    height, width = (8 * (side // 8) for side in pixels.shape)
    return pixels[:height, :width].reshape(height // 8, 8, width // 8, 8).mean((1, 3))


@pytest.mark.parametrize("example", gallery.examples(), ids=lambda file: file.stem)
def test_an_example_draws_what_its_page_shows(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(example))
    finally:
        plt.close("all")
    drawn, shown = (
        coarse(folder / f"{example.stem}.png") for folder in (tmp_path, gallery.GALLERY)
    )
    assert drawn.shape == shown.shape
    # Before Matplotlib 3.11, which drew the pictures, axes may lie a few pixels further.
    least = 0.9 if Version(matplotlib.__version__).release >= (3, 11) else 0.8
    assert np.corrcoef(drawn.ravel(), shown.ravel())[0, 1] > least


def test_pages_are_what_the_examples_say():
    written = {page: page.read_text() for page in gallery.GALLERY.glob("*.md")}
    assert written == gallery.pages()


def test_there_is_a_gallery():
    assert len(gallery.examples()) >= 12
