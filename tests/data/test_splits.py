"""Which split is the test set, in every format that has several."""

import shutil

import pytest
from PIL import Image

from convattn.data.detection import load_detection
from convattn.data.folders import held_out_split
from convattn.data.segmentation import load_segmentation
from tests.data.layouts import WRITERS, Picture, Thing

SPLITS = ("train", "val", "test")
SIZE = 16


def place(picture, folder):
    folder.mkdir(parents=True, exist_ok=True)
    grey = 10 * (1 + SPLITS.index(picture.name.removesuffix(".png")))
    Image.new("L", (SIZE, SIZE), grey).convert("RGB").save(folder / picture.name)


def objects(root, format, splits=SPLITS):
    outline = () if format == "voc" else (2, 2, 9, 2, 9, 9, 2, 9)
    pictures = {
        split: [Picture(f"{split}.png", SIZE, SIZE, [Thing("dog", (2, 2, 9, 9), list(outline))])]
        for split in splits
    }
    WRITERS[format](root / "data", pictures, ["dog"], place)
    return root / "data"


def masks(root, splits=SPLITS):
    for split in splits:
        place(Picture(f"{split}.png", SIZE, SIZE, []), root / "images" / split)
        (root / "masks" / split).mkdir(parents=True)
        Image.new("L", (SIZE, SIZE), 1).save(root / "masks" / split / f"{split}.png")
    (root / "classes.txt").write_text("ground\ndog\n")


def masks_inside(root, splits=SPLITS):
    masks(root, splits)
    for split in splits:
        for kind in ("images", "masks"):
            (root / split).mkdir(exist_ok=True)
            shutil.move(root / kind / split, root / split / kind)
    for kind in ("images", "masks"):
        (root / kind).rmdir()


def camvid(root, splits=SPLITS):
    masks(root, splits)
    for split in splits:
        shutil.move(root / "images" / split, root / split)
        shutil.move(root / "masks" / split, root / f"{split}annot")
    (root / "classes.txt").unlink()


def voc_masks(root, splits=SPLITS):
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split in splits:
        place(Picture(f"{split}.png", SIZE, SIZE, []), root / "JPEGImages")
        (root / "SegmentationClass").mkdir(exist_ok=True)
        Image.new("L", (SIZE, SIZE), 1).save(root / "SegmentationClass" / f"{split}.png")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}\n")


MASKS = {"masks": masks, "inside": masks_inside, "camvid": camvid, "voc": voc_masks}


def opened_masks(root, layout, **arguments):
    name = {"inside": "masks"}.get(layout, layout)
    return load_segmentation(name, root=root, **arguments)


def held_out(source):
    (name,) = source.test.names
    image, _ = source.test[0]
    assert image.unique().item() == 10 * (1 + SPLITS.index(name.rsplit("/", 1)[1][:-4]))
    return name.rsplit("/", 1)[1].removesuffix(".png")


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    ("split", "expected"), [(None, "val"), ("val", "val"), ("valid", "val"), ("Test", "test")]
)
def test_objects_of_either_split_are_tested(tmp_path, format, split, expected):
    source = load_detection("folder", root=objects(tmp_path, format), split=split)
    assert held_out(source) == expected
    assert source.train.names[0].endswith("train.png")


@pytest.mark.parametrize("layout", MASKS)
@pytest.mark.parametrize(("split", "expected"), [(None, "val"), ("val", "val"), ("test", "test")])
def test_masks_of_either_split_are_tested(tmp_path, layout, split, expected):
    MASKS[layout](tmp_path)
    assert held_out(opened_masks(tmp_path, layout, split=split)) == expected


@pytest.mark.parametrize("format", ["coco", "yolo", "labelme"])
def test_outlines_of_either_split_are_tested(tmp_path, format):
    root = objects(tmp_path, format)
    assert held_out(load_segmentation("folder", root=root, split="test")) == "test"


@pytest.mark.parametrize("format", WRITERS)
def test_an_unknown_split_is_told_with_those_that_are_there(tmp_path, format):
    root = objects(tmp_path, format, ("train", "test"))
    for split in ("val", "train", "tset"):
        expected = f"no split '{split}' to test on: it has train and test; give --split test$"
        with pytest.raises(ValueError, match=expected):
            load_detection("folder", root=root, split=split)


@pytest.mark.parametrize("layout", MASKS)
def test_an_unknown_split_of_masks_is_told_alike(tmp_path, layout):
    MASKS[layout](tmp_path)
    expected = r"it has train and val and test; give --split val or test$"
    with pytest.raises(ValueError, match=expected):
        opened_masks(tmp_path, layout, split="tset")


def test_a_folder_without_splits_has_none_to_choose(tmp_path):
    for name in ("a", "b"):
        place(Picture("train.png", SIZE, SIZE, []), tmp_path / "images" / name)
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.new("L", (SIZE, SIZE), 1).save(tmp_path / "masks" / name / "train.png")
    (tmp_path / "classes.txt").write_text("ground\ndog\n")
    for opened in (load_detection, load_segmentation):
        with pytest.raises(ValueError, match=r"cluttered_digits has no split 'test'.*leave it out"):
            opened("cluttered_digits", split="test")
    with pytest.raises(ValueError, match="nothing there parts training images from others"):
        load_segmentation("masks", root=tmp_path, split="test")


def test_val_is_tested_where_nothing_is_asked_for():
    assert held_out_split(["test", "val", "train"], None, "shop") == "val"
    assert held_out_split(["test", "train"], None, "shop") == "test"
    assert held_out_split(["train"], None, "shop") is None
