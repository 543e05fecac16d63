import math

import numpy as np
import pytest
import torch

from convattn.explanation.faithfulness import energy_in_box, peak_in_box
from convattn.explanation.geometry import Grid
from convattn.explanation.truth.measures import (
    OVERLAPS,
    box_overlaps,
    energy_in_mask,
    mask_overlaps,
    peak_in_mask,
    small_moves,
    sum_error,
)
from convattn.explanation.truth.report import summarise


def boxed(*boxes, size=16):
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (xmin, ymin, xmax, ymax) in zip(masks, boxes, strict=True):
        mask[ymin:ymax, xmin:xmax] = True
    return masks


BOXES = [[0, 0, 5, 9], [3, 2, 16, 7], [8, 8, 9, 9], [2, 2, 14, 14]]


def test_of_a_box_peak_and_energy_are_those_of_its_box():
    maps, grid = torch.rand(4, 4, 4), Grid.regular((4, 4), (16, 16))
    masks, boxes = boxed(*BOXES), torch.tensor(BOXES)
    hits = peak_in_box(maps, boxes, grid).double()
    torch.testing.assert_close(peak_in_mask(maps, masks, grid), hits)
    energy = energy_in_box(maps, boxes, grid).double()
    torch.testing.assert_close(energy_in_mask(maps, masks, grid), energy)


def test_without_an_object_there_is_no_answer():
    maps, masks = torch.rand(2, 4, 4), torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[1, 3, 3] = True
    grid = Grid.regular((4, 4), (16, 16))
    for found in (
        peak_in_mask(maps, masks, grid),
        energy_in_mask(maps, masks, grid),
        mask_overlaps(grid.heat(maps), masks)[:, 0],
        box_overlaps(grid.heat(maps), masks)[:, 0],
    ):
        assert found.isnan().tolist() == [True, False]


def wsol_evaluation(heat, box, threshold):
    """MaxBoxAccV2's boxes by its authors' steps with OpenCV; they take holes for boxes, too."""
    cv2 = pytest.importorskip("cv2")
    image = (heat > threshold * heat.max()).astype(np.uint8) * 255
    contours = cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    best = 0.0
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        across = max(0, min(x + width, box[2]) - max(x, box[0]))
        down = max(0, min(y + height, box[3]) - max(y, box[1]))
        area = (box[2] - box[0]) * (box[3] - box[1])
        best = max(best, across * down / (width * height + area - across * down))
    return best


def test_boxes_are_those_of_the_authors_contours():
    maps, grid = torch.rand(4, 5, 5), Grid.regular((5, 5), (16, 16))
    heats, thresholds = grid.heat(maps), [0.2, 0.5, 0.8]
    found = box_overlaps(heats, boxed(*BOXES), thresholds)
    for row, heat, box in zip(found, heats.numpy(), BOXES, strict=True):
        expected = [wsol_evaluation(heat, box, threshold) for threshold in thresholds]
        assert row.tolist() == pytest.approx(expected)
    assert found.max() > 0.3


def test_max_box_acc_is_the_slow_loop():
    heats, masks = torch.rand(40, 16, 16).cumsum(1), boxed(*BOXES * 10)
    found = summarise("max_box_acc", box_overlaps(heats, masks))
    overlaps = box_overlaps(heats, masks).numpy()
    best = [max((column >= overlap).mean() for column in overlaps.T) for overlap in OVERLAPS]
    assert found.value == pytest.approx(np.mean(best))
    assert found.low <= found.value + 1e-12
    assert 0 < found.value < 1


def test_iou_is_the_best_thresholds():
    heats = torch.zeros(30, 16, 16)
    heats[:, :8] = 0.52
    heats[:, :4] = 1.0
    masks = boxed(*[[0, 0, 16, 4]] * 30)
    found = mask_overlaps(heats, masks, (0.0, 0.5, 0.55))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64))
    assert summarise("iou", found).value == 1


def test_small_moves_stay_within_their_radius_and_are_drawn_anew():
    images = torch.zeros(2, 3, 4, 4)
    one, two = small_moves(images, 2, 0.1, seed=3)
    again = next(small_moves(images, 1, 0.1, seed=3))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert 0.05 < float(one.abs().max()) <= 0.1


def test_the_error_of_a_sum_is_a_part_of_the_largest_logit():
    maps = torch.ones(2, 2, 2)
    logits = torch.tensor([[5.0, -10.0], [5.0, 1.0]])
    found = sum_error(maps, torch.tensor([1.0, 0.0]), logits, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([0.0, 0.2])
    assert not math.isnan(
        float(sum_error(maps[:1], torch.ones(1), 0 * logits[:1], found[:1].long()))
    )
