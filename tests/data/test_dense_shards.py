"""Boxes, outlines and masks in shards are the folder's, to the bit."""

import json
import pickle
import re
import shutil
import tarfile

import pytest
import torch

from convattn.cli import main
from convattn.data import load_detection, load_segmentation, load_source
from tests.classification.test_sharding import contents
from tests.data.dense_folders import noise, write_coco, write_masks
from tests.data.layouts import WRITERS, Picture, Thing

FORMATS = ["webdataset", "litdata"]


def need(format):
    if format == "litdata":
        pytest.importorskip("litdata")


def shard(root, out, *words):
    assert main(["shard", str(root), str(out), "--shard-size", "3", *words]) == 0
    return out


def assert_same(found, expected):
    assert found.class_names == expected.class_names
    for name in ("category_ids", "has_masks", "mean", "std", "image_size"):
        assert getattr(found, name, None) == getattr(expected, name, None)
    for part in ("train", "test"):
        assert_same_images(getattr(found, part), getattr(expected, part))


def assert_same_images(found, expected):
    assert len(found) == len(expected)
    for (one, truth), (other, true) in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        if not isinstance(true, dict):
            assert torch.equal(truth, true)
            continue
        assert truth.keys() == true.keys()
        assert truth.pop("image_id") == true.pop("image_id")
        for name, tensor in true.items():
            assert truth[name].dtype == tensor.dtype
            assert type(truth[name]) is type(tensor)
            assert torch.equal(truth[name], tensor), name


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


@pytest.fixture
def masks(tmp_path):
    return write_masks(tmp_path / "masks")


@pytest.mark.parametrize("format", FORMATS)
def test_boxes_and_outlines_are_the_folders(format, coco, tmp_path, capsys):
    need(format)
    pytest.importorskip("faster_coco_eval")
    out = shard(coco, tmp_path / "out", "--format", format)
    assert "train: 7 images in 3 shards, test: 3 images in 1 shards, for detection" in (
        capsys.readouterr().out
    )
    for arguments in ({}, {"masks": False, "num_train": 5}, {"empty_images": "skip"}):
        found = load_detection(format, root=out, **arguments)
        assert_same(found, load_detection("folder", root=coco, **arguments))
    assert_same(load_segmentation(format, root=out), load_segmentation("folder", root=coco))


@pytest.mark.parametrize("kind", ["indices", "binary", "colours"])
@pytest.mark.parametrize("format", FORMATS)
def test_masks_are_the_folders(format, kind, tmp_path, capsys):
    need(format)
    root = write_masks(tmp_path / "masks", kind=kind)
    out = shard(root, tmp_path / "out", "--format", format)
    assert capsys.readouterr().out.endswith("for segmentation\n")
    found = load_segmentation(format, root=out)
    expected = load_segmentation("folder", root=root)
    assert len(expected.class_names) == (2 if kind == "binary" else 3)
    assert_same(found, expected)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_of_objects_can_be_sharded(name, tmp_path):
    pytest.importorskip("faster_coco_eval")
    pictures = {
        split: [
            Picture(
                f"{split}{number}.png",
                50,
                40,
                [Thing("b", (4, 5, 20, 30), [4, 5, 20, 5, 20, 30]), Thing("a", (1, 2, 9, 8))][
                    : 1 if name in ("coco", "yolo") else 2
                ],
            )
            for number in range(count)
        ]
        for split, count in (("train", 5), ("val", 2))
    }

    def place(picture, folder):
        noise(folder / picture.name, picture.height, picture.width, len(picture.name))

    WRITERS[name](tmp_path / "folder", pictures, ["a", "b"], place)
    out = shard(tmp_path / "folder", tmp_path / "out")
    expected = load_detection("folder", root=tmp_path / "folder")
    assert expected.has_masks == (name != "voc")
    assert_same(load_detection("webdataset", root=out), expected)


def test_part_that_is_drawn_for_the_test_is_decided_when_shards_are_written(coco, tmp_path):
    shutil.rmtree(coco / "val")
    (coco / "annotations" / "instances_train2017.json").rename(coco / "all.json")
    shutil.rmtree(coco / "annotations")
    out = shard(coco, tmp_path / "out", "--boxes-only")
    found = load_detection("webdataset", root=out)
    expected = load_detection("folder", root=coco, masks=False)
    assert len(expected.test) == 3
    assert_same(found, expected)


def test_pattern_reads_its_training_shards_and_the_test(coco, masks, tmp_path):
    for root, load in ((coco, load_detection), (masks, load_segmentation)):
        out = shard(root, tmp_path / f"out_{root.name}")
        whole = load("webdataset", root=out)
        assert_same(load("webdataset", root=out / "train-{000000..000002}.tar"), whole)
        some = load("webdataset", root=out / "train-{000000,000002}.tar")
        assert len(some.train) == 4
        assert set(some.train.names) < set(whole.train.names)
        assert_same_images(some.test, whole.test)


def test_two_folders_are_one_set_with_ids_of_its_own(coco, tmp_path):
    write_coco(tmp_path / "more", train=4, val=2)
    for name in ("coco", "more"):
        shard(tmp_path / name, tmp_path / "out" / name)
    root = tmp_path / "out" / "{coco,more}" / "train-{000000..000001}.tar"
    found = load_detection("webdataset", root=root, masks=False)
    assert (len(found.train), len(found.test)) == (10, 5)
    assert [record.image_id for record in found.test.samples] == list(range(5))
    index = tmp_path / "out" / "more" / "index.json"
    index.write_text(index.read_text().replace('"bee"', '"wasp"'))
    with pytest.raises(ValueError, match="differ in class_names: ant, bee and ant, wasp"):
        load_detection("webdataset", root=root)


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_processes_writes_the_same_bytes(format, masks, tmp_path):
    need(format)
    one, two = (
        shard(masks, tmp_path / number, "--format", format, "--num-workers", number)
        for number in ("0", "2")
    )
    before = contents(one)
    assert before == contents(two)
    assert contents(shard(masks, one, "--format", format)) == before


def test_webdataset_reads_image_mask_and_boxes(coco, masks, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    found = {}
    for root in (coco, masks):
        file = shard(root, tmp_path / f"out_{root.name}") / "test-000000.tar"
        with file.open("rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"stream": stream, "url": "test"}])
            found[root.name] = list(webdataset.tariterators.group_by_keys(files))
    for number, sample in enumerate(found["masks"]):
        assert sample["png"] == (masks / "images" / "val" / f"{number}.png").read_bytes()
        assert sample["mask.png"] == (masks / "masks" / "val" / f"{number}.png").read_bytes()
        assert json.loads(sample["json"]) == {
            "path": f"images/val/{number}.png",
            "mask": f"masks/val/{number}.png",
        }
    notes = json.loads(found["coco"][2]["json"])
    assert notes["path"] == "val/2.jpg"
    assert notes["classes"] == ["ant", "bee"]
    assert (
        notes["boxes"]
        == load_detection("coco", root=coco, masks=False).test[2][1]["boxes"].tolist()
    )


def test_litdata_reads_the_same(masks, tmp_path):
    litdata = pytest.importorskip("litdata")
    out = shard(masks, tmp_path / "out", "--format", "litdata")
    items = list(litdata.StreamingDataset(str(out / "test")))
    for number, item in enumerate(items):
        assert item["image"] == (masks / "images" / "val" / f"{number}.png").read_bytes()
        assert item["mask"] == (masks / "masks" / "val" / f"{number}.png").read_bytes()


def test_shards_become_shards_of_the_other_format(coco, masks, tmp_path):
    need("litdata")
    for root, load in ((coco, load_detection), (masks, load_segmentation)):
        one = shard(root, tmp_path / f"one_{root.name}")
        words = ("--data", "webdataset", "--format", "litdata")
        other = shard(one, tmp_path / f"other_{root.name}", *words)
        arguments = {"masks": False} if load is load_detection else {}
        assert_same(
            load("litdata", root=other, **arguments), load("folder", root=root, **arguments)
        )


def test_images_go_to_workers_as_they_are(masks, tmp_path):
    train = load_segmentation("webdataset", root=shard(masks, tmp_path / "out")).train
    assert_same_images(pickle.loads(pickle.dumps(train)), train)


# --- bad input


def test_shards_for_another_task_are_told(coco, masks, tmp_path):
    boxes, pixels = (shard(root, tmp_path / f"out_{root.name}") for root in (coco, masks))
    for number in range(4):
        for split in ("train", "test"):
            noise(tmp_path / "images" / split / "ab"[number % 2] / f"{number}.png", 9, 9, number)
    classes = shard(tmp_path / "images", tmp_path / "classes")
    with pytest.raises(
        ValueError, match=r"holds images with boxes, for detection, and this is classification, wh"
    ):
        load_source("webdataset", root=boxes)
    for root in (classes, pixels, classes / "train-000000.tar"):
        with pytest.raises(ValueError, match=r"this is detection, which needs images with boxes;"):
            load_detection("webdataset", root=root)
    with pytest.raises(ValueError, match=r"with a class each, for classification, and this is seg"):
        load_segmentation("webdataset", root=classes)


def test_boxes_without_outlines_are_not_painted(tmp_path):
    root = write_coco(tmp_path / "coco", outlines=False)
    out = shard(root, tmp_path / "out")
    assert not load_detection("webdataset", root=out).has_masks
    with pytest.raises(ValueError, match="has boxes and no outlines, which segmentation needs"):
        load_segmentation("webdataset", root=out)


def test_objects_some_of_which_have_no_outline_are_sharded_by_their_boxes(coco, tmp_path, capsys):
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    assert main(["shard", str(coco), str(tmp_path / "out")]) == 2
    assert "has no mask" in capsys.readouterr().err
    found = load_detection("webdataset", root=shard(coco, tmp_path / "out", "--boxes-only"))
    assert_same(found, load_detection("folder", root=coco, masks=False))


def test_tars_of_others_have_no_boxes_that_are_known(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w"):
        pass
    for load in (load_detection, load_segmentation):
        with pytest.raises(FileNotFoundError, match=r"has no index.json, and .* reads only shards"):
            load("webdataset", root=tmp_path)


def test_what_is_decided_when_shards_are_written_is_told(coco, tmp_path):
    out = shard(coco, tmp_path / "out")
    for option in ("group", "split"):
        for load in (load_detection, load_segmentation):
            with pytest.raises(ValueError, match=rf"--data.{option}\) decides .* `convattn shard`"):
                load("webdataset", root=out, **{option: "val"})
    with pytest.raises(ValueError, match=r"--data.annotations"):
        load_detection("webdataset", root=out, annotations="instances")
    with pytest.raises(ValueError, match="has no shards to train on"):
        load_detection("webdataset", root=out / "test-000000.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [3, 1]}, "boxes and labels do not go together, or of a class that index.json"),
        ({"labels": [1]}, "boxes and labels do not go together"),
        ({"boxes": "none"}, "could not convert"),
        ({"segmentations": None}, "is damaged"),
    ],
)
def test_damaged_index_is_told(change, message, coco, tmp_path):
    out = shard(coco, tmp_path / "out")
    for file in out.glob("train-*.json"):
        index = json.loads(file.read_text())
        for entry in index["objects"]:
            if len(entry["labels"]) == 2:
                entry.update(change)
        file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load_detection("webdataset", root=out)


def test_index_without_boxes_is_told(coco, masks, tmp_path):
    for root, what, load in (
        (coco, "objects", load_detection),
        (masks, "masks", load_segmentation),
    ):
        out = shard(root, tmp_path / f"out_{root.name}")
        file = out / "train-000001.tar.json"
        index = json.loads(file.read_text())
        file.write_text(json.dumps(index | {what: None}))
        with pytest.raises(ValueError, match=r"000001.tar.json tells neither boxes nor masks"):
            load("webdataset", root=out)
        file.write_text(json.dumps(index | {what: index[what][1:]}))
        with pytest.raises(ValueError, match="its columns differ in length"):
            load("webdataset", root=out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--val-share", "0.2"], "--data.val-share is for classification, and .* is read for dete"),
        (["--task", "segmentation"], r"has outlines and no files of masks; shard it for detection"),
        (["--task", "segmentation", "--boxes-only"], "--boxes-only is for detection"),
        (["--data.labels-column", "a"], "holds no table"),
        (["--data.in-chans", "1"], "--data.in-chans is for classification, and .* for detection"),
        (["--data", "cluttered_digits", "--task", "detection"], "cluttered_digits is generated"),
    ],
)
def test_mistakes_are_one_sentence(words, message, coco, tmp_path, capsys):
    root = "" if "cluttered_digits" in words else coco
    assert main(["shard", str(root), str(tmp_path / "out"), *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()
