import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from convattn.data import DATASETS, load_source


def make_classes(folder, **counts):
    """Folders of tiny pictures, each of a colour of its own."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 * number, index, len(folder.name))
            Image.new("RGB", (6, 5), colour).save(folder / name / f"{index:03d}.png")


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion():
    """Four arrays by their files' names."""
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(256, size=(7, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(10, size=7, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(256, size=(3, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(10, size=3, dtype=np.uint8),
    }


def write_idx(folder, arrays, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))


# --- names and numbers


@pytest.mark.parametrize(
    ("given", "nearest"), [("cifar_10", "cifar10"), ("fashionmnist", "fashion_mnist")]
)
def test_unknown_name_gets_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"unknown data set '{given}'; did you mean '{nearest}'"):
        load_source(given)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "cluttered_digits"])
def test_sets_of_files_need_a_root(name):
    with pytest.raises(ValueError, match=f"{name} needs root"):
        load_source(name)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "cluttered_digits"])
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


def test_cluttered_test_pictures_do_not_depend_on_the_seed():
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


def test_pictures_in_deeper_folders_belong_to_their_class(tmp_path):
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


def test_more_pictures_than_there_are_is_an_error(tmp_path):
    make_classes(tmp_path, ants=5, bees=5)
    with pytest.raises(ValueError, match="folder: num_train=9; expected 1 to 8"):
        load_source("folder", root=tmp_path, num_train=9)


def lay_out_file(root):
    root.write_bytes(b"")


def lay_out_nothing(root):
    root.mkdir()


def lay_out_loose_pictures(root):
    root.mkdir()
    Image.new("RGB", (2, 2)).save(root / "picture.jpg")


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
    Image.new("RGB", (2, 2)).save(root / "val" / "picture.jpg")


def lay_out_flat_parts(root):
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / part / "picture.jpg")


def lay_out_other_classes(root):
    make_classes(root / "train", ants=3, bees=3)
    make_classes(root / "val", ants=3, wasps=3)


def lay_out_lonely_picture(root):
    make_classes(root, ants=3, bees=1)


@pytest.mark.parametrize(
    ("lay_out", "error", "message"),
    [
        (lay_out_file, NotADirectoryError, "root=ROOT is a file; expected the folder"),
        (lay_out_nothing, FileNotFoundError, "ROOT holds no class folders; expected ROOT/CLASS/"),
        (lay_out_loose_pictures, FileNotFoundError, "ROOT holds no class folders"),
        (lay_out_one_class, ValueError, "ROOT holds one class, 'ants'; expected at least 2"),
        (lay_out_one_class_split, ValueError, "ROOT/train holds one class, 'ants'"),
        (lay_out_empty_class, FileNotFoundError, "no pictures .* in ROOT/bees; add some or remove"),
        (lay_out_train_alone, FileNotFoundError, "ROOT has train but neither val nor test"),
        (lay_out_val_alone, FileNotFoundError, "ROOT has no folder train"),
        (lay_out_flat_val, FileNotFoundError, "ROOT/val holds no class folders"),
        (lay_out_flat_parts, FileNotFoundError, "ROOT/train holds no class folders"),
        (
            lay_out_other_classes,
            ValueError,
            "differ .only in ROOT/train: bees; only in ROOT/val: wasps",
        ),
        (lay_out_lonely_picture, ValueError, "ROOT/bees/000.png is the only picture of its class"),
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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", [".", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_any_layout(tmp_path, fashion, packed, inside):
    write_idx(tmp_path / inside, fashion, packed)
    source = load_source("fashion_mnist", root=tmp_path)
    for part, dataset in (("train", source.train), ("t10k", source.test)):
        images = torch.from_numpy(fashion[f"{part}-images-idx3-ubyte"]).unsqueeze(1)
        labels = torch.from_numpy(fashion[f"{part}-labels-idx1-ubyte"]).long()
        assert torch.equal(dataset.images, images)
        assert torch.equal(dataset.labels, labels)
    assert (source.image_size, source.in_chans, len(source.class_names)) == ((28, 28), 1, 10)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda data: gzip.compress(data)[:-20], "cannot be unpacked"),
        (IMAGES, lambda data: b"<html>" * 10, "cannot be unpacked"),
        (IMAGES, lambda data: gzip.compress(data[:-1]), "announces 5488 bytes and holds 5487"),
        (LABELS, lambda data: gzip.compress(data + b"1"), "announces 7 bytes and holds 8"),
        (LABELS, lambda data: gzip.compress(b"\0\0\x08\x03" + data[4:]), "begins with 00000803"),
        (LABELS, lambda data: gzip.compress(data[:3]), "begins with"),
        (
            IMAGES,
            lambda data: gzip.compress(idx_bytes(np.zeros((7, 32, 32), np.uint8))),
            "holds pictures of 32 x 32; expected 28 x 28",
        ),
        (
            LABELS,
            lambda data: gzip.compress(idx_bytes(np.zeros(6, np.uint8))),
            "holds 6 labels for 7 images",
        ),
        (
            LABELS,
            lambda data: gzip.compress(idx_bytes(np.full(7, 10, np.uint8))),
            "holds label 10; expected 0 to 9",
        ),
    ],
)
def test_bad_idx_file_is_named(tmp_path, fashion, name, change, message):
    write_idx(tmp_path, fashion)
    file = tmp_path / f"{name}.gz"
    file.write_bytes(change(idx_bytes(fashion[name])))
    with pytest.raises(ValueError, match=f"{file} {message}"):
        load_source("fashion_mnist", root=tmp_path)


def test_missing_idx_file_is_named(tmp_path, fashion):
    del fashion["t10k-labels-idx1-ubyte"]
    write_idx(tmp_path, fashion)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no t10k-labels-idx1-ubyte"):
        load_source("fashion_mnist", root=tmp_path)


@pytest.mark.data
def test_fashion_mnist_is_the_known_set(data_dir):
    source = load_source("fashion_mnist", root=data_dir / "fashion_mnist")
    assert source.train.labels.bincount().tolist() == [6000] * 10
    assert source.test.labels.bincount().tolist() == [1000] * 10
    pixels = source.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(source.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(source.std[0], abs=1e-4)


# --- CIFAR and downloads


def write_pickle(file, content):
    file.write_bytes(pickle.dumps(content))
    return [file.name, hashlib.md5(file.read_bytes()).hexdigest()]


@pytest.mark.parametrize(
    ("name", "kind", "labels_key", "names_key"),
    [
        ("cifar10", CIFAR10, "labels", "label_names"),
        ("cifar100", CIFAR100, "fine_labels", "fine_label_names"),
    ],
)
def test_cifar_is_read_from_torchvisions_folder(
    tmp_path, monkeypatch, name, kind, labels_key, names_key
):
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(256, size=(6, 3, 32, 32), dtype=np.uint8)
    content = {"data": pictures.reshape(6, -1), labels_key: [1, 0, 1, 1, 0, 0]}
    file = write_pickle(folder / "batch", content)
    meta, digest = write_pickle(folder / "meta", {names_key: ["cat", "dog"]})
    monkeypatch.setattr(kind, "train_list", [file])
    monkeypatch.setattr(kind, "test_list", [file])
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": names_key, "md5": digest})
    source = load_source(name, root=tmp_path)
    assert source.class_names == ("cat", "dog")
    assert torch.equal(source.train.images, torch.from_numpy(pictures))
    assert source.test.labels.tolist() == content[labels_key]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch, name):
    def fail(*arguments, **keywords):
        raise AssertionError("tried to download")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with pytest.raises(FileNotFoundError, match="pass download=True"):
        load_source(name, root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_failed_download_is_one_sentence(tmp_path, monkeypatch, name):
    def fail(*arguments, **keywords):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    expected = f"{name} could not be downloaded into {tmp_path}"
    with pytest.raises(FileNotFoundError, match=expected) as caught:
        load_source(name, root=tmp_path, download=True)
    assert "\n" not in str(caught.value)
