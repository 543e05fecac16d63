import io
import sys

import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from convattn.classification.dataset import open_data
from convattn.config import DataConfig
from convattn.data import ImageFiles, TensorImages, UnreadableImageError
from convattn.data.images import Replacing, find_readable


def tensor_images(count=10, **extra):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 4, 5), dtype=torch.uint8, generator=generator)
    return TensorImages(images, torch.arange(count), **extra)


def jpeg(side=40):
    data = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(data, "JPEG")
    return data.getvalue()


def test_item_is_image_and_label():
    dataset = tensor_images()
    image, label = dataset[3]
    assert torch.equal(image, dataset.images[3])
    assert label == 3


def test_iteration_ends():
    assert [label for _, label in tensor_images(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ordinary_data_loader_gives_every_image(num_workers):
    dataset = tensor_images(10)
    batches = list(DataLoader(dataset, batch_size=4, num_workers=num_workers))
    assert torch.equal(torch.cat([images for images, _ in batches]), dataset.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)


def test_transform_sees_whole_batches():
    shapes = []

    def transform(images):
        shapes.append(tuple(images.shape))
        return images.float()

    list(DataLoader(tensor_images(10).with_transform(transform), batch_size=4))
    assert shapes == [(4, 3, 4, 5), (4, 3, 4, 5), (2, 3, 4, 5)]


def test_with_transform_shares_the_images_and_leaves_the_original():
    dataset = tensor_images(3)
    changed = dataset.with_transform(lambda images: images.float())
    assert changed.images.data_ptr() == dataset.images.data_ptr()
    assert dataset[0][0].dtype == torch.uint8
    assert changed[0][0].dtype == torch.float32


def test_select_keeps_boxes_and_masks_with_their_images():
    dataset = tensor_images(
        5, boxes=torch.arange(20).view(5, 4), masks=torch.eye(5).bool().view(5, 1, 5)
    )
    chosen = dataset.select(torch.tensor([4, 1]))
    assert chosen.labels.tolist() == [4, 1]
    assert torch.equal(chosen.images, dataset.images[[4, 1]])
    assert torch.equal(chosen.boxes, dataset.boxes[[4, 1]])
    assert torch.equal(chosen.masks, dataset.masks[[4, 1]])


def test_floats_are_refused():
    with pytest.raises(ValueError, match=r"images is torch.float32.*torch.uint8"):
        TensorImages(torch.rand(2, 3, 4, 4), torch.zeros(2))


@pytest.mark.parametrize("name", ["labels", "boxes", "masks"])
def test_numbers_that_differ_are_refused(name):
    arguments = {"labels": torch.zeros(2), name: torch.zeros(3)}
    with pytest.raises(ValueError, match=f"{name} holds 3 rows for 2 images"):
        TensorImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), **arguments)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_files_of_any_mode_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (4, 3)).save(path)
    image, label = ImageFiles([str(path)], torch.tensor([7]))[0]
    assert (image.mode, image.size, label) == ("RGB", (4, 3), 7)


BROKEN = {
    "truncated.jpg": jpeg()[:-300],
    "header_only.jpg": jpeg()[:30],
    "empty.png": b"",
    "text.jpg": b"not an image\nat all",
    "missing.jpg": None,
}


def check_sentence(error, path):
    message = str(error)
    assert message.startswith(f"{path} cannot be read as an image (")
    assert message.endswith("): replace or remove this file")
    assert "\n" not in message


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_one_sentence_that_names_it(tmp_path, name):
    path = tmp_path / name
    if BROKEN[name] is not None:
        path.write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImageError) as caught:
        ImageFiles([str(path)], torch.tensor([0]))[0]
    check_sentence(caught.value, path)


def test_sentence_comes_out_of_a_worker_process_unchanged(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_bytes(BROKEN["text.jpg"])
    try:
        ImageFiles([str(path)], torch.tensor([0]))[0]
    except UnreadableImageError:
        # What a DataLoader's worker sends: a process of its own would take 5 seconds to end.
        sent = ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 0")
    with pytest.raises(UnreadableImageError) as caught:
        sent.reraise()
    assert "Traceback" in caught.value.args[0]
    check_sentence(caught.value, path)


# --- images that cannot be read


def four_of_which_two_are_bad(folder):
    paths = []
    for number in range(4):
        file = folder / f"{number}.png"
        if number in (1, 2):
            file.write_bytes(BROKEN["text.jpg"])
        else:
            Image.new("RGB", (2, 2), (number,) * 3).save(file)
        paths.append(str(file))
    return ImageFiles(paths, torch.arange(4))


def test_the_next_image_takes_the_place_of_a_bad_one_and_it_is_told_once(tmp_path, capsys):
    images = Replacing(four_of_which_two_are_bad(tmp_path))
    assert len(images) == 4
    for _ in range(2):
        assert [images[index][1] for index in range(4)] == [0, 3, 3, 3]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert f"{tmp_path}/1.png cannot be read" in said[0]
    assert said[0].endswith("the next image takes its place")


def test_where_all_are_bad_one_is_named(tmp_path):
    images = four_of_which_two_are_bad(tmp_path).select(torch.tensor([1, 2]))
    with pytest.raises(UnreadableImageError, match=r"[12]\.png cannot be read"):
        Replacing(images)[0]
    with pytest.raises(UnreadableImageError, match=r"1\.png cannot be read"):
        find_readable(images)


def test_readable_images_of_a_test(tmp_path):
    images = four_of_which_two_are_bad(tmp_path)
    readable, errors = find_readable(images)
    assert readable.tolist() == [0, 3]
    assert [error.split()[0] for error in errors] == [f"{tmp_path}/1.png", f"{tmp_path}/2.png"]


@pytest.mark.parametrize("choice", ["error", "skip"])
def test_a_tests_bad_images_are_left_out_by_choice(tmp_path, capsys, choice):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            four_of_which_two_are_bad(tmp_path / split / label)
    config = DataConfig(name="folder", root=str(tmp_path), bad_images=choice)
    source = open_data(config)
    assert len(source.test) == (8 if choice == "error" else 4)
    assert ("4 x unreadable test image" in capsys.readouterr().err) == (choice == "skip")
