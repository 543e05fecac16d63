from importlib import import_module

import numpy as np
import pytest
import torch

from convattn.data.cluttered_digits import load_material, paint
from convattn.data.scenes import MAX_DIGITS, generate_scenes

module = import_module("convattn.data.scenes")


def generate(num_images, split="train", image_size=96, seed=0):
    """Anew, past the cache."""
    return module._generate.__wrapped__(num_images, split, image_size, seed)


def equal(one, other):
    return all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(600)


def test_shapes_and_kinds():
    scenes = generate_scenes(5, image_size=64)
    boxes, labels, masks = scenes.objects(0)
    count = len(labels)
    assert (scenes.images.shape, scenes.images.dtype) == ((5, 3, 64, 64), torch.uint8)
    assert (boxes.shape, boxes.dtype) == ((count, 4), torch.int64)
    assert (labels.shape, labels.dtype) == ((count,), torch.int64)
    assert (masks.shape, masks.dtype) == ((count, 64, 64), torch.bool)
    assert (scenes.semantic(0).shape, scenes.semantic(0).dtype) == ((64, 64), torch.int64)


def test_same_arguments_same_bits():
    first = generate(40)
    torch.manual_seed(7)
    assert equal(first, generate(40))


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_seed_and_split_change_the_images(change):
    assert not torch.equal(generate(20).images, generate(20, **change).images)


def test_more_images_append():
    few, many = generate(30), generate(module._CHUNK + 10)
    for name, value in vars(few).items():
        assert torch.equal(value, getattr(many, name)[:30])


def test_cached_set_is_shared():
    assert generate_scenes(12, seed=3) is generate_scenes(12, split="train", seed=3)


def test_boxes_are_tight_around_the_masks(scenes):
    for index in range(len(scenes)):
        boxes, _, masks = scenes.objects(index)
        for box, mask in zip(boxes.tolist(), masks.numpy(), strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_of_an_image_lie_apart(scenes):
    for index in range(len(scenes)):
        boxes = scenes.objects(index)[0].tolist()
        for number, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:number]:
                assert (
                    left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
                )


def test_up_to_five_digits_and_sometimes_none(scenes):
    share = scenes.labels.count_nonzero(1).bincount(minlength=MAX_DIGITS + 1) / len(scenes)
    assert len(share) == 6
    assert 0.02 < share[0] < 0.08
    assert share[1:].min() > 0.13


def test_digits_are_numbered_without_gaps(monkeypatch):
    # With two draws of a place many digits and fragments are left out.
    monkeypatch.setattr(module, "_NUM_PLACES", 2)
    scenes = generate(200)
    present = scenes.labels > 0
    assert (present[:, :-1] >= present[:, 1:]).all()
    assert torch.equal(present, (scenes.boxes > 0).any(2))
    assert torch.equal(present.sum(1).to(torch.uint8), scenes.instances.flatten(1).amax(1))


def test_digits_that_are_not_wanted_take_no_place(monkeypatch):
    wanted = torch.zeros(module._CHUNK, 10, dtype=torch.bool)
    wanted[:, 4] = True
    monkeypatch.setattr(module, "_draw_wanted", lambda rng: wanted)
    monkeypatch.setattr(module, "_NUM_PLACES", 1)
    assert (generate(module._CHUNK).labels[:, 0] > 0).all()


def test_semantic_map_is_the_masks_with_their_labels(scenes):
    for index in range(50):
        _, labels, masks = scenes.objects(index)
        expected = torch.zeros(96, 96, dtype=torch.int64)
        for label, mask in zip(labels.tolist(), masks, strict=True):
            expected[mask] = label
        assert torch.equal(scenes.semantic(index), expected)


def test_labels_are_those_of_the_digits_that_were_drawn(monkeypatch):
    # Digits whose ink is a plain bar of a height of their own class.
    def material(split, image_size):
        real = load_material(split, image_size)
        bars = torch.zeros_like(real.digits)
        for bar, label in zip(bars, real.digit_labels.tolist(), strict=True):
            bar[:, : 3 * label + 3, 12:20] = 1
        return type(real)(
            digits=bars,
            digit_labels=real.digit_labels,
            ink_cells=real.ink_cells,
            photographs=real.photographs,
        )

    monkeypatch.setattr(module, "load_material", material)
    monkeypatch.setattr(module, "_DIGIT_SIDE", (32 / 96, 32 / 96))
    monkeypatch.setattr(module, "MAX_TURN", 0.0)
    # Some are left out, so that the others are numbered anew.
    monkeypatch.setattr(module, "_NUM_PLACES", 2)
    scenes = generate(100)
    height = scenes.boxes[..., 3] - scenes.boxes[..., 1]
    found = ((height.float() / 3).round() * (scenes.labels > 0)).long()
    assert torch.equal(found, scenes.labels)


def test_fragments_keep_out_of_the_digits_boxes(monkeypatch):
    with_fragments = generate(100)

    def paint_digits_alone(canvas, ink, *rest):
        ink = ink.clone()
        ink[:, MAX_DIGITS:] = 0
        paint(canvas, ink, *rest)

    monkeypatch.setattr(module, "paint", paint_digits_alone)
    without_fragments = generate(100)
    changed = (with_fragments.images != without_fragments.images).any(1)
    assert changed.flatten(1).any(1).all()
    for index in range(100):
        for left, top, right, bottom in without_fragments.objects(index)[0].tolist():
            assert not changed[index, top:bottom, left:right].any()


def test_digits_stand_out_from_what_lies_around_them(scenes):
    pool = torch.nn.functional.max_pool2d
    found = []
    for index in range(200):
        luminance = scenes.images[index].float().mean(0) / 255
        _, _, masks = scenes.objects(index)
        for mask in masks.float():
            grown = mask[None, None]
            # Beyond the soft rim, before the next digit or fragment.
            near = (pool(grown, 7, 1, 3) - pool(grown, 3, 1, 1))[0, 0]
            inside = (luminance * mask).sum() / mask.sum()
            around = (luminance * near).sum() / near.sum()
            found.append((inside - around).abs() > 0.2)
    assert torch.stack(found).float().mean() > 0.9


def test_digits_scale_with_the_image():
    heights = []
    for size in (48, 144):
        boxes = generate_scenes(100, image_size=size).boxes.flatten(0, 1)
        height = (boxes[:, 3] - boxes[:, 1]).float()
        heights.append(height[height > 0].mean() / size)
    assert max(heights) / min(heights) < 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images=0; expected at least 1"),
        ({"num_images": 1, "split": "val"}, "split='val'; expected 'train' or 'test'"),
        ({"num_images": 1, "image_size": 47}, "image_size=47.*at least 48"),
        ({"num_images": 1, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scenes(**arguments)
