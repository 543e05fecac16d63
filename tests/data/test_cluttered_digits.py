import sys
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from convattn.data import generate_cluttered_digits

# The function hides its module in the package.
module = import_module("convattn.data.cluttered_digits")


def generate(num_images, split="train", image_size=64, seed=0):
    """Anew, past the cache."""
    return module._generate.__wrapped__(num_images, split, image_size, seed)


def equal(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("images", "labels", "boxes", "masks")
    )


def test_shapes_and_kinds():
    digits = generate_cluttered_digits(5, image_size=48)
    assert digits.images.shape == (5, 3, 48, 48)
    assert digits.images.dtype == torch.uint8
    assert digits.labels.shape == (5,)
    assert digits.labels.dtype == torch.int64
    assert digits.boxes.shape == (5, 4)
    assert digits.boxes.dtype == torch.int64
    assert digits.masks.shape == (5, 48, 48)
    assert digits.masks.dtype == torch.bool


def test_same_arguments_same_bits_whatever_the_threads():
    threads = torch.get_num_threads()
    first = generate(40)
    torch.manual_seed(7)
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        second = generate(40)
    finally:
        torch.set_num_threads(threads)
    assert equal(first, second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_seed_and_split_change_the_images(change):
    assert not torch.equal(generate(20).images, generate(20, **change).images)


def test_more_images_append():
    few, many = generate(30), generate(module._CHUNK + 10)
    assert equal(few, many.select(torch.arange(30)))


def test_cached_set_is_shared():
    assert generate_cluttered_digits(12, seed=3) is generate_cluttered_digits(
        12, split="train", seed=3
    )


@pytest.mark.parametrize("side", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("image_size", [32, 64])
def test_digits_of_any_height_lie_in_the_image(side, image_size):
    digits = generate_cluttered_digits(64, image_size=image_size, digit_side=(side, side))
    boxes = digits.boxes
    assert bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= image_size).all())
    heights = (boxes[:, 3] - boxes[:, 1]).double().mean() / image_size
    assert 0.8 * side < float(heights) < 1.15 * side


def test_box_is_tight_around_the_mask():
    digits = generate_cluttered_digits(200)
    for mask, box in zip(digits.masks.numpy(), digits.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_split_digits_share_no_source_digit():
    labels = load_digits().target
    train, test = (module.split_digits(labels, split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label in range(10):
        share = (labels[test] == label).sum() / (labels == label).sum()
        assert 0.19 < share <= 0.2


def test_images_are_made_of_their_own_split_alone():
    drawn = {}
    for split in ("train", "test"):
        material = module.load_material(split, 32)
        drawn[split] = {digit.numpy().tobytes() for digit in material.digits}
    assert not drawn["train"] & drawn["test"]
    assert len(drawn["train"]) + len(drawn["test"]) == 1797


@pytest.mark.parametrize(("split", "dark"), [("train", True), ("test", False)])
def test_backgrounds_come_from_the_split_half_of_the_photographs(monkeypatch, split, dark):
    photograph = np.zeros((427, 640, 3), np.uint8)
    photograph[:, 320:] = 255
    monkeypatch.setattr("sklearn.datasets.load_sample_image", lambda name: photograph)
    # Digits and fragments cover far less than half of an image.
    background = generate(100, split).images.float().flatten(1).median(1).values
    assert ((background < 128) == dark).all()


def test_digit_lies_on_top_and_fragments_keep_out_of_its_box(monkeypatch):
    with_fragments = generate(100)
    monkeypatch.setattr(module, "_paint_fragments", lambda *arguments: None)
    without = generate(100)
    for index, (xmin, ymin, xmax, ymax) in enumerate(without.boxes.tolist()):
        changed = (with_fragments.images[index] != without.images[index]).any(0)
        assert changed.any()
        assert not changed[ymin:ymax, xmin:xmax].any()


def test_digit_stands_out_from_what_lies_around_it():
    digits = generate_cluttered_digits(300)
    luminance = digits.images.float().mean(1) / 255
    masks = digits.masks.float().unsqueeze(1)
    # Beyond the soft rim, before the next fragment.
    near = F.max_pool2d(masks, 7, 1, 3)[:, 0] - F.max_pool2d(masks, 3, 1, 1)[:, 0]
    inside = (luminance * digits.masks).sum((1, 2)) / digits.masks.sum((1, 2))
    around = (luminance * near).sum((1, 2)) / near.sum((1, 2))
    assert ((inside - around).abs() > 0.2).float().mean() > 0.95


def test_labels_are_those_of_the_visible_digit():
    originals = load_digits()
    known = (torch.from_numpy(originals.images) > 8).float()
    digits = generate_cluttered_digits(200, split="test")

    def look(mask):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        tight = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shape = F.interpolate(tight[None, None].float(), size=(12, 12), mode="area").flatten()
        # Stretching to a square would make a 1 a block.
        return torch.cat([shape, torch.tensor([3 * tight.shape[1] / tight.shape[0]])])

    references = torch.stack([look(digit) for digit in known])
    nearest = torch.stack(
        [(references - look(mask)).square().sum(1).argmin() for mask in digits.masks]
    )
    found = torch.from_numpy(originals.target)[nearest]
    assert (found == digits.labels).float().mean() > 0.85


def test_digits_scale_with_the_image():
    heights = [
        (digits.boxes[:, 3] - digits.boxes[:, 1]).float().mean() / size
        for size in (32, 100)
        for digits in [generate_cluttered_digits(100, image_size=size)]
    ]
    assert max(heights) / min(heights) < 1.1


def test_paint_equals_the_slow_loop():
    torch.manual_seed(0)
    size, patch = 8, 3
    canvas = torch.rand(3, 2, size, size)
    ink, colour = torch.rand(3, 2, patch, patch), torch.rand(3, 2, 2)
    # Over every edge and both outside; the two patches of an image lie apart.
    top = torch.tensor([[-1, 4], [6, 1], [-5, 5]])
    left = torch.tensor([[-2, 3], [7, 2], [0, 5]])
    expected = canvas.clone()
    for b in range(3):
        for k in range(2):
            for i in range(patch):
                for j in range(patch):
                    y, x = int(top[b, k]) + i, int(left[b, k]) + j
                    if 0 <= y < size and 0 <= x < size:
                        for c in range(2):
                            a = ink[b, k, i, j]
                            expected[b, c, y, x] = (1 - a) * expected[b, c, y, x] + (
                                a * colour[b, k, c]
                            )
    module.paint(canvas, ink, colour, top, left)
    torch.testing.assert_close(canvas, expected, rtol=0, atol=1e-6)


def test_place_squares_equals_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    side, places = 4, 3
    corners = torch.randint(13, (50, 4, places, 2), generator=generator)
    taken = torch.tensor([[5, 5, 11, 11]]).expand(50, 4)
    placed, chosen = module.place_squares(corners, side, taken)
    assert placed.any()
    assert not placed.all()
    for b in range(50):
        boxes = [taken[b].tolist()]
        for k in range(4):
            for x, y in corners[b, k].tolist():
                apart = [
                    x >= box[2] or x + side <= box[0] or y >= box[3] or y + side <= box[1]
                    for box in boxes
                ]
                if all(apart):
                    boxes.append([x, y, x + side, y + side])
                    assert placed[b, k]
                    assert chosen[b, k].tolist() == [x, y]
                    break
            else:
                assert not placed[b, k]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images=0; expected at least 1"),
        ({"num_images": 1, "split": "val"}, "split='val'; expected 'train' or 'test'"),
        ({"num_images": 1, "image_size": 31}, "image_size=31.*at least 32"),
        ({"num_images": 1, "seed": -1}, "seed=-1"),
        ({"num_images": 1, "digit_side": (0.3, 0.2)}, r"digit_side=\(0.3, 0.2\); expected two"),
        ({"num_images": 1, "digit_side": (0.3, 0.95)}, "at most 0.9"),
        ({"num_images": 1, "digit_side": (0, 0.5)}, "above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_cluttered_digits(**arguments)


def test_missing_scikit_learn_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'convattn\[train\]'"):
        generate(1)
