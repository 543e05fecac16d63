import json

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from convattn.data.annotated import AnnotatedImages
from convattn.detection.prediction import Detections, detect, draw_beside_truth
from convattn.drawing import class_colour, draw_legend

NAMES, IDS = ("cat", "dog", "owl"), (17, 18, 90)
SIZE = (40, 60)


class Found(nn.Module):
    """A detector that always finds the same, and notes what it was given."""

    def __init__(self, masks=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.BatchNorm2d(3).eval()
        self.pretrained_cfg = {"label_names": list(NAMES), "category_ids": list(IDS)}
        self.masks = masks
        self.images = []

    def forward(self, images):
        assert not self.training
        self.images += images
        found = {
            "boxes": torch.tensor([[4.0, 5.0, 20.0, 25.5], [30.0, 10.0, 60.0, 40.0]]),
            "labels": torch.tensor([3, 1]),
            "scores": torch.tensor([0.9, 0.3]),
        }
        if self.masks:
            found["masks"] = torch.zeros(2, 1, *SIZE)
            found["masks"][0, 0, 5:25, 4:20] = torch.linspace(0, 1, 16)
            found["masks"][1, 0, 10:, 30:] = 0.9
        return [found for _ in images]


def _image(mode="RGB", size=SIZE):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_objects_below_the_threshold_are_left_out():
    found = detect(Found(), _image(), threshold=0.5)
    assert found.labels.tolist() == [3]
    assert found.boxes.tolist() == [[4.0, 5.0, 20.0, 25.5]]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.masks.shape == (1, *SIZE)


def test_a_mask_is_where_it_is_more_likely_than_not():
    (mask,) = detect(Found(), _image()).masks
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[5:25, 12:20] = True
    assert torch.equal(mask, expected)


def test_the_detector_sees_the_image_itself():
    model, image = Found(), _image()
    detect(model, image)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(model.images[0], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_are_converted(mode):
    model = Found()
    detect(model, _image(mode))
    assert model.images[0].shape == (3, *SIZE)


def test_the_detector_is_left_as_it_was():
    model = Found()
    detect(model, _image())
    assert model.training
    assert not model.frozen.training


@pytest.mark.parametrize("threshold", [-0.1, 50])
def test_a_threshold_that_is_no_score_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}; expected a score between 0 and"):
        detect(Found(), _image(), threshold=threshold)


def test_coco_entries_hold_the_same_objects():
    found = detect(Found(), _image(), threshold=0)
    entries = json.loads(json.dumps(found.to_coco(7)))
    assert [entry["image_id"] for entry in entries] == [7, 7]
    assert [entry["category_id"] for entry in entries] == [90, 17]
    assert [entry["bbox"] for entry in entries] == [[4, 5, 16, 20.5], [30, 10, 30, 30]]
    assert [entry["score"] for entry in entries] == pytest.approx([0.9, 0.3])
    for entry, mask in zip(entries, found.masks, strict=True):
        # pycocotools' own decode warns under numpy 2; it compares without.
        expected = pycocotools.mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert entry["segmentation"] == {**expected, "counts": expected["counts"].decode()}


def test_without_masks_coco_entries_have_none():
    assert all("segmentation" not in e for e in detect(Found(masks=False), _image()).to_coco(1))


def _truth(**changes):
    return {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor([[10.0, 10.0, 30.0, 30.0]]), format="XYXY", canvas_size=SIZE
        ),
        "labels": torch.tensor([2]),
        **changes,
    }


def test_the_truth_is_no_result():
    truth = Detections.of(_truth(), class_names=NAMES, category_ids=IDS)
    with pytest.raises(ValueError, match="objects without scores are no results"):
        truth.to_coco(1)


def test_small_images_are_enlarged_until_labels_can_be_read():
    drawn = detect(Found(), _image()).draw(_image())
    assert drawn.size == (9 * 60, 9 * 40)


def test_large_images_keep_their_size():
    nothing = Detections.of(
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        class_names=NAMES,
        category_ids=IDS,
    )
    image = _image(size=(300, 700))
    assert nothing.draw(image) == image


def test_a_mask_tints_its_pixels_and_no_others():
    masks = tv_tensors.Mask(torch.zeros(1, *SIZE, dtype=torch.uint8))
    masks[0, 20:28, 12:28] = 1
    black = Image.new("RGB", (60, 40))
    truth = Detections.of(_truth(masks=masks), class_names=NAMES, category_ids=IDS)
    drawn = np.asarray(truth.draw(black))[::9, ::9]
    tint = np.array(class_colour(1)) / 2
    assert np.abs(drawn[22, 20] - tint).max() <= 1
    assert drawn[15, 20].tolist() == [0, 0, 0]


def test_a_box_is_drawn_around_its_object():
    black = Image.new("RGB", (60, 40))
    truth = Detections.of(_truth(), class_names=NAMES, category_ids=IDS)
    drawn = np.asarray(truth.draw(black))
    lit = (drawn == class_colour(1)).all(-1)
    rows, columns = lit[9 * 15].nonzero()[0], lit[:, 9 * 20].nonzero()[0]
    assert (rows.min(), rows.max()) == (9 * 10, 9 * 30 - 1)
    assert columns.max() == 9 * 30 - 1


def test_the_first_256_classes_have_their_own_colours():
    assert len({class_colour(index) for index in range(256)}) == 256


def test_the_first_colours_are_easily_told_apart():
    colours = np.array([class_colour(index) for index in range(12)], float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[np.triu_indices(12, 1)].min() > 60


def test_a_box_at_the_edge_keeps_its_label_inside():
    for box in ([0.0, 0.0, 5.0, 5.0], [55.0, 35.0, 60.0, 40.0], [3.0, 3.0, 3.0, 3.0]):
        truth = Detections.of(
            _truth(boxes=torch.tensor([box])), class_names=NAMES, category_ids=IDS
        )
        drawn = np.asarray(truth.draw(Image.new("RGB", (60, 40))))
        # The label's box alone has more pixels than an object of 5 x 5 has edge.
        assert (drawn == class_colour(1)).all(-1).sum() > 500


def test_a_label_at_the_right_edge_moves_inside():
    truth = Detections.of(
        _truth(boxes=torch.tensor([[55.0, 15.0, 60.0, 20.0]])),
        class_names=("cat", "a name that is longer than its box", "owl"),
        category_ids=IDS,
    )
    drawn = np.asarray(truth.draw(Image.new("RGB", (60, 40))))
    assert (drawn == class_colour(1)).all(-1).any(0).nonzero()[0].min() < 9 * 50


def test_a_legend_has_a_square_of_every_class():
    colours = {f"class {index}": class_colour(index) for index in range(30)}
    pixels = np.asarray(draw_legend(colours, 400)).reshape(-1, 3)
    assert {tuple(pixel) for pixel in pixels.tolist()} >= set(colours.values())


def _dark_images(count):
    item = (torch.zeros(3, *SIZE, dtype=torch.uint8), _truth())
    return AnnotatedImages(range(count), lambda _: item, ["dark"] * count)


def test_a_sheet_shows_the_truth_beside_what_is_found(tmp_path):
    images = _dark_images(3)
    draw_beside_truth(Found(), images, 2, tmp_path / "sheet.png", title="two")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    drawn = np.asarray(Image.open(tmp_path / "sheet.png"))

    def columns(label):
        return (drawn == class_colour(label - 1)).all(-1).any(0).nonzero()[0]

    assert columns(2).max() - columns(2).min() > drawn.shape[1] / 2  # the truths of two groups
    assert columns(2).min() < columns(3).min()


def test_a_small_data_set_gives_all_it_has(tmp_path):
    images = _dark_images(1)
    for count in (1, 8):
        draw_beside_truth(Found(), images, count, tmp_path / f"{count}.png", title="one")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "8.png").read_bytes()


def test_an_image_is_drawn_as_it_was():
    image = _image()
    before = image.copy()
    detect(Found(), image).draw(image)
    assert image == before


def test_what_is_surest_lies_on_top():
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0], [10.0, 10.0, 30.0, 30.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.6])}
    drawn = Detections.of(found, class_names=NAMES, category_ids=IDS).draw(
        to_pil_image(torch.zeros(3, *SIZE, dtype=torch.uint8))
    )
    assert drawn.getpixel((9 * 30 - 1, 9 * 20)) == class_colour(0)
