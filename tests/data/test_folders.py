import os

import pytest
from PIL import Image, features

from convattn.data import describe_skipped, load_source
from convattn.data.folders import LeftOut, find_images, find_splits, listed_once, subfolders


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(file).encode())


def picture(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (colour, len(file.name), len(str(file)) % 256)).save(file)


def names_below(folder, left_out=None):
    found = find_images(folder, LeftOut() if left_out is None else left_out)
    return [os.path.relpath(path, folder) for path in found]


# --- what is found


def test_images_are_sorted_by_folder_then_by_name(tmp_path):
    touch(*(tmp_path / name for name in ("b.png", "a.jpg", "b/x.png", "a/z.png", "a/b/c.gif")))
    assert names_below(tmp_path) == ["a.jpg", "b.png", "a/z.png", "a/b/c.gif", "b/x.png"]


@pytest.mark.parametrize(
    "suffix",
    [
        "jpg",
        "JPEG",
        "jfif",
        "png",
        "gif",
        "webp",
        "bmp",
        "tif",
        "TIFF",
        "ppm",
        "pgm",
        pytest.param(
            "avif",
            marks=pytest.mark.skipif(
                "avif" not in features.get_supported(), reason="this Pillow reads no AVIF"
            ),
        ),
        "jpe",
    ],
)
def test_kinds_that_are_taken(tmp_path, suffix):
    touch(tmp_path / f"x.{suffix}")
    assert names_below(tmp_path) == [f"x.{suffix}"]


def test_what_is_no_image_is_left_out_and_counted(tmp_path):
    touch(
        *(
            tmp_path / name
            for name in (
                "a.png",
                "notes.txt",
                "deep/more.csv",
                ".DS_Store",
                "._a.png",
                "Thumbs.db",
                "desktop.ini",
                ".ipynb_checkpoints/a-checkpoint.png",
                ".Trash-1000/files/b.png",
                "__MACOSX/a.png",
                "@eaDir/a.png",
            )
        )
    )
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    left_out = LeftOut()
    assert names_below(tmp_path, left_out) == ["a.png"]
    assert left_out.counts == {
        "hidden": 3,
        "left by a system": 5,
        "no image by its name": 2,
        "broken link": 1,
    }
    assert left_out.names["hidden"] == (".DS_Store", ".Trash-1000", ".ipynb_checkpoints")
    assert set(left_out.names["no image by its name"]) == {"notes.txt", "deep/more.csv"}
    assert len(left_out.names["left by a system"]) == 3


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    touch(tmp_path / "elsewhere" / "x.png", tmp_path / "set" / "a" / "y.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "z.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "over").symlink_to(tmp_path / "set" / "a")
    left_out = LeftOut()
    found = names_below(tmp_path / "set", left_out)
    assert found == ["z.png", "a/y.png", "b/x.png", "b/over/y.png"]
    assert left_out.counts["link that leads back"] == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Train", "Val"), {"train": "Train", "val": "Val"}),
        (("training", "TESTING"), {"train": "training", "test": "TESTING"}),
        (("train", "dev", "test"), {"train": "train", "val": "dev", "test": "test"}),
        (("valid", "cats"), {"val": "valid"}),
    ],
)
def test_names_of_splits(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).mkdir()
    assert find_splits(tmp_path) == {split: tmp_path / name for split, name in expected.items()}


def test_two_folders_of_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="holds val and valid, which mean the same split; merge"):
        find_splits(tmp_path)


# --- class folders as people have them


@pytest.mark.parametrize(
    "names",
    [("Train", "Val"), ("Training", "Testing"), ("training", "validation"), ("TRAIN", "dev")],
)
def test_splits_are_no_classes(tmp_path, names):
    for name in names:
        for label in ("cats", "dogs"):
            picture(tmp_path / name / label / "x.png")
    source = load_source("folder", root=tmp_path)
    assert source.class_names == ("cats", "dogs")
    assert (len(source.train), len(source.test)) == (2, 2)


def test_what_is_left_out_of_a_folder_is_told(tmp_path):
    for split in ("train", "val", "others"):
        for label in ("cats", "dogs"):
            picture(tmp_path / split / label / "x.png", colour=len(split))
    touch(tmp_path / "train" / "cats" / "list.txt", tmp_path / "train" / ".git" / "x.png")
    picture(tmp_path / "train" / "loose.png")
    source = load_source("folder", root=tmp_path)
    assert dict(source.skipped) == {
        "folder beside the splits": 1,
        "hidden": 1,
        "outside the class folders": 1,
        "no image by its name": 1,
    }
    assert "1 x no image by its name (train/cats/list.txt)" in describe_skipped(
        source.skipped, source.skipped_names
    )
    assert source.skipped_names["folder beside the splits"] == ("others",)


def test_names_end_where_there_are_more(tmp_path):
    assert describe_skipped({"hidden": 5}, {"hidden": ["a", "b"]}) == (
        "left out: 5 x hidden (a, b, ...)"
    )


def test_classes_that_differ_in_capitals_alone_are_refused(tmp_path):
    for label in ("Cat", "cat", "dog"):
        picture(tmp_path / label / "x.png")
    with pytest.raises(ValueError, match="'Cat' and 'cat', which differ only in capitals"):
        load_source("folder", root=tmp_path)


def test_a_folder_around_the_classes_is_named(tmp_path):
    for label in ("cat", "dog"):
        picture(tmp_path / "pets" / label / "x.png")
    with pytest.raises(ValueError, match=f"its folders are in {tmp_path}/pets: give that as root"):
        load_source("folder", root=tmp_path)


def test_umlauts_of_two_systems_are_one_name(tmp_path):
    for split, name in (("train", "b\u00e4r"), ("val", "ba\u0308r")):
        for label in (name, "cat"):
            picture(tmp_path / split / label / "x.png")
    assert set(load_source("folder", root=tmp_path).class_names) == {"b\u00e4r", "cat"}


def test_test_images_that_are_training_images_are_told(tmp_path):
    for label in ("cat", "dog"):
        for split in ("train", "val"):
            picture(tmp_path / split / label / "x.png", colour=len(split))
    assert load_source("folder", root=tmp_path).notes == ()
    (tmp_path / "val" / "cat" / "y.png").write_bytes(
        (tmp_path / "train" / "cat" / "x.png").read_bytes()
    )
    (note,) = load_source("folder", root=tmp_path).notes
    assert note.startswith("1 test images are training images, too, byte for byte")


# --- parts of a folder without splits


def test_copies_stay_on_one_side(tmp_path):
    for label in ("cat", "dog"):
        for number in range(20):
            picture(tmp_path / label / f"{number:02d}.png", colour=number // 2)
    source = load_source("folder", root=tmp_path)
    sides = [{read(path) for path in part.paths} for part in (source.train, source.test)]
    assert not sides[0] & sides[1]
    assert source.test.labels.bincount().tolist() == [4, 4]
    assert any("copies stay in one part" in note for note in source.notes)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_groups_stay_on_one_side(tmp_path):
    for label in ("cat", "dog"):
        for number in range(20):
            name = f"patient{number % 7}_{number}.png"
            picture(tmp_path / label / name, colour=10 * number + len(label))
    for seed in range(5):
        source = load_source("folder", root=tmp_path, group=r"(patient\d+)_", seed=seed)
        sides = [
            {path.split("patient")[1][0] for path in part.paths}
            for part in (source.train, source.test)
        ]
        assert not sides[0] & sides[1]
        assert source.train.labels.unique().tolist() == [0, 1]
        assert source.test.labels.unique().tolist() == [0, 1]
    assert any("7 groups" in note for note in source.notes)


@pytest.mark.parametrize(
    ("group", "message"),
    [("(", "is no regular expression"), ("person", "is found in none of the 8 paths")],
)
def test_bad_group_is_one_sentence(tmp_path, group, message):
    for label in ("cat", "dog"):
        for number in range(4):
            picture(tmp_path / label / f"{number}.png", colour=number)
    with pytest.raises(ValueError, match=message) as caught:
        load_source("folder", root=tmp_path, group=group)
    assert "\n" not in str(caught.value)


def test_group_is_refused_where_there_are_splits(tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            picture(tmp_path / split / label / "x.png")
    with pytest.raises(ValueError, match="parts a folder without splits, and"):
        load_source("folder", root=tmp_path, group="x")


def test_one_group_alone_cannot_be_parted(tmp_path):
    for number in range(4):
        picture(tmp_path / "cat" / f"a_{number}.png", colour=number)
        picture(tmp_path / "dog" / f"b{number}_.png", colour=number + 9)
    with pytest.raises(ValueError, match="all 4 images of class 'cat' belong together"):
        load_source("folder", root=tmp_path, group="^cat/a|b[0-9]")


def test_pipe_among_images_is_left_out_and_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            colour = (40 * number, 90, 200 if name == "a" else 20)
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{number}.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    source = load_source("folder", root=tmp_path)
    assert len(source.train) + len(source.test) == 6
    assert source.skipped["pipe or device"] == 1


def test_within_listed_once_a_folder_is_listed_once(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/b/2.png", "3.txt", ".hidden/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    first, second = LeftOut(), LeftOut()
    with listed_once():
        found = find_images(tmp_path, first)
        assert find_images(tmp_path, second) == found
        assert first.counts == second.counts
        assert subfolders(tmp_path) == ["a"]
    assert sorted(listed) == sorted(set(listed))
    (tmp_path / "5.png").touch()
    assert len(find_images(tmp_path, LeftOut())) == len(found) + 1
