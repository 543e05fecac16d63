import json
import math
import re

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from convattn.segmentation.evaluation import (
    SegmentationMetrics,
    SegmentationResult,
    evaluate_segmentation,
)

NAMES = ("sky", "road", "tree", "car")


class Coloured(nn.Module):
    """The first channel of an image says the class; anything else would be learned."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.frozen = nn.BatchNorm2d(3).eval()
        self.seen = []

    def forward(self, x):
        assert not self.training
        self.seen.append(tuple(x.shape))
        classes = torch.arange(self.num_classes, dtype=torch.float32).view(1, -1, 1, 1)
        return -((x[:, :1] - classes) ** 2)


def _image(classes):
    return torch.as_tensor(classes).float().expand(3, -1, -1)


def _random(size, num_classes, seed):
    return torch.randint(num_classes, size, generator=torch.Generator().manual_seed(seed))


def _evaluated(predictions, truths, model=None, **arguments):
    return evaluate_segmentation(
        model or Coloured(),
        [([_image(one) for one in predictions], [tv_tensors.Mask(one) for one in truths])],
        class_names=NAMES,
        device="cpu",
        **arguments,
    )[0]


def _pairs(predictions, truths):
    """(truth, prediction) of every pixel that counts."""
    return [
        (true, found)
        for prediction, truth in zip(predictions, truths, strict=True)
        for found, true in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True)
        if true != 255
    ]


def _iou(pairs, k):
    either = sum(k in pair for pair in pairs)
    return pairs.count((k, k)) / either if either else None


def _accuracy(pairs, k):
    there = [found for true, found in pairs if true == k]
    return there.count(k) / len(there) if there else None


def _mean(values):
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined)


def _cases():
    truth, found = _random((2, 9, 7), 4, seed=0), _random((2, 9, 7), 4, seed=1)
    holes = truth.clone()
    holes[:, 2:5] = 255
    return {
        "mixed": (found, truth),
        "ignored_pixels": (found, holes),
        "one_image_all_ignored": (found, torch.stack([truth[0], torch.full((9, 7), 255)])),
        "class_in_neither": (found % 3, truth % 3),
        "class_only_predicted": (found, truth % 3),
        "class_only_true": (found % 3, truth),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_a_plain_loop(name):
    found, truth = CASES[name]
    pairs, result = _pairs(found, truth), _evaluated(found, truth)
    ious = {name: _iou(pairs, k) for k, name in enumerate(NAMES)}
    assert result.per_class == pytest.approx(
        {name: iou for name, iou in ious.items() if iou is not None}, abs=1e-12
    )
    assert (result.miou, result.mean_accuracy, result.pixel_accuracy) == pytest.approx(
        (
            _mean(ious.values()),
            _mean(_accuracy(pairs, k) for k in range(4)),
            sum(true == found for true, found in pairs) / len(pairs),
        ),
        abs=1e-12,
    )


def test_images_without_a_pixel_that_counts_define_nothing():
    result = _evaluated(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 255))
    assert (result.miou, result.mean_accuracy, result.pixel_accuracy) == (None, None, None)
    assert result.per_class == {}


def test_logits_are_resized_to_the_mask():
    found = torch.tensor([[[0, 2], [0, 2]]])
    # Half-way between classes 0 and 2 the logits of both, interpolated, are lower than those of 1.
    truth = torch.tensor([[[0, 0, 1, 1, 2, 2]] * 6])
    logits = torch.nn.functional.interpolate(
        Coloured().eval()(_image(found[0])[None]), size=(6, 6), mode="bilinear"
    )
    assert _evaluated(found, truth).pixel_accuracy == pytest.approx(
        (logits.argmax(1) == truth).double().mean().item(), abs=1e-12
    )


def test_images_of_one_size_run_together():
    model = Coloured()
    truths = [_random(size, 4, seed=0) for size in ((4, 6), (6, 4), (4, 6))]
    assert _evaluated(truths, truths, model).miou == 1
    assert model.seen == [(2, 3, 4, 6), (1, 3, 6, 4)]


def test_a_window_bounds_what_the_model_sees():
    model = Coloured()
    truth = _random((1, 10, 8), 4, seed=0)
    assert _evaluated(truth, truth, model, window=(4, 4)).miou == 1
    assert {shape[2:] for shape in model.seen} == {(4, 4)}


def test_the_model_is_left_as_it_was():
    model = Coloured()
    _evaluated(*[_random((1, 4, 4), 4, seed=0)] * 2, model)
    assert model.training
    assert not model.frozen.training


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    found, truth = CASES["ignored_pixels"]
    log_shares = torch.cat([Coloured().eval()(_image(one)[None]) for one in found]).log_softmax(1)
    terms = [
        -log_shares[b, truth[b, y, x], y, x].item() for b, y, x in (truth != 255).nonzero().tolist()
    ]
    assert _evaluated(found, truth).loss == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)


def test_half_the_images_each_make_the_whole_when_summed():
    found, truth = _random((4, 5, 5), 4, seed=2), _random((4, 5, 5), 4, seed=3)
    images, model = [_image(one) for one in found], Coloured().eval()
    whole, halves = (SegmentationMetrics(class_names=NAMES) for _ in range(2))
    whole.update(model, images, truth)
    for half in (slice(2), slice(2, 4)):
        halves.update(model, images[half], truth[half])
    together, apart = whole.compute(), halves.compute()
    assert apart.pop("loss") == pytest.approx(together.pop("loss"))
    assert apart == together
    assert apart["num_images"] == 4


def test_json_holds_every_field():
    result = _evaluated(*[_random((1, 4, 4), 4, seed=0)] * 2)
    assert SegmentationResult(**json.loads(result.to_json())) == result


def test_the_table_names_the_worst_class():
    table = _evaluated(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]])).table()
    assert re.search(r"^worst class, sky +50.00%$", table, re.MULTILINE)


def test_a_model_of_another_number_of_classes_is_refused():
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"the model has 3 classes and the data 4;"):
        _evaluated(truth, truth, Coloured(3))


def test_a_class_beyond_the_names_is_refused():
    with pytest.raises(ValueError, match=r"a mask has class 7 and the data has classes 0 to 3;"):
        _evaluated(torch.zeros(1, 2, 2), torch.tensor([[[0, 7], [255, 1]]]))


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="there is no image to evaluate"):
        evaluate_segmentation(Coloured(), [], class_names=NAMES, device="cpu")
