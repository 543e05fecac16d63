import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from convattn.classification.figures import draw_attention, draw_confusion
from convattn.data import generate_cluttered_digits
from convattn.runs import create_model


def test_attention_page_shows_images_of_any_shape(tmp_path):
    model = create_model("patchconvnet_nano", embed_dim=16, depth=1, num_classes=10)
    digits = generate_cluttered_digits(5, image_size=48)
    images = digits.images[..., :32] / 255
    out = tmp_path / "attention.png"
    draw_attention(
        model,
        images,
        digits.labels.tolist(),
        out,
        class_names="0123456789",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        boxes=digits.boxes,
        title="five",
    )
    with Image.open(out) as page:
        assert page.width > 1000
        colours = page.convert("RGB").resize((64, 64)).getcolors(maxcolors=64 * 64)
        assert len(colours) > 100


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
