"""Tiles and mirror images: the same objects as on the whole image."""

import pytest
import torch
from PIL import Image
from torch import nn

from convattn.detection.prediction import detect, predict_images
from convattn.detection.tiling import detect_flipped, detect_in_tiles


class Transform(nn.Module):
    """Would spoil every image that it is asked to resize."""

    min_size, max_size = (32,), 64

    def resize(self, image, target=None):
        return image * 0, target


class Finder(nn.Module):
    """Finds every rectangle of one colour that it sees; red is class 1, green class 2."""

    nms_thresh = 0.5

    def __init__(self, largest=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.transform = Transform()
        self.seen = []
        self.pretrained_cfg = {
            "label_names": ("red", "green"),
            "category_ids": (1, 2),
            "largest_object": largest,
        }

    def forward(self, images):
        return [self.find(self.transform.resize(image)[0]) for image in images]

    def find(self, image):
        self.seen.append(tuple(image.shape[1:]))
        boxes, labels, scores = [], [], []
        for label in (1, 2):
            mask = image[label - 1] > 0.2
            for shade in image[label - 1][mask].unique().tolist():
                y, x = ((image[label - 1] == shade) & mask).nonzero().unbind(1)
                box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                boxes.append([float(edge) for edge in box])
                labels.append(label)
                # A cut object is less sure than a whole one.
                scores.append(0.5 + 0.4 * min(1.0, len(x) / 900))
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
        }


def scene(height, width, side=30, seed=0):
    """Rectangles of different shades, none near another, and their boxes."""
    draw = torch.Generator().manual_seed(seed)
    pixels, boxes = torch.zeros(3, height, width), []
    for number, (top, left) in enumerate(
        (top, left)
        for top in range(5, height - side, 2 * side)
        for left in range(7, width - side, 2 * side)
    ):
        y, x = torch.randint(0, side, (2,), generator=draw).tolist()
        y, x = min(top + y, height - side), min(left + x, width - side)
        pixels[number % 2, y : y + side, x : x + side] = 0.3 + number / 400
        boxes.append((float(x), float(y), float(x + side), float(y + side), 1 + number % 2))
    return pixels, sorted(boxes)


def listed(found):
    boxes = zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
    return sorted((*box, label) for box, label in boxes)


@pytest.mark.parametrize("tile", [70, 96, 128, 500])
@pytest.mark.parametrize("largest", [None, 30.0])
def test_tiles_find_what_the_whole_image_shows(tile, largest):
    pixels, expected = scene(300, 410)
    model = Finder(30.0 if tile < 120 else largest)
    assert listed(detect_in_tiles(model, pixels, tile)) == expected
    assert all(max(size) <= tile for size in model.seen)


def test_an_object_that_no_tile_holds_is_found_in_parts():
    pixels = torch.zeros(3, 64, 200)
    pixels[0, 20:40, 10:180] = 0.8
    found = detect_in_tiles(Finder(), pixels, 64)
    assert len(found["boxes"]) > 1
    assert found["boxes"][:, 0].min() == 10
    assert found["boxes"][:, 2].max() == 180


def test_the_detector_resizes_again_afterwards():
    model = Finder()
    detect_in_tiles(model, scene(100, 100)[0], 70)
    assert not model.transform.resize(torch.ones(3, 4, 4))[0].any()


def test_a_mirror_image_adds_what_the_image_alone_hides():
    pixels, expected = scene(100, 130)
    model = Finder()

    def half_blind(seen):
        """Overlooks what lies at the left."""
        found = model.find(seen)
        kept = found["boxes"][:, 0] > 40
        return {name: one[kept] for name, one in found.items()}

    assert listed(half_blind(pixels)) != expected
    assert listed(detect_flipped(half_blind, pixels, 0.5)) == expected


def test_images_are_predicted_in_tiles_and_a_small_tile_is_told(tmp_path, capsys):
    pixels, expected = scene(150, 150)
    image = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
    image.save(tmp_path / "x.png")
    model = Finder(largest=100.0)
    ((_, told),) = predict_images(model, [tmp_path / "x.png"], tmp_path, threshold=0.1, tile=96)
    assert told == f"{len(expected)} objects"
    assert "--tile 96 is smaller than the largest object that training saw, 100 pixels" in (
        capsys.readouterr().err
    )
    head, *rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert head == "image,class,score,xmin,ymin,xmax,ymax"
    assert len(rows) == len(expected)


def test_a_tile_larger_than_the_image_changes_nothing():
    image = Image.new("RGB", (40, 50), (200, 0, 0))
    model = Finder()
    model.transform.resize = lambda image, target=None: (image, target)
    assert len(detect(model, image, tile=64).boxes) == 1
    assert model.seen == [(50, 40)]
