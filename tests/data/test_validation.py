from dataclasses import replace

import pytest
import torch
from PIL import Image

from convattn.data import TensorImages, load_source
from convattn.data.validation import set_aside_validation


def make(root, parts, classes=("ants", "bees"), count=10):
    for part in parts:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                colour = (90 * number, 20 * index, len(part))
                Image.new("RGB", (6, 5), colour).save(root / part / name / f"{index:02d}.png")


def digits(count):
    return load_source("cluttered_digits", num_train=count, num_test=10, image_size=32)


def test_a_share_of_each_class_is_set_aside_and_no_image_is_in_both(tmp_path):
    make(tmp_path, ["train", "test"], count=20)
    source = load_source("folder", root=tmp_path, parts_train=True)
    parted = set_aside_validation(source, 0.25, seed=0)
    assert torch.bincount(parted.val.labels).tolist() == [5, 5]
    assert torch.bincount(parted.train.labels).tolist() == [15, 15]
    assert sorted([*parted.val.paths, *parted.train.paths]) == sorted(source.train.paths)
    assert parted.test.paths == source.test.paths
    assert "10 of 40 training images are set aside to validate on" in parted.notes[-1]


def test_the_seed_chooses_and_nothing_else_does(tmp_path):
    make(tmp_path, ["train", "test"], count=20)
    source = load_source("folder", root=tmp_path)
    one, again, other = (set_aside_validation(source, 0.25, seed=s).val.paths for s in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("parts", [["train", "test"], ["."]])
def test_groups_stay_together(tmp_path, parts):
    make(tmp_path, parts, count=24)
    for path in sorted(tmp_path.rglob("*.png")):
        path.rename(path.with_name(f"p{int(path.stem) // 3}_{path.name}"))
    source = load_source(
        "folder", root=tmp_path, group="(ants/p[0-9]+|bees/p[0-9]+)_", parts_train=True
    )
    parted = set_aside_validation(source, 0.3, seed=0)
    groups = [
        {(path.split("/")[-2], path.split("/")[-1][:2]) for path in part.paths}
        for part in (parted.train, parted.val)
    ]
    assert groups[0].isdisjoint(groups[1])
    assert all(groups)


def test_groups_of_a_table_stay_together(tmp_path):
    make(tmp_path, ["."], count=12)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{path.parent.name}{int(path.stem) // 4}"
        for path in sorted(tmp_path.rglob("*.png"))
    ]
    for split in ("train", "test"):
        chosen = [f"{row},{split}" for row in rows if (row.endswith("2")) == (split == "test")]
        with (tmp_path / "all.csv").open("a") as file:
            file.write(("path,label,group,split\n" if split == "train" else "") + "\n".join(chosen))
            file.write("\n")
    source = load_source("folder", root=tmp_path / "all.csv", parts_train=True)
    parted = set_aside_validation(source, 0.5, seed=0)
    assert len(parted.val) == len(parted.train) == 8
    assert set(parted.val.groups.tolist()).isdisjoint(parted.train.groups.tolist())


def test_copies_stay_together(tmp_path):
    make(tmp_path, ["train", "test"], count=10)
    for path in sorted((tmp_path / "train").rglob("*.png")):
        path.with_name(f"copy_{path.name}").write_bytes(path.read_bytes())
    parted = set_aside_validation(load_source("folder", root=tmp_path), 0.2, seed=0)
    stems = [
        {path.replace("copy_", "") for path in part.paths} for part in (parted.train, parted.val)
    ]
    assert stems[0].isdisjoint(stems[1])
    assert len(parted.val) == 8


def test_copies_in_memory_stay_together():
    whole = digits(40).train
    source = replace(
        digits(1), train=TensorImages(whole.images.repeat(2, 1, 1, 1), whole.labels.repeat(2))
    )
    parted = set_aside_validation(source, 0.2, seed=0)
    known = {image.numpy().tobytes() for image in parted.train.images}
    assert isinstance(parted.val, TensorImages)
    assert not any(image.numpy().tobytes() in known for image in parted.val.images)


def test_class_that_cannot_spare_an_image_is_told(tmp_path):
    make(tmp_path, ["train", "test"], count=10)
    for path in sorted((tmp_path / "train" / "bees").iterdir())[1:]:
        path.unlink()
    parted = set_aside_validation(load_source("folder", root=tmp_path), 0.2, seed=0)
    assert parted.val.labels.tolist() == [0, 0]
    assert parted.notes[-1] == "no validation image is of 'bees'"


def test_nothing_to_spare_is_one_sentence(tmp_path):
    make(tmp_path, ["train", "test"], count=1)
    with pytest.raises(ValueError, match="none of the 2 training images can be spared"):
        set_aside_validation(load_source("folder", root=tmp_path), 0.2, seed=0)


def test_every_label_of_several_is_on_both_sides(tmp_path):
    make(tmp_path, ["."], count=20)
    rows = [
        f"{path.relative_to(tmp_path)},{int(index % 2)},{int(index % 3 == 0)}"
        for index, path in enumerate(sorted(tmp_path.rglob("*.png")))
    ]
    (tmp_path / "all.csv").write_text("path,red,round\n" + "\n".join(rows) + "\n")
    source = load_source("folder", root=tmp_path / "all.csv", format="table")
    parted = set_aside_validation(source, 0.25, seed=0)
    assert source.multi_label
    assert parted.val.labels.any(0).all()
    assert parted.train.labels.any(0).all()


def test_own_validation_images_beside_test_images_are_taken(tmp_path):
    make(tmp_path, ["train", "valid", "testing"], count=3)
    source = load_source("folder", root=tmp_path)
    assert {path.split("/")[-3] for path in source.val.paths} == {"valid"}
    assert {path.split("/")[-3] for path in source.test.paths} == {"testing"}
    assert not source.skipped


def test_test_folder_without_the_classes_is_none(tmp_path):
    make(tmp_path, ["train", "val"], count=3)
    make(tmp_path, ["test"], classes=("unknown",), count=3)
    source = load_source("folder", root=tmp_path)
    assert source.val is None
    assert {path.split("/")[-3] for path in source.test.paths} == {"val"}
    assert source.skipped == {"folder beside the splits": 1}


def test_a_network_is_tested_on_the_test_images_alone(tmp_path):
    make(tmp_path, ["train", "val", "test"], count=3)
    source = load_source("folder", root=tmp_path, class_names=("ants", "bees"))
    assert source.val is None
    assert {path.split("/")[-3] for path in source.test.paths} == {"test"}


def test_own_validation_rows_of_a_table_are_taken(tmp_path):
    make(tmp_path, ["train", "val", "test"], count=3)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parts[-2]},{path.parts[-3]}"
        for path in sorted(tmp_path.rglob("*.png"))
    ]
    (tmp_path / "all.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    source = load_source("folder", root=tmp_path / "all.csv")
    places = {
        part: {path.split("/")[-3] for path in getattr(source, part).paths}
        for part in ("train", "val", "test")
    }
    assert places == {part: {part} for part in places}
    assert not source.skipped
