import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from convattn.data.annotated import AnnotatedImages
from convattn.drawing import class_colour
from convattn.segmentation.prediction import Segmentation, draw_beside_truth, segment

NAMES = ("background", "cat", "dog")


class Striped(nn.Module):
    """Left third class 0, middle class 1, right class 2, whatever is there."""

    def __init__(self, image_size=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.BatchNorm2d(3).eval()
        self.pretrained_cfg = {
            "image_size": image_size,
            "mean": [0.5, 0.25, 0.0],
            "std": [0.5, 0.25, 1.0],
            "label_names": list(NAMES),
        }
        self.seen = []

    def forward(self, x):
        assert not self.training
        self.seen.append(x)
        classes = (torch.arange(x.shape[3]) * 3 // x.shape[3]).expand(len(x), x.shape[2], -1)
        return torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()


def _image(mode="RGB", size=(20, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_every_pixel_of_the_image_gets_its_class():
    found = segment(Striped(), _image())
    assert found.classes.dtype == torch.uint8
    assert torch.equal(found.classes, (torch.arange(30) // 10).expand(20, -1).to(torch.uint8))


def test_the_segmenter_sees_the_normalised_image():
    model, image = Striped(), _image()
    segment(model, image)
    pixels = torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)
    expected = torch.stack([2 * pixels[0] - 1, 4 * pixels[1] - 1, pixels[2]])
    torch.testing.assert_close(model.seen[0][0], expected)


def test_the_image_is_resized_and_the_classes_are_not():
    model = Striped(image_size=10)
    assert segment(model, _image()).classes.shape == (20, 30)
    assert model.seen[0].shape == (1, 3, 10, 15)


def test_a_window_bounds_what_the_segmenter_sees():
    model = Striped()
    segment(model, _image(), window=(8, 8))
    assert {x.shape[2:] for x in model.seen} == {(8, 8)}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes_are_converted(mode):
    assert segment(Striped(), _image(mode)).classes.shape == (20, 30)


def test_the_segmenter_is_left_as_it_was():
    model = Striped()
    segment(model, _image())
    assert model.training
    assert not model.frozen.training


def _segmentation():
    classes = torch.zeros(20, 30, dtype=torch.uint8)
    classes[:, 10:20], classes[:, 20:25], classes[:, 25:] = 1, 2, 255
    return Segmentation(classes=classes, class_names=NAMES)


def test_the_values_of_the_mask_file_are_the_classes(tmp_path):
    found = _segmentation()
    found.mask().save(tmp_path / "mask.png")
    read = Image.open(tmp_path / "mask.png")
    assert read.mode == "P"
    assert np.array_equal(np.asarray(read), found.classes.numpy())
    assert read.convert("RGB").getpixel((15, 0)) == class_colour(1)
    assert read.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_the_largest_classes_come_first():
    # Of 25 columns that count, 10, 10 and 5.
    assert _segmentation().largest(3) == [
        ("background", pytest.approx(0.4)),
        ("cat", pytest.approx(0.4)),
        ("dog", pytest.approx(0.2)),
    ]
    assert [name for name, _ in _segmentation().largest(2)] == ["background", "cat"]


def test_a_class_that_is_not_there_is_none_of_the_largest():
    only = Segmentation(classes=torch.full((2, 2), 1, dtype=torch.uint8), class_names=NAMES)
    assert only.largest(3) == [("cat", 1.0)]


def test_classes_tint_the_image():
    shown = np.asarray(_segmentation().overlay(Image.new("RGB", (30, 20), (200, 200, 200))))
    times = shown.shape[1] // 30
    for column, colour in ((5, (0, 0, 0)), (15, class_colour(1)), (22, class_colour(2))):
        expected = 0.3 * 200 + 0.7 * np.array(colour)
        assert np.abs(shown[0, column * times] - expected).max() <= 1


def test_pixels_that_do_not_count_are_striped_and_hide_the_image():
    sheets = [
        np.asarray(_segmentation().overlay(Image.new("RGB", (30, 20), grey)))
        for grey in ((0, 0, 0), (255, 255, 255))
    ]
    times = sheets[0].shape[1] // 30
    ignored = [sheet[:, 25 * times :] for sheet in sheets]
    assert np.array_equal(*ignored)
    assert len(np.unique(ignored[0])) == 2


def test_the_legend_names_the_classes_that_are_there():
    found = Segmentation(classes=torch.full((20, 30), 2, dtype=torch.uint8), class_names=NAMES)
    image = Image.new("RGB", (30, 20))
    drawn, overlay = found.draw(image), found.overlay(image)
    below = np.asarray(drawn)[overlay.height :].reshape(-1, 3)
    colours = {tuple(pixel) for pixel in below.tolist()}
    assert class_colour(2) in colours
    assert class_colour(1) not in colours


def test_a_sheet_shows_image_truth_and_prediction(tmp_path):
    truth = torch.full((20, 30), 2, dtype=torch.int64)
    item = (torch.full((3, 20, 30), 255, dtype=torch.uint8), tv_tensors.Mask(truth))
    images = AnnotatedImages(range(3), lambda _: item, ["white"] * 3)
    draw_beside_truth(Striped(), images, 1, tmp_path / "sheet.png", title="one")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    row = np.asarray(Image.open(tmp_path / "sheet.png"))[150].tolist()
    tint = [round(0.3 * 255 + 0.7 * part) for part in class_colour(2)]
    # All of the truth's 400 columns, and a third of the prediction's.
    assert sum(pixel == tint for pixel in row) == pytest.approx(400 * 4 / 3, abs=8)


def test_an_image_is_drawn_as_it_was():
    image = to_pil_image(torch.zeros(3, 20, 30, dtype=torch.uint8))
    _segmentation().draw(image)
    assert image == Image.new("RGB", (30, 20))
