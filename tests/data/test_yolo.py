import numpy as np
import pytest
from PIL import Image

from convattn.data import load_detection, load_segmentation

WIDTH, HEIGHT = 40, 20


def add(root, image, rows=None, label=None, size=(WIDTH, HEIGHT), exif=None):
    """An image and its rows."""
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    red = sum(image.encode()) % 251
    Image.new("RGB", size, (red, len(image), 0)).save(path, **({"exif": exif} if exif else {}))
    if rows is not None:
        file = root / (label or image.replace("images/", "labels/").rsplit(".", 1)[0] + ".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rows)


def make(
    root, yaml="train: images/train\nval: images/val\nnames: [cat, dog]\n", rows="0 .5 .5 .5 .5"
):
    """A set with two training images, of the first with these rows, and a test image."""
    add(root, "images/train/1.png", rows)
    add(root, "images/train/2.png", "1 0.25 0.5 0.5 1.0\n")
    add(root, "images/val/3.png", "1 0.5 0.5 0.25 0.5\n")
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def load(root, **arguments):
    return load_detection("folder", root=root, format="yolo", **arguments)


def boxes(source, index=0):
    return source.train[index][1]["boxes"].tolist()


# --- rows


def test_a_row_is_the_middle_and_the_sides_in_shares(tmp_path):
    source = load(make(tmp_path, rows="0 0.5 0.5 0.5 0.5\n\n1.0 0.125 0.25 0.25 0.5\n"))
    assert boxes(source) == [[10, 5, 30, 15], [0, 0, 10, 10]]
    assert source.train[0][1]["labels"].tolist() == [1, 2]
    assert source.train[0][1]["area"].tolist() == [200, 100]
    assert source.category_ids == (1, 2)
    assert not source.has_masks


def test_a_longer_row_is_a_polygon(tmp_path):
    root = make(tmp_path, rows="1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    add(root, "images/train/2.png", "")
    add(root, "images/val/3.png", "0 0 0 .5 0 .5 .5\n")
    source = load(root)
    assert boxes(source) == [[10, 5, 30, 15]]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:30] = 1
    assert np.array_equal(source.train[0][1]["masks"][0], mask)
    assert source.train[1][1]["masks"].shape == (0, HEIGHT, WIDTH)
    assert not load(root, masks=False).has_masks
    painted = load_segmentation("folder", root=root)
    assert painted.class_names == ("background", "cat", "dog")
    assert np.array_equal(painted.train[0][1], 2 * mask)


def test_a_box_among_polygons_has_no_outline(tmp_path):
    root = make(tmp_path, rows="0 0.5 0.5 0.5 0.5\n1 0 0 .5 0 .5 .5\n")
    with pytest.raises(ValueError, match=r"1\.txt: line 1 has no mask; expected polygons"):
        load(root)
    assert len(boxes(load(root, masks=False))) == 2


def test_equal_rows_are_one_object_and_counted(tmp_path):
    source = load(make(tmp_path, rows="0 .5 .5 .5 .5\n0 .5  .5 .5 .5\n1 .5 .5 .5 .5\n"))
    assert len(boxes(source)) == 2
    assert source.skipped == {"repeated row": 1}


def test_boxes_that_reach_over_by_a_pixel_are_clipped(tmp_path):
    assert boxes(load(make(tmp_path, rows="0 0.01 0.5 0.05 1.0\n"))) == [
        [0, 0, pytest.approx(1.4), 20]
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "0 320 240 100 50",
            "has the row 320 240 100 50 .*shares of the image.*expected it inside",
        ),
        ("0 0.9 0.5 0.5 0.5", "inside the image's 40 x 20 pixels"),
        ("0 0.5 0.5 -0.5 0.5", "expected width and height above 0"),
        ("0 0.5 0.5 0 0.5", "expected width and height above 0"),
        ("0 nan 0.5 0.5 0.5", "expected shares of the image, 0 to 1"),
        ("0 1e300 0.5 0.5 0.5", "expected shares of the image, 0 to 1"),
        ("2 0.5 0.5 0.5 0.5", r"is of class 2; expected 0 to 1, the 2 names of \S+data\.yaml"),
        ("-1 0.5 0.5 0.5 0.5", "is of class -1"),
        ("0.5 0.5 0.5 0.5 0.5", r"is of class 0\.5"),
        ("nan 0.5 0.5 0.5 0.5", "is of class nan"),
        ("0 0.5 0.5 0.5", "holds 4 numbers; expected class x y width height, or"),
        ("0 0.5 0.5 0.5 0.5 0.9", "holds 6 numbers"),
        ("cat 0.5 0.5 0.5 0.5", "is 'cat 0.5 0.5 0.5 0.5'; expected numbers"),
        ("0 0 0 3 0 3 3", "expected it inside the image's"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path, row, message):
    root = make(tmp_path, rows=f"1 .5 .5 .5 .5\n{row}\n")
    with pytest.raises(ValueError, match=f"labels/train/1.txt: line 2 .*{message}"):
        load(root, masks=False)
    source = load(root, masks=False, bad_annotations="skip")
    assert boxes(source) == [[10, 5, 30, 15]]
    assert sum(source.skipped.values()) == 1


def test_boxes_are_shares_of_the_upright_image(tmp_path):
    notes = Image.Exif()
    notes[0x0112] = 6
    add(tmp_path, "images/train/1.jpg", "0 0.25 0.5 0.5 0.5\n", exif=notes)
    add(tmp_path, "images/val/2.jpg", "0 0.25 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    source = load(tmp_path)
    assert source.train[0][0].shape == (3, WIDTH, HEIGHT)
    assert boxes(source) == [[0, 10, 10, 30]]
    assert source.test[0][1]["boxes"].tolist() == [[0, 5, 20, 15]]


def test_keypoints_behind_a_box_are_no_outline(tmp_path):
    yaml = "train: images/train\nval: images/val\nnames: [cat, dog]\nkpt_shape: [2, 2]\n"
    source = load(make(tmp_path, yaml, rows="0 0.5 0.5 0.5 0.5 0.1 0.1 0.2 0.2\n"))
    assert boxes(source) == [[10, 5, 30, 15]]
    assert not source.has_masks


# --- layouts

YAMLS = {
    "list": "train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2\n",
    "numbers": "train: images/train\nval: images/val\nnames:\n  1: dog\n  0: cat\n",
    "path": "path: .\ntrain: images/train\nval: [images/val]\nnames: ['cat', 'dog']\n",
    "path elsewhere": "path: ../pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
    "Roboflow": "train: ../images/train\nval: ../images/val\ntest: ''\nnames: ['cat', 'dog']\n",
    "backslashes": "train: images\\train\nval: images\\val\nnames: [cat, dog]\n",
    "no val": "train: images/train\ntest: images/val\nnames: [cat, dog]\n",
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_as_people_write_it(tmp_path, name):
    source = load(make(tmp_path / "set", YAMLS[name]))
    assert source.class_names == ("cat", "dog")
    assert source.train.names == [str(tmp_path / f"set/images/train/{n}.png") for n in (1, 2)]
    assert source.test.names == [str(tmp_path / "set/images/val/3.png")]


def test_yaml_may_name_lists_of_images(tmp_path):
    make(tmp_path, "train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("./images/train/2.png\n\nimages\\train\\1.png\n")
    assert [name[-5:] for name in load(tmp_path).train.names] == ["2.png", "1.png"]
    (tmp_path / "train.txt").write_text("./images/train/2.png\n./images/train/9.png\n")
    with pytest.raises(
        ValueError, match=r"train\.txt: line 2 lists './images/train/9\.png', which"
    ):
        load(tmp_path)


def test_without_yaml_the_folders_say_it(tmp_path):
    make(tmp_path, yaml=None)
    (tmp_path / "classes.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    source = load_detection("folder", root=tmp_path)
    assert source.class_names == ("cat", "dog")
    assert (len(source.train), len(source.test)) == (2, 1)
    assert "taken as YOLO: classes.txt, labels/train/1.txt" in source.notes[0]


def test_labels_may_lie_beside_the_images(tmp_path):
    for split in ("train", "val"):
        add(tmp_path, f"{split}/1.png", "0 .5 .5 .5 .5\n", f"{split}/1.txt")
    (tmp_path / "pets.yaml").write_text("train: train\nval: val\nnames: [cat]\n")
    assert boxes(load_detection("folder", root=tmp_path)) == [[10, 5, 30, 15]]


def test_the_last_images_in_a_path_becomes_labels(tmp_path):
    root = tmp_path / "images" / "set"
    assert boxes(load(make(root))) == [[10, 5, 30, 15]]


def test_images_without_labels_have_no_objects_and_are_told(tmp_path):
    root = make(tmp_path)
    add(root, "images/train/4.png")
    source = load(root)
    assert source.train[2][1]["labels"].shape == (0,)
    assert any("1 of 3 images of train have no file of labels" in note for note in source.notes)


def test_labels_without_an_image_are_counted(tmp_path):
    root = make(tmp_path)
    (root / "labels" / "train" / "7.txt").write_text("0 .5 .5 .5 .5\n")
    assert load(root).skipped_names == {"labels without an image": ("labels/train/7.txt",)}


def test_a_split_without_any_labels_is_refused(tmp_path):
    root = make(tmp_path)
    (root / "labels").rename(root / "label")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 2 images .*looked for \S+labels/train/1"
    ):
        load(root)


def test_test_beside_val_is_told(tmp_path):
    root = make(
        tmp_path, "train: images/train\nval: images/val\ntest: images/t\nnames: [cat, dog]\n"
    )
    add(root, "images/t/1.png", "")
    assert load(root).skipped == {"split that is not looked at": 1}


def test_unreadable_image_is_named_or_left_out(tmp_path):
    root = make(tmp_path)
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/1\.png cannot be read as an image"):
        load(root)
    source = load(root, bad_annotations="skip")
    assert (len(source.train), source.skipped) == (1, {"unreadable image": 1})


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nval: images/val\n", "has names=None; expected a list of the"),
        ("train: images/train\nval: images/val\nnames: []\n", "has names="),
        ("train: images/train\nval: images/val\nnames: [cat]\nnc: 2\n", "nc=2 and 1 names"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "numbers its names 0, 2"),
        (
            "train: images/train\nval: images/val\nnames: [yes, dog]\n",
            "calls class 0 True, which yaml",
        ),
        ("train: images/train\nval: images/val\nnames: [a, a]\n", "has the name 'a' twice"),
        ("val: images/val\nnames: [cat, dog]\n", "has no train; expected"),
        ("train: images/9\nval: images/val\nnames: [cat, dog]\n", "train='images/9', which is not"),
        ("train: 3\nval: images/val\nnames: [cat, dog]\n", "has train=3; expected a folder"),
        ("path: 3\ntrain: images/train\nnames: [cat, dog]\n", "has path=3; expected the folder"),
        ("train: !!python/object:os.system x\nnames: [a]\n", "is no yaml"),
        ("names", "holds no names; expected"),
    ],
)
def test_a_bad_yaml_is_one_sentence(tmp_path, yaml, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(make(tmp_path, yaml))
    assert str(tmp_path / "data.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_yamls_are_refused_unless_one_is_called_data(tmp_path):
    root = make(tmp_path, yaml=None)
    for name in ("one.yaml", "two.yaml"):
        (root / name).write_text(YAMLS["list"])
    with pytest.raises(ValueError, match=r"one\.yaml and two\.yaml, which both name classes"):
        load(root)
    (root / "one.yaml").rename(root / "data.yaml")
    assert len(load(root).train) == 2
