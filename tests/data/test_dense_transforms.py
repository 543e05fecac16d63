import random

import numpy as np
import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torchvision import tv_tensors

from convattn.data import (
    detection_test_transform,
    detection_train_transform,
    load_detection,
    load_segmentation,
    segmentation_test_transform,
    segmentation_train_transform,
)

HEIGHT, WIDTH = 40, 56
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
GEOMETRY = {
    "flip": {"hflip": 1.0},
    "crop": {"crop_size": (24, 30), "hflip": 0.0},
    "pad": {"crop_size": (50, 64), "hflip": 0.5},
    "crop and pad": {"crop_size": (24, 64), "hflip": 0.5},
    "enlarge": {"image_size": 80, "hflip": 0.0},
    "limit": {"image_size": 80, "max_size": 84, "hflip": 0.5},
    "jitter": {"scale_jitter": (0.6, 1.7), "crop_size": (40, 56)},
}


def scene(seed=0):
    """Three rectangles of pure colours on black: what belongs to each can be seen."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    boxes, masks = [], []
    for number, colour in enumerate(COLOURS):
        height, width = rng.integers(6, 14, 2).tolist()
        top = int(rng.integers(0, HEIGHT - height))
        left = 18 * number + int(rng.integers(0, 19 - width)) if width < 19 else 18 * number
        box = (left, top, left + width, top + height)
        image[:, top : box[3], left : box[2]] = torch.tensor(colour, dtype=torch.uint8)[
            :, None, None
        ]
        mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        mask[top : box[3], left : box[2]] = 1
        boxes.append(box)
        masks.append(mask)
    return tv_tensors.Image(image), {
        "image_id": seed,
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32), format="XYXY", canvas_size=(HEIGHT, WIDTH)
        ),
        "labels": torch.tensor([1, 2, 3]),
        "area": torch.stack(masks).sum((1, 2)).float(),
        "iscrowd": torch.zeros(3, dtype=torch.bool),
        "masks": tv_tensors.Mask(torch.stack(masks)),
    }


def semantic(target):
    """Class 0, 1, 2 on the objects, 3 elsewhere."""
    classes = torch.full((HEIGHT, WIDTH), 3)
    for number, mask in enumerate(target["masks"]):
        classes[mask.bool()] = number
    return tv_tensors.Mask(classes)


def empty_target():
    return {
        "image_id": 7,
        "boxes": tv_tensors.BoundingBoxes(
            torch.zeros(0, 4), format="XYXY", canvas_size=(HEIGHT, WIDTH)
        ),
        "labels": torch.zeros(0, dtype=torch.int64),
        "area": torch.zeros(0),
        "iscrowd": torch.zeros(0, dtype=torch.bool),
        "masks": tv_tensors.Mask(torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8)),
    }


def seen(image, label):
    """Pixels of an object by its colour alone; the padding's grey has none."""
    own = image[label - 1]
    others = torch.cat([image[: label - 1], image[label:]]).amax(0)
    return (own > 0.5) & (others < 0.3)


def tight(mask):
    rows, columns = np.nonzero(mask.numpy())
    return torch.tensor(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32
    )


# --- detection


@pytest.mark.parametrize("arguments", GEOMETRY.values(), ids=GEOMETRY)
def test_boxes_follow_their_colours(arguments):
    torch.manual_seed(0)
    transform = detection_train_transform(**arguments)
    for seed in range(40):
        image, target = transform(*scene(seed))
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            pixels = seen(image, label)
            # A strip of less than two pixels may vanish where an image is reduced.
            if pixels.any():
                assert (box - tight(pixels)).abs().max() <= 1


@pytest.mark.parametrize("name", ["flip", "crop", "pad", "crop and pad"])
def test_masks_are_the_pixels_of_their_colours(name):
    torch.manual_seed(0)
    transform = detection_train_transform(**GEOMETRY[name])
    for seed in range(40):
        image, target = transform(*scene(seed))
        for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
            assert torch.equal(mask.bool(), seen(image, label))


@pytest.mark.parametrize("factor", [2, 3])
def test_masks_do_not_shift_when_resized(factor):
    image, target = detection_train_transform(image_size=HEIGHT * factor, hflip=0.0)(*scene())
    for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
        # Bilinear edges fade alike on both sides: at most 1/3 outside, at least 4/9 inside.
        assert torch.equal(mask.bool(), image[label - 1] > 0.4)


def test_reduced_masks_take_the_pixel_in_the_middle():
    image, target = scene()
    reduced = detection_train_transform(image_size=HEIGHT // 4, hflip=0.0)(image, target)[1]
    assert len(reduced["labels"])
    for mask, label in zip(reduced["masks"], reduced["labels"].tolist(), strict=True):
        assert torch.equal(mask, target["masks"][label - 1, 2::4, 2::4])


def test_crowded_out_objects_go_with_all_that_is_theirs():
    torch.manual_seed(0)
    transform = detection_train_transform(crop_size=(16, 16))
    counts = set()
    for seed in range(60):
        image, target = transform(*scene(seed))
        counts.add(len(target["labels"]))
        assert {len(target[key]) for key in ("boxes", "labels", "area", "iscrowd", "masks")} == {
            len(target["labels"])
        }
        for label in (1, 2, 3):
            # One row or column of pixels is a whole pixel wide: it is kept.
            assert bool(seen(image, label).any()) == (label in target["labels"])
    assert {0, 1} <= counts


def test_boxes_stay_within_the_image_and_above_a_pixel():
    torch.manual_seed(0)
    transform = detection_train_transform(scale_jitter=(0.1, 2.0), crop_size=(20, 26))
    for seed in range(60):
        boxes = transform(*scene(seed))[1]["boxes"]
        assert boxes.canvas_size == (20, 26)
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([26, 20])).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()


def test_object_whose_mask_is_cut_off_is_dropped():
    image, target = scene()
    target["masks"][1] = 0
    assert detection_train_transform()(image, target)[1]["labels"].tolist() == [1, 3]


def test_area_is_that_of_the_visible_rectangle():
    torch.manual_seed(0)
    transform = detection_train_transform(image_size=80, crop_size=(50, 50))
    for seed in range(20):
        _, target = transform(*scene(seed))
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        torch.testing.assert_close(target["area"], sides.prod(1), rtol=1e-5, atol=1e-3)


def test_crowds_are_not_trained_with():
    image, target = scene()
    target["iscrowd"][0] = True
    moved = detection_train_transform()(image, target)[1]
    assert moved["labels"].tolist() == [2, 3]
    assert not moved["iscrowd"].any()


def test_detection_kinds():
    torch.manual_seed(0)
    transform = detection_train_transform(scale_jitter=(0.5, 1.5), crop_size=(32, 40))
    image, target = transform(*scene())
    assert (type(image), image.dtype) == (torch.Tensor, torch.float32)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    assert target["labels"].dtype == torch.int64
    assert target["image_id"] == 0


def test_original_target_is_left_alone():
    image, target = scene()
    before = {key: value.clone() for key, value in target.items() if key != "image_id"}
    detection_train_transform(crop_size=(16, 16), color_jitter=0.5)(image, target)
    assert all(torch.equal(target[key], value) for key, value in before.items())


def test_padding_is_at_the_right_and_below_in_imagenets_mean():
    image, _ = detection_train_transform(crop_size=(HEIGHT + 4, WIDTH + 6), hflip=1.0)(*scene())
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
    torch.testing.assert_close(image[:, HEIGHT:], mean.expand(-1, 4, WIDTH + 6))
    torch.testing.assert_close(image[:, :, WIDTH:], mean.expand(-1, HEIGHT + 4, 6))
    assert (image[:, 0, 0] != mean[:, 0, 0]).any()


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"image_size": 80}, (80, 112)),
        ({"image_size": 80, "max_size": 84}, (60, 84)),
        ({"max_size": 28}, (20, 28)),
        ({"max_size": 100}, (40, 56)),
        ({"image_size": 20, "scale_jitter": (1.5, 1.5)}, (30, 42)),
        ({"crop_size": (30, 70)}, (30, 70)),
    ],
)
def test_size_of_the_image(arguments, size):
    image, target = detection_train_transform(**arguments)(*scene())
    assert image.shape[1:] == size
    assert target["masks"].shape[1:] == size
    assert target["boxes"].canvas_size == size


def test_crops_reach_every_corner():
    torch.manual_seed(0)
    image = tv_tensors.Image(
        torch.arange(HEIGHT * WIDTH).view(1, HEIGHT, WIDTH).expand(3, -1, -1) % 251
    ).to(torch.uint8)
    transform = detection_train_transform(crop_size=(HEIGHT - 1, WIDTH - 1), hflip=0.0)
    found = {
        round(float(transform(tv_tensors.Image(image), empty_target())[0][0, 0, 0]) * 255)
        for _ in range(60)
    }
    assert found == {0, 1, WIDTH, WIDTH + 1}


def test_test_images_are_only_scaled_to_one():
    image, target = scene()
    floats, same = detection_test_transform()(image, target)
    assert type(floats) is torch.Tensor
    assert torch.equal(floats, image.as_subclass(torch.Tensor).float() / 255)
    assert same is target


# --- segmentation


@pytest.mark.parametrize("name", ["flip", "crop", "pad", "crop and pad"])
def test_semantic_maps_are_the_pixels_of_their_colours(name):
    torch.manual_seed(0)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    transform = segmentation_train_transform(**GEOMETRY[name], **plain)
    for seed in range(40):
        image, target = scene(seed)
        floats, mask = transform(image, semantic(target))
        for label in (1, 2, 3):
            assert torch.equal(mask == label - 1, seen(floats, label))


def test_semantic_map_is_ignored_where_the_image_is_padded():
    image, target = scene()
    transform = segmentation_train_transform(crop_size=(HEIGHT + 3, WIDTH + 5), hflip=0.0)
    floats, mask = transform(image, semantic(target))
    assert torch.equal(mask[:HEIGHT, :WIDTH], semantic(target))
    assert (mask[HEIGHT:] == 255).all()
    assert (mask[:, WIDTH:] == 255).all()
    assert floats[:, HEIGHT:].abs().max() < 1e-6


def test_resized_semantic_map_invents_no_class():
    torch.manual_seed(0)
    transform = segmentation_train_transform(scale_jitter=(0.4, 2.5))
    for seed in range(20):
        image, target = scene(seed)
        assert set(transform(image, semantic(target))[1].unique().tolist()) <= {0, 1, 2, 3}


def test_segmentation_kinds():
    image, target = scene()
    floats, mask = segmentation_train_transform(crop_size=(20, 70))(image, semantic(target))
    assert (type(floats), floats.dtype) == (torch.Tensor, torch.float32)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == torch.int64


def test_segmentation_images_are_normalised():
    image, target = scene()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    floats, _ = segmentation_test_transform(mean=mean, std=std)(image, semantic(target))
    expected = image.as_subclass(torch.Tensor).float() / 255
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(floats, expected)


def test_segmentation_test_mask_keeps_its_size():
    image, target = scene()
    mask = semantic(target)
    floats, same = segmentation_test_transform(image_size=20)(image, mask)
    assert floats.shape == (3, 20, 28)
    assert same is mask


# --- both

EVERYTHING = {"scale_jitter": (0.5, 1.5), "crop_size": (32, 40), "color_jitter": 0.4}


def test_same_state_same_floats_and_no_other_generator():
    detection = detection_train_transform(**EVERYTHING)
    segmentation = segmentation_train_transform(**EVERYTHING)
    image, target = scene()
    states = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(3)
    first = [detection(image, target)[0], *segmentation(image, semantic(target))]
    torch.manual_seed(3)
    second = [detection(image, target)[0], *segmentation(image, semantic(target))]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_colour_changes_the_image_alone():
    torch.manual_seed(0)
    image, target = scene()
    floats, moved = detection_train_transform(hflip=0.0, color_jitter=0.5)(image, target)
    assert not torch.equal(floats, detection_test_transform()(image, target)[0])
    assert torch.equal(moved["boxes"], target["boxes"])


@pytest.mark.parametrize("arguments", [*GEOMETRY.values(), EVERYTHING])
def test_image_without_objects_passes(arguments):
    torch.manual_seed(0)
    image, target = detection_train_transform(**arguments)(scene()[0], empty_target())
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, *image.shape[1:])


def test_generated_sets_pass_both():
    torch.manual_seed(0)
    detection = load_detection("cluttered_digits", num_train=60, num_test=1)
    segmentation = load_segmentation("cluttered_digits", num_train=60, num_test=1)
    boxes = detection.train.with_transform(detection_train_transform(**EVERYTHING))
    masks = segmentation.train.with_transform(segmentation_train_transform(**EVERYTHING))
    for index in range(60):
        assert boxes[index][0].isfinite().all()
        assert masks[index][0].isfinite().all()


@pytest.mark.parametrize("make", [detection_train_transform, segmentation_train_transform])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0; expected pixels, at least 1"),
        ({"crop_size": (0, 4)}, r"crop_size=\(0, 4\)"),
        ({"scale_jitter": (0.0, 1.0)}, r"scale_jitter=\(0.0, 1.0\)"),
        ({"scale_jitter": (1.2, 0.8)}, r"scale_jitter=\(1.2, 0.8\)"),
        ({"hflip": 1.5}, "hflip=1.5; expected a chance"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1"),
    ],
)
def test_bad_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match="std above 0"):
        segmentation_test_transform(std=(0.2, 0.0, 0.2))
