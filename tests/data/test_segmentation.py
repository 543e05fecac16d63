import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import load_segmentation, read_image

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 1, "name": "field"}, {"id": 2, "name": "cow"}, {"id": 3, "name": "fly"}]


def square(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def thing(number, category, box, **changes):
    left, top, right, bottom = box
    return {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": square(*box),
        "iscrowd": 0,
    } | changes


def make(root, *things, categories=CATEGORIES, exif=None):
    """A set of COCO's with one training image, and a test image without objects."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        image = Image.new("RGB", (WIDTH, HEIGHT), (len(split),) * 3)
        image.save(root / split / "1.png", **({"exif": exif} if exif else {}))
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}],
            "annotations": list(things) if split == "train" else [thing(1, 2, (1, 1, 9, 9))],
            "categories": categories,
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def painted(root, **arguments):
    return load_segmentation("folder", root=root, **arguments).train[0][1]


# --- objects as masks


def test_smaller_objects_lie_on_larger_ones_whatever_their_order(tmp_path):
    boxes = [(4, 4, 6, 6), (0, 0, 30, 12), (2, 2, 12, 10)]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    for label, (left, top, right, bottom) in ((1, boxes[1]), (2, boxes[2]), (3, boxes[0])):
        expected[top:bottom, left:right] = label
    for number, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 0, 2])):
        things = [thing(place, (3, 1, 2)[place], boxes[place]) for place in order]
        assert torch.equal(painted(make(tmp_path / str(number), *things)), expected)


def test_crowds_are_ignored_where_no_object_is(tmp_path):
    counts = [100, 200, 300]  # down the columns
    crowd = thing(
        1, 2, (0, 0, 30, 20), iscrowd=1, segmentation={"size": [20, 30], "counts": counts}
    )
    mask = painted(make(tmp_path, crowd, thing(2, 3, (4, 4, 7, 7))))
    expected = np.zeros(600, np.int64)
    expected[100:300] = 255
    expected = expected.reshape(WIDTH, HEIGHT).T
    expected[4:7, 4:7] = 3
    assert np.array_equal(mask, expected)


def test_classes_are_those_of_the_objects_behind_a_background(tmp_path):
    source = load_segmentation("folder", root=make(tmp_path, thing(1, 2, (4, 4, 7, 7))))
    assert source.class_names == ("background", "field", "cow", "fly")
    assert (len(source.train), len(source.test)) == (1, 1)
    assert "is taken as COCO's json" in source.notes[0]
    image, mask = pickle.loads(pickle.dumps(source.train))[0]
    assert (image.shape, mask.dtype) == ((3, HEIGHT, WIDTH), torch.int64)


def test_a_class_called_background_is_the_background(tmp_path):
    categories = [{"id": 1, "name": "Background"}, *CATEGORIES[1:]]
    root = make(
        tmp_path, thing(1, 3, (2, 2, 12, 10)), thing(2, 1, (4, 4, 6, 6)), categories=categories
    )
    assert load_segmentation("folder", root=root).class_names == ("background", "cow", "fly")
    mask = painted(root)
    assert mask.sum() == 2 * (80 - 4)
    assert mask[5, 5] == 0


def test_indices_are_those_of_the_network_by_name(tmp_path):
    root = make(tmp_path, thing(1, 2, (4, 4, 7, 7)), thing(2, 3, (10, 4, 13, 7)))
    known = ["cow", "background", "field"]
    with pytest.raises(ValueError, match="has the class 'fly', which the network does not know"):
        load_segmentation("folder", root=root, class_names=known)
    mask = painted(root, class_names=known, ignore_unknown=True)
    assert (mask[4:7, 4:7] == 0).all()
    assert (mask[4:7, 10:13] == 255).all()
    assert (mask == 1).sum() == 600 - 18


def test_outlines_of_the_stored_image_are_turned_with_it(tmp_path):
    notes = Image.Exif()
    notes[0x0112] = 6
    mask = painted(make(tmp_path, thing(1, 2, (4, 3, 12, 7)), exif=notes))
    assert mask.shape == (WIDTH, HEIGHT)
    rows, columns = np.nonzero(mask.numpy())
    assert (rows.min(), rows.max() + 1) == (4, 12)
    assert (columns.min(), columns.max() + 1) == (HEIGHT - 7, HEIGHT - 3)


def test_boxes_alone_are_refused(tmp_path):
    root = make(tmp_path, thing(1, 2, (4, 4, 7, 7), segmentation=[]))
    with pytest.raises(ValueError, match="has boxes and no outlines, which segmentation needs"):
        load_segmentation("folder", root=root)


def test_a_bad_outline_is_named_or_skipped(tmp_path):
    root = make(
        tmp_path, thing(1, 2, (4, 4, 7, 7)), thing(2, 2, (4, 4, 7, 7), segmentation=[[1, 2]])
    )
    with pytest.raises(ValueError, match=r"train\.json: annotation 2 .*a polygon of 2 numbers"):
        painted(root)
    assert painted(root, bad_annotations="skip").sum() == 18


# --- folders of masks as people have them


def write_pair(image, mask, values, number=0, mode="L", palette=None):
    """An image and a mask whose rows are these values in turn."""
    for file in (image, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (number, 7, 7)).save(image)
    rows = np.resize(np.array(values, np.uint8), (HEIGHT, *np.shape(values)[1:]))
    drawn = Image.fromarray(np.repeat(rows[:, None], WIDTH, 1))
    if palette:
        drawn.putpalette(palette)
    drawn.save(mask)


def test_each_split_may_hold_images_and_masks(tmp_path):
    for number, split in enumerate(("Train", "Val", "Test")):
        write_pair(
            tmp_path / split / "images/1.jpg", tmp_path / split / "masks/1.png", [0, 1], number
        )
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    source = load_segmentation("folder", root=tmp_path)
    assert source.train.names == [str(tmp_path / "Train/images/1.jpg")]
    assert source.test.names == [str(tmp_path / "Val/images/1.jpg")]
    assert source.skipped == {"folder beside the splits": 1}


def test_masks_that_nothing_parts_are_drawn(tmp_path):
    for number in range(10):
        write_pair(
            tmp_path / f"images/{number}.jpg", tmp_path / f"masks/{number}.png", [0, 1], number
        )
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    source = load_segmentation("folder", root=tmp_path)
    assert (len(source.train), len(source.test)) == (8, 2)
    by_group = load_segmentation("folder", root=tmp_path, group="([0-4])?[.]jpg")
    fives = [name for name in by_group.test.names if int(Path(name).stem) >= 5]
    assert len(fives) in (0, 5)
    with pytest.raises(ValueError, match="is found in none of the 10 paths"):
        load_segmentation("folder", root=tmp_path, group="(x)")


def test_an_image_in_two_splits_is_refused(tmp_path):
    for split in ("train", "val"):
        write_pair(
            tmp_path / "images" / split / "1.png", tmp_path / "masks" / split / "1.png", [0, 1]
        )
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    (tmp_path / "images/val/1.png").unlink()
    (tmp_path / "images/val/1.png").symlink_to(tmp_path / "images/train/1.png")
    with pytest.raises(ValueError, match=r"val/1\.png is among the training and the test images"):
        load_segmentation("folder", root=tmp_path)


@pytest.mark.parametrize("has_lists", [True, False])
def test_cvats_export_of_voc(tmp_path, has_lists):
    colours = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (0, 0, 142)}
    (tmp_path / "labelmap.txt").parent.mkdir(exist_ok=True)
    lines = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colours.items())
    (tmp_path / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{lines}")
    for number in range(5):
        image, mask = (tmp_path / f"{one}/{number}" for one in ("JPEGImages", "SegmentationClass"))
        write_pair(image.with_suffix(".jpg"), mask.with_suffix(".png"), [*colours.values()], number)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("0\n1\n2\n3\n4\n")
    if has_lists:
        (lists / "train.txt").write_text("1\n3\n0\n")
        (lists / "val.txt").write_text("2\n")
    source = load_segmentation("folder", root=tmp_path)
    assert "is taken as Pascal VOC's masks: SegmentationClass" in source.notes[0]
    assert source.class_names == ("background", "road", "car")
    assert (len(source.train), len(source.test)) == ((3, 1) if has_lists else (4, 1))
    assert source.train[0][1][:3, 0].tolist() == [0, 1, 2]


def test_classes_of_voc_are_pascals_unless_a_file_names_others(tmp_path):
    for number in range(3):
        image, mask = (tmp_path / f"{one}/{number}" for one in ("JPEGImages", "SegmentationClass"))
        write_pair(image.with_suffix(".jpg"), mask.with_suffix(".png"), [0, 1, 255], number)
    source = load_segmentation("folder", root=tmp_path)
    assert source.class_names[:2] == ("background", "aeroplane")
    assert any("are Pascal VOC's" in note for note in source.notes)
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    assert load_segmentation("folder", root=tmp_path).class_names == ("road", "car")


def test_masks_and_json_in_one_folder_are_refused(tmp_path):
    make(tmp_path, thing(1, 2, (4, 4, 7, 7)))
    for number, split in enumerate(("train", "val")):
        write_pair(
            tmp_path / f"images/{split}/1.jpg", tmp_path / f"masks/{split}/1.png", [0, 1], number
        )
    with pytest.raises(
        ValueError, match=r"may be masks \(images, masks\) or COCO's json .*--data\.f"
    ):
        load_segmentation("folder", root=tmp_path)
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    assert load_segmentation("folder", root=tmp_path, format="masks").class_names == ("road", "car")


def test_annotations_are_for_cocos_json_alone(tmp_path):
    with pytest.raises(ValueError, match="names COCO's json"):
        load_segmentation("masks", root=tmp_path, annotations="x")


# --- real files


@pytest.mark.data
def test_real_camvid_is_the_same_as_indices_palette_and_colours(data_dir, tmp_path):
    camvid = data_dir / "camvid"
    rng = np.random.default_rng(0)
    colours = np.unique(rng.integers(0, 256, (40, 3), np.uint8), axis=0)[:12]
    names = [f"class {number}" for number in range(11)]
    table = np.zeros((256, 3), np.uint8)
    table[:12] = colours
    targets = {}
    for kind in ("index", "palette", "colour"):
        for split in ("train", "val"):
            for file in sorted((camvid / f"{split}annot").glob("*.png"))[:6]:
                indices = np.asarray(Image.open(file))
                mask = Image.fromarray(np.where(indices == 11, 255, indices).astype(np.uint8))
                if kind == "palette":
                    mask = Image.fromarray(indices)
                    mask.putpalette(table.ravel().tolist())
                if kind == "colour":
                    mask = Image.fromarray(table[indices])
                for folder in ("images", "masks"):
                    (tmp_path / kind / folder / split).mkdir(parents=True, exist_ok=True)
                mask.save(tmp_path / kind / "masks" / split / file.name)
                (image,) = (camvid / split).glob(f"{file.stem}.*")
                (tmp_path / kind / "images" / split / image.name).symlink_to(image)
        (tmp_path / kind / "classes.txt").write_text("\n".join(names))
        if kind != "index":
            rows = zip(colours.tolist(), [*names, "void"], strict=True)
            listed = "".join(f"{r} {g} {b} {name}\n" for (r, g, b), name in rows)
            (tmp_path / kind / "label_colors.txt").write_text(listed)
        source = load_segmentation("folder", root=tmp_path / kind)
        targets[kind] = [mask for part in (source.train, source.test) for _, mask in part]
    official = load_segmentation("camvid", root=camvid)
    for number in range(6):
        assert torch.equal(targets["index"][number], official.train[number][1])
    for one, *others in zip(targets["index"], targets["palette"], targets["colour"], strict=True):
        assert len(one.unique()) > 5
        assert all(torch.equal(one, other) for other in others)
    image = source.train[0][0].permute(1, 2, 0)
    assert np.array_equal(image, np.asarray(read_image(source.train.names[0])))
