import pytest
import torch

from convattn.detection import create_detector
from convattn.explanation import capture_attention
from convattn.explanation.geometry import Grid
from convattn.segmentation import create_segmenter

NANO = {"backbone": "aa_resnet_nano", "backbone_args": {"img_size": 64}}


def detector(name, **arguments):
    torch.manual_seed(0)
    size = {"min_size": 64, "max_size": 128}
    return create_detector(name, num_classes=3, channels=16, **size, **NANO, **arguments).eval()


def networks():
    return {
        "retinanet": (detector("retinanet"), [torch.rand(3, 64, 96)]),
        "mask_rcnn": (
            detector("mask_rcnn", box_channels=16, mask_channels=8),
            [torch.rand(3, 64, 96)],
        ),
        "upernet": (
            create_segmenter("upernet", num_classes=3, channels=16, aux_channels=8, **NANO).eval(),
            torch.rand(1, 3, 64, 96),
        ),
    }


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [found[0][key] for key in sorted(found[0])]


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "upernet"])
def test_attention_is_captured_inside_and_changes_nothing(name):
    model, images = networks()[name]
    with torch.inference_mode():
        before = tensors(model(images))
        with capture_attention(model) as maps:
            during = tensors(model(images))
    assert all(torch.equal(one, other) for one, other in zip(before, during, strict=True))
    names = {layer.split("layer")[-1] for layer in maps}
    assert names == {f"{stage}.0.conv1" for stage in (2, 3, 4)}
    for layer, weights in maps.items():
        grid = maps.grids[layer]
        assert grid.image_size == (64, 96)
        assert weights.shape[-1] == grid.feat_size[0] * grid.feat_size[1]
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_maps_of_a_detector_lie_on_the_batch_that_it_makes():
    """An image of 50 x 90 is enlarged to 64 x 115 and padded to 64 x 128."""
    model = detector("retinanet")
    with torch.inference_mode(), capture_attention(model, queries="mean") as maps:
        model([torch.rand(3, 50, 90)])
    (deepest,) = (name for name in maps if "layer4" in name)
    assert maps.grids[deepest] == Grid.regular((2, 4), (64, 128))


def test_a_point_is_the_nearest_position_of_every_layer():
    model, images, point = *networks()["retinanet"], (40.0, 75.0)
    with torch.inference_mode(), capture_attention(model, queries="mean") as places:
        model(images)
    with torch.inference_mode(), capture_attention(model, point=point) as found:
        model(images)
    assert list(found) == list(places)
    for layer, grid in places.grids.items():
        row = int((grid.rows - point[0]).abs().argmin())
        column = int((grid.columns - point[1]).abs().argmin())
        with (
            torch.inference_mode(),
            capture_attention(model, queries=[(row, column)], layers=[layer]) as own,
        ):
            model(images)
        assert torch.equal(found[layer], own[layer])
        assert found.grids[layer] == grid


def test_a_point_beside_queries_is_refused():
    model, _ = networks()["retinanet"]
    with (
        pytest.raises(ValueError, match="give one of them"),
        capture_attention(model, queries="mean", point=(1, 1)),
    ):
        pass
