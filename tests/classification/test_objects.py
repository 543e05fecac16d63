import pytest
import torch
from PIL import Image

from convattn.classification.objects import boxed_objects, masked_objects
from convattn.data import ImageFiles, TensorImages

WHOLE = {"input_size": (3, 32, 32), "crop_pct": 1.0}
CROPPED = {"input_size": (3, 32, 32), "crop_pct": 0.5}


def boxed(box, size=(32, 32)):
    images = torch.zeros(1, 3, *size, dtype=torch.uint8)
    return TensorImages(images, torch.zeros(1, dtype=torch.int64), boxes=torch.tensor([box]))


def box_of(mask):
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_a_box_lies_where_it_lay():
    (mask,) = boxed_objects(boxed([3, 5, 10, 30]), WHOLE)
    assert box_of(mask) == [3, 5, 10, 30]
    assert int(mask.sum()) == 7 * 25


def test_a_box_is_resized_and_cropped_as_its_image():
    (mask,) = boxed_objects(boxed([3, 5, 10, 30], (64, 64)), WHOLE)
    assert box_of(mask)[0] in (1, 2)
    assert box_of(mask)[2] == 5
    # The middle half of the image fills the input: 8..24 becomes 0..32.
    (mask,) = boxed_objects(boxed([8, 16, 12, 40]), CROPPED)
    assert box_of(mask) == [0, 16, 8, 32]
    (mask,) = boxed_objects(boxed([0, 0, 5, 5]), CROPPED)
    assert not mask.any()


def test_without_boxes_nothing_is_known():
    images = boxed([0, 0, 1, 1])
    images.boxes = None
    assert boxed_objects(images, WHOLE) is None


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a/one.jpg", (40, 32)), ("b/two.jpg", (32, 32))):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / "images" / name)
    mask = Image.new("L", (40, 32))
    mask.paste(255, (10, 4, 20, 9))
    (tmp_path / "masks" / "a").mkdir(parents=True)
    mask.save(tmp_path / "masks" / "a" / "one.png")
    return tmp_path


def files(folder):
    paths = [str(folder / "images" / name) for name in ("a/one.jpg", "b/two.jpg")]
    return ImageFiles(paths, torch.zeros(2, dtype=torch.int64))


def test_masks_lie_as_the_images_do(folder):
    masks = masked_objects(files(folder), WHOLE, folder / "images", folder / "masks")
    # The crop takes four columns from either side.
    assert box_of(masks[0]) == [6, 4, 16, 9]
    assert not masks[1].any()


def test_masks_that_do_not_fit_are_told(folder):
    with pytest.raises(FileNotFoundError, match="holds no mask of the 2 test images"):
        masked_objects(files(folder), WHOLE, folder / "images", folder)
    Image.new("L", (32, 40)).save(folder / "masks" / "a" / "one.png")
    with pytest.raises(ValueError, match=r"one.png is 32 x 40 pixels and its image 40 x 32"):
        masked_objects(files(folder), WHOLE, folder / "images", folder / "masks")
