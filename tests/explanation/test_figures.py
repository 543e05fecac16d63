import numpy as np
import pytest
import timm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from convattn.explanation import attention_through, explain_classes
from convattn.explanation.figures import draw_confusion, draw_explanations, draw_layers


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_sheets_are_drawn(image, tmp_path):
    model = timm.create_model("patchconvnet_nano_multi", num_classes=4).eval()
    rows = [explain_classes(model, image, top_k=3), explain_classes(model, image.rotate(90))]
    draw_explanations(rows, tmp_path / "sheet.png", title="a title")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.width > drawn.height > 300
        assert len(drawn.convert("RGB").getcolors(2**24)) > 1000


def test_layers_are_drawn(image, tmp_path):
    model = timm.create_model("aa_wide_resnet_nano", num_classes=4).eval()
    shown, layers = attention_through(model, image, query=(20, 30))
    draw_layers(shown, layers, tmp_path / "layers.png", query=(20, 30))
    with Image.open(tmp_path / "layers.png") as drawn:
        # The cross is drawn once on every panel: a mean and each head of each layer.
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
        assert (pixels == [0x31, 0xF4, 0xFF]).all(1).sum() > 10


NAMES = [f"class {number}, alias" for number in range(100)]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a confusion, and gives the figure's texts and the largest of its images."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **kw: figures.append(self) or savefig(self, *args, **kw),
    )

    def draw(labels, taken):
        draw_confusion(
            np.array(labels), np.array(taken), NAMES, tmp_path / "confusion.png", title="title"
        )
        (figure,) = figures
        texts = [text.get_text() for text in figure.findobj(Text)]
        images = [image.get_array() for image in figure.findobj(AxesImage)]
        with Image.open(tmp_path / "confusion.png") as written:
            assert written.format == "PNG"
        return texts, max(images, key=np.size)

    return draw


def test_few_classes_are_a_matrix_with_their_names(drawn):
    texts, shares = drawn([3, 3, 3, 3, 7, 7], [3, 3, 3, 7, 7, 9])
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    assert {"class 3", "class 7", "others", "3", "1"} < set(texts)


def test_without_other_classes_the_matrix_is_square(drawn):
    texts, shares = drawn([3, 7], [7, 7])
    np.testing.assert_array_equal(shares, [[0, 1], [0, 1]])
    assert "others" not in texts


def test_many_classes_are_an_image_and_the_worst_pairs(drawn):
    labels = list(range(60)) * 4
    taken = [*range(60), *range(60), *range(60), *range(59), 20]
    taken[5] = taken[65] = 80
    texts, shares = drawn(labels, taken)
    expected = 100 * np.eye(60)
    expected[59, 59], expected[59, 20], expected[5, 5] = 75, 25, 50
    np.testing.assert_allclose(shares.filled(0), expected)
    arrow = "\N{RIGHTWARDS ARROW}"
    pairs = [text for text in texts if arrow in text]
    assert pairs == [
        f" class 5 {arrow} class 80  2 (50%)",
        f" class 59 {arrow} class 20  1 (25%)",
    ]
    assert any("2 taken for classes without images" in text for text in texts)


def test_no_confusion_at_all_is_drawn(drawn):
    texts, _ = drawn(list(range(50)), list(range(50)))
    assert "50 classes" in texts
