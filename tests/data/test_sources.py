from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import (
    DATASETS,
    GENERATED,
    load_detection,
    load_segmentation,
    load_source,
)


def make_classes(folder, **counts):
    """Folders of tiny images, each of a colour of its own."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 * number, index, len(folder.name))
            Image.new("RGB", (6, 5), colour).save(folder / name / f"{index:03d}.png")


@pytest.mark.parametrize(
    ("given", "nearest"), [("cifar_10", "cifar10"), ("fashionmnist", "fashion_mnist")]
)
def test_unknown_name_gets_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"unknown data set '{given}'; did you mean '{nearest}'"):
        load_source(given)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in GENERATED])
def test_sets_of_files_need_a_root(name):
    with pytest.raises(ValueError, match=f"{name} needs root"):
        load_source(name)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in GENERATED])
def test_missing_root_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/nothing does not exist"):
        load_source(name, root=tmp_path / "nothing")


def test_cluttered_digits_by_name():
    source = load_source("cluttered_digits", num_train=300, num_test=20, image_size=32, seed=5)
    assert (len(source.train), len(source.test)) == (300, 20)
    assert source.image_size == (32, 32)
    assert source.class_names == tuple("0123456789")
    pixels = source.train.images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(source.mean, abs=0.03)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(source.std, abs=0.03)


@pytest.mark.parametrize("name", [name for name in GENERATED if name != "cluttered_digits"])
def test_grey_generated_sets_by_name(name):
    source = load_source(name, num_train=2_000, num_test=20, seed=5)
    assert (len(source.train), len(source.test), source.in_chans) == (2_000, 20, 1)
    assert (source.image_size, len(source.class_names)) == ((64, 64), 2)
    pixels = source.train.images.float() / 255
    assert pixels.mean() == pytest.approx(source.mean[0], abs=0.01)
    assert pixels.std() == pytest.approx(source.std[0], abs=0.01)


def test_cluttered_test_images_do_not_depend_on_the_seed():
    one, other = (
        load_source("cluttered_digits", num_train=5, num_test=5, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(one.test.images, other.test.images)
    assert not torch.equal(one.train.images, other.train.images)


# --- folder


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folder_with_train_and_held_out_part(tmp_path, held_out):
    make_classes(tmp_path / "train", bees=3, ants=2)
    make_classes(tmp_path / held_out, bees=1, ants=2)
    source = load_source("folder", root=tmp_path)
    assert source.class_names == ("ants", "bees")
    assert source.image_size is None
    assert [label for _, label in source.train] == [0, 0, 1, 1, 1]
    assert [label for _, label in source.test] == [0, 0, 1]
    assert source.train[0][0].getpixel((0, 0)) == (40, 0, 5)


def test_images_in_deeper_folders_belong_to_their_class(tmp_path):
    make_classes(tmp_path / "train" / "cats", indoors=2, outdoors=1)
    make_classes(tmp_path / "train", dogs=1)
    make_classes(tmp_path / "val", cats=1, dogs=1)
    source = load_source("folder", root=tmp_path)
    assert source.class_names == ("cats", "dogs")
    assert source.train.labels.tolist() == [0, 0, 0, 1]


def test_class_folders_alone_are_split_by_class(tmp_path):
    make_classes(tmp_path, ants=20, bees=10, wasps=2)
    source = load_source("folder", root=tmp_path)
    assert source.test.labels.bincount().tolist() == [4, 2, 1]
    assert source.train.labels.bincount().tolist() == [16, 8, 1]
    assert not set(source.train.paths) & set(source.test.paths)


def test_split_depends_on_the_seed_alone(tmp_path):
    make_classes(tmp_path, ants=20, bees=20)
    first, again, other = (
        load_source("folder", root=tmp_path, seed=seed).test.paths for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_class_may_be_called_train(tmp_path):
    make_classes(tmp_path, train=5, plane=5)
    assert load_source("folder", root=tmp_path).class_names == ("plane", "train")


def test_hidden_folders_are_no_classes(tmp_path):
    make_classes(tmp_path, ants=5, bees=5)
    (tmp_path / ".cache").mkdir()
    assert load_source("folder", root=tmp_path).class_names == ("ants", "bees")


def test_num_train_and_num_test_draw(tmp_path):
    make_classes(tmp_path / "train", ants=20, bees=20)
    make_classes(tmp_path / "val", ants=10, bees=10)
    one, other = (
        load_source("folder", root=tmp_path, num_train=10, num_test=6, seed=seed) for seed in (0, 1)
    )
    assert (len(one.train), len(one.test)) == (10, 6)
    assert one.train.paths != other.train.paths
    assert one.test.paths == other.test.paths
    for path, label in zip(one.train.paths, one.train.labels.tolist(), strict=True):
        assert one.class_names[label] == Path(path).parent.name


def test_more_images_than_there_are_is_an_error(tmp_path):
    make_classes(tmp_path, ants=5, bees=5)
    with pytest.raises(ValueError, match="folder: num_train=9; expected 1 to 8"):
        load_source("folder", root=tmp_path, num_train=9)


def lay_out_file(root):
    root.write_bytes(b"")


def lay_out_nothing(root):
    root.mkdir()


def lay_out_loose_images(root):
    root.mkdir()
    Image.new("RGB", (2, 2)).save(root / "image.jpg")


def lay_out_one_class(root):
    make_classes(root, ants=3)


def lay_out_one_class_split(root):
    make_classes(root / "train", ants=3)
    make_classes(root / "val", ants=3)


def lay_out_empty_class(root):
    make_classes(root, ants=3, bees=0)


def lay_out_train_alone(root):
    make_classes(root / "train", ants=3, bees=3)


def lay_out_val_alone(root):
    make_classes(root / "val", ants=3, bees=3)


def lay_out_flat_val(root):
    make_classes(root / "train", ants=3, bees=3)
    (root / "val").mkdir()
    Image.new("RGB", (2, 2)).save(root / "val" / "image.jpg")


def lay_out_flat_parts(root):
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / part / "image.jpg")


def lay_out_other_classes(root):
    make_classes(root / "train", ants=3, bees=3)
    make_classes(root / "val", ants=3, wasps=3)


def lay_out_lonely_image(root):
    make_classes(root, ants=3, bees=1)


@pytest.mark.parametrize(
    ("lay_out", "error", "message"),
    [
        (lay_out_file, NotADirectoryError, "root=ROOT is a file; expected the folder"),
        (lay_out_nothing, FileNotFoundError, "ROOT holds no class folders; expected ROOT/CLASS/"),
        (lay_out_loose_images, FileNotFoundError, "ROOT holds no class folders"),
        (lay_out_one_class, ValueError, "ROOT holds one class, 'ants'; expected at least 2"),
        (lay_out_one_class_split, ValueError, "ROOT/train holds one class, 'ants'"),
        (lay_out_empty_class, FileNotFoundError, "no images .* in ROOT/bees; add some or remove"),
        (lay_out_train_alone, FileNotFoundError, "ROOT has train but neither val nor test"),
        (lay_out_val_alone, FileNotFoundError, "ROOT has no folder train"),
        (lay_out_flat_val, FileNotFoundError, "ROOT/val holds no class folders"),
        (lay_out_flat_parts, FileNotFoundError, "ROOT/train holds no class folders"),
        (
            lay_out_other_classes,
            ValueError,
            "differ .only in ROOT/train: bees; only in ROOT/val: wasps",
        ),
        (lay_out_lonely_image, ValueError, "ROOT/bees/000.png is the only image of its class"),
    ],
)
def test_bad_folder_is_one_sentence_that_names_it(tmp_path, lay_out, error, message):
    root = tmp_path / "set"
    lay_out(root)
    with pytest.raises(error, match=message.replace("ROOT", str(root))) as caught:
        load_source("folder", root=root)
    assert "\n" not in str(caught.value)


@pytest.mark.data
def test_hymenoptera_is_read_whole(data_dir):
    source = load_source("folder", root=data_dir / "hymenoptera")
    assert source.class_names == ("ants", "bees")
    assert (len(source.train), len(source.test)) == (244, 153)
    assert {image.mode for image, _ in source.test} == {"RGB"}


# --- classes by name


def test_classes_are_found_among_the_networks_by_name(tmp_path):
    make_classes(tmp_path / "val", cat=2, ant=1)
    source = load_source("folder", root=tmp_path, class_names=["dog", "cat", "bee", "ant"])
    assert source.class_names == ("dog", "cat", "bee", "ant")
    assert source.test.labels.tolist() == [3, 1, 1]
    assert [Path(path).parent.name for path in source.test.paths] == ["ant", "cat", "cat"]
    assert len(source.train) == 0
    assert source.skipped == {}


def test_a_single_class_can_be_tested(tmp_path):
    make_classes(tmp_path / "Testing", cat=2)
    source = load_source("folder", root=tmp_path, class_names=["dog", "cat"])
    assert source.test.labels.tolist() == [1, 1]


def test_a_class_that_the_network_does_not_know_is_named(tmp_path):
    make_classes(tmp_path / "val", cats=2, dog=1, emu=1)
    with pytest.raises(ValueError, match="'cats' and 1 more, which the network does not") as caught:
        load_source("folder", root=tmp_path, class_names=["dog", "cat"])
    assert "the nearest being 'cat'" in str(caught.value)
    assert "--ignore-unknown" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_classes_are_left_out_and_counted(tmp_path):
    make_classes(tmp_path / "val", cats=3, dog=1, emu=2)
    source = load_source("folder", root=tmp_path, class_names=["dog", "cat"], ignore_unknown=True)
    assert source.test.labels.tolist() == [0]
    assert source.skipped == {"image of an unknown class": 5}
    assert source.skipped_names["image of an unknown class"] == ("cats", "emu")


def test_nothing_known_is_an_error(tmp_path):
    make_classes(tmp_path / "val", cats=3, emu=2)
    with pytest.raises(ValueError, match="holds no image of a class that the network knows"):
        load_source("folder", root=tmp_path, class_names=["dog", "x"], ignore_unknown=True)


def test_parts_of_a_folder_without_splits_are_those_of_the_training(tmp_path):
    make_classes(tmp_path, ants=20, bees=10)
    trained = load_source("folder", root=tmp_path)
    tested = load_source("folder", root=tmp_path, class_names=["wasps", "bees", "ants"])
    assert tested.test.paths == trained.test.paths
    assert tested.test.labels.tolist() == [2] * 4 + [1] * 2


def test_ids_of_imagenet_are_known_by_their_words(tmp_path):
    make_classes(tmp_path / "val", n01440764=1, n01443537=2)
    names = ["goldfish, Carassius auratus", "tench, Tinca tinca"]
    source = load_source("folder", root=tmp_path, class_names=names)
    assert source.test.labels.tolist() == [1, 0, 0]


def test_other_sets_are_matched_by_name_too():
    names = [str(digit) for digit in reversed(range(10))]
    plain = load_source("cluttered_digits", num_train=2, num_test=30)
    source = load_source("cluttered_digits", num_train=2, num_test=30, class_names=names)
    assert source.test.labels.tolist() == [9 - label for label in plain.test.labels.tolist()]
    with pytest.raises(ValueError, match="cluttered_digits has the class '1' and 8 more"):
        load_source("cluttered_digits", num_train=2, num_test=2, class_names=["0", "x"])


# --- ImageNet


def test_imagenet_folders_get_their_words(tmp_path):
    for part in ("train", "val"):
        make_classes(tmp_path / part, n02123045=2, n01440764=2)
    source = load_source("imagenet", root=tmp_path)
    assert source.class_names == ("tench, Tinca tinca", "tabby, tabby cat")
    assert source.train.labels.tolist() == [0, 0, 1, 1]


def test_imagenet_without_val_says_so(tmp_path):
    make_classes(tmp_path / "train", n02123045=2, n01440764=2)
    with pytest.raises(FileNotFoundError, match="has train but neither val nor test"):
        load_source("imagenet", root=tmp_path)


# --- Fashion-MNIST


@pytest.mark.parametrize("load", [load_source, load_detection, load_segmentation])
def test_a_folder_for_generated_images_is_refused(load, tmp_path):
    with pytest.raises(ValueError, match=r"would not read root=.*--data.name folder"):
        load("cluttered_digits", root=tmp_path, num_train=4, num_test=2)


@pytest.mark.parametrize("load", [load_source, load_detection, load_segmentation])
def test_a_format_is_for_a_folder(load, tmp_path):
    with pytest.raises(ValueError, match="cluttered_digits has a form of its own"):
        load("cluttered_digits", format="folder", num_train=4, num_test=2)
    with pytest.raises(ValueError, match=r"folder cannot be read as format=.*expected auto or"):
        load("folder", root=tmp_path, format="xml")


# --- channels


def save_bands(root, bands=5):
    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(("a", "b")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = np.full((4, 6, bands), 40 * number + place, np.uint8)
                np.save(folder / f"{place}.npy", pixels)


def test_the_bands_of_files_are_kept_and_measured(tmp_path):
    save_bands(tmp_path)
    source = load_source("folder", root=tmp_path, in_chans=5)
    image, label = source.train.select(torch.tensor([4]))[0]
    assert (source.in_chans, label) == (5, 1)
    assert torch.equal(image, torch.full((5, 4, 6), 41, dtype=torch.uint8))
    values = np.array([0, 1, 2, 40, 41, 42]) / 255
    assert source.mean == pytest.approx([values.mean()] * 5, abs=1e-4)
    assert source.std == pytest.approx([values.std()] * 5, abs=1e-4)


def test_grey_is_one_channel(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (200, 10, 10)).save(tmp_path / split / name / "x.png")
    source = load_source("folder", root=tmp_path, in_chans=1)
    image, _ = source.test[0]
    assert (image.mode, source.in_chans, len(source.mean)) == ("L", 1, 1)
    assert image.getpixel((0, 0)) == Image.new("RGB", (1, 1), (200, 10, 10)).convert("L").getpixel(
        (0, 0)
    )


def test_channels_are_of_files(tmp_path):
    with pytest.raises(ValueError, match="cluttered_digits has channels of its own"):
        load_source("cluttered_digits", in_chans=1, num_train=4, num_test=2)
    save_bands(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(4, 6, 5\); expected 7 bands"):
        load_source("folder", root=tmp_path, in_chans=7)
    with pytest.raises(ValueError, match=r"in_chans=0 .* at least 1"):
        load_source("folder", root=tmp_path, in_chans=0)


def test_images_that_no_memory_holds_are_not_begun():
    with pytest.raises(ValueError, match=r"take 16,384,000 GB, and this computer has"):
        load_source("cluttered_digits", num_train=10**12)
