import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

import convattn  # noqa: F401, registers PatchConvNet
from convattn.data import load_imagenet_validation, load_source, transform_of
from convattn.data.imagenet import LABEL_FILES, NUM_VALIDATION, imagenet_names, imagenet_wnids

WNIDS = imagenet_wnids()


def image(file, value=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (value % 256, value // 256, 0)).save(file, "PNG")


def name_of(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An image a class, in folders; the number in its name is 3 times its class's, plus 1."""
    root = tmp_path_factory.mktemp("imagenet")
    for number, wnid in enumerate(WNIDS):
        image(root / "val" / wnid / name_of(3 * number + 1), number)
    return root


@pytest.fixture(scope="session")
def v2(tmp_path_factory):
    root = tmp_path_factory.mktemp("v2") / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        image(root / str(number) / "7e4a8987.jpeg", number)
    return root


def value(image):
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


# --- classes


def test_classes_are_the_sorted_ids():
    assert len(WNIDS) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert WNIDS[207] == "n02099601"  # golden retriever, as everywhere


def test_names_are_timms_but_for_the_two_cranes():
    theirs = ImageNetInfo("imagenet-1k").label_descriptions()
    ours = imagenet_names(WNIDS)
    differ = [number for number in range(1000) if ours[number] != theirs[number]]
    assert differ == [134, 517]
    assert ours[134] == "crane (n02012849)"
    assert len(set(ours)) == 1000


# --- layouts


@pytest.mark.parametrize("place", ["val", "validation", "."])
def test_folders_of_ids_are_read_from_any_place(place, tmp_path):
    for wnid in ("n01440764", "n02123045"):
        image(tmp_path / place / wnid / "a.JPEG")
    found = load_imagenet_validation(tmp_path, allow_missing_classes=True)
    assert found.images.labels.tolist() == [0, WNIDS.index("n02123045")]


def test_training_images_are_not_needed(whole):
    found = load_imagenet_validation(whole)
    assert [value(image) for image, _ in found.images] == list(range(1000))
    assert found.images.labels.tolist() == list(range(1000))
    assert found.wnids == WNIDS


def test_v2_is_read_by_number_never_by_string(v2):
    found = load_imagenet_validation(v2)
    assert [value(image) for image, _ in found.images] == found.images.labels.tolist()
    assert found.images.labels.tolist() == list(range(1000))
    assert found.real is None
    assert found.notes == ()


FLAT = {
    3: WNIDS[10],
    1: WNIDS[999],
    2: WNIDS[500],
}


def lay_out_flat(root, file, text):
    for number in FLAT:
        image(root / "val" / name_of(number), number)
    (root / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (LABEL_FILES[0], f"{FLAT[1]}\n{FLAT[2]}\n{FLAT[3]}\n{WNIDS[4]}\n"),
        ("val.txt", "".join(f"{name_of(n)} {WNIDS.index(w)}\n" for n, w in FLAT.items())),
        ("val/val.txt", "".join(f"val/{name_of(n)}\t{w}\n" for n, w in FLAT.items())),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            + "".join(f"{name_of(n)[:-5]},{w} 85 1 499 272 \n" for n, w in FLAT.items()),
        ),
    ],
)
def test_images_in_one_folder_take_their_labels_from_a_file(file, text, tmp_path):
    lay_out_flat(tmp_path, file, text)
    found = load_imagenet_validation(tmp_path, allow_missing_classes=True)
    assert [value(image) for image, _ in found.images] == [1, 2, 3]
    assert found.images.labels.tolist() == [999, 500, 10]


def test_development_kits_ids_are_not_taken_for_class_numbers(tmp_path):
    lay_out_flat(tmp_path, "val.txt", "490\n361\n171\n")
    with pytest.raises(ValueError, match="the development kit's IDs, in another order"):
        load_imagenet_validation(tmp_path)


def test_image_without_a_label_is_named(tmp_path):
    lay_out_flat(tmp_path, "val.txt", f"{name_of(1)} 1\n{name_of(2)} 2\n")
    with pytest.raises(ValueError, match=r"no label for ILSVRC2012_val_00000003.JPEG"):
        load_imagenet_validation(tmp_path)


def test_label_that_is_no_class_is_named(tmp_path):
    lay_out_flat(tmp_path, "val.txt", f"{name_of(1)} 1000\n{name_of(2)} 2\n{name_of(3)} 3\n")
    with pytest.raises(ValueError, match="the label '1000' for ILSVRC2012_val_00000001"):
        load_imagenet_validation(tmp_path)


def test_no_file_of_labels_says_which_would_do(tmp_path):
    lay_out_flat(tmp_path, "ILSVRC2012_validation_ground_truth.txt", "490\n361\n171\n")
    with pytest.raises(FileNotFoundError) as caught:
        load_imagenet_validation(tmp_path)
    assert all(name in str(caught.value) for name in LABEL_FILES)
    assert "ground truth will not do" in str(caught.value)


# --- what is missing


def test_missing_classes_are_counted_and_named(whole, tmp_path):
    gone = [*WNIDS[5:15], WNIDS[700], WNIDS[701]]
    for wnid in set(WNIDS) - set(gone):
        (tmp_path / wnid).symlink_to(whole / "val" / wnid)
    (tmp_path / gone[0]).mkdir()
    with pytest.raises(ValueError, match=r"of the 1,000 classes") as caught:
        load_imagenet_validation(tmp_path)
    line = str(caught.value)
    assert "988 of the 1,000" in line
    assert f"missing: {', '.join(gone[:10])} and 2 more;" in line
    assert "--allow-missing-classes" in line


def test_subset_is_told_when_it_is_allowed(tmp_path):
    for wnid in ("n01440764", "n02123045"):
        image(tmp_path / wnid / "a.JPEG")
    found = load_imagenet_validation(tmp_path, allow_missing_classes=True)
    assert len(found.class_names) == 1000
    assert "2 of the 1,000 classes" in found.notes[0]
    assert "chooses among all" in found.notes[0]


def test_incomplete_set_is_told(whole):
    (note,) = load_imagenet_validation(whole).notes
    assert "1,000 images; ImageNet's validation set has 50,000" in note


def test_folders_of_other_classes_are_named(tmp_path):
    for name in ("n01440764", "cats", "dogs"):
        image(tmp_path / name / "a.JPEG")
    with pytest.raises(ValueError, match=r"2 folders that are none .* classes: cats, dogs"):
        load_imagenet_validation(tmp_path, allow_missing_classes=True)


def test_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither class folders nor images"):
        load_imagenet_validation(tmp_path)


def test_classes_of_a_network_are_its_own(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n02012849", "n01440764"):
            image(tmp_path / part / wnid / "a.JPEG")
    names = load_source("imagenet", root=tmp_path).class_names
    found = load_imagenet_validation(tmp_path, class_names=names)
    assert found.class_names == names == ("tench, Tinca tinca", "crane (n02012849)")
    assert found.images.labels.tolist() == [0, 1]
    assert found.real is None


# --- ReaL


def test_real_labels_follow_the_number_in_the_name(whole, tmp_path):
    labels = [[number % 1000, 7] if number % 2 else [] for number in range(NUM_VALIDATION)]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    found = load_imagenet_validation(whole, real=tmp_path / "real.json")
    assert found.real == tuple(tuple(labels[3 * number]) for number in range(1000))


def test_real_labels_in_the_folder_are_found(whole, tmp_path):
    (tmp_path / "val").symlink_to(whole / "val")
    (tmp_path / "real.json").write_text(json.dumps([[1]] * NUM_VALIDATION))
    assert load_imagenet_validation(tmp_path).real == ((1,),) * 1000


def test_real_labels_are_timms_where_there_is_no_file(whole):
    real = load_imagenet_validation(whole).real
    assert real[:2] == ((), (809,))  # of images 1 and 4, by the published file


def test_selected_images_keep_their_real_labels(whole):
    found = load_imagenet_validation(whole)
    some = found.select(torch.tensor([1, 5]))
    assert some.real == (found.real[1], found.real[5])
    assert some.images.labels.tolist() == [1, 5]


@pytest.mark.parametrize("content", ["[[1]]", "{}", "no json", json.dumps([[1000]] * 50_000)])
def test_other_file_than_reals_is_refused(content, whole, tmp_path):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not ImageNet-ReaL's real.json"):
        load_imagenet_validation(whole, real=tmp_path / "real.json")


def test_real_labels_without_numbers_are_refused(v2, tmp_path):
    with pytest.raises(ValueError, match="leave --real out"):
        load_imagenet_validation(v2, real=tmp_path / "real.json")


# --- the evaluation transform, written by hand

SIZES = [  # width, height
    (500, 375),
    (375, 500),
    (257, 256),
    (255, 640),
    (224, 224),
    (1, 1),
    (3, 70),
    (641, 479),
    (63, 31),
    (513, 586),
]


def by_hand(image, size, mean, std):
    """Resize the short side to int(size * 256 / 224), crop the middle, normalise."""
    short = int(size * 256 / 224)
    width, height = image.size
    if width <= height:
        wide, tall = short, int(short * height / width)
    else:
        wide, tall = int(short * width / height), short
    image = image.resize((wide, tall), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2.0), round((tall - size) / 2.0)
    pixels = np.asarray(image)[top : top + size, left : left + size]
    floats = pixels.astype(np.float32) / np.float32(255)
    floats = (floats - np.float32(mean)) / np.float32(std)
    return floats.transpose(2, 0, 1)


def odd_image(width, height):
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name",
    [
        "patchconvnet_s60.fb_in1k",
        "patchconvnet_s60.fb_in22k_ft_in1k_384",
        "patchconvnet_s60.fb_in22k_ft_in1k_512",
    ],
)
def test_transform_of_released_weights_is_the_authors_pixel_for_pixel(name, size):
    cfg = timm.get_pretrained_cfg(name).to_dict()
    image = odd_image(*size)
    ours = transform_of(cfg)(image)
    theirs = by_hand(image, cfg["input_size"][1], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.data
def test_transform_of_photographs_is_the_authors(data_dir):
    cfg = timm.get_pretrained_cfg("patchconvnet_s60.fb_in1k").to_dict()
    files = sorted(Path(data_dir / "hymenoptera" / "val").rglob("*.jpg"))[::16]
    transform = transform_of(cfg)
    for file in files:
        image = Image.open(file).convert("RGB")
        assert np.array_equal(
            transform(image).numpy(), by_hand(image, 224, cfg["mean"], cfg["std"])
        )
