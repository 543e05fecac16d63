import itertools

import numpy as np
import pytest
import torch

from convattn.data import generate_count, generate_pathfinder, generate_same_different
from convattn.data.long_range import DISTANCES

GENERATORS = {
    "same_different": generate_same_different,
    "count": generate_count,
    "pathfinder": generate_pathfinder,
}
every = pytest.mark.parametrize("generate", GENERATORS.values(), ids=GENERATORS)
PAIRS = pytest.mark.parametrize("generate", [generate_same_different, generate_count])


def ink_of(images):
    """(N, H, W) bool; the noise ends at 60."""
    return (images.images[:, 0] > 100).numpy()


def components(ink, reach):
    """Sets of pixels, each within ``reach`` (longer axis) of another of its set."""
    left, found = {tuple(place) for place in np.argwhere(ink)}, []
    while left:
        grown, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            grown.add((row, column))
            close = {p for p in left if max(abs(p[0] - row), abs(p[1] - column)) <= reach}
            left -= close
            front += close
        found.append(sorted(grown))
    return found


def corner(pixels):
    return min(row for row, _ in pixels), min(column for _, column in pixels)


def moved(pixels):
    """The pixels from their own corner on: equal for shapes that are the same but for a shift."""
    top, left = corner(pixels)
    return [(row - top, column - left) for row, column in pixels]


@every
def test_kinds_and_balance(generate):
    images = generate(600)
    assert images.images.shape == (600, 1, 64, 64)
    assert images.labels.dtype == torch.int64
    assert abs(images.labels.double().mean() - 0.5) < 0.03


@every
def test_same_arguments_same_bits_and_more_append(generate):
    first = generate(40)
    images, labels = first.images.clone(), first.labels.clone()
    torch.manual_seed(7)
    more = generate(700)
    assert torch.equal(more.images[:40], images)
    assert torch.equal(more.labels[:40], labels)


@every
@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_seed_and_split_change_the_images(generate, change):
    assert not torch.equal(generate(20).images, generate(20, **change).images)


@every
def test_larger_images(generate):
    assert generate(3, image_size=80).images.shape == (3, 1, 80, 80)


def test_shapes_are_the_same_up_to_a_shift_or_not():
    for distance in (12, 52):
        pairs = generate_same_different(120, distances=(distance,))
        for ink, label in zip(ink_of(pairs), pairs.labels, strict=True):
            one, other = components(ink, reach=1)
            assert (moved(one) == moved(other)) == bool(label)
            assert len(one) == len(other) == 45
            apart = [abs(a - b) for a, b in zip(corner(one), corner(other), strict=True)]
            assert sorted(apart) == [0, distance]


def test_groups_have_as_many_marks_or_not():
    upright = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
    for distance in (20, 52):
        groups = generate_count(120, distances=(distance,))
        for ink, label in zip(ink_of(groups), groups.labels, strict=True):
            kinds = [moved(mark) == upright for mark in components(ink, reach=1)]
            assert (kinds.count(True) == kinds.count(False)) == bool(label)
            assert 1 <= kinds.count(True) <= 4
            assert 1 <= kinds.count(False) <= 4


@PAIRS
@pytest.mark.parametrize("distances", [(20,), (12, 52)])
def test_distances_are_what_is_asked_for(generate, distances):
    """By the centres of the two halves of an image's ink; of groups about."""
    found = set()
    for ink in ink_of(generate(200, distances=distances)):
        rows, columns = np.nonzero(ink)
        found.add(max(np.ptp(rows), np.ptp(columns)) + 1)
    side = 9 if generate is generate_same_different else 11
    least = side if generate is generate_same_different else 3 - 8
    for span in found:
        assert any(distance + least <= span <= distance + side for distance in distances)


@PAIRS
def test_either_thing_alone_tells_nothing(generate):
    """Each kind is as frequent in either class, in either place: counted over many images."""
    from convattn.data import long_range

    rng = np.random.default_rng(0)
    label = torch.arange(40_000) % 2
    pairs = long_range._pairs(label, 4, rng)
    assert torch.equal(pairs[:, 0] == pairs[:, 1], label.bool())
    for place in range(2):
        for kind in range(4):
            rates = [(pairs[label == c, place] == kind).double().mean() for c in range(2)]
            assert abs(rates[0] - rates[1]) < 0.02


def fit_linear(features, labels):
    """Least squares on one half, accuracy on the other."""
    features = torch.cat([features.double(), torch.ones(len(features), 1)], 1)
    half = len(features) // 2
    weights = torch.linalg.lstsq(features[:half], 2.0 * labels[:half, None].double() - 1).solution
    said = (features[half:] @ weights)[:, 0] > 0
    return (said == labels[half:].bool()).double().mean()


@every
def test_no_linear_head_on_pixels_or_their_statistics(generate):
    images = generate(6_000)
    pixels = images.images.float()
    ink = (pixels > 100).float()
    sums = torch.stack([pixels.mean((1, 2, 3)), pixels.std((1, 2, 3)), ink.sum((1, 2, 3))], 1)
    small = torch.nn.functional.avg_pool2d(ink, 8).flatten(1)
    lines = torch.cat([ink.sum(2), ink.sum(3)], 2).flatten(1)
    for features in (sums, small, lines):
        assert fit_linear(features, images.labels) < 0.58


@PAIRS
def test_no_linear_head_on_an_average_of_local_patterns(generate):
    """What a convolution, a ReLU and an average see, however wide: random 5 x 5 filters."""
    images = generate(3_000, distances=(52,))
    torch.manual_seed(0)
    kernels = torch.randn(16, 1, 5, 5) / 25
    pixels = images.images.float() / 40
    found = [torch.conv2d(x, kernels).relu().mean((2, 3)) for x in pixels.split(250)]
    assert fit_linear(torch.cat(found), images.labels) < 0.6


def test_discs_are_joined_by_a_path_or_not():
    """Flood fill from one disc over gaps of up to 3 pixels; paths keep further apart."""
    for dashes in (6, 14):
        paths = generate_pathfinder(60, dashes=(dashes,))
        for ink, label in zip(ink_of(paths), paths.labels, strict=True):
            discs = discs_of(ink)
            assert len(discs) == 2
            joined = discs[1] in flooded(ink, discs[0], reach=3)
            assert joined == bool(label)


def discs_of(ink):
    """Centres of radius 2 that are filled."""
    offsets = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if r * r + c * c <= 4]
    return [
        (row, column)
        for row, column in np.argwhere(ink)
        if all(
            0 <= row + r < 64 and 0 <= column + c < 64 and ink[row + r, column + c]
            for r, c in offsets
        )
    ]


def flooded(ink, start, reach):
    left = {tuple(place) for place in np.argwhere(ink)}
    front, found = [start], set()
    while front:
        row, column = front.pop()
        found.add((row, column))
        close = {p for p in left if (p[0] - row) ** 2 + (p[1] - column) ** 2 <= reach**2}
        left -= close
        front += close
    return found


def test_discs_are_as_far_apart_in_either_class():
    paths = generate_pathfinder(400)
    apart = [np.hypot(*np.subtract(*discs_of(ink))) for ink in ink_of(paths)]
    one, other = (np.array(apart)[(paths.labels == c).numpy()] for c in range(2))
    assert abs(one.mean() - other.mean()) < 2.5
    assert abs(np.median(one) - np.median(other)) < 2.5


@pytest.mark.parametrize(
    ("generate", "options", "message"),
    [
        (generate_same_different, {"distances": (5,)}, "expected pixels from 12 to 52"),
        (generate_count, {"distances": ()}, "expected pixels from 12 to 52"),
        (generate_count, {"image_size": 48}, "expected at least 64"),
        (generate_pathfinder, {"dashes": (2,)}, "expected numbers from 3 to 14"),
        (generate_pathfinder, {"split": "val"}, "expected 'train' or 'test'"),
        (generate_same_different, {"seed": -1}, "expected an integer from 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(generate, options, message):
    with pytest.raises(ValueError, match=message):
        generate(4, **options)


def test_distances_grow_evenly():
    assert all(1.1 < far / close < 1.4 for close, far in itertools.pairwise(DISTANCES))
