import numpy as np
import pytest
import timm
from PIL import Image

from convattn.explanation import attention_through, explain_classes
from convattn.explanation.figures import draw_explanations, draw_layers


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
