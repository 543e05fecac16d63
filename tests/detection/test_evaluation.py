import contextlib
import io
import json
import re

import numpy as np
import pycocotools.mask
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import precision_recall_curve
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_iou

from convattn.detection.evaluation import (
    DetectionMetrics,
    DetectionResult,
    evaluate_detection,
)

NAMES = ("cat", "dog", "owl", "newt")
STATS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
SIDE = 160


def _annotation(image_id: int, box: list[float], label: int) -> dict[str, object]:
    xmin, ymin, xmax, ymax = box
    return {
        "image_id": image_id,
        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
        "category_id": label,
    }


def _rle(mask: Tensor) -> dict[str, object]:
    return pycocotools.mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def _truths(targets, kind):
    for image_id, target in enumerate(targets):
        for k, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            yield _annotation(image_id, box.tolist(), int(label)) | {
                "area": float(target["area"][k]),
                "iscrowd": int(target["iscrowd"][k]),
                **({"segmentation": _rle(target["masks"][k])} if kind == "segm" else {}),
            }


def _results(predictions, kind):
    for image_id, prediction in enumerate(predictions):
        for k, (box, label) in enumerate(
            zip(prediction["boxes"], prediction["labels"], strict=True)
        ):
            entry = _annotation(image_id, box.tolist(), int(label))
            entry["score"] = float(prediction["scores"][k])
            if kind == "segm":
                # With a box beside the mask, loadRes would take the box's area.
                del entry["bbox"]
                entry["segmentation"] = _rle(prediction["masks"][k, 0] > 0.5)
            yield entry


def pycocotools_evaluation(predictions, targets, kind) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(targets))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
            "annotations": [
                {"id": i, **annotation} for i, annotation in enumerate(_truths(targets, kind), 1)
            ],
        }
        truth.createIndex()
        results = list(_results(predictions, kind))
        found = truth.loadRes(results) if results else COCO()
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _masks(boxes: Tensor, fill: float) -> Tensor:
    """The left part of each box, so that masks and boxes overlap differently."""
    masks = torch.zeros(len(boxes), SIDE, SIDE)
    for mask, (xmin, ymin, xmax, ymax) in zip(masks, boxes.round().long().tolist(), strict=True):
        mask[ymin:ymax, xmin : xmin + max(1, round(fill * (xmax - xmin)))] = 0.9
    return masks


def target(boxes, labels, *, crowd=(), area=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = (_masks(boxes, 0.8) > 0.5).to(torch.uint8)
    return {
        "image_id": 0,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIDE, SIDE)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "area": masks.sum((1, 2)).float() if area is None else torch.tensor(area),
        "iscrowd": torch.tensor([k in crowd for k in range(len(boxes))], dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
    }


def prediction(boxes, labels, scores):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "masks": _masks(boxes, 0.9).unsqueeze(1),
    }


def random_case(seed: int):
    """Truth of all sizes and shaken copies of it, with strays, swapped labels and equal scores."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(n, low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    predictions, targets = [], []
    for image in range(6):
        n = image % 4
        corner, sides = uniform((n, 2), 0, 40), uniform((n, 2), 12, 118)
        boxes = torch.cat([corner, corner + sides], 1).round()
        labels = torch.randint(1, 4, (n,), generator=generator)
        crowd = {0} if image == 3 else set()
        targets.append(target(boxes.tolist(), labels.tolist(), crowd=crowd))
        shaken = boxes.repeat(3, 1) + torch.randint(-6, 7, (3 * n, 4), generator=generator)
        strays = torch.tensor([[5.0, 5.0, 60.0, 44.0], [80.0, 80.0, 100.0, 97.0]])
        guesses = torch.cat([shaken, strays]).clamp(0, SIDE)
        named = torch.cat([labels.repeat(3), torch.tensor([1, 4])])
        scores = (uniform(len(guesses), 0, 1) * 8).round() / 8
        predictions.append(prediction(guesses.tolist(), named.tolist(), scores.tolist()))
    return predictions, targets


A, B, C = [10.0, 10.0, 40.0, 50.0], [60.0, 20.0, 150.0, 140.0], [4.0, 100.0, 20.0, 120.0]
CROWDED = [[float(i), float(i), float(i + 40), float(i + 40)] for i in range(110)]

CASES = {
    "all_right": ([prediction([A, B], [1, 2], [0.9, 0.8])], [target([A, B], [1, 2])]),
    "crowd": (
        [prediction([A, [60, 20, 100, 60], [100, 60, 150, 140]], [1, 2, 2], [0.5, 0.9, 0.8])],
        [target([A, B], [1, 2], crowd={1})],
    ),
    "image_without_truth": (
        [prediction([A], [1], [0.9]), prediction([B], [1], [0.8])],
        [target([], []), target([B], [1])],
    ),
    "image_without_predictions": (
        [prediction([], [], []), prediction([B], [1], [0.8])],
        [target([A], [1]), target([B], [1])],
    ),
    "no_predictions": ([prediction([], [], [])], [target([A], [1])]),
    "no_truth": ([prediction([A], [1], [0.9])], [target([], [])]),
    "equal_scores": (
        [prediction([C, A, B, [12, 10, 40, 52]], [1, 1, 1, 1], [0.5] * 4)],
        [target([A, B], [1, 1])],
    ),
    "class_without_truth": (
        [prediction([A, B], [1, 4], [0.9, 0.8])],
        [target([A, B], [1, 2])],
    ),
    "more_than_100_detections": (
        [prediction(CROWDED, [1] * 110, [1 - i / 200 for i in range(110)])],
        [target([CROWDED[5], CROWDED[60], CROWDED[108]], [1, 1, 1])],
    ),
    "area_is_not_the_box": (
        [prediction([A, B, C], [1, 1, 1], [0.9, 0.8, 0.7])],
        [target([A, B, C], [1, 1, 1], area=[90.0, 2000.0, 9500.0])],
    ),
    # 0.6 of the truth, and float32's 0.6 is a little more.
    "iou_on_a_threshold": (
        [prediction([[0, 0, 60, 100]], [1], [0.9])],
        [target([[0, 0, 100, 100]], [1])],
    ),
    **{f"random_{seed}": random_case(seed) for seed in range(2, 5)},
}


def _computed(case, *, has_masks):
    metrics = DetectionMetrics(class_names=NAMES, has_masks=has_masks)
    metrics.update(*case)
    return metrics.compute()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("has_masks", [False, True])
def test_boxes_are_rated_as_pycocotools_rates_them(name, has_masks):
    stats = pycocotools_evaluation(*CASES[name], "bbox").stats
    expected = [None if value < 0 else value for value in (*stats[:6], stats[8])]
    found = _computed(CASES[name], has_masks=has_masks)
    # torchmetrics hands out float32.
    assert [found[key] for key in (*STATS, "mar100")] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_masks_are_rated_as_pycocotools_rates_them(name):
    stats = pycocotools_evaluation(*CASES[name], "segm").stats
    expected = [None if value < 0 else value for value in stats[:3]]
    found = _computed(CASES[name], has_masks=True)
    keys = ("segm_map", "segm_map50", "segm_map75")
    assert [found[key] for key in keys] == pytest.approx(expected, abs=1e-7)


class Oracle(nn.Module):
    """Finds what it was told, one image after the other, and can be frozen in part."""

    def __init__(self, predictions):
        super().__init__()
        self.rest = list(predictions)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return [self.rest.pop(0) for _ in images]


def _loader(targets, batch_size=2):
    for start in range(0, len(targets), batch_size):
        batch = targets[start : start + batch_size]
        yield [torch.rand(3, SIDE, SIDE) for _ in batch], batch


def _evaluated(case, **arguments) -> DetectionResult:
    predictions, targets = case
    return evaluate_detection(
        Oracle(predictions),
        _loader(targets),
        class_names=NAMES,
        device="cpu",
        **{"has_masks": True, **arguments},
    )[0]


def test_a_loader_gives_what_the_metric_gives():
    result = _evaluated(CASES["random_3"])
    fields = vars(result) | {}
    assert fields.pop("images_per_second") > 0
    assert fields == _computed(CASES["random_3"], has_masks=True)


def test_crowds_are_not_counted_as_objects():
    result = _evaluated(CASES["crowd"])
    assert (result.num_images, result.num_objects) == (1, 1)


def test_each_class_has_its_own_precision():
    evaluation = pycocotools_evaluation(*CASES["random_2"], "bbox")
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    expected = {
        name: float(precision[:, :, k].mean())
        for k, name in enumerate(NAMES)
        if (precision[:, :, k] > -1).any()
    }
    assert _evaluated(CASES["random_2"]).per_class == pytest.approx(expected, abs=1e-7)


def test_a_class_without_objects_is_left_out():
    assert set(_evaluated(CASES["class_without_truth"]).per_class) == {"cat", "dog"}


def test_what_is_not_defined_is_left_out_of_the_table():
    table = _evaluated(CASES["no_truth"], has_masks=False).table()
    assert "mAP" not in table
    assert "images" in table


def test_the_table_names_the_worst_class():
    table = _evaluated(CASES["class_without_truth"]).table()
    assert re.search(r"^worst class, dog +0.00%$", table, re.MULTILINE)


def test_json_holds_every_field():
    result = _evaluated(CASES["all_right"])
    assert DetectionResult(**json.loads(result.to_json())) == result


def test_the_model_is_evaluated_and_left_as_it_was():
    model = Oracle(CASES["all_right"][0])
    evaluate_detection(
        model, _loader(CASES["all_right"][1]), class_names=NAMES, has_masks=False, device="cpu"
    )
    assert model.modes == [False]
    assert model.training
    assert not model.frozen.training


def test_nothing_is_printed(capfd):
    _evaluated(CASES["random_2"])
    assert capfd.readouterr() == ("", "")


def test_reset_forgets_the_images():
    metrics = DetectionMetrics(class_names=NAMES, has_masks=False)
    metrics.update(*CASES["random_2"])
    metrics.reset()
    metrics.update(*CASES["all_right"])
    assert metrics.compute() == _computed(CASES["all_right"], has_masks=False)


def test_a_model_of_more_classes_is_refused():
    case = ([prediction([A], [5], [0.9])], [target([A], [1])])
    with pytest.raises(ValueError, match=r"labels 5 to 5 where the data has classes 1 to 4;"):
        _evaluated(case)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="there is no image to evaluate"):
        _evaluated(([], []))


def slow_matches(predictions, targets, label):
    """(score, whether right) of every box of a class, as COCO matches them, and how many objects.

    The surest box takes the object that it overlaps most, of those that are free.
    """
    scored, objects = [], 0
    for prediction, truth in zip(predictions, targets, strict=True):
        own = (truth["labels"] == label) & ~truth["iscrowd"].bool()
        boxes, free = truth["boxes"][own], set(range(int(own.sum())))
        objects += len(boxes)
        chosen = prediction["labels"] == label
        scores, found = prediction["scores"][chosen], prediction["boxes"][chosen]
        for place in scores.argsort(descending=True, stable=True).tolist():
            overlaps = {k: box_iou(found[place][None], boxes[k][None]).item() for k in free}
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            right = best is not None and overlaps[best] >= 0.5
            free -= {best} if right else set()
            scored.append((scores[place].item(), right))
    return scored, objects


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_curves_are_sklearns(seed):
    predictions, targets = random_case(seed)
    for truth in targets:
        truth["iscrowd"] = torch.zeros_like(truth["iscrowd"])
    for found in predictions:  # sklearn takes equal scores together, COCO one after the other
        found["scores"] += torch.rand(len(found["scores"])) / 1000
    metrics = DetectionMetrics(class_names=NAMES, has_masks=False)
    metrics.update(predictions, targets)
    found = metrics.compute()
    assert metrics.curves
    for label, name in enumerate(NAMES, start=1):
        scored, objects = slow_matches(predictions, targets, label)
        if not objects:
            assert name not in metrics.curves
            continue
        scores, right = map(np.array, zip(*scored, strict=True)) if scored else ([], [])
        curve = metrics.curves[name]
        if not any(right):
            assert not curve.precision.any()
            continue
        precision, recall, _ = precision_recall_curve(right, scores)
        # Without the end that sklearn adds, a precision of 1 at a recall of 0.
        precision, recall = precision[:-1], recall[:-1] * sum(right) / objects
        expected = [max(precision[recall >= least - 1e-12], default=0.0) for least in curve.recall]
        assert curve.precision == pytest.approx(np.array(expected), abs=1e-7)
        assert found["per_class_ap50"][name] == pytest.approx(np.mean(expected), abs=1e-7)
        # At its threshold the class is found as often as the curve says.
        for least, score in zip(curve.recall, curve.score, strict=True):
            if score > 0:
                hits = sum(one for at, one in scored if at >= score - 1e-6)
                assert hits / objects >= least - 1e-9


@pytest.mark.parametrize("name", CASES)
def test_ap50_of_the_classes_is_that_of_all(name):
    found = _computed(CASES[name], has_masks=False)
    values = list(found["per_class_ap50"].values())
    assert found["ap50"] == found["map50"]
    assert found["ap50"] == (pytest.approx(np.mean(values), abs=1e-6) if values else None)
    assert found["per_class_ap50"].keys() == found["per_class"].keys()


def test_confusion_counts_box_by_box():
    left, middle, right = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]
    found = prediction(
        [left, [20, 1, 30, 11], [0, 30, 10, 40], [41, 0, 51, 10]],
        [1, 3, 2, 2],
        [0.9, 0.8, 0.7, 0.3],
    )
    truth = target([left, middle, right], [1, 2, 2])
    metrics = DetectionMetrics(class_names=NAMES, has_masks=False)
    metrics.update([found], [truth])
    counts = metrics.confusion(0.5)
    expected = np.zeros((5, 5), np.int64)
    expected[0, 0] = 1  # right
    expected[1, 2] = 1  # of another class
    expected[4, 1] = 1  # nothing is there
    expected[1, 4] = 1  # found, but below the threshold
    assert (counts == expected).all()
    expected[1, 4], expected[1, 1] = 0, 1
    assert (metrics.confusion(0.3) == expected).all()


def test_boxes_on_a_crowd_are_no_confusion():
    crowd = [0, 0, 50, 50]
    truth = target([crowd, [52, 52, 60, 60]], [1, 2], crowd=(0,))
    found = prediction([[5, 5, 15, 15], [0, 55, 8, 63]], [1, 1], [0.9, 0.9])
    metrics = DetectionMetrics(class_names=NAMES, has_masks=False)
    metrics.update([found], [truth])
    counts = metrics.confusion(0.5)
    assert counts[4, 0] == 1
    assert counts[1, 4] == 1
    assert counts.sum() == 2


def test_the_table_tells_of_every_class():
    lines = _evaluated(CASES["class_without_truth"]).table().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("class "))
    assert lines[start].split() == ["class", "objects", "AP50", "AP"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 1 :]}
    assert list(rows) == list(NAMES)
    empty = [name for name in NAMES if name not in ("cat", "dog")]
    assert all(rows[name] == ["0", "-", "-"] for name in empty)
