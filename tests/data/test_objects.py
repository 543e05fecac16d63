import numpy as np
import pycocotools.mask as oracle
import pytest

from convattn.data.objects import check_segmentation, decode_mask

# pycocotools decodes into arrays in the way of NumPy 1.
NUMPY_1 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- masks


def plain_loop(counts, height, width):
    mask = np.zeros((height, width), np.uint8)
    pixel = 0
    for run, length in enumerate(counts):
        for _ in range(length):
            mask[pixel % height, pixel // height] = run % 2
            pixel += 1
    return mask


def random_masks():
    rng = np.random.default_rng(0)
    for index in range(40):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        yield [np.zeros_like(mask), np.ones_like(mask), mask][min(index, 2)]


def runs_of(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return counts if flat[0] == 0 else [0, *counts]


def test_plain_run_lengths_equal_the_loop():
    for mask in random_masks():
        counts = runs_of(mask)
        decoded = decode_mask({"size": list(mask.shape), "counts": counts}, *mask.shape)
        assert np.array_equal(decoded, plain_loop(counts, *mask.shape))
        assert np.array_equal(decoded, mask)


@NUMPY_1
def test_packed_run_lengths_equal_pycocotools():
    for mask in random_masks():
        packed = oracle.encode(np.asfortranarray(mask))
        text = {"size": packed["size"], "counts": packed["counts"].decode()}
        assert np.array_equal(decode_mask(text, *mask.shape), oracle.decode(packed))


def test_packed_run_lengths_of_a_large_image_equal_pycocotools():
    mask = np.zeros((900, 1300), np.uint8)
    mask[100:700:7, 3:1200] = 1
    mask[:, 1250] = 1
    packed = oracle.encode(np.asfortranarray(mask))
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    assert np.array_equal(decode_mask(text, *mask.shape), mask)


@NUMPY_1
def test_polygons_equal_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(5, 60, 2).tolist()
        polygons = [
            rng.uniform(-2, 62, 2 * rng.integers(3, 8)).tolist() for _ in range(rng.integers(1, 4))
        ]
        expected = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, height, width)))
        assert np.array_equal(decode_mask(polygons, height, width), expected)


@pytest.mark.parametrize(
    "text", ["", "~", "é", "o", "ooooooooooooooo0", "0000", "1" * 400, "P", "00O"]
)
def test_broken_text_is_never_decoded(text):
    with pytest.raises(ValueError, match="has a "):
        check_segmentation({"size": [4, 5], "counts": text}, 4, 5)
