import json
import pickle
import shutil

import numpy as np
import pycocotools.mask as oracle
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from convattn.data import UnreadableImageError, describe_skipped, load_detection

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "bird"}]
POLYGON = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]


def image(number, **changes):
    return {
        "id": number,
        "file_name": f"{number}.png",
        "width": WIDTH,
        "height": HEIGHT,
    } | changes


def annotation(number, image_id=1, **changes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [2, 3, 10, 6],
        "area": 60,
        "iscrowd": 0,
        "segmentation": [POLYGON],
    } | changes


def write(folder, file, entries, images=None, **changes):
    """A json file and its images, each of a grey of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [image(1), image(2)] if images is None else images
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT), (number,) * 3).save(folder / f"{number}.png")
    content = {"images": images, "annotations": entries, "categories": CATEGORIES}
    file.write_text(json.dumps(content | changes))


@pytest.fixture
def make(tmp_path):
    """Writes a data set of COCO's layout with these training annotations, and gives its folder."""

    def make_coco(entries, images=None, **changes):
        listings = tmp_path / "annotations"
        write(tmp_path / "val2017", listings / "instances_val2017.json", [annotation(1)])
        write(
            tmp_path / "train2017",
            listings / "instances_train2017.json",
            entries,
            images,
            **changes,
        )
        return tmp_path

    return make_coco


def load(root, **arguments):
    return load_detection("coco", root=root, **arguments)


# --- classes by name


def test_labels_are_those_of_the_network_by_name(make):
    root = make([annotation(1), annotation(2, category_id=7)])
    source = load(root, class_names=["fish", "cat", "bird"])
    assert source.class_names == ("fish", "cat", "bird")
    assert source.category_ids == (-1, 7, 3)
    assert source.train[0][1]["labels"].tolist() == [3, 2]


def test_a_class_that_the_network_does_not_know_is_refused_or_left_out(make):
    root = make([annotation(1), annotation(2, category_id=7)])
    with pytest.raises(ValueError, match="has the class 'bird', which the network does not know"):
        load(root, class_names=["fish", "cat"])
    source = load(root, class_names=["fish", "cat"], ignore_unknown=True)
    assert source.train[0][1]["labels"].tolist() == [2]
    assert source.skipped["object of an unknown class"] == 2  # one of them in the test
    assert source.skipped_names["object of an unknown class"] == ("1.png", "1.png")


# --- what is read


def test_target_of_an_image(make):
    source = load(make([annotation(5), annotation(6, category_id=7, iscrowd=1, area=12.5)]))
    image, target = source.train[0]
    assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), torch.uint8)
    assert (image == 1).all()
    assert target["image_id"] == 1
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (HEIGHT, WIDTH)
    assert target["boxes"].tolist() == [[2, 3, 12, 9]] * 2
    assert target["boxes"].dtype == target["area"].dtype == torch.float32
    assert target["area"].tolist() == [60, 12.5]
    assert target["iscrowd"].tolist() == [False, True]
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert (target["masks"].dtype, target["masks"].shape) == (torch.uint8, (2, HEIGHT, WIDTH))


def test_labels_count_the_categories_in_the_order_of_their_ids(make):
    source = load(make([annotation(1), annotation(2, category_id=7)]))
    assert source.class_names == ("bird", "cat")
    assert source.category_ids == (3, 7)
    assert source.train[0][1]["labels"].tolist() == [1, 2]


def test_image_without_objects(make):
    _, target = load(make([annotation(1)])).train[1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["masks"].shape == (0, HEIGHT, WIDTH)


def test_area_is_the_boxs_where_the_json_has_none(make):
    entry = annotation(1)
    del entry["area"], entry["iscrowd"]
    target = load(make([entry])).train[0][1]
    assert target["area"].tolist() == [60]
    assert target["iscrowd"].tolist() == [False]


@pytest.mark.parametrize("arguments", [{"masks": False}, {}])
def test_no_masks_where_none_are_wanted_or_known(make, arguments):
    segmentation = [POLYGON] if arguments else []
    root = make([annotation(1, segmentation=segmentation)])
    source = load(root, **arguments)
    assert not source.has_masks
    assert "masks" not in source.train[0][1]


def test_box_is_clipped_by_up_to_a_pixel(make):
    source = load(make([annotation(1, bbox=[-0.6, 13.0, 31.0, 8.0])]))
    assert source.train[0][1]["boxes"].tolist() == [[0, 13, 30, 20]]


def test_draws(make):
    source = load(make([annotation(1), annotation(2, image_id=2)]), num_train=1, seed=3)
    assert len(source.train) == len(source.train.names) == 1
    with pytest.raises(ValueError, match="num_test=3; expected 1 to 2"):
        load(make([annotation(1)]), num_test=3)


def test_select_and_transform(make):
    train = load(make([annotation(1)])).train
    chosen = train.select(torch.tensor([1])).with_transform(lambda image, target: (target, image))
    target, _ = chosen[0]
    assert target["image_id"] == 2
    assert chosen.names[0].endswith("2.png")


def test_images_go_to_workers_by_pickle(make):
    train = load(make([annotation(1)])).train
    assert torch.equal(
        pickle.loads(pickle.dumps(train))[0][1]["masks"],
        train[0][1]["masks"],
    )


def test_error_in_a_worker_is_the_sentence_alone(make):
    root = make([annotation(1)])
    train = load(root).train
    (root / "train2017" / "1.png").unlink()
    with pytest.raises(UnreadableImageError) as caught:
        list(DataLoader(train, batch_size=None, num_workers=1))
    assert str(caught.value).startswith(str(root / "train2017" / "1.png"))


# --- layouts


@pytest.mark.parametrize("held_out", ["val2017", "valid", "test", "val2014"])
@pytest.mark.parametrize("below", ["", "images"])
def test_official_layouts(tmp_path, held_out, below):
    for split in ("train", held_out):
        file = tmp_path / "annotations" / f"person_{split}.json"
        write(tmp_path / below / split, file, [annotation(1)])
    source = load(tmp_path, annotations="person")
    assert (len(source.train), len(source.test)) == (2, 2)
    assert source.test.names[0] == str(tmp_path / below / held_out / "1.png")


@pytest.mark.parametrize("held_out", ["valid", "test"])
def test_json_beside_the_images(tmp_path, held_out):
    for split in ("train", held_out):
        write(tmp_path / split, tmp_path / split / "_annotations.coco.json", [annotation(1)])
    assert len(load(tmp_path).test) == 2


@pytest.mark.parametrize("names", [("Train", "Valid"), ("TRAIN", "Val"), ("train", "Test")])
def test_folders_beside_the_json_may_be_called_otherwise(tmp_path, names):
    for name in names:
        write(tmp_path / name, tmp_path / name / "_annotations.coco.json", [annotation(1)])
    assert len(load(tmp_path).test) == 2


LAYOUTS = {
    "in the root": ("train.json", "images/", "val.json", "images/"),
    "in annotations": ("annotations/train.json", "train/", "annotations/test.json", "test/"),
    "in capitals": ("Train.json", "data/", "Validation.json", "data/"),
    "a folder a split": ("train/annotations.json", "train/", "valid/annotations.json", "valid/"),
    "FiftyOne's": ("train/labels.json", "train/data/", "val/labels.json", "val/data/"),
    "years": (
        "annotations/instances_train2012.json",
        "t/",
        "annotations/instances_val2012.json",
        "v/",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_json_may_lie_anywhere(tmp_path, name):
    train, images, test, test_images = LAYOUTS[name]
    write(tmp_path / images, tmp_path / train, [annotation(1)], [image(1)])
    write(tmp_path / test_images, tmp_path / test, [annotation(1, image_id=2)], [image(2)])
    for folder, unlisted in ((images, 2), (test_images, 1)):
        if images != test_images:
            (tmp_path / folder / f"{unlisted}.png").unlink()
    source = load_detection("folder", root=tmp_path)
    assert source.train.names == [str(tmp_path / images / "1.png")]
    assert source.test.names == [str(tmp_path / test_images / "2.png")]
    assert f"is taken as COCO's json: {train}" in source.notes[0] or test in source.notes[0]
    assert source.skipped == {}


@pytest.mark.parametrize(
    "file", ["annotations.json", "annotations/instances_default.json", "x.json"]
)
def test_one_json_of_all_images_is_parted(tmp_path, file):
    images = [image(number) for number in range(1, 11)]
    write(tmp_path / "images", tmp_path / file, [annotation(1)], images)
    for number in range(3, 11):
        pixels = Image.new("RGB", (WIDTH, HEIGHT), (number,) * 3)
        pixels.save(tmp_path / "images" / f"{number}.png")
    source = load(tmp_path)
    assert (len(source.train), len(source.test)) == (8, 2)
    assert not set(source.train.names) & set(source.test.names)


@pytest.mark.parametrize(
    "name",
    [
        "images/a/1.png",
        "./images/a/1.png",
        "a/1.png",
        "images\\a\\1.png",
        "../a/1.png",
        "/home/me/a/1.png",
    ],
)
def test_file_name_may_begin_anywhere(tmp_path, name):
    write(
        tmp_path / "images" / "a",
        tmp_path / "labels" / "train.json",
        [annotation(1)],
        [image(1, file_name=name)],
    )
    write(
        tmp_path / "images" / "b",
        tmp_path / "labels" / "val.json",
        [annotation(1, image_id=2)],
        [image(2, file_name="b/2.png")],
    )
    if name.startswith("/"):
        (tmp_path / "images" / "b" / "1.png").unlink()
    source = load(tmp_path)
    assert source.train.names == [str(tmp_path / "images" / "a" / "1.png")]
    assert any("by its last part alone" in note for note in source.notes) == name.startswith("/")


def test_a_name_that_two_images_have_is_refused(tmp_path):
    write(tmp_path / "images" / "a", tmp_path / "train.json", [annotation(1)], [image(1)])
    write(tmp_path / "images" / "b", tmp_path / "val.json", [annotation(1, image_id=2)], [image(2)])
    with pytest.raises(ValueError, match=r"image 1: '1\.png' may be images/a/1\.png or images/b/1"):
        load(tmp_path)


def test_an_image_that_is_listed_twice_is_a_fault(make):
    root = make([annotation(1)], [image(1), image(2, file_name="1.png")])
    with pytest.raises(ValueError, match=r"image 2 is '1\.png', as another entry of images is"):
        load(root)
    source = load(root, bad_annotations="skip")
    assert source.skipped == {"repeated image": 1, "image that the json does not list": 1}


def test_two_files_of_one_split_are_refused_and_one_can_be_chosen(make):
    root = make([annotation(1)])
    listings = root / "annotations"
    shutil.copy(listings / "instances_train2017.json", listings / "boxes_train2017.json")
    shutil.copy(listings / "instances_val2017.json", listings / "boxes_val2017.json")
    expected = r"boxes_train2017\.json and annotations/instances_train2017\.json; choose .*'boxes'"
    with pytest.raises(ValueError, match=expected):
        load(root)
    assert len(load(root, annotations="boxes").train) == 2
    shutil.copy(listings / "instances_train2017.json", root / "train.json")
    shutil.copy(listings / "instances_val2017.json", root / "val.json")
    assert len(load(root, annotations="annotations/inst").train) == 2


@pytest.mark.parametrize("kind", ["captions", "person_keypoints", "panoptic", "stuff"])
def test_other_files_of_coco_itself_are_in_nobodys_way(make, kind):
    root = make([annotation(1)])
    listings = root / "annotations"
    for split in ("train", "val"):
        shutil.copy(listings / f"instances_{split}2017.json", listings / f"{kind}_{split}2017.json")
    assert len(load(root).train) == 2
    assert len(load(root, annotations=kind).train) == 2


def test_roboflows_group_of_all_classes_is_no_class(tmp_path):
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "bird", "supercategory": "animals"},
        {"id": 7, "name": "cat", "supercategory": "animals"},
    ]
    for split in ("train", "valid"):
        file = tmp_path / split / "_annotations.coco.json"
        write(tmp_path / split, file, [annotation(1)], categories=categories)
    source = load(tmp_path)
    assert (source.class_names, source.category_ids) == (("bird", "cat"), (3, 7))
    assert "is no class" in source.notes[0]
    write(
        tmp_path / "train",
        tmp_path / "train" / "_annotations.coco.json",
        [annotation(1, category_id=0)],
        categories=categories,
    )
    assert load(tmp_path).class_names == ("animals", "bird", "cat")


def test_missing_json_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations/instances_train2017\.json"):
        load(tmp_path)


def test_images_may_lie_in_any_one_folder_below(make):
    root = make([annotation(1)])
    (root / "val2017").rename(root / "elsewhere")
    assert load(root).test.names == [str(root / "elsewhere" / f"{n}.png") for n in (1, 2)]


def test_missing_images_are_told_with_where_they_should_be(make):
    root = make([annotation(1)])
    shutil.rmtree(root / "val2017")
    with pytest.raises(FileNotFoundError, match="is there, but none of its 2 images"):
        load(root)


def test_coco_needs_a_root():
    with pytest.raises(ValueError, match="coco needs root"):
        load_detection("coco")


# --- masks


def runs_of(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return counts if flat[0] == 0 else [0, *counts]


def test_every_form_arrives_in_the_target(make):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 2:12] = 1
    packed = oracle.encode(np.asfortranarray(mask))
    size = [HEIGHT, WIDTH]
    forms = [
        [POLYGON],
        {"size": size, "counts": runs_of(mask)},
        {"size": size, "counts": packed["counts"].decode()},
    ]
    entries = [annotation(number, segmentation=form) for number, form in enumerate(forms)]
    for found in load(make(entries)).train[0][1]["masks"]:
        assert torch.equal(found, torch.from_numpy(mask))


# --- faults

BROKEN = {
    "box of width 0": ({"bbox": [2, 3, 0, 6]}, "bad box", "the last two above 0"),
    "box of negative height": ({"bbox": [2, 3, 4, -6]}, "bad box", "the last two above 0"),
    "box of NaN": ({"bbox": [2, float("nan"), 4, 6]}, "bad box", "the last two above 0"),
    "box without end": ({"bbox": [2, 3, float("inf"), 6]}, "bad box", "the last two above 0"),
    "box outside": ({"bbox": [40, 3, 4, 6]}, "bad box", "inside the image's 30 x 20 pixels"),
    "box just outside": ({"bbox": [30, 3, 0.5, 6]}, "bad box", "inside the image's"),
    "box partly outside": ({"bbox": [20, 3, 12, 6]}, "bad box", "inside the image's"),
    "box too thin for float32": ({"bbox": [20, 3, 1e-9, 6]}, "bad box", "inside the image's"),
    "box of three": ({"bbox": [2, 3, 4]}, "bad box", "expected four numbers"),
    "box of texts": ({"bbox": ["a", "b", "c", "d"]}, "bad box", "expected four numbers"),
    "no box": ({"bbox": None}, "bad box", "expected four numbers"),
    "area of NaN": ({"area": float("nan")}, "bad box", "has the area nan"),
    "box of huge numbers": ({"bbox": [10**400, 3, 4, 6]}, "bad box", "expected four numbers"),
    "box of boxes": ({"bbox": [[1], [2], [3], [4]]}, "bad box", "expected"),
    "area of text": ({"area": "large"}, "bad box", "has the area 'large'"),
    "image": ({"image_id": 99}, "unknown image", "belongs to image 99"),
    "category": ({"category_id": 4}, "unknown category", "category 4; expected one of 3, 7"),
    "repeated id": ({"id": 1}, "repeated id", "annotation 1 is listed twice"),
    "id of text": ({"id": "x"}, "incomplete entry", "id='x'; expected a whole number"),
    "no mask": ({"segmentation": []}, "bad mask", "has no mask"),
    "line": ({"segmentation": [[1, 2, 3, 4]]}, "bad mask", "a polygon of 4 numbers"),
    "odd polygon": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "bad mask", "of 7 numbers"),
    "polygon of texts": ({"segmentation": [["a"] * 6]}, "bad mask", "a polygon of 0 numbers"),
    "polygon far away": (
        {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
        "bad mask",
        "far outside the image's",
    ),
    "polygon of NaN": (
        {"segmentation": [[0, 0, float("nan"), 0, 5, 5]]},
        "bad mask",
        "are no numbers",
    ),
    "mask of another size": (
        {"segmentation": {"size": [20, 31], "counts": [620]}},
        "bad mask",
        r"of size \[20, 31\]; expected that of the image, \[20, 30\]",
    ),
    "short runs": (
        {"segmentation": {"size": [20, 30], "counts": [5, 5]}},
        "bad mask",
        "cover 10 pixels",
    ),
    "negative run": (
        {"segmentation": {"size": [20, 30], "counts": [605, -5]}},
        "bad mask",
        "cover 600 pixels; expected runs from 0",
    ),
    "runs of texts": (
        {"segmentation": {"size": [20, 30], "counts": ["a"]}},
        "bad mask",
        "no whole numbers",
    ),
}


@pytest.mark.parametrize(("changes", "reason", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_annotation_is_named(make, changes, reason, message):
    root = make([annotation(1), annotation(2) | changes])
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert str(root / "annotations" / "instances_train2017.json") in str(caught.value)
    assert "bad_annotations='skip'" in str(caught.value)
    if reason in ("bad box", "bad mask", "unknown category"):
        assert "annotation 2 (of image 1.png)" in str(caught.value)


@pytest.mark.parametrize(("changes", "reason", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_annotation_is_skipped_and_counted(make, changes, reason, message):
    root = make([annotation(1), annotation(2) | changes])
    source = load(root, bad_annotations="skip")
    assert source.skipped == {reason: 1}
    assert source.train[0][1]["boxes"].tolist() == [[2, 3, 12, 9]]


@pytest.mark.parametrize(
    ("entry", "reason", "message"),
    [
        (image(3), "missing image", "image 3 is '3.png', which is not in"),
        (image(3, file_name="../secret.png"), "missing image", "secret"),
        (image(1), "repeated id", "image 1 is listed twice"),
        (image(3, width=0), "incomplete entry", "is 0 wide and 20 high"),
        (image(3, height=None), "incomplete entry", "height=None; expected a whole number"),
        (image(3, file_name=None), "incomplete entry", "image 3 has no file_name"),
        ("3.png", "incomplete entry", "entry 2 .from 0. of images is '3.png'"),
    ],
)
def test_broken_image_is_named_or_skipped(make, entry, reason, message):
    root = make([annotation(1)], [image(1), image(2), entry])
    with pytest.raises(ValueError, match=message):
        load(root)
    source = load(root, bad_annotations="skip")
    assert source.skipped == {reason: 1}
    assert len(source.train) == 2


def test_annotations_of_a_missing_image_go_with_it(make):
    root = make([annotation(1, image_id=3)], [image(1), image(3)])
    source = load(root, bad_annotations="skip")
    assert source.skipped == {"missing image": 1, "image that the json does not list": 1}
    assert source.skipped_names == {"image that the json does not list": ("2.png",)}


def test_first_fault_tells_how_many_there_are(make):
    root = make([annotation(1), annotation(2, bbox=[0] * 4), annotation(3, category_id=1)])
    with pytest.raises(ValueError, match=r"annotation 2 .*\(and 1 more fault\)"):
        load(root)


def test_skipped_entries_are_told_in_a_sentence(make):
    root = make([annotation(1), annotation(2, bbox=[0] * 4), annotation(3, bbox=[0] * 4)])
    source = load(root, bad_annotations="skip")
    assert describe_skipped(source.skipped) == "left out: 2 x bad box"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, "lists no categories"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "two categories have the id 7"),
        ({"categories": [{"id": "a", "name": "b"}]}, "no whole number as its id"),
        ({"categories": [{"id": 3}]}, "category 3 has no name"),
        ({"categories": [{"id": 3, "name": "bird"}]}, "for example in 'cat' with id 7"),
        ({"annotations": None}, "has no list 'annotations'"),
        ({"images": {}}, "has no list 'images'"),
    ],
)
def test_json_of_another_shape_is_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        load(make([annotation(1)], **changes), bad_annotations="skip")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff"])
def test_file_that_is_no_json_is_named(make, text):
    root = make([annotation(1)])
    file = root / "annotations" / "instances_train2017.json"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=str(file)):
        load(root)


def test_image_of_another_size_than_the_json_says(make):
    root = make([annotation(1)])
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(root / "train2017" / "1.png")
    with pytest.raises(UnreadableImageError, match=r"1\.png is an image of 20 x 31.*says 20 x 30"):
        load(root).train[0]


def stored_turned(file, orientation):
    """Saves an image for which a camera says that it lies on its side."""
    notes = Image.Exif()
    notes[0x0112] = orientation
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[3:9, 2:12] = 255  # where the annotations have their box
    Image.fromarray(pixels).save(file, exif=notes)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_and_masks_of_the_stored_image_are_turned_with_it(make, orientation):
    root = make([annotation(1)], [image(1)])
    stored_turned(root / "train2017" / "1.png", orientation)
    pixels, target = load(root).train[0]
    assert pixels.shape == (3, WIDTH, HEIGHT)
    left, top, right, bottom = map(int, target["boxes"][0])
    assert (pixels[:, top:bottom, left:right] == 255).all()
    assert (pixels == 255).sum() == 3 * 6 * 10
    assert torch.equal(target["masks"][0], pixels[0] // 255)
    assert target["boxes"].canvas_size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_upright_image_are_taken_as_they_are(make, orientation):
    upright = annotation(1, bbox=[3, 2, 6, 10], segmentation=[[3, 2, 9, 2, 9, 12, 3, 12]])
    root = make([upright], [image(1, width=HEIGHT, height=WIDTH)])
    stored_turned(root / "train2017" / "1.png", orientation)
    pixels, target = load(root).train[0]
    assert pixels.shape == (3, WIDTH, HEIGHT)
    assert target["boxes"].tolist() == [[3, 2, 9, 12]]
    assert target["masks"].shape == (1, WIDTH, HEIGHT)


def test_paths_that_windows_wrote_are_found(make):
    root = make([annotation(1)], [image(1, file_name="deep\\1.png")])
    (root / "train2017" / "deep").mkdir()
    (root / "train2017" / "1.png").rename(root / "train2017" / "deep" / "1.png")
    assert load(root).train.names == [str(root / "train2017" / "deep" / "1.png")]


def test_images_without_objects_by_choice(make):
    root = make([annotation(1), annotation(2, image_id=2, iscrowd=1)])
    assert len(load(root).train) == 2
    skipping = load(root, empty_images="skip")
    assert [target["image_id"] for _, target in skipping.train] == [1]
    assert skipping.skipped == {"training image without objects": 1}
    with pytest.raises(ValueError, match=r"1 images hold no object, the first of them \S+2\.png"):
        load(root, empty_images="error")


def test_test_images_without_objects_stay(make):
    assert len(load(make([annotation(1)]), empty_images="skip").test) == 2


def test_nothing_remaining_is_an_error(make):
    root = make([annotation(1, iscrowd=1)])
    with pytest.raises(ValueError, match="no image remains"):
        load(root, empty_images="skip")


@pytest.mark.parametrize("choice", ["bad_annotations", "empty_images"])
def test_unknown_choice_is_named(make, choice):
    with pytest.raises(ValueError, match=f"{choice}='drop'; expected"):
        load(make([annotation(1)]), **{choice: "drop"})


# --- real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("annotations", "has_masks", "count"),
    [("detection", False, 128), ("instances_from_panoptic", True, 100)],
)
def test_real_coco_opens(data_dir, annotations, has_masks, count):
    source = load(data_dir / "coco128", annotations=annotations)
    assert source.has_masks == has_masks
    assert (len(source.train), len(source.test)) == (count, count)
    assert len(source.class_names) == 80
    assert source.category_ids[-1] == 90


@pytest.mark.data
def test_real_masks_fill_their_boxes(data_dir):
    source = load(data_dir / "coco128", annotations="instances_from_panoptic")
    for index in range(15):
        _, target = source.train[index]
        assert torch.equal(target["masks"].sum((1, 2)).float(), target["area"])
        for box, mask in zip(target["boxes"].tolist(), target["masks"].numpy(), strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
