import pytest
import torch

from convattn.data import DETECTION_DATASETS, load_detection
from convattn.data.scenes import generate_scenes


def test_scenes_are_for_networks_of_their_classes_alone():
    digits = [str(digit) for digit in range(10)]
    load_detection("cluttered_digits", num_train=1, num_test=1, class_names=digits)
    with pytest.raises(ValueError, match="in the same order"):
        load_detection("cluttered_digits", num_train=1, num_test=1, class_names=digits[::-1])


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'coc' for detection; did you mean 'coco'"):
        load_detection("coc")


# --- generated scenes


def test_scenes_as_a_source():
    source = load_detection("cluttered_digits", num_train=130, num_test=12, image_size=64, seed=2)
    assert (len(source.train), len(source.test)) == (130, 12)
    assert source.image_size == (64, 64)
    assert source.class_names == tuple("0123456789")
    assert source.category_ids == tuple(range(1, 11))
    assert source.has_masks
    scenes = generate_scenes(130, image_size=64, seed=2)
    for index in range(20):
        image, target = source.train[index]
        boxes, labels, masks = scenes.objects(index)
        assert torch.equal(image, scenes.images[index])
        assert target["boxes"].tolist() == boxes.tolist()
        assert torch.equal(target["labels"], labels)
        assert torch.equal(target["masks"].bool(), masks)
        assert target["area"].tolist() == masks.sum((1, 2)).tolist()
        assert target["image_id"] == index


def test_mean_and_deviation_of_the_scenes():
    source = load_detection("cluttered_digits", num_train=300, num_test=1)
    pixels = generate_scenes(300).images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(source.mean, abs=0.03)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(source.std, abs=0.03)


def test_test_scenes_do_not_depend_on_the_seed():
    one, other = (
        load_detection("cluttered_digits", num_train=5, num_test=5, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(one.test[0][0], other.test[0][0])
    assert not torch.equal(one.train[0][0], other.train[0][0])


def test_scenes_without_masks():
    source = load_detection("cluttered_digits", num_train=5, num_test=5, masks=False)
    assert not source.has_masks
    assert "masks" not in source.train[0][1]


def test_every_name_opens_something():
    assert DETECTION_DATASETS == ("cluttered_digits", "folder", "coco", "webdataset", "litdata")
