import gzip
import hashlib
import io
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from convattn.data import load_source


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
            "holds images of 32 x 32; expected 28 x 28",
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


# --- Tiny ImageNet

COLOURS = [(200, 30, 40), (20, 180, 60), (10, 90, 220), (120, 120, 120)]


def image(colour, size=(8, 6), mode="RGB", kind="PNG"):
    """The bytes of an image of one colour, ``size`` being width and height."""
    packed = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(packed, kind)
    return packed.getvalue()


def parquet_rows():
    """The columns of four images, 8 wide and 6 high."""
    return {
        "image": [{"bytes": image(colour), "path": "a.png"} for colour in COLOURS],
        "label": [2, 0, 1, 1],
        "bbox": [[0, 0, 7, 5], [1, 2, 3, 4], [7, 5, 7, 5], [2, 0, 2, 4]],
    }


def write_parquet(folder, train=None, val=None):
    for part, columns in (("train", train), ("val", val)):
        pq.write_table(pa.table(columns or parquet_rows()), folder / f"{part}.parquet")


def test_tiny_imagenet_parquet_gives_images_labels_and_boxes(tmp_path):
    rows = parquet_rows()
    write_parquet(tmp_path, val={name: column[2:] for name, column in rows.items()})
    source = load_source("tiny_imagenet", root=tmp_path)
    # The edge past the object, where the file gives the last pixel on it.
    boxes = [[0, 0, 8, 6], [1, 2, 4, 5], [7, 5, 8, 6], [2, 0, 3, 5]]
    for dataset, rest in ((source.train, slice(0, 4)), (source.test, slice(2, 4))):
        expected = torch.tensor(COLOURS[rest], dtype=torch.uint8)[:, :, None, None]
        assert torch.equal(dataset.images, expected.expand(-1, 3, 6, 8))
        assert dataset.labels.tolist() == rows["label"][rest]
        assert dataset.boxes.tolist() == boxes[rest]
    assert (source.image_size, source.in_chans) == ((6, 8), 3)
    assert source.class_names == ("0", "1", "2")


def test_boxes_may_be_missing(tmp_path):
    rows = parquet_rows()
    del rows["bbox"]
    write_parquet(tmp_path, train=rows, val=rows)
    source = load_source("tiny_imagenet", root=tmp_path)
    assert source.train.boxes is None
    assert source.test.boxes is None


@pytest.mark.parametrize("kind", [pa.list_(pa.int32(), 4), pa.list_(pa.float64())])
def test_boxes_may_be_stored_otherwise(tmp_path, kind):
    rows = parquet_rows()
    rows["bbox"] = pa.array(rows["bbox"], kind)
    write_parquet(tmp_path, train=rows)
    boxes = load_source("tiny_imagenet", root=tmp_path).train.boxes
    assert (boxes.dtype, boxes[1].tolist()) == (torch.int64, [1, 2, 4, 5])


def test_grey_images_become_rgb(tmp_path):
    rows = parquet_rows()
    rows["image"][1]["bytes"] = image((77, 77, 77), mode="L")
    write_parquet(tmp_path, train=rows)
    images = load_source("tiny_imagenet", root=tmp_path).train.images
    assert (images[1] == 77).all()


def test_classes_tsv_gives_the_first_word(tmp_path):
    write_parquet(tmp_path)
    lines = "0\tn01443537\tgoldfish, Carassius auratus\n1\tn01784675\tcentipede\n2\tn0\tsnail\n"
    (tmp_path / "classes.tsv").write_text(lines)
    source = load_source("tiny_imagenet", root=tmp_path)
    assert source.class_names == ("goldfish", "centipede", "snail")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_draw_keeps_image_label_and_box_together(tmp_path, part):
    rows = {**parquet_rows(), "label": [0, 1, 2, 3]}
    write_parquet(tmp_path, train=rows, val=rows)
    whole = load_source("tiny_imagenet", root=tmp_path)
    drawn = load_source("tiny_imagenet", root=tmp_path, num_train=3, num_test=3)
    whole, drawn = getattr(whole, part), getattr(drawn, part)
    assert len(drawn) == 3
    for image, label, box in zip(drawn.images, drawn.labels, drawn.boxes, strict=True):
        row = (whole.images == image).flatten(1).all(1).nonzero().item()
        assert (whole.labels[row], whole.boxes[row].tolist()) == (label, box.tolist())


def test_seed_draws_the_training_images_alone(tmp_path):
    write_parquet(tmp_path)
    sources = [
        load_source("tiny_imagenet", root=tmp_path, num_train=2, num_test=2, seed=seed)
        for seed in range(8)
    ]
    assert len({str(source.train.boxes.tolist()) for source in sources}) > 1
    assert len({str(source.test.boxes.tolist()) for source in sources}) == 1


def load_one(root, rows):
    """The row of the single image that is drawn, which is not the first."""
    write_parquet(root, train=rows)
    source = load_source("tiny_imagenet", root=root, num_train=1, seed=1)
    return COLOURS.index(tuple(source.train.images[0, :, 0, 0].tolist()))


def test_images_that_are_not_drawn_are_not_decoded(tmp_path):
    rows = parquet_rows()
    kept = load_one(tmp_path, rows)
    for row, image in enumerate(rows["image"]):
        if row != kept:
            image["bytes"] = b"not an image"
    assert load_one(tmp_path, rows) == kept


def test_a_draw_names_a_bad_row_by_its_place_in_the_file(tmp_path):
    kept = load_one(tmp_path, parquet_rows())
    with pytest.raises(ValueError, match=f"row {kept} .from 0. of .* has the box"):
        load_one(tmp_path, changed("bbox", kept, [0, 0, 9, 9]))


def test_too_large_a_draw_is_an_error(tmp_path):
    write_parquet(tmp_path)
    with pytest.raises(ValueError, match="tiny_imagenet: num_test=5; expected 1 to 4"):
        load_source("tiny_imagenet", root=tmp_path, num_test=5)


def changed(name, row, value):
    """Rows of which one cell is another."""
    rows = parquet_rows()
    rows[name][row] = value
    return rows


def without(name):
    rows = parquet_rows()
    del rows[name]
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (without("label"), "FILE has no column 'label' but image, bbox; expected image, label"),
        (without("image"), "FILE has no column 'image' but label, bbox"),
        ({**parquet_rows(), "image": list("abcd")}, "the column image of FILE is string; expected"),
        (
            {**parquet_rows(), "image": [{"path": "a.png"}] * 4},
            "the column image of FILE is struct<path: string>; expected a struct with",
        ),
        ({name: column[:0] for name, column in parquet_rows().items()}, "FILE holds no rows"),
        (changed("image", 2, None), "row 2 .from 0. of FILE holds no image"),
        (changed("image", 1, {"bytes": None, "path": "a"}), "row 1 .from 0. of FILE holds no imag"),
        (
            changed("image", 3, {"bytes": b"no image", "path": "a"}),
            "row 3 .from 0. of FILE cannot be read as an image .*: replace or remove this row",
        ),
        (
            changed("image", 2, {"bytes": image((1, 2, 3), (300, 300), kind="JPEG")[:-300]}),
            "row 2 .from 0. of FILE cannot be read as an image .*truncated",
        ),
        (
            changed("image", 2, {"bytes": image((1, 2, 3), (9, 6))}),
            "row 2 .from 0. of FILE is an image of 6 x 9 where those before it are 6 x 8",
        ),
        (changed("label", 1, None), "the column label of FILE is int64; expected a whole number"),
        (changed("label", 1, 0.5), "the column label of FILE is double; expected a whole number"),
        ({**parquet_rows(), "label": list("abcd")}, "the column label of FILE is string"),
        (changed("label", 1, -1), "FILE holds label -1; expected 0 to 2, the classes of ROOT"),
        ({**parquet_rows(), "label": [-1] * 4}, "FILE holds label -1; expected 0 to 0"),
        (changed("bbox", 1, None), "the column bbox of FILE is list<.*>; expected 4 whole numbers"),
        (changed("bbox", 1, [1, 2, 3]), "the column bbox of FILE is list"),
        (changed("bbox", 1, [1, 2, 3, None]), "the column bbox of FILE is list"),
        (changed("bbox", 1, [1, 2, 3.5, 4]), "the column bbox of FILE is list<.*double>"),
        (
            {**parquet_rows(), "bbox": [[1, 2, 3]] * 4},
            "the column bbox of FILE is list<.*>; expected 4 whole numbers in every row",
        ),
        ({**parquet_rows(), "bbox": [1, 2, 3, 4]}, "the column bbox of FILE is int64"),
        (
            changed("bbox", 2, [0, 0, 8, 5]),
            r"row 2 .from 0. of FILE has the box \[0, 0, 8, 5\]; expected .* inside its 6 x 8 pix",
        ),
        (changed("bbox", 2, [0, 0, 7, 6]), "row 2 .from 0. of FILE has the box"),
        (changed("bbox", 2, [3, 0, 2, 5]), "row 2 .from 0. of FILE has the box"),
        (changed("bbox", 2, [0, -1, 2, 5]), "row 2 .from 0. of FILE has the box"),
    ],
)
def test_bad_parquet_column_is_one_sentence_that_names_it(tmp_path, rows, message):
    write_parquet(tmp_path, train=rows)
    expected = message.replace("FILE", f"{tmp_path}/train.parquet").replace("ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=expected) as caught:
        load_source("tiny_imagenet", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_label_that_training_lacks_is_an_error(tmp_path):
    write_parquet(tmp_path, val=changed("label", 0, 3))
    with pytest.raises(ValueError, match=r"val.parquet holds label 3; expected 0 to 2"):
        load_source("tiny_imagenet", root=tmp_path)


def test_splits_of_two_sizes_are_an_error(tmp_path):
    rows = without("bbox")
    rows["image"] = [{"bytes": image(colour, (4, 4))} for colour in COLOURS]
    write_parquet(tmp_path, val=rows)
    with pytest.raises(ValueError, match="training images of 6 x 8 and test images of 4 x 4"):
        load_source("tiny_imagenet", root=tmp_path)


@pytest.mark.parametrize("damage", [lambda data: b"<html>" * 10, lambda data: data[:-30]])
def test_damaged_parquet_is_named(tmp_path, damage):
    write_parquet(tmp_path)
    file = tmp_path / "val.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file} cannot be read as parquet") as caught:
        load_source("tiny_imagenet", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["train", "val"])
def test_missing_parquet_is_named(tmp_path, part):
    write_parquet(tmp_path)
    (tmp_path / f"{part}.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no {part}.parquet"):
        load_source("tiny_imagenet", root=tmp_path)


def test_missing_pyarrow_names_the_command(tmp_path, monkeypatch):
    write_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'convattn\[train\]'"):
        load_source("tiny_imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1\tn0\tcat\n0\tn1\tdog\n", "numbers its classes otherwise than 0, 1, 2"),
        (b"0\tn0\tcat\n1\tn1\n", "line 2 of .*classes.tsv holds 2 columns; expected 3"),
        (b"0\tn0\tcat\n1\tn1\tdog\n", "train.parquet holds label 2; expected 0 to 1, the classes"),
        (b"0\tn0\t\xff\xff\n", "classes.tsv is not a text in UTF-8"),
        (b"", "classes.tsv is empty"),
    ],
)
def test_bad_classes_tsv_is_an_error(tmp_path, text, message):
    write_parquet(tmp_path)
    (tmp_path / "classes.tsv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_source("tiny_imagenet", root=tmp_path)


def lay_out_tiny_imagenet(root):
    """Two classes as published: 2 and 1 training images, 2 test images, 8 wide and 6 high."""
    images = {
        "train/n02/images/n02_0.JPEG": (200, 200, 200),
        "train/n02/images/n02_1.JPEG": (150, 150, 150),
        "train/n01/images/n01_0.JPEG": (100, 100, 100),
        "val/images/val_0.JPEG": (50, 50, 50),
        "val/images/val_1.JPEG": (0, 0, 0),
    }
    for name, colour in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(colour, kind="JPEG"))
    (root / "train/n02/n02_boxes.txt").write_text(
        "n02_0.JPEG\t0\t1\t2\t3\nn02_1.JPEG\t1\t1\t1\t1\n"
    )
    (root / "train/n01/n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t7\t5\n")
    (root / "val/val_annotations.txt").write_text(
        "val_1.JPEG\tn01\t0\t0\t1\t2\nval_0.JPEG\tn02\t4\t2\t6\t3\n"
    )
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tsnail\nn03\tpear\n")


def test_tiny_imagenet_is_read_as_published(tmp_path):
    lay_out_tiny_imagenet(tmp_path)
    source = load_source("tiny_imagenet", root=tmp_path)
    assert source.class_names == ("goldfish", "snail")
    assert source.image_size == (6, 8)
    assert source.train.images[:, 0, 0, 0].tolist() == [100, 200, 150]
    assert source.train.labels.tolist() == [0, 1, 1]
    assert source.train.boxes.tolist() == [[0, 0, 8, 6], [0, 1, 3, 4], [1, 1, 2, 2]]
    assert source.test.images[:, 0, 0, 0].tolist() == [0, 50]
    assert source.test.labels.tolist() == [0, 1]
    assert source.test.boxes.tolist() == [[0, 0, 2, 3], [4, 2, 7, 4]]


def test_classes_without_words_keep_their_ids(tmp_path):
    lay_out_tiny_imagenet(tmp_path)
    (tmp_path / "words.txt").unlink()
    assert load_source("tiny_imagenet", root=tmp_path).class_names == ("n01", "n02")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/n02/n02_boxes.txt", None, "ROOT/train/n02/n02_boxes.txt does not exist"),
        ("val/val_annotations.txt", None, "ROOT/val/val_annotations.txt does not exist"),
        ("train/n01/images/n01_0.JPEG", None, "ROOT/train/n01/images lacks n01_0.JPEG; expected"),
        ("val/images/val_7.JPEG", b"", "ROOT/val/images holds, unlisted, val_7.JPEG; expected the"),
        (
            "train/n01/n01_boxes.txt",
            b"n01_0.JPEG\t0\t0\tx\t5\n",
            r"line 1 of ROOT/train/n01/n01_boxes.txt ends with \['0', '0', 'x', '5'\]; expected",
        ),
        (
            "train/n01/n01_boxes.txt",
            b"n01_0.JPEG 0 0 7 5\n",
            "line 1 of ROOT/train/n01/n01_boxes.txt holds 1 columns; expected 5",
        ),
        (
            "train/n01/n01_boxes.txt",
            b"n01_0.JPEG\t0\t0\t8\t5\n",
            r"ROOT/train/n01/images/n01_0.JPEG has the box \[0, 0, 8, 5\]; expected",
        ),
        (
            "val/val_annotations.txt",
            b"val_1.JPEG\tn01\t0\t0\t1\t2\nval_0.JPEG\tn03\t4\t2\t6\t3\n",
            "ROOT/val/val_annotations.txt holds the class n03, which has no folder in ROOT/train",
        ),
        (
            "val/images/val_0.JPEG",
            b"no image",
            "ROOT/val/images/val_0.JPEG cannot be read as an image .*: replace or remove this fil",
        ),
    ],
)
def test_bad_published_layout_is_one_sentence_that_names_it(tmp_path, name, content, message):
    lay_out_tiny_imagenet(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    expected = message.replace("ROOT", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        load_source("tiny_imagenet", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_of_nothing_is_not_tiny_imagenet(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds neither train\.parquet and val.parquet nor"
    ):
        load_source("tiny_imagenet", root=tmp_path)


def test_train_without_classes_is_not_tiny_imagenet(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/train holds 0 class folders"):
        load_source("tiny_imagenet", root=tmp_path)


@pytest.mark.data
def test_tiny_imagenet_40_is_the_known_set(data_dir):
    source = load_source("tiny_imagenet", root=data_dir / "tiny_imagenet_40")
    assert source.train.labels.bincount().tolist() == [500] * 40
    assert source.test.labels.bincount().tolist() == [50] * 40
    assert (len(source.class_names), source.class_names[0]) == (40, "goldfish")
    # The file says 4, 0, 60, 55 of the first test image and reaches 63 at the frame's edge.
    assert source.test.boxes[0].tolist() == [4, 0, 61, 56]
    for dataset in (source.train, source.test):
        assert dataset.images.shape[1:] == (3, 64, 64)
        least, most = dataset.boxes[:, :2], dataset.boxes[:, 2:]
        assert (least.min().item(), most.max().item()) == (0, 64)
        assert (most > least).all()
    pixels = source.train.images[::10].float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(source.mean, abs=0.02)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(source.std, abs=0.02)


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
    images = np.random.default_rng(0).integers(256, size=(6, 3, 32, 32), dtype=np.uint8)
    content = {"data": images.reshape(6, -1), labels_key: [1, 0, 1, 1, 0, 0]}
    file = write_pickle(folder / "batch", content)
    meta, digest = write_pickle(folder / "meta", {names_key: ["cat", "dog"]})
    monkeypatch.setattr(kind, "train_list", [file])
    monkeypatch.setattr(kind, "test_list", [file])
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": names_key, "md5": digest})
    source = load_source(name, root=tmp_path)
    assert source.class_names == ("cat", "dog")
    assert torch.equal(source.train.images, torch.from_numpy(images))
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


def test_packed_file_is_not_unpacked_further_than_it_announces(tmp_path, monkeypatch):
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28))
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            file = tmp_path / f"{part}-{name}-ubyte.gz"
            file.write_bytes(gzip.compress(header + bytes(64 << 20), 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"announces 1568 bytes and holds 1569 or more"):
        load_source("fashion_mnist", root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_number_of_images_beyond_any_is_refused_by_the_header(tmp_path):
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2**32 - 1, 28, 28))
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header)
    with pytest.raises(ValueError, match=r"announces 4,294,967,295 images; expected 1,000,000"):
        load_source("fashion_mnist", root=tmp_path)
