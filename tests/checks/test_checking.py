import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.checks import Place, check_data, quality
from convattn.checks.opening import open_place
from convattn.data.counts import count
from tests.checks.faults import faulty_classes, good_classes, photograph, save


def findings(checked):
    return {one.kind: one for one in checked.report.findings}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    root = tmp_path_factory.mktemp("faulty")
    return faulty_classes(root), check_data(Place(root=str(root)), num_workers=0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_classes(tmp_path_factory.mktemp("good"))


def test_exactly_the_planted_faults_are_found(faulty):
    planted, checked = faulty
    assert {kind: set(one.images) for kind, one in findings(checked).items()} == planted


def test_the_worst_comes_first(faulty):
    severities = [one.severity for one in faulty[1].report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    errors = {one.kind for one in faulty[1].report.of("error")}
    assert errors == {
        "unreadable",
        "exact_copies_across_parts",
        "exact_copies_of_two_classes",
    }


def test_copies_are_told_in_groups(faulty):
    (group,) = findings(faulty[1])["exact_copies_across_parts"].groups
    assert group == ("train/cat/00.png", "val/cat/copy.png")


def test_each_unreadable_image_is_named_with_its_reason(faulty):
    unreadable = faulty[1].report.parts["train"].unreadable
    assert set(unreadable) == {"train/cat/cut.jpg", "train/cat/empty.jpg"}
    assert "it is empty" in unreadable["train/cat/empty.jpg"]


def test_numbers_are_those_of_the_files(faulty):
    report = faulty[1].report
    train, test = report.parts["train"], report.parts["test"]
    # 22 of each, and what is planted: 5 cats and 6 dogs
    assert train.images_of == {"cat": 22 + 5, "dog": 22 + 6}
    assert test.images_of == {"cat": 6 + 1, "dog": 6 + 1}
    assert (train.width.least, train.width.median, train.width.most) == (72, 96, 480)
    assert (train.height.least, train.height.most) == (30, 360)
    assert sum(train.width.images) == 22 * 2 + 11 - 2
    assert train.formats["GIF"] == 1
    assert train.formats["JPEG"] == 1  # the turned one; the others cannot be read


def test_good_data_have_no_fault(good):
    assert set(findings(check_data(Place(root=str(good))))) == {"small_test"}


def test_workers_find_the_same(good):
    alone, together = (
        check_data(Place(root=str(good)), num_workers=number).report for number in (0, 2)
    )
    assert alone == together


def test_headers_alone_tell_sizes_and_exact_copies(faulty, tmp_path):
    planted = faulty_classes(tmp_path)
    checked = check_data(Place(root=str(tmp_path)), quick=True)
    found = {kind: set(one.images) for kind, one in findings(checked).items()}
    of_pixels = ("blurry", "dark", "low_information", "odd_size", "odd_aspect_ratio")
    for kind in (*of_pixels, "near_copies_across_parts"):
        del planted[kind]
    planted["unreadable"] = {"train/cat/empty.jpg"}
    planted["grey"] = {"train/cat/deep.png"}
    assert found == planted
    assert checked.report.parts["train"].width.most == 480
    assert "--quick" in checked.report.not_looked_at[0]


def test_without_cleanvision_it_is_told_what_is_missing(good, monkeypatch):
    monkeypatch.setattr(quality, "is_installed", lambda: False)
    report = check_data(Place(root=str(good))).report
    assert report.not_looked_at == (quality.NOT_LOOKED_AT,)
    assert "pip install 'convattn[check]'" in report.text()


def test_json_says_all_that_the_report_does(faulty):
    report = faulty[1].report
    content = json.loads(report.to_json())
    assert [one["sentence"] for one in content["findings"]] == [
        one.sentence for one in report.findings
    ]
    assert content["parts"]["train"]["images_of"] == report.parts["train"].images_of


def test_names_do_nothing_to_a_terminal(tmp_path):
    good_classes(tmp_path)
    save(Image.new("RGB", (96, 72)), tmp_path / "train" / "cat", "a\x1b[31m.png")
    text = check_data(Place(root=str(tmp_path))).report.text()
    assert "\x1b" not in text
    assert "a\\x1b[31m.png" in text


# --- boxes and masks


def coco(root, boxes, *, size=(80, 60), classes=("cat", "dog")):
    """An image a list of (class, x, y, width, height), the same in train and val."""
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for number, found in enumerate(boxes):
            seed = number + 100 * (split == "val2017")
            save(photograph(seed, size), root / split, f"{number}.png")
            images.append(
                {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
            )
            for label, *box in found:
                one = {"id": len(annotations), "image_id": number, "category_id": label}
                annotations.append({**one, "bbox": box})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_boxes_are_counted_and_the_odd_ones_named(tmp_path):
    boxes = [[(0, 5, 5, 20, 20), (0, 9, 9, 3, 30)], [(0, 0, 0, 80, 60)], []]
    checked = check_data(Place(root=str(coco(tmp_path, boxes))))
    report, found = checked.report, findings(checked)
    assert report.task == "detection"
    assert report.parts["train"].amount_of == {"cat": 3, "dog": 0}
    assert report.parts["train"].images_of == {"cat": 2, "dog": 0}
    both = [f"{split}2017/{{}}.png" for split in ("train", "val")]
    assert found["tiny_boxes"].images == tuple(name.format(0) for name in both)
    assert found["whole_boxes"].images == tuple(name.format(1) for name in both)
    assert found["no_objects"].images == tuple(name.format(2) for name in both)
    assert "'dog'" in found["no_train_object"].sentence
    assert "'dog'" in found["no_test_object"].sentence


def test_faulty_annotations_are_an_error_and_the_rest_is_looked_at(tmp_path):
    boxes = [[(0, 5, 5, 20, 20), (1, 70, 5, 50, 20)], [(1, 5, 5, 30, 30)]]
    checked = check_data(Place(root=str(coco(tmp_path, boxes))))
    sentence = findings(checked)["bad_annotations"].sentence
    assert "training will stop" in sentence
    assert "annotation 1 (of image 0.png)" in sentence
    assert checked.report.parts["train"].amount_of == {"cat": 1, "dog": 1}


def masks(root, *, number=3):
    """Left half class 0, right half class 1, the uppermost row ignored; class 2 is nowhere."""
    for split in ("train", "val"):
        for index in range(number):
            seed = index + 50 * (split == "val")
            save(photograph(seed, (40, 30)), root / "images" / split, f"{index}.png")
            mask = np.zeros((30, 40), np.uint8)
            mask[:, 20:] = 1
            mask[0] = 255
            save(Image.fromarray(mask), root / "masks" / split, f"{index}.png")
    (root / "classes.txt").write_text("sky\nroad\ncow\n")
    return root


def test_pixels_are_counted(tmp_path):
    checked = check_data(Place(root=str(masks(tmp_path))))
    report = checked.report
    assert report.task == "segmentation"
    assert report.parts["train"].amount_of == {"sky": 3 * 29 * 20, "road": 3 * 29 * 20, "cow": 0}
    assert report.parts["train"].images_of == {"sky": 3, "road": 3, "cow": 0}
    assert "'cow'" in findings(checked)["no_train_pixel"].sentence


def test_a_mask_with_an_unknown_index_is_unreadable(tmp_path):
    masks(tmp_path)
    save(Image.new("L", (40, 30), 7), tmp_path / "masks" / "train", "1.png")
    found = findings(check_data(Place(root=str(tmp_path))))
    assert found["unreadable"].images == ("images/train/1.png",)
    assert "index 7" in found["unreadable"].sentence


# --- which task


def test_the_task_is_found(tmp_path):
    coco(tmp_path / "boxes", [[(0, 1, 1, 9, 9)]])
    masks(tmp_path / "masks")
    good_classes(tmp_path / "classes", 1, 1)
    found = {
        name: open_place(Place(root=str(tmp_path / name))).task
        for name in ("boxes", "masks", "classes")
    }
    assert found == {
        "boxes": "detection",
        "masks": "segmentation",
        "classes": "classification",
    }


def test_what_fits_no_task_is_told_with_what_was_looked_for(tmp_path):
    save(photograph(1), tmp_path, "a.png")
    with pytest.raises(FileNotFoundError) as error:
        open_place(Place(root=str(tmp_path)))
    for word in ("boxes for detection", "for segmentation", "class folders"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("place", "task", "words"),
    [
        ({"labels_column": "a"}, "detection", "--data.labels-column is not for detection"),
        ({"path_column": "a"}, "segmentation", "--data.path-column is not for segmentation"),
        ({"annotations": "a"}, "segmentation", "--data.annotations is not for segmentation"),
        ({"format": "masks"}, "classification", "format='masks'"),
    ],
)
def test_what_a_task_does_not_heed_is_refused(tmp_path, place, task, words):
    good_classes(tmp_path, 1, 1)
    with pytest.raises(ValueError, match=words):
        open_place(Place(root=str(tmp_path), **place), task)


def test_a_single_training_image_is_counted(tmp_path):
    source = open_place(Place(root=str(coco(tmp_path, [[(1, 1, 1, 9, 9)]])))).source
    assert count(source).classes == {"train": (0, 1), "test": (0, 1)}
    assert torch.get_num_threads() >= 1


def test_the_tree_is_listed_once_for_all_tasks(tmp_path, monkeypatch):
    good_classes(tmp_path, train=2, test=2)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    open_place(Place(root=str(tmp_path)))
    counts = Counter(listed)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            assert counts[str(tmp_path / split / name)] == 1


@pytest.fixture(scope="module")
def of_three_parts(tmp_path_factory):
    """train, val and test of two classes; val holds a training image, and one of the test's."""
    root = good_classes(tmp_path_factory.mktemp("three"))
    for index in range(4):
        for number, name in enumerate(("cat", "dog")):
            save(photograph(500 + 10 * number + index), root / "test" / name, f"{index:02d}.png")
    (root / "val" / "cat" / "learnt.png").write_bytes((root / "train/cat/00.png").read_bytes())
    (root / "val" / "dog" / "tested.png").write_bytes((root / "test/dog/01.png").read_bytes())
    (root / "val" / "dog" / "empty.png").write_bytes(b"")
    return check_data(Place(root=str(root)), num_workers=0)


def test_a_validation_part_is_looked_at(of_three_parts):
    parts = of_three_parts.report.parts
    assert {name: part.images_of for name, part in parts.items()} == {
        "train": {"cat": 22, "dog": 22},
        "val": {"cat": 7, "dog": 8},
        "test": {"cat": 4, "dog": 4},
    }
    assert set(parts["val"].unreadable) == {"val/dog/empty.png"}
    assert not parts["train"].unreadable
    assert not parts["test"].unreadable
    assert "val images" in of_three_parts.report.text()


def test_copies_in_a_validation_part_are_told_by_their_parts(of_three_parts):
    told = [
        (one.groups, one.sentence)
        for one in of_three_parts.report.findings
        if one.kind == "exact_copies_across_parts"
    ]
    (learnt, learnt_sentence), (tested, tested_sentence) = told
    assert learnt == (("train/cat/00.png", "val/cat/learnt.png"),)
    assert learnt_sentence.startswith("1 validation image is a training image, too")
    assert "val/cat/learnt.png (validation) is train/cat/00.png (training)" in learnt_sentence
    assert tested == (("val/dog/tested.png", "test/dog/01.png"),)
    assert tested_sentence.startswith("1 test image is a validation image, too")


def test_places_count_on_through_the_parts(of_three_parts):
    source, names = of_three_parts.source, of_three_parts.names
    files = [*source.train.paths, *source.val.paths, *source.test.paths]
    assert len(names) == len(files)
    for place in (0, 43, 44, 58, 59, 66):
        assert files[place].endswith(names[place])
        if not files[place].endswith("empty.png"):
            image, label = of_three_parts.item(place)
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(files[place])))
            assert source.class_names[label] in names[place]


def test_a_class_without_validation_images_is_told(tmp_path):
    root = good_classes(tmp_path, 4, 2)
    for name in ("cat", "dog"):
        save(photograph(len(name) + ord(name[0])), root / "test" / name, "00.png")
    for file in (root / "val" / "dog").iterdir():
        file.unlink()
    table = root / "images.csv"
    rows = [
        f"{file.relative_to(root)},{file.parent.name},{file.parts[-3]}"
        for file in sorted(root.rglob("*.png"))
    ]
    table.write_text("path,label,split\n" + "\n".join(rows))
    found = findings(check_data(Place(root=str(table)), quick=True))
    assert found["no_val_image"].sentence.startswith("no validation image is of class 'dog'")
