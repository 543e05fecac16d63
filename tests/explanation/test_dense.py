"""Where detectors and segmenters look."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convattn.detection.explanation import attention_of_point, explain_boxes
from convattn.explanation.dense import Levels, on_image
from convattn.explanation.geometry import Grid
from convattn.modes import frozen_eval_mode
from convattn.segmentation.explanation import attention_of_point as attention_of_pixel
from convattn.segmentation.explanation import explain_pixels
from tests.dense_networks import detector, segmenter

SIZE = (60, 90)


def picture(seed=0):
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(256, size=(*SIZE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model():
    return detector()


def test_the_surest_boxes_are_explained(model):
    found = explain_boxes(model, picture(), count=3)
    pixels = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (own,) = model([pixels])
    assert [one.score for one in found] == pytest.approx(own["scores"][:3].tolist(), abs=1e-5)
    names = [("a", "b", "c")[label - 1] for label in own["labels"][:3].tolist()]
    assert [one.name for one in found] == names
    for one, box in zip(found, own["boxes"].tolist(), strict=False):
        assert one.box == pytest.approx(tuple(box), abs=1e-3)
        assert one.heat.shape == SIZE
        assert one.heat.min() >= 0 < one.heat.max()
        assert 0 <= one.to_dict()["energy_in_box"] <= 1
        assert min(one.drawing().size) >= min(SIZE)


def test_a_class_is_chosen_by_name(model):
    (all_of_them,) = {len({one.name for one in explain_boxes(model, picture(), count=300)})}
    assert all_of_them == 3
    for name in ("b", "c"):
        (found,) = explain_boxes(model, picture(), [name])
        assert found.name == name
    with pytest.raises(ValueError, match="cat"):
        explain_boxes(model, picture(), ["cat"])


def test_what_is_not_found_is_told(model):
    blind = detector()
    nn.init.constant_(blind.head.classification_head.cls_logits.bias, -50.0)
    with pytest.raises(ValueError, match="finds no box on the image"):
        explain_boxes(blind, picture())


def test_gradients_times_activations_sum_to_the_change_along_them(model):
    """A map's sum is the derivative when all maps grow by the same share."""
    pixels = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1) / 255
    segmenting = segmenter().double()
    batch = pixels[None].double()
    with frozen_eval_mode(segmenting), torch.enable_grad():
        run = Levels(segmenting, lambda: segmenting(batch))
        score = run.output[0, 1].sum()
        gradients = torch.autograd.grad(score, run._maps, retain_graph=True)
        total = sum(
            (one.detach() * gradient).sum()
            for one, gradient in zip(run._maps, gradients, strict=True)
        )

    def scaled(share):
        handle = segmenting.levels.register_forward_hook(
            lambda module, args, out: [one * share for one in out]
        )
        with torch.no_grad():
            value = segmenting(batch)[0, 1].sum()
        handle.remove()
        return value

    change = (scaled(1 + 1e-6) - scaled(1 - 1e-6)) / 2e-6
    assert total.item() == pytest.approx(change.item(), rel=1e-4)


def test_maps_lie_where_the_image_lies_in_the_padded_input():
    grid = Grid.regular((4, 4), (64, 64))
    evidence = torch.zeros(4, 4)
    evidence[1, 2] = 1
    heat = on_image(evidence, grid, seen=(48, 64), size=(96, 128))
    row, column = divmod(int(heat.argmax()), 128)
    assert heat.shape == (96, 128)
    y, x = grid.rows[1].item() * 2, grid.columns[2].item() * 2
    assert (abs(row + 0.5 - y), abs(column + 0.5 - x)) <= (1, 1)


def test_classes_of_pixels_are_explained():
    model = segmenter()
    (found,) = explain_pixels(model, picture(), ["c"])
    assert (found.name, found.heat.shape, found.box) == ("c", SIZE, None)
    most = explain_pixels(model, picture(), count=2)
    assert len(most) == 2
    assert most[0].score >= most[1].score


@pytest.mark.parametrize(
    ("make", "look"), [(detector, attention_of_point), (segmenter, attention_of_pixel)]
)
def test_attention_from_a_point(make, look):
    model = make()
    corner, middle = (look(model, picture(), point) for point in ((1, 1), (30, 45)))
    assert corner.heat.shape == SIZE
    assert corner.heat.min() >= 0
    assert not np.allclose(corner.heat, middle.heat)
    one = look(model, picture(), (1, 1), head=0)
    assert not np.allclose(corner.heat, one.heat)
    with pytest.raises(ValueError, match="lies outside the image of 60 x 90"):
        look(model, picture(), (70, 1))
    with pytest.raises(ValueError, match="has heads 0 to"):
        look(model, picture(), (1, 1), head=99)
    with pytest.raises(ValueError, match="no layer with attention named 'x'"):
        look(model, picture(), (1, 1), layer="x")


@pytest.mark.parametrize(
    ("make", "look"), [(detector, attention_of_point), (segmenter, attention_of_pixel)]
)
def test_attention_takes_one_run(make, look):
    model, runs = make(), []
    model.register_forward_hook(lambda *args: runs.append(1))
    look(model, picture(), (30, 45))
    assert runs == [1]


def test_a_backbone_without_attention_is_told():
    with pytest.raises(ValueError, match="holds no layer with attention"):
        attention_of_point(detector("resnet_nano"), picture(), (1, 1))


def test_the_network_is_left_as_it_was(model):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain_boxes(model, picture())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.backbone.levels._forward_hooks
    model.eval()
