import dataclasses
import json
import math
import statistics
import sys

import pytest
import timm
import torch
from torch import nn

from convattn.explanation.faithfulness import (
    Score,
    deletion_insertion,
    energy_in_box,
    measure_faithfulness,
    peak_in_box,
)
from convattn.explanation.geometry import Grid

MODULE = sys.modules[deletion_insertion.__module__]


def random_boxes(number, height, width):
    low = torch.stack([torch.randint(0, width, (number,)), torch.randint(0, height, (number,))], 1)
    return torch.cat([low, low + torch.randint(1, height, (number, 2))], 1)


def test_peak_and_energy_are_the_slow_loop():
    torch.manual_seed(1)
    maps, boxes = torch.rand(20, 4, 6), random_boxes(20, 16, 48)
    grid = Grid((4, 6), (16, 48), start=(1.5, 3.0), stride=(4.5, 7.0))
    peaks, energies, heats = (
        peak_in_box(maps, boxes, grid),
        energy_in_box(maps, boxes, grid),
        grid.heat(maps),
    )
    for number in range(20):
        xmin, ymin, xmax, ymax = boxes[number].tolist()
        best, inside, total = (-1.0, 0, 0), 0.0, 0.0
        for row in range(4):
            for column in range(6):
                best = max(best, (float(maps[number, row, column]), row, column))
        for y in range(16):
            for x in range(48):
                value = float(heats[number, y, x])
                total += value
                inside += value * (xmin <= x < xmax and ymin <= y < ymax)
        y, x = 1.5 + 4.5 * best[1], 3.0 + 7.0 * best[2]
        assert bool(peaks[number]) == (xmin <= x < xmax and ymin <= y < ymax)
        assert float(energies[number]) == pytest.approx(inside / total, rel=1e-5)
    assert 0 < peaks.sum() < 20


@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (3, 0), (3, 5), (2, 3)])
def test_a_box_of_one_pixel_holds_the_peak_of_its_cell_alone(cell):
    grid = Grid.regular((4, 6), (32, 48))
    maps = torch.zeros(1, 4, 6)
    maps[0, cell[0], cell[1]] = 1
    for row in range(4):
        for column in range(6):
            x, y = 8 * column, 8 * row
            hit = peak_in_box(maps, torch.tensor([[x, y, x + 1, y + 1]]), grid)
            assert bool(hit) == ((row, column) == cell)


def test_energy_in_a_box_of_one_pixel_is_that_pixels_share():
    maps = torch.rand(1, 5, 7)
    energy = energy_in_box(maps, torch.tensor([[6, 2, 7, 3]]), Grid.of_pixels((5, 7)))
    torch.testing.assert_close(energy, (maps[:, 2, 6] / maps.sum()))


@pytest.mark.parametrize("box", [[0, 0, 16, 8], [3, 2, 9, 8], [1.25, 0.5, 1.5, 0.75]])
def test_energy_of_an_even_map_is_the_boxs_share(box):
    energy = energy_in_box(
        torch.full((1, 2, 4), 0.3), torch.tensor([box]), Grid.regular((2, 4), (8, 16))
    )
    share = (box[2] - box[0]) * (box[3] - box[1]) / (8 * 16)
    torch.testing.assert_close(energy, torch.tensor([share]))


def test_an_empty_map_misses():
    maps, box = torch.zeros(1, 2, 2), torch.tensor([[0, 0, 8, 8]])
    grid = Grid.regular((2, 2), (8, 8))
    assert not peak_in_box(maps, box, grid)
    assert energy_in_box(maps, box, grid) == 0


PATCH = (2, 5)
"""Row and column of the first of the four pixels that ``Patch`` looks at."""


class Patch(nn.Module):
    """Class 1's logit is the sum of four pixels, class 0's is 0."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x):
        row, column = PATCH
        patch = self.conv(x)[:, :, row : row + 2, column : column + 2]
        logit = patch.sum((2, 3))
        return torch.cat([torch.zeros_like(logit), logit], 1)


def perfect_heat(height, width):
    row, column = PATCH
    heat = torch.zeros(height, width)
    heat[row : row + 2, column : column + 2] = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    return heat


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_perfect_map_deletes_what_counts_first():
    images, targets = torch.ones(1, 1, 8, 8), torch.tensor([1])
    for heat, left in (
        (perfect_heat(8, 8), [max(0, 4 - k) for k in range(65)]),
        (-perfect_heat(8, 8), [min(4, 64 - k) for k in range(65)]),
    ):
        curves = deletion_insertion(Patch(), images, heat[None], targets, num_steps=64)
        expected = torch.tensor([[sigmoid(pixels) for pixels in left]])
        torch.testing.assert_close(curves.deletion, expected)


def test_a_perfect_map_inserts_what_counts_first():
    images, targets = torch.zeros(1, 1, 64, 64), torch.tensor([1])
    row, column = PATCH
    images[0, 0, row : row + 2, column : column + 2] = 3.0
    curves = deletion_insertion(
        Patch(), images, perfect_heat(64, 64)[None], targets, num_steps=1024
    )
    assert curves.insertion[0, 0] < 0.7  # under the blur little is left of four pixels
    torch.testing.assert_close(curves.insertion[0, 1:], torch.full((1024,), sigmoid(12)))
    assert curves.insertion_area > 0.998


def slow_blur(image):
    """A Gaussian by its formula, over a mirrored image."""
    height, width = image.shape
    sigma = min(height, width) / 16
    reach = round(3 * sigma)
    weights = [math.exp(-(d * d) / (2 * sigma * sigma)) for d in range(-reach, reach + 1)]

    def mirrored(place, size):
        return size - 1 - abs(size - 1 - abs(place))

    blurred = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            for i, down in enumerate(weights):
                for j, across in enumerate(weights):
                    there = mirrored(y + i - reach, height), mirrored(x + j - reach, width)
                    blurred[y, x] += down * across * image[there]
    return blurred / sum(weights) ** 2


def test_curves_are_the_slow_loop():
    torch.manual_seed(0)
    height, width, num_steps = 18, 20, 7
    images, heats = torch.randn(2, 1, height, width), torch.rand(2, height, width)
    targets = torch.tensor([1, 0])
    model = Patch()
    curves = deletion_insertion(model, images, heats, targets, num_steps=num_steps)
    for number in range(2):
        blurred = slow_blur(images[number, 0])
        order = sorted(
            ((y, x) for y in range(height) for x in range(width)),
            key=lambda at: -float(heats[number, at[0], at[1]]),
        )
        for step in range(num_steps + 1):
            removed, inserted = images[number, 0].clone(), blurred.clone()
            for at in order[: round(step * height * width / num_steps)]:
                removed[at] = 0
                inserted[at] = images[number, 0][at]
            for altered, curve in ((removed, curves.deletion), (inserted, curves.insertion)):
                with torch.no_grad():
                    expected = model(altered[None, None]).softmax(1)[0, targets[number]]
                assert float(curve[number, step]) == pytest.approx(float(expected), abs=1e-5)


def test_areas_are_those_of_the_trapezoids():
    torch.manual_seed(0)
    images, heats = torch.randn(3, 1, 8, 8), torch.rand(3, 8, 8)
    curves = deletion_insertion(Patch(), images, heats, torch.tensor([1, 1, 0]), num_steps=5)
    for areas, values in (
        (curves.deletion_area, curves.deletion),
        (curves.insertion_area, curves.insertion),
    ):
        for area, row in zip(areas.tolist(), values.tolist(), strict=True):
            slow = sum((row[i] + row[i + 1]) / 2 / 5 for i in range(5))
            assert area == pytest.approx(slow, rel=1e-5)


class Recorder(nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, x):
        self.shown.append(x.clone())
        return x.new_zeros(len(x), 2)


def test_pixels_of_equal_heat_come_from_everywhere():
    recorder = Recorder()
    heats = torch.zeros(1, 32, 32)
    heats[:, 10:20, 10:20] = 1
    deletion_insertion(
        recorder, torch.ones(1, 1, 32, 32), heats, torch.tensor([0]), num_steps=1024 // 4
    )
    step = 100 + (1024 - 100) // 2  # all that is hot, and half of the rest
    removed = recorder.shown[2 * (step // 4)][0, 0] == 0
    assert removed[10:20, 10:20].all()
    cold = removed.clone()
    cold[10:20, 10:20] = False
    for half in (cold[:16], cold[16:], cold[:, :16], cold[:, 16:]):
        assert abs(int(half.sum()) - 231) < 4 * math.sqrt(462 / 4 / 2)


def test_curves_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    images, heats = torch.randn(5, 1, 8, 8), torch.rand(5, 8, 8).round(decimals=1)
    targets = torch.tensor([0, 1, 1, 0, 1])
    whole = deletion_insertion(Patch(), images, heats, targets)
    parts = deletion_insertion(Patch(), images, heats, targets, batch_size=2)
    torch.testing.assert_close(parts.deletion, whole.deletion)
    torch.testing.assert_close(parts.insertion, whole.insertion)


def test_no_more_images_are_shown_at_once_than_asked_for():
    recorder = Recorder()
    images, heats = torch.ones(5, 1, 4, 4), torch.zeros(5, 4, 4)
    deletion_insertion(
        recorder, images, heats, torch.zeros(5, dtype=torch.long), num_steps=3, batch_size=2
    )
    assert [len(shown) for shown in recorder.shown] == [2] * 16 + [1] * 8


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Patch(), nn.Dropout(0.5)).train()
    model[0].conv.weight.grad = gradient = torch.ones(1, 1, 1, 1)
    images, heats = torch.randn(2, 1, 8, 8), torch.rand(2, 8, 8)
    first, second = (
        deletion_insertion(model, images, heats, torch.tensor([0, 1])) for _ in range(2)
    )
    torch.testing.assert_close(first.deletion, second.deletion, rtol=0, atol=0)
    assert not first.deletion.requires_grad
    assert all(part.training for part in model.modules())
    assert model[0].conv.weight.grad is gradient
    assert model[0].conv.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"heats": torch.rand(2, 4, 4)}, r"heats of shape \(2, 4, 4\)"),
        ({"targets": torch.tensor([0])}, r"targets of shape \(1,\)"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "images": torch.randn(2, 1, 8, 8),
        "heats": torch.rand(2, 8, 8),
        "targets": torch.tensor([0, 1]),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        deletion_insertion(Patch(), **arguments)


class Net(nn.Module):
    """A convolution, a pool and a classifier: enough for Grad-CAM."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 6, 3, stride=4, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def random_images(number, size=16):
    torch.manual_seed(5)
    return torch.randn(number, 1, size, size), torch.randint(0, 3, (number,))


def in_batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def report(number=6, batch=4, model=None, **arguments):
    batches = in_batches(*random_images(number), batch)
    arguments = {"num_steps": 4, "device": "cpu", **arguments}
    return measure_faithfulness(model or Net(), batches, **arguments)


def numbers(result):
    """The report's numbers, one after the other."""
    flat = []

    def walk(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                walk(part)
        elif value is not None:
            flat.append(value)

    walk(json.loads(result.to_json()))
    return flat


def test_a_convolutional_network_gets_all_but_attention():
    pytest.importorskip("pytorch_grad_cam")
    assert list(report().methods) == ["evidence", "gradcam", "random", "centre"]


def test_a_network_with_attention_gets_all():
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_nano", num_classes=3, embed_dim=16, depth=1, in_chans=1)
    assert list(report(model=model).methods) == ["attention", "gradcam", "random", "centre"]


def test_a_network_with_attention_alone_leaves_grad_cam_out():
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_nano", num_classes=3, embed_dim=16, depth=1, in_chans=1)
    batches = in_batches(*random_images(2, size=8), 2)
    result = measure_faithfulness(model, batches, num_steps=1, device="cpu")
    assert list(result.methods) == ["attention", "random", "centre"]


def test_batches_do_not_matter_and_seeds_repeat():
    pytest.importorskip("pytorch_grad_cam")
    boxes = random_boxes(6, 16, 16)
    whole = report(batch=6, boxes=boxes)
    assert numbers(report(batch=4, boxes=boxes)) == pytest.approx(numbers(whole), rel=1e-4)
    assert report(batch=6, boxes=boxes) == whole


def test_another_seed_changes_the_random_maps_alone():
    pytest.importorskip("pytorch_grad_cam")
    first, second = (
        report(boxes=random_boxes(6, 16, 16)),
        report(boxes=random_boxes(6, 16, 16), seed=1),
    )
    assert first.methods["gradcam"].deletion == second.methods["gradcam"].deletion
    assert first.methods["random"].deletion != second.methods["random"].deletion


def test_centre_points_at_the_middle():
    in_the_middle = torch.tensor([[6, 6, 10, 10]]).expand(6, 4)
    scores = report(boxes=in_the_middle, methods=["centre"]).methods["centre"]
    assert scores.pointing.mean == 1
    slow = {True: 0.0, False: 0.0}
    for y in range(16):
        for x in range(16):
            distance = ((y + 0.5 - 8) ** 2 + (x + 0.5 - 8) ** 2) / 16**2
            slow[6 <= y < 10 and 6 <= x < 10] += math.exp(-distance / (2 * 0.25**2))
    assert scores.energy.mean == pytest.approx(slow[True] / (slow[True] + slow[False]), rel=1e-5)
    aside = torch.tensor([[0, 6, 4, 10]]).expand(6, 4)
    assert report(boxes=aside, methods=["centre"]).methods["centre"].pointing.mean == 0


def test_random_maps_point_everywhere_equally_often():
    pytest.importorskip("pytorch_grad_cam")
    number = 400
    box = torch.tensor([[0, 0, 16, 4]]).expand(number, 4)  # one row of four of cells
    result = report(number, 200, boxes=box, methods=["random"], num_steps=1)
    scores = result.methods["random"]
    assert abs(scores.pointing.mean - 0.25) < 4 * math.sqrt(0.25 * 0.75 / number)
    assert result.box_share == 0.25


class Says(nn.Module):
    """Whatever the image, the class is 1."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, x):
        return self.bias.expand(len(x), 3)


def test_boxes_are_asked_of_the_true_class_and_curves_of_the_predicted(monkeypatch):
    asked = []

    def cells(model, images, targets):
        """The class number tells which of the cells is hot."""
        asked.append(targets.tolist())
        maps = torch.zeros(len(images), 1, 3)
        maps[torch.arange(len(images)), 0, targets] = 1
        return maps, Grid((1, 3), (16, 16), (8.0, 2.0), (1.0, 6.0))

    shown = []

    def curves(model, images, heats, targets, **arguments):
        shown.append((heats[:, 8].argmax(1).tolist(), targets.tolist()))
        return deletion_insertion(model, images, heats, targets, **arguments)

    monkeypatch.setattr(MODULE, "grad_cam", cells)
    monkeypatch.setattr(MODULE, "deletion_insertion", curves)
    images = torch.randn(2, 1, 16, 16)
    box = torch.tensor([[12, 0, 16, 16], [0, 0, 4, 16]])  # what classes 2 and 0 look at
    result = measure_faithfulness(
        Says(), [(images, torch.tensor([2, 0]))], boxes=box, methods=["gradcam"], device="cpu"
    )
    assert result.methods["gradcam"].pointing.mean == 1
    assert all(targets == [1, 1] for _, targets in shown)
    assert all(abs(hot - 7.5) < 1 for hots, _ in shown for hot in hots)
    assert result.top1 == 0


def test_empty_maps_are_counted_and_miss(monkeypatch):
    def half_empty(model, images, targets):
        maps = torch.zeros(len(images), 2, 2)
        maps[::2] = 1
        return maps, Grid.regular((2, 2), (16, 16))

    monkeypatch.setattr(MODULE, "grad_cam", half_empty)
    everywhere = torch.tensor([[0, 0, 16, 16]]).expand(6, 4)
    scores = report(methods=["gradcam"], boxes=everywhere).methods["gradcam"]
    assert scores.num_empty == 3
    assert scores.pointing.mean == pytest.approx(0.5)
    assert scores.energy.mean == pytest.approx(0.5)


def test_score_is_mean_and_standard_error():
    values = [0.0, 1.0, 0.25, 0.5]
    score = Score.of(torch.tensor(values))
    assert score.mean == pytest.approx(statistics.mean(values))
    assert score.error == pytest.approx(statistics.stdev(values) / 2)


def test_mean_curve_has_the_area_that_is_reported():
    scores = report(methods=["centre"]).methods["centre"]
    for curve, score in (
        (scores.deletion_curve, scores.deletion),
        (scores.insertion_curve, scores.insertion),
    ):
        assert len(curve) == 5
        area = float(torch.trapezoid(torch.tensor(curve), dx=0.25))
        assert score.mean == pytest.approx(area, rel=1e-5)


def test_top1_is_the_share_of_right_classes():
    images, _ = random_images(6)
    labels = torch.tensor([1, 1, 0, 2, 1, 0])
    result = measure_faithfulness(
        Says(), in_batches(images, labels, 4), methods=["centre"], num_steps=1, device="cpu"
    )
    assert (result.num_images, result.top1) == (6, 0.5)


def test_the_model_is_left_in_its_mode():
    model = Net().train()
    report(model=model, methods=["centre"])
    assert model.training
    assert model.conv.weight.requires_grad


def test_progress_is_told():
    told = []
    report(methods=["centre"], progress=told.append)
    assert told == [4, 6]


def test_report_is_readable():
    result = report(methods=["centre"], boxes=random_boxes(6, 16, 16))
    scores = dataclasses.replace(result.methods["centre"], num_empty=2)
    result = dataclasses.replace(result, methods={"centre": scores})
    table = result.table()
    energy = f"{100 * scores.energy.mean:.1f} ± {100 * scores.energy.error:.1f} %"
    assert "6 images" in table
    assert energy in table
    assert "empty maps of centre: 2" in table
    head, rule, row = result.markdown().splitlines()
    assert head == "| map | pointing | energy | deletion | insertion |"
    assert rule.count("---") == 5
    assert energy in row
    assert json.loads(result.to_json())["methods"]["centre"]["energy"]["mean"] == scores.energy.mean


def test_report_without_boxes_leaves_their_columns_out():
    result = report(methods=["centre"])
    assert result.markdown().splitlines()[0] == "| map | deletion | insertion |"
    assert "boxes" not in result.table()
    assert result.box_share is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["attention"]}, "Net has no layer of attention"),
        (
            {"methods": ["centre", "lime"]},
            "'lime'; known are evidence, attention, gradcam, random, centre",
        ),
        ({"methods": ["centre"], "number": 1}, "the loader gives 1 images"),
        ({"methods": ["centre"], "boxes": torch.zeros(7, 4)}, "6 images and 7 boxes"),
        ({"methods": ["centre"], "boxes": torch.zeros(5, 4)}, r"boxes of shape \(5, 4\)"),
        ({"methods": ["centre"], "boxes": torch.zeros(6, 2)}, r"boxes of shape \(6, 2\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(256, 3))}, "neither attention nor"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        report(**arguments)


@pytest.mark.parametrize("number", [1, 3], ids=["one network", "several"])
def test_plot_tells_the_numbers(number):
    figures = pytest.importorskip("convattn.explanation.figures")
    results = [
        report(methods=["centre"], boxes=random_boxes(6, 16, 16), model=Net())
        for _ in range(number)
    ]
    figure = figures.Figure()
    figures.plot_faithfulness(figure, results)
    deletion, insertion, pointing, energy = figure.axes
    scores = [result.methods["centre"] for result in results]
    for axes, name in ((deletion, "deletion"), (insertion, "insertion")):
        (line,) = axes.lines
        area = statistics.mean(getattr(score, name).mean for score in scores)
        assert line.get_label() == f"centre  {area:.3f}"
        assert line.get_ydata()[1] == pytest.approx(
            statistics.mean(getattr(score, f"{name}_curve")[1] for score in scores)
        )
    for axes, name in ((pointing, "pointing"), (energy, "energy")):
        height = 100 * statistics.mean(getattr(score, name).mean for score in scores)
        assert axes.patches[0].get_height() == pytest.approx(height)
        assert axes.texts[0].get_text() == f"{height:.1f}"


def test_drawing_without_boxes_has_the_curves_alone(tmp_path):
    figures = pytest.importorskip("convattn.explanation.figures")
    result = report(methods=["centre"])
    figure = figures.Figure()
    figures.plot_faithfulness(figure, [result])
    assert len(figure.axes) == 2
    figures.draw_faithfulness(result, tmp_path / "plot.png", title="Net")
    assert (tmp_path / "plot.png").stat().st_size > 5000
