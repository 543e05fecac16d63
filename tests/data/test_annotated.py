import pytest
import torch
from PIL import Image

from convattn.data.annotated import AnnotatedImages, set_aside_images
from convattn.data.detection import load_detection
from convattn.data.segmentation import load_segmentation


def _numbers(total):
    return AnnotatedImages(range(total), lambda k: (k, -k), [str(k) for k in range(total)])


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 4, [0, 2, 5, 7]), (3, 8, [0, 1, 2]), (0, 4, []), (5, 0, [])],
)
def test_a_spread_takes_equal_steps_through_the_set(total, count, expected):
    assert list(_numbers(total).spread(count)) == [(k, -k) for k in expected]


def test_a_selection_keeps_the_transform():
    doubled = _numbers(4).with_transform(lambda image, truth: (2 * image, truth))
    assert doubled.select(torch.tensor([3]))[0] == (6, -3)


# --- a validation part


def squares(root, count, copies=0):
    """Images of one class each, in turn; the first ones are copies of one another."""
    for number in range(count):
        folder = root / "images" / ("val" if number % 5 == 4 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        labels = root / "labels" / folder.name
        labels.mkdir(parents=True, exist_ok=True)
        grey = 1 if number < copies else 10 + number
        Image.new("L", (8, 8), grey).convert("RGB").save(folder / f"{number:02}.png")
        (labels / f"{number:02}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n")
    (root / "classes.txt").write_text("a\nb\n")
    return load_detection("folder", root=root, format="yolo")


def test_a_share_of_the_training_images_is_set_aside_by_the_seed(tmp_path):
    source = squares(tmp_path, 50)
    parted = set_aside_images(source, 0.25, root=str(tmp_path), group=None, seed=0)
    names = [set(part.names) for part in (parted.train, parted.val)]
    assert names[0] | names[1] == set(source.train.names)
    assert not names[0] & names[1]
    assert len(names[1]) == pytest.approx(10, abs=2)
    assert parted.test.names == source.test.names
    shown = {label for record in parted.val.samples for label in record.labels.tolist()}
    assert shown == {1, 2}
    assert parted.notes[-1].endswith("of 40 training images are set aside to validate on")
    again = set_aside_images(source, 0.25, root=str(tmp_path), group=None, seed=0)
    other = set_aside_images(source, 0.25, root=str(tmp_path), group=None, seed=1)
    assert again.val.names == parted.val.names != other.val.names


def test_copies_and_groups_stay_in_one_part(tmp_path):
    source = squares(tmp_path, 50, copies=6)
    for group, together in ((None, ["00", "01", "02", "03", "05"]), (r"/1(\d)", None)):
        for seed in range(5):
            parted = set_aside_images(source, 0.3, root=str(tmp_path), group=group, seed=seed)
            stems = {name.rsplit("/", 1)[1][:2] for name in parted.val.names}
            if together is not None:
                assert len(stems & set(together)) in (0, len(together))


def test_generated_images_have_a_validation_part_too():
    source = load_segmentation("cluttered_digits", num_train=20, num_test=4, image_size=48)
    parted = set_aside_images(source, 0.2, root=None, group=None, seed=0)
    assert (len(parted.train), len(parted.val)) == (16, 4)
