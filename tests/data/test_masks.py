import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from convattn.data import (
    SEGMENTATION_DATASETS,
    UnreadableImageError,
    load_segmentation,
    read_image,
)
from convattn.data.scenes import generate_scenes

HEIGHT, WIDTH = 6, 8
FILES = [name for name in SEGMENTATION_DATASETS if name != "cluttered_digits"]


def write_image(file, grey=0, size=(WIDTH, HEIGHT)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(file)


def write_mask(file, values, palette=False):
    """Rows of the values in turn."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = np.resize(np.array(values, np.uint8), HEIGHT)
    mask = Image.fromarray(np.repeat(rows[:, None], WIDTH, 1))
    if palette:
        mask.putpalette([*range(256)] * 3)
    mask.save(file)


def make_masks(root, held_out="val"):
    for split in ("train", held_out):
        for name in ("a", "b"):
            write_image(root / "images" / split / f"{name}.png", grey=ord(name))
            write_mask(root / "masks" / split / f"{name}.png", [0, 1, 255])
    (root / "classes.txt").write_text("road\ncar\n")
    return root


def make_camvid(root, held_out="val"):
    for split in ("train", held_out):
        write_image(root / split / "a.png")
        write_mask(root / f"{split}annot" / "a.png", [0, 10, 11, 255])
    return root


def make_ade20k(root):
    for split in ("training", "validation"):
        write_image(root / "images" / split / "a.jpg")
        write_mask(root / "annotations" / split / "a.png", [0, 1, 3])
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n"
        "1\t0.1\t5\t5\twall\n2\t0.1\t5\t5\tbuilding, edifice\n3\t0.1\t5\t5\tsky\n"
    )
    return root


def make_voc(root):
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", ["b", "a"]), ("val", ["c"])):
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            write_image(root / "JPEGImages" / f"{name}.jpg")
            write_mask(root / "SegmentationClass" / f"{name}.png", [0, 1, 20, 255], palette=True)
    write_image(root / "JPEGImages" / "of_detection_alone.jpg")
    return root


MAKERS = {"masks": make_masks, "camvid": make_camvid, "ade20k": make_ade20k, "voc": make_voc}


# --- how masks are drawn


def draw_masks(root, draw):
    """Every mask anew: ``draw`` is given indices (H, W) and gives an image."""
    make_masks(root)
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[1:4, 2:7] = 1
    indices[4:, 3:] = 2
    for file in root.glob("masks/*/*.png"):
        draw(indices).save(file)
    return indices


@pytest.mark.parametrize("names", ["background\nobject\n", "nothing\ndog\n", None])
def test_masks_of_0_and_255_are_background_and_object(tmp_path, names):
    indices = draw_masks(tmp_path, lambda one: Image.fromarray((one == 1).astype(np.uint8) * 255))
    (tmp_path / "classes.txt").unlink()
    if names is not None:
        (tmp_path / "classes.txt").write_text(names)
    source = load_segmentation("masks", root=tmp_path)
    assert source.class_names == tuple((names or "background\nobject").split())
    assert torch.equal(source.train[0][1], torch.from_numpy(indices == 1).long())
    (note,) = source.notes
    assert "hold 0 and 255 alone: 0 is taken for" in note


def test_masks_of_0_and_255_with_more_classes_are_refused(tmp_path):
    draw_masks(tmp_path, lambda one: Image.fromarray((one == 1).astype(np.uint8) * 255))
    (tmp_path / "classes.txt").write_text("road\ncar\ntree\n")
    with pytest.raises(ValueError, match=r"names 3 classes, and the masks of \S+ hold 0 and 255"):
        load_segmentation("masks", root=tmp_path)


def test_masks_that_ignore_pixels_are_no_binary_ones(tmp_path):
    source = load_segmentation("masks", root=make_masks(tmp_path))
    assert source.notes == ()
    assert source.train[0][1].unique().tolist() == [0, 1, 255]


COLOURS = np.array([[128, 64, 128], [0, 0, 142], [7, 8, 9]], np.uint8)
TABLES = {
    "label_colors.txt": "128 64 128\troad\n0 0 142 car\n7 8 9\tVoid\n",
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ncar, 0, 0, 142\nVoid,7,8,9\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\n"
    "Void:7,8,9::\n",
}


def in_rgb(indices):
    return Image.fromarray(COLOURS[indices])


def with_palette(indices):
    """Numbered otherwise than the table."""
    image = Image.fromarray(2 - indices)
    image.putpalette(COLOURS[::-1].tobytes())
    return image


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("draw", [in_rgb, with_palette, lambda one: in_rgb(one).convert("RGBA")])
@pytest.mark.parametrize("named", [True, False])
def test_masks_in_colours_are_read_by_their_table(tmp_path, table, draw, named):
    indices = draw_masks(tmp_path, draw)
    (tmp_path / table).write_text(TABLES[table])
    (tmp_path / "classes.txt").unlink()
    if named:
        (tmp_path / "classes.txt").write_text("car\nroad\n")
    source = load_segmentation("masks", root=tmp_path)
    assert source.class_names == (("car", "road") if named else ("road", "car"))
    meaning = torch.tensor([1, 0, 255] if named else [0, 1, 255])
    assert torch.equal(source.test[0][1], meaning[torch.from_numpy(indices).long()])


def test_unlisted_colour_is_named(tmp_path):
    draw_masks(tmp_path, in_rgb)
    (tmp_path / "label_colors.txt").write_text("128 64 128 road\n0 0 142 car\n")
    with pytest.raises(UnreadableImageError, match=r"holds the colour \(7, 8, 9\)"):
        load_segmentation("masks", root=tmp_path).train[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("road 1 2 3\n", "line 1 of .* is 'road 1 2 3'; expected the name and the red"),
        ("1 2 300 road\n", "line 1 of .* expected the name and the red"),
        ("1 2 3 road\n1 2 3 car\n", "line 2 of .* has the colour of 'road' again"),
        ("1 2 3 car\n", "names 'road', which has no colour in"),
        ("\n", "names no class"),
    ],
)
def test_bad_table_of_colours_is_one_sentence(tmp_path, content, message):
    draw_masks(tmp_path, in_rgb)
    (tmp_path / "label_colors.txt").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_segmentation("masks", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    make_masks(tmp_path)
    (tmp_path / "classes.txt").write_text("Stra\u00dfe\r\ncar\r\n", encoding=encoding)
    assert load_segmentation("masks", root=tmp_path).class_names == ("Stra\u00dfe", "car")


# --- classes by name


def test_indices_are_those_of_the_network_by_name(tmp_path):
    source = load_segmentation(
        "masks", root=make_masks(tmp_path), class_names=["car", "tree", "road"]
    )
    assert source.class_names == ("car", "tree", "road")
    assert source.test[0][1][:, 0].tolist() == [2, 0, 255, 2, 0, 255]


def test_pixels_of_an_unknown_class_are_refused_or_ignored(tmp_path):
    make_masks(tmp_path)
    with pytest.raises(ValueError, match="has the class 'road', which the network does not know"):
        load_segmentation("masks", root=tmp_path, class_names=["tree", "car"])
    source = load_segmentation(
        "masks", root=tmp_path, class_names=["tree", "car"], ignore_unknown=True
    )
    assert source.test[0][1][:, 0].tolist() == [255, 1, 255, 255, 1, 255]
    assert source.skipped_names == {"class that the network does not know": ("road",)}


# --- what is read


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("masks", [0, 1, 255, 0, 1, 255]),
        ("camvid", [0, 10, 255, 255, 0, 10]),
        ("ade20k", [255, 0, 2, 255, 0, 2]),
        ("voc", [0, 1, 20, 255, 0, 1]),
    ],
)
def test_indices_become_classes(tmp_path, name, rows):
    image, mask = load_segmentation(name, root=MAKERS[name](tmp_path)).test[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), torch.uint8)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[row] * WIDTH for row in rows]


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [("masks", "road", 2), ("camvid", "sky", 11), ("ade20k", "wall", 3), ("voc", "background", 21)],
)
def test_class_names(tmp_path, name, first, count):
    source = load_segmentation(name, root=MAKERS[name](tmp_path))
    assert source.class_names[0] == first
    assert len(source.class_names) == count
    assert source.skipped == {}


def test_images_and_masks_in_deeper_folders_are_paired(tmp_path):
    make_masks(tmp_path)
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "bonn" / "a.jpg", grey=9)
        write_mask(tmp_path / "masks" / split / "bonn" / "a.png", [1])
    source = load_segmentation("masks", root=tmp_path)
    assert len(source.train) == len(source.test) == 3
    found = {
        name: int(mask.max())
        for name, (_, mask) in zip(source.train.names, source.train, strict=True)
    }
    assert found[str(tmp_path / "images" / "train" / "bonn" / "a.jpg")] == 1
    assert source.skipped == {}


@pytest.mark.parametrize("names", [("Train", "Val"), ("training", "Testing"), ("TRAIN", "dev")])
def test_splits_may_be_called_otherwise(tmp_path, names):
    make_masks(tmp_path)
    for split, name in zip(("train", "val"), names, strict=True):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).rename(tmp_path / kind / "kept")
            (tmp_path / kind / "kept").rename(tmp_path / kind / name)
    assert len(load_segmentation("masks", root=tmp_path).train) == 2


def test_what_is_left_out_is_named(tmp_path):
    make_masks(tmp_path)
    (tmp_path / "images" / "train" / "notes.txt").write_text("none")
    (tmp_path / "masks" / "train" / "a.json").write_text("{}")
    (tmp_path / "images" / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "images" / "spare").mkdir()
    source = load_segmentation("masks", root=tmp_path)
    assert source.skipped_names == {
        "hidden": ("train/.ipynb_checkpoints",),
        "no image by its name": ("train/notes.txt",),
        "no mask by its name": ("train/a.json",),
        "folder beside the splits": ("images/spare",),
    }


def test_two_images_of_one_name_are_a_fault(tmp_path):
    make_masks(tmp_path)
    write_image(tmp_path / "images" / "train" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and \S+a\.png are both called a"):
        load_segmentation("masks", root=tmp_path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("as_stored", [True, False])
def test_masks_are_turned_as_their_images(tmp_path, orientation, as_stored):
    make_masks(tmp_path)
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[1:3, 2:7] = 1
    notes = Image.Exif()
    notes[0x0112] = orientation
    Image.fromarray(np.dstack([values] * 3)).save(
        tmp_path / "images" / "train" / "a.png", exif=notes
    )
    upright = np.asarray(read_image(tmp_path / "images" / "train" / "a.png"))[..., 0]
    Image.fromarray(values if as_stored else upright).save(tmp_path / "masks" / "train" / "a.png")
    image, mask = load_segmentation("masks", root=tmp_path).train[0]
    assert mask.shape == (WIDTH, HEIGHT)
    assert torch.equal(image[0].long(), mask.as_subclass(torch.Tensor))


def test_images_and_masks_are_paired_by_name(tmp_path):
    train = load_segmentation("masks", root=make_masks(tmp_path)).train
    write_mask(tmp_path / "masks" / "train" / "b.png", [1])
    assert [int(image[0, 0, 0]) for image, _ in train] == [ord("a"), ord("b")]
    assert [int(mask.max()) for _, mask in train] == [255, 1]


def test_voc_takes_the_listed_images_in_their_order(tmp_path):
    train = load_segmentation("voc", root=make_voc(tmp_path)).train
    assert [name[-5:] for name in train.names] == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize("name", ["masks", "camvid"])
def test_held_out_part_may_be_called_test(tmp_path, name):
    source = load_segmentation(name, root=MAKERS[name](tmp_path, "test"))
    assert f"{tmp_path}" in source.test.names[0]
    assert "test" in source.test.names[0].removeprefix(str(tmp_path))


def test_last_name_of_camvid_may_be_that_of_the_ignored(tmp_path):
    names = [f"class {index}" for index in range(12)]
    (make_camvid(tmp_path) / "classes.txt").write_text("\n".join(names))
    assert load_segmentation("camvid", root=tmp_path).class_names == tuple(names[:11])


def test_names_of_ade20k_are_their_first_word(tmp_path):
    source = load_segmentation("ade20k", root=make_ade20k(tmp_path))
    assert source.class_names == ("wall", "building", "sky")


def test_sample_of_ade20k_says_that_it_is_one(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "annotations" / "a.png", [0, 1])
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t1\t1\t1\twall")
    with pytest.warns(UserWarning, match="ADE20k's sample, and its 1 images serve for training"):
        source = load_segmentation("ade20k", root=tmp_path)
    assert source.train.names == source.test.names


def test_draws(tmp_path):
    source = load_segmentation("masks", root=make_masks(tmp_path), num_train=1, num_test=2)
    assert (len(source.train), len(source.test)) == (1, 2)
    with pytest.raises(ValueError, match="masks: num_train=3; expected 1 to 2"):
        load_segmentation("masks", root=tmp_path, num_train=3)


def test_images_go_to_workers_by_pickle(tmp_path):
    train = load_segmentation("masks", root=make_masks(tmp_path)).train
    assert torch.equal(pickle.loads(pickle.dumps(train))[1][1], train[1][1])


# --- faults


def first_mask(tmp_path, write):
    train = load_segmentation("masks", root=make_masks(tmp_path), bad_annotations="skip").train
    file = tmp_path / "masks" / "train" / "a.png"
    write(file)
    with pytest.raises(UnreadableImageError) as caught:
        train[0]
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_mask_of_another_size_is_named(tmp_path):
    message = first_mask(tmp_path, lambda file: Image.new("L", (5, 4)).save(file))
    assert "is a mask of 4 x 5" in message
    assert "a.png is 6 x 8" in message


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_mask_that_holds_no_indices_is_named(tmp_path, mode):
    message = first_mask(tmp_path, lambda file: Image.new(mode, (WIDTH, HEIGHT)).save(file))
    assert f"is an image of mode {mode}; expected a mask of class indices" in message


def test_mask_that_is_no_image_is_named(tmp_path):
    message = first_mask(tmp_path, lambda file: file.write_text("nothing"))
    assert "cannot be read as a mask" in message


def test_index_beyond_the_classes_is_named(tmp_path):
    message = first_mask(tmp_path, lambda file: write_mask(file, [0, 2]))
    assert "holds the index 2; expected 0 to 1 for the 2 classes, or 255" in message


def test_allowed_indices_are_those_of_the_files(tmp_path):
    write_mask(make_ade20k(tmp_path) / "annotations" / "training" / "a.png", [4])
    with pytest.raises(
        UnreadableImageError, match="expected 1 to 3 for the 3 classes, or 0 or 255"
    ):
        load_segmentation("ade20k", root=tmp_path).train[0]


@pytest.mark.parametrize(
    ("folder", "message", "reason"),
    [
        ("masks", r"masks\S+train holds no mask named b", "missing mask"),
        ("images", r"images\S+train holds no image named b", "missing image"),
    ],
)
def test_missing_partner_is_named_or_skipped(tmp_path, folder, message, reason):
    (make_masks(tmp_path) / folder / "train" / "b.png").unlink()
    with pytest.raises(ValueError, match=message.replace(r"\S+", "/")):
        load_segmentation("masks", root=tmp_path)
    source = load_segmentation("masks", root=tmp_path, bad_annotations="skip")
    assert source.skipped == {reason: 1}
    assert len(source.train) == 1


def test_listed_image_that_is_missing_is_named(tmp_path):
    (make_voc(tmp_path) / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(ValueError, match="holds no image named c"):
        load_segmentation("voc", root=tmp_path)


@pytest.mark.parametrize(("split", "what"), [("train", "training"), ("val", "test")])
def test_empty_part_is_named(tmp_path, split, what):
    make_masks(tmp_path)
    for folder in ("images", "masks"):
        for file in (tmp_path / folder / split).iterdir():
            file.unlink()
    with pytest.raises(FileNotFoundError, match=f"no {what} image"):
        load_segmentation("masks", root=tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_parts_of_a_layout_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_segmentation(name, root=tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_sets_of_files_need_a_root(name):
    with pytest.raises(ValueError, match=f"{name} needs root"):
        load_segmentation(name)


def test_classes_beyond_eight_bits_are_refused(tmp_path):
    (make_masks(tmp_path) / "classes.txt").write_text("\n".join(map(str, range(256))))
    with pytest.raises(ValueError, match="names 256 classes; expected at most 255"):
        load_segmentation("masks", root=tmp_path)


def test_another_number_of_classes_is_not_camvid(tmp_path):
    (make_camvid(tmp_path) / "classes.txt").write_text("road\ncar")
    with pytest.raises(ValueError, match="names 2 classes; expected CamVid's 11"):
        load_segmentation("camvid", root=tmp_path)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'ade' for segmentation; did you mean 'ade20k'"):
        load_segmentation("ade")


# --- generated scenes


def test_scenes_as_a_source():
    source = load_segmentation("cluttered_digits", num_train=30, num_test=12, image_size=64, seed=2)
    assert (len(source.train), len(source.test)) == (30, 12)
    assert source.class_names == ("background", *"0123456789")
    assert source.image_size == (64, 64)
    scenes = generate_scenes(30, image_size=64, seed=2)
    for index, (image, mask) in enumerate(source.train.select(torch.arange(10))):
        assert torch.equal(image, scenes.images[index])
        assert torch.equal(mask, scenes.semantic(index))


# --- real files


@pytest.mark.data
def test_real_camvid_opens(data_dir):
    source = load_segmentation("camvid", root=data_dir / "camvid")
    assert (len(source.train), len(source.test)) == (367, 101)
    assert source.class_names[0] == "Sky"
    for index in range(0, 100, 10):
        image, mask = source.test[index]
        assert mask.shape == image.shape[1:] == (360, 480)
        assert set(mask.unique().tolist()) <= {*range(11), 255}


@pytest.mark.data
def test_real_sample_of_ade20k_opens(data_dir):
    with pytest.warns(UserWarning, match="its 3 images"):
        source = load_segmentation("ade20k", root=data_dir / "ade20k_samples")
    assert len(source.class_names) == 150
    assert all(mask.shape == image.shape[1:] for image, mask in source.test)
