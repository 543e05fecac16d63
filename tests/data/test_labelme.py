import json

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import load_detection, load_segmentation

WIDTH, HEIGHT = 40, 20
SQUARE = [[4, 3], [20, 3], [20, 17], [4, 17]]


def shape(label="dog", points=SQUARE, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


def add(root, stem, *shapes, **changes):
    """An image and its json."""
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (sum(stem.encode()) % 251, 0, 9)).save(root / f"{stem}.png")
    content = {
        "version": "5.4.1",
        "shapes": list(shapes),
        "imagePath": f"{stem}.png",
        "imageData": "aGVsbG8=",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (root / f"{stem}.json").write_text(json.dumps(content | changes))


@pytest.fixture
def make(tmp_path):
    """Writes a set with one training image of these shapes, and gives its folder."""

    def make_labelme(*shapes, **changes):
        add(tmp_path / "train", "1", *shapes, **changes)
        add(tmp_path / "val", "2", shape())
        return tmp_path

    return make_labelme


def load(root, **arguments):
    return load_detection("folder", root=root, format="labelme", **arguments)


def boxes(source):
    return source.train[0][1]["boxes"].tolist()


def masks(source):
    return source.train[0][1]["masks"].numpy()


# --- shapes


def test_rectangles_and_polygons_are_objects(make):
    rectangle = shape("cat", [[30, 18], [25, 2]], "rectangle")  # drawn from its lower right
    source = load(make(shape(), rectangle))
    assert source.class_names == ("cat", "dog")
    assert boxes(source) == [[4, 3, 20, 17], [25, 2, 30, 18]]
    assert source.train[0][1]["labels"].tolist() == [2, 1]
    expected = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    expected[0, 3:17, 4:20] = 1
    expected[1, 2:18, 25:30] = 1
    assert np.array_equal(masks(source), expected)


def test_rectangles_alone_have_no_outlines(tmp_path):
    for split in ("train", "val"):
        add(tmp_path / split, split, shape("cat", [[2, 2], [5, 8]], "rectangle"))
    assert not load(tmp_path).has_masks
    with pytest.raises(ValueError, match="has boxes and no outlines, which segmentation needs"):
        load_segmentation("folder", root=tmp_path, format="labelme")


def test_a_circle_is_as_large_as_it_looks(make):
    source = load(make(shape("dog", [[20, 10], [20, 4]], "circle")))
    assert boxes(source)[0] == pytest.approx([14, 4, 26, 16], abs=0.01)
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = (row - 10) ** 2 + (column - 20) ** 2 <= 36
    assert (masks(source)[0] != disc).sum() <= 8  # on the rim


def test_shapes_of_a_group_are_one_object(make):
    left, right = [[2, 2], [8, 2], [8, 8]], [[20, 10], [30, 10], [30, 18]]
    source = load(
        make(shape(points=left, group_id=4), shape("cat"), shape(points=right, group_id=4))
    )
    assert boxes(source) == [[2, 2, 30, 18], [4, 3, 20, 17]]
    alone = load(make(shape(points=left), shape(points=right)))
    assert np.array_equal(masks(source)[0], masks(alone)[0] | masks(alone)[1])


def test_other_shapes_and_labels_are_left_out_and_counted(make):
    others = [
        shape("dog", [[3, 3]], "point"),
        shape("dog", [[3, 3], [9, 9]], "line"),
        shape("__ignore__"),
        shape("_background_"),
    ]
    source = load(make(shape(), *others))
    assert len(boxes(source)) == 1
    assert source.skipped == {
        "shape 'point'": 1,
        "shape 'line'": 1,
        "shape labelled __ignore__": 1,
        "shape labelled _background_": 1,
    }


def test_what_is_to_be_ignored_counts_for_no_class(make):
    ignored = shape("__ignore__", [[10, 0], [40, 0], [40, 10], [10, 10]])
    _, mask = load_segmentation("folder", root=make(shape(), ignored)).train[0]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    expected[3:17, 4:20] = 1
    expected[0:10, 10:40] = 255
    assert torch.equal(mask, expected)


def test_labels_txt_orders_the_classes_and_is_complete(make):
    root = make(shape("cat"))
    (root / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    assert load(root).class_names == ("dog", "cat")
    (root / "labels.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"1\.json: shape 0 .*'cat', has a label that labels\.txt"):
        load(root)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape(points=[[1, 1], [2, 2]]), "is a polygon with points=.*expected at least 3 points"),
        (shape(points=[[1, 1, 1]] * 3), "expected at least 3 points, each an x and a y"),
        (shape(points=[[1, "a"], [2, 2], [3, 3]]), "expected at least 3 points"),
        (shape(points=None), "with points=None"),
        (shape(points=[[1, 1], [2, 1], [float("nan"), 3]]), "expected at least 3 points"),
        (shape(points=[[1, 1]] * 3, kind="rectangle"), "is a rectangle .*expected 2 or 4 points"),
        (shape(points=[[1, 1], [5, 1], [9, 1]]), "expected width and height above 0"),
        (shape(points=[[1, 1], [90, 1], [9, 9]]), "inside the image's 40 x 20 pixels"),
        (shape(""), "has no label; expected a text"),
        (shape(None), "has no label"),
        ("dog", "has no label"),
        (shape(group_id=[]), r"has group_id=\[\]; expected a number"),
    ],
)
def test_a_bad_shape_is_named_or_skipped(make, bad, message):
    root = make(shape(), bad)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert f"{root / 'train' / '1.json'}: shape 1 (from 0)" in str(caught.value)
    assert boxes(load(root, bad_annotations="skip")) == [[4, 3, 20, 17]]


# --- files


def test_paths_that_windows_wrote_are_found(make):
    root = make(shape(), imagePath="..\\photos\\x.png")
    (root / "photos").mkdir()
    (root / "train" / "1.png").rename(root / "photos" / "x.png")
    assert load(root).train.names == [str(root / "photos" / "x.png")]


def test_a_wrong_path_gives_way_to_the_image_beside_the_json(make):
    assert load(make(shape(), imagePath="elsewhere.jpg")).train.names[0].endswith("train/1.png")


def test_an_image_in_the_json_alone_is_not_read(make):
    root = make(shape())
    (root / "train" / "1.png").unlink()
    with pytest.raises(
        ValueError, match=r"1\.json: has imagePath='1\.png', which is not there.*imageData"
    ):
        load(root)


def test_the_image_tells_its_size_where_the_json_does_not(make):
    source = load(make(shape(), imageHeight=None))
    assert (source.train.samples[0].height, source.train.samples[0].width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [0, -3, "20", 1.5, True])
def test_a_size_that_is_none_is_named(make, size):
    with pytest.raises(ValueError, match=r"1\.json: has imageHeight=.*expected pixels, at least 1"):
        load(make(shape(), imageHeight=size))


def test_a_size_that_is_not_the_images_is_named(make):
    source = load(make(shape(), imageHeight=30, imageWidth=50))
    with pytest.raises(
        ValueError, match=r"1\.png is an image of 20 x 40 and \S+1\.json says 30 x 50"
    ):
        source.train[0]


def test_images_without_json_and_json_without_shapes_are_counted(make):
    root = make(shape())
    Image.new("RGB", (3, 3)).save(root / "train" / "7.png")
    (root / "notes.json").write_text("{}")
    assert load(root).skipped_names == {
        "image without a json": ("train/7.png",),
        "json without shapes": ("notes.json",),
    }


@pytest.mark.parametrize("content", ["", "[]", "{", '{"shapes": 3}', '{"version": 1}'])
def test_a_bad_json_beside_an_image_is_named_or_skipped(make, content):
    root = make(shape())
    add(root / "train", "3", shape())
    (root / "train" / "1.json").write_text(content)
    with pytest.raises(ValueError, match=r"train/1\.json: (is no json|has no list 'shapes')"):
        load(root)
    assert len(load(root, bad_annotations="skip").train) == 1
