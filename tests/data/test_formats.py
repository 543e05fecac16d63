import json
import random
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

from convattn.data import UnreadableImageError, load_detection, load_segmentation

from .layouts import WRITERS, Picture, Thing

CLASSES = ["dog", "cat", "a <b> & c"]
TITLES = {"coco": "COCO's json", "yolo": "YOLO", "voc": "Pascal VOC", "labelme": "LabelMe"}


def picture(number, *things):
    return Picture(f"{number}.png", 40, 30, list(things))


def some_pictures():
    box = Thing("dog", (4, 3, 20, 17))
    return {
        "train": [
            picture(1, box, Thing("cat", (0, 0, 40, 30))),
            picture(2, Thing("a <b> & c", (10, 10, 12, 30))),
            picture(3),
        ],
        "val": [picture(4, box), picture(5, Thing("cat", (1, 2, 3, 4)))],
    }


def draw(picture, folder):
    folder.mkdir(parents=True, exist_ok=True)
    grey = (int(picture.name.split(".")[0]) * 20,) * 3
    Image.new("RGB", (picture.width, picture.height), grey).save(folder / picture.name)


def targets(images):
    return [
        (image.shape, target["labels"].tolist(), target["boxes"])
        for image, target in (images[index] for index in range(len(images)))
    ]


def assert_same(found, expected, atol):
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    for (*_, boxes), (*_, wanted) in zip(found, expected, strict=True):
        torch.testing.assert_close(boxes.as_subclass(torch.Tensor), wanted, rtol=0, atol=atol)


def expected_targets(pictures, classes):
    return [
        (
            torch.Size((3, one.height, one.width)),
            [classes.index(thing.name) + 1 for thing in one.things],
            torch.tensor([thing.box for thing in one.things], dtype=torch.float32).reshape(-1, 4),
        )
        for one in pictures
    ]


# --- one set in every format


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("said", ["auto", None])
def test_every_format_gives_the_same_targets(tmp_path, format, said):
    pictures = some_pictures()
    WRITERS[format](tmp_path / "set", pictures, CLASSES, draw)
    source = load_detection("folder", root=tmp_path / "set", format=said or format)
    assert source.class_names == tuple(CLASSES)
    assert_same(targets(source.train), expected_targets(pictures["train"], CLASSES), 1e-5)
    assert_same(targets(source.test), expected_targets(pictures["val"], CLASSES), 1e-5)
    assert not source.has_masks
    taken = [note for note in source.notes if "is taken as" in note]
    assert len(taken) == (said == "auto")
    assert all(f"is taken as {TITLES[format]}: " in note for note in taken)


@pytest.mark.parametrize("format", ["coco", "yolo", "labelme"])
def test_every_format_gives_the_same_outlines(tmp_path, format):
    corners = [4.0, 3.0, 20.0, 5.0, 18.0, 17.0, 6.5, 14.0]
    thing = Thing("dog", (4.0, 3.0, 20.0, 17.0), corners)
    pictures = {"train": [picture(1, thing)], "val": [picture(2, thing)]}
    WRITERS["coco"](tmp_path / "coco", pictures, CLASSES, draw)
    if format != "coco":
        WRITERS[format](tmp_path / format, pictures, CLASSES, draw)
    found, wanted = (
        load_detection("folder", root=tmp_path / one).train[0][1]["masks"]
        for one in (format, "coco")
    )
    assert found.sum() > 100
    assert torch.equal(found, wanted)
    painted, _ = (
        load_segmentation("folder", root=tmp_path / one).test[0][1] for one in (format, "coco")
    )
    assert torch.equal(painted, wanted[0].long())


def whole_boxes(file):
    """Pictures of a json of COCO's, the boxes as whole pixels."""
    content = json.loads(file.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = {
        one["id"]: Picture(one["file_name"], one["width"], one["height"])
        for one in content["images"]
    }
    for one in content["annotations"]:
        image = found[one["image_id"]]
        left, top, wide, high = one["bbox"]
        right = min(image.width, max(int(left) + 1, round(left + wide)))
        bottom = min(image.height, max(int(top) + 1, round(top + high)))
        left, top = min(int(left), right - 1), min(int(top), bottom - 1)
        image.things.append(Thing(names[one["category_id"]], (left, top, right, bottom)))
    return list(found.values()), [names[number] for number in sorted(names)]


@pytest.mark.data
def test_real_coco_is_the_same_in_four_layouts(data_dir, tmp_path):
    folder = data_dir / "coco128"
    pictures = {}
    for split in ("train", "val"):
        listed, classes = whole_boxes(folder / "annotations" / f"detection_{split}2017.json")
        pictures[split] = sorted(listed, key=lambda one: one.name)[:40]
    paths = {path.name: path for path in folder.glob("images/*/*.jpg")}

    def place(one, inside):
        inside.mkdir(parents=True, exist_ok=True)
        (inside / one.name).symlink_to(paths[one.name])

    for format, write in WRITERS.items():
        write(tmp_path / format, pictures, classes, place)
        source = load_detection("folder", root=tmp_path / format)
        assert source.class_names == tuple(classes)
        for found, split in ((source.train, "train"), (source.test, "val")):
            records = found.samples
            assert [record.labels.tolist() for record in records] == [
                [classes.index(thing.name) + 1 for thing in one.things] for one in pictures[split]
            ]
            for record, one in zip(records, pictures[split], strict=True):
                wanted = torch.tensor([thing.box for thing in one.things]).reshape(-1, 4).float()
                torch.testing.assert_close(
                    torch.from_numpy(record.boxes), wanted, rtol=0, atol=1e-3
                )
            assert found[0][0].shape[1:] == (records[0].height, records[0].width)


@pytest.mark.data
def test_outlines_of_real_coco_are_the_same_to_the_pixel(data_dir, tmp_path):
    """Corners of the real boxes' octagons, whose masks COCO's own code fills."""
    listed, classes = whole_boxes(data_dir / "coco128/annotations/detection_val2017.json")
    listed = sorted(listed, key=lambda one: one.name)[:20]
    for one in listed:
        for thing in one.things:
            left, top, right, bottom = thing.box
            x, y = (right - left) / 3, (bottom - top) / 3
            thing.polygon = [
                *(left + x, top, right - x, top, right, top + y, right, bottom - y),
                *(right - x, bottom, left + x, bottom, left, bottom - y, left, top + y),
            ]
    pictures = {"train": listed[:10], "val": listed[10:]}
    paths = {path.name: path for path in (data_dir / "coco128").glob("images/*/*.jpg")}

    def place(one, inside):
        inside.mkdir(parents=True, exist_ok=True)
        (inside / one.name).symlink_to(paths[one.name])

    masks = {}
    for format in ("coco", "labelme"):
        WRITERS[format](tmp_path / format, pictures, classes, place)
        source = load_detection("folder", root=tmp_path / format)
        masks[format] = [source.test[index][1]["masks"] for index in range(10)]
    assert sum(int(one.sum()) for one in masks["coco"]) > 10_000
    for one, other in zip(masks["coco"], masks["labelme"], strict=True):
        assert torch.equal(one, other)


# --- which format


def test_two_formats_are_refused_and_one_may_be_named(tmp_path):
    root = tmp_path / "set"
    WRITERS["yolo"](root, some_pictures(), CLASSES, draw)
    WRITERS["coco"](tmp_path / "other", some_pictures(), CLASSES, draw)
    shutil.copytree(tmp_path / "other", root, dirs_exist_ok=True)
    shutil.rmtree(root / "train" / "images")
    (root / "train" / "labels").rename(root / "labels")
    with pytest.raises(ValueError, match=r"COCO's json .*or YOLO .*--data.format coco or .*yolo"):
        load_detection("folder", root=root)
    assert len(load_detection("folder", root=root, format="coco").train) == 3


@pytest.mark.parametrize("load", [load_detection, load_segmentation])
def test_an_unknown_folder_is_told_what_was_looked_for(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"COCO's json: .*; YOLO: data\.yaml.*; LabelMe: "):
        load("folder", root=tmp_path)


@pytest.mark.parametrize("format", ["yolo", "voc", "labelme"])
def test_name_of_annotations_is_for_coco_alone(tmp_path, format):
    WRITERS[format](tmp_path / "set", some_pictures(), CLASSES, draw)
    with pytest.raises(ValueError, match=r"annotations='instances' \(--data.annotations\) names"):
        load_detection("folder", root=tmp_path / "set", format=format, annotations="instances")


@pytest.mark.parametrize("format", WRITERS)
def test_named_format_that_is_not_there_is_one_sentence(tmp_path, format):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no .*looked for"):
        load_detection("folder", root=tmp_path, format=format)


# --- no splits, and bad ones


def without_splits(root, format):
    """All images of a set in one part."""
    pictures = {"train": [picture(n, Thing("dog", (1, 1, 5, 5))) for n in range(1, 10)]}
    pictures["train"] += [picture(10, Thing("cat", (1, 1, 5, 5)), Thing("dog", (1, 1, 5, 5)))]
    if format == "coco":
        WRITERS[format](root, pictures, CLASSES, draw)
        (root / "annotations" / "instances_train.json").rename(root / "instances_default.json")
    elif format == "voc":
        WRITERS[format](root, pictures, CLASSES, draw)
        (root / "ImageSets" / "Main" / "train.txt").unlink()
    else:
        WRITERS[format](root, pictures, CLASSES, draw)


@pytest.mark.parametrize("format", WRITERS)
def test_a_fifth_is_drawn_where_nothing_parts_the_images(tmp_path, format):
    without_splits(tmp_path / "set", format)
    source = load_detection("folder", root=tmp_path / "set")
    assert (len(source.train), len(source.test)) == (8, 2)
    assert any("has no splits: 2 of its 10 images" in note for note in source.notes)
    # The one image with a cat stays: a class is never tested that nothing taught.
    assert any(name.endswith("10.png") for name in source.train.names)
    again = load_detection("folder", root=tmp_path / "set")
    assert again.test.names == source.test.names
    others = [load_detection("folder", root=tmp_path / "set", seed=seed) for seed in (1, 2, 3)]
    assert any(one.test.names != source.test.names for one in others)


def test_images_of_a_group_stay_in_one_part(tmp_path):
    without_splits(tmp_path / "set", "voc")
    source = load_detection("folder", root=tmp_path / "set", group=r"(\d)\d*\.png")
    digits = [
        {name[:-4].rsplit("/", 1)[1][0] for name in p.names} for p in (source.train, source.test)
    ]
    assert not digits[0] & digits[1]


def test_a_group_is_refused_where_the_folder_parts_the_images(tmp_path):
    WRITERS["yolo"](tmp_path / "set", some_pictures(), CLASSES, draw)
    with pytest.raises(ValueError, match="parts a folder without splits"):
        load_detection("folder", root=tmp_path / "set", group="(.)")


@pytest.mark.parametrize("load", [load_detection, load_segmentation])
def test_an_image_in_two_splits_is_refused(tmp_path, load):
    thing = Thing("dog", (4, 3, 20, 17), [4, 3, 20, 3, 20, 17])
    pictures = {"train": [picture(1, thing)], "val": [picture(2, thing)]}
    WRITERS["coco"](tmp_path / "set", pictures, CLASSES, draw)
    twin = tmp_path / "set" / "val" / "2.png"
    twin.unlink()
    twin.symlink_to(tmp_path / "set" / "train" / "1.png")
    with pytest.raises(ValueError, match=r"2\.png is among the training and the test images"):
        load("folder", root=tmp_path / "set")


@pytest.mark.parametrize("format", ["voc", "labelme"])
def test_a_class_that_training_lacks_is_refused_by_name(tmp_path, format):
    pictures = some_pictures()
    pictures["val"].append(picture(6, Thing("zebra", (1, 1, 5, 5))))
    WRITERS[format](tmp_path / "set", pictures, [*CLASSES, "zebra"], draw)
    (tmp_path / "set" / "labels.txt").unlink()
    with pytest.raises(ValueError, match=r"6\.\w+ has an object of class 'zebra', which no train"):
        load_detection("folder", root=tmp_path / "set")
    # A network that knows it may be tested on it.
    known = ["zebra", *CLASSES]
    source = load_detection("folder", root=tmp_path / "set", class_names=known)
    assert source.test[2][1]["labels"].tolist() == [1]


@pytest.mark.parametrize("format", WRITERS)
def test_classes_go_by_name_in_every_format(tmp_path, format):
    WRITERS[format](tmp_path / "set", some_pictures(), CLASSES, draw)
    known = ["cat", "bird", "dog"]
    with pytest.raises(ValueError, match="has the class 'a <b> & c', which the network does not"):
        load_detection("folder", root=tmp_path / "set", class_names=known)
    source = load_detection("folder", root=tmp_path / "set", class_names=known, ignore_unknown=True)
    assert [t["labels"].tolist() for _, t in source.train] == [[3, 1], [], []]
    assert source.skipped["object of an unknown class"] == 1


def test_one_class_is_enough_for_a_detector(tmp_path):
    without_splits(tmp_path / "set", "voc")
    (tmp_path / "set" / "labels.txt").write_text("dog\ncat\n")
    assert load_detection("folder", root=tmp_path / "set").class_names == ("dog", "cat")


@pytest.mark.parametrize("format", ["voc", "labelme"])
def test_classes_that_differ_in_capitals_are_refused(tmp_path, format):
    pictures = some_pictures()
    pictures["train"].append(picture(6, Thing("Dog", (1, 1, 5, 5))))
    WRITERS[format](tmp_path / "set", pictures, [*CLASSES, "Dog"], draw)
    (tmp_path / "set" / "labels.txt").unlink()
    with pytest.raises(ValueError, match="the classes 'Dog' and 'dog', which differ only in cap"):
        load_detection("folder", root=tmp_path / "set")


# --- damaged files

EDITS = [
    lambda text, rng: text[: rng.randrange(len(text))],
    lambda text, rng: _splice(text, rng, bytes([rng.randrange(256)])),
    lambda text, rng: _splice(text, rng, b"-1"),
    lambda text, rng: _splice(text, rng, b"1e400"),
    lambda text, rng: _splice(text, rng, b"9" * 400),
    lambda text, rng: _splice(text, rng, rng.choice([b"NaN", b"null", b"[]", b"{}", b'""', b"\0"])),
    lambda text, rng: _without(text, rng),
    lambda text, rng: _numbered(text, rng, rng.choice([b"-7", b"1e9", b"0", b"null", b"1e400"])),
    lambda text, rng: _numbered(text, rng, rng.choice([b"[[1]]", b"true", b"nan", b'"x"'])),
    lambda text, rng: b"",
]


def _splice(text, rng, piece):
    at = rng.randrange(len(text))
    return text[:at] + piece + text[at + rng.randrange(4) :]


def _without(text, rng):
    at = rng.randrange(len(text))
    return text[:at] + text[at + rng.randrange(1, 60) :]


def _numbered(text, rng, piece):
    """One number replaced by something else."""
    at = rng.choice([n for n, byte in enumerate(text) if chr(byte).isdigit()])
    return text[:at] + piece + text[at + 1 :]


KINDS = {
    "coco": "annotations/instances_train.json",
    "yolo": "train/labels/1.txt",
    "yaml": "data.yaml",
    "voc": "Annotations/1.xml",
    "labelme": "train/1.json",
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_one_sentence_that_names_them(tmp_path, kind):
    format = "yolo" if kind == "yaml" else kind
    thing = Thing("dog", (4, 3, 20, 17), [4, 3, 20, 3, 20, 17] if format != "voc" else None)
    pictures = {"train": [picture(1, thing, thing), picture(2, thing)], "val": [picture(3, thing)]}
    root = tmp_path / "set"
    WRITERS[format](root, pictures, CLASSES, draw)
    file = root / KINDS[kind]
    whole = file.read_bytes()
    rng = random.Random(kind)
    came_out = Counter()
    for number in range(200):
        damaged = EDITS[number % len(EDITS)](whole, rng)
        file.write_bytes(damaged)
        said = outcome(root, format, "error")
        if said is not None:
            assert str(file) in said or KINDS[kind] in said, (number, said)
            came_out["refused"] += 1
            came_out["skipped"] += outcome(root, format, "skip") is None
    assert came_out["refused"] > 60, came_out
    assert came_out["skipped"] > 20 or kind in ("yaml", "coco"), came_out


def outcome(root, format, bad_annotations):
    """What an error says, which must be one sentence; None where there is none."""
    try:
        source = load_detection("folder", root=root, format=format, bad_annotations=bad_annotations)
        for index in range(len(source.train)):
            source.train[index]
    except (ValueError, FileNotFoundError, UnreadableImageError) as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 2000
        return said
    return None
