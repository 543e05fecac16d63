import copy
import pickle
from functools import cache

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

import convattn
from convattn.detection import DETECTORS, create_detector
from convattn.detection.retinanet import retinanet
from tests.detection.images import BATCHES, BOXES, HEIGHT, WIDTH, image, losses, target

SMALL = {
    "num_classes": 3,
    "channels": 16,
    "min_size": HEIGHT,
    "max_size": WIDTH,
    "anchor_scale": 2.0,
}


def make(backbone="aa_resnet_nano", **kwargs):
    torch.manual_seed(0)
    return retinanet(backbone, **SMALL | kwargs)


def loud(model):
    """Untrained, it would detect nothing."""
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.5)
    nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    return model.eval()


def same_size(model):
    """torchvision's own network on the same modules and weights."""
    theirs = torchvision.models.detection.RetinaNet(
        copy.deepcopy(model.backbone), 3, min_size=128, max_size=256, score_thresh=0.3
    )
    theirs.load_state_dict(model.state_dict())
    return theirs


def test_losses_are_torchvisions():
    model = make("resnet_nano", channels=32, anchor_scale=4.0, min_size=128, max_size=256)
    theirs = same_size(model).train()
    images = [image(128, 256), image(128, 128)]
    targets = [target(BOXES), target(BOXES[2:])]
    plain = [{k: v for k, v in t.items() if k in ("boxes", "labels")} for t in targets]
    got, expected = model.train()(images, targets), theirs(images, plain)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_detections_are_torchvisions():
    model = make(
        "resnet_nano",
        channels=32,
        anchor_scale=4.0,
        min_size=128,
        max_size=256,
        score_thresh=0.3,
    )
    loud(model)
    # torchvision hands out the background too; here nothing is.
    bias = model.head.classification_head.cls_logits.bias
    bias.data.view(-1, 3)[:, 0] = -100
    images = [image(128, 256), image(128, 128)]
    with torch.no_grad():
        got, expected = model(images), same_size(model).eval()(images)
    assert all(len(found["boxes"]) > 5 for found in got)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_background_is_never_detected():
    with torch.no_grad():
        (found,) = loud(make(score_thresh=0.0))([image()])
    assert set(found["labels"].tolist()) == {1, 2}


def test_anchors_are_torchvisions():
    maps = [torch.zeros(1, 1, 256 >> level, 384 >> level) for level in range(3, 8)]
    images = ImageList(torch.zeros(1, 3, 256, 384), [(256, 384)])
    expected = _default_anchorgen()(images, maps)
    model = make(anchor_scale=4.0)
    torch.testing.assert_close(model.anchor_generator(images, maps), expected, rtol=0, atol=0)


def test_anchors_lie_a_stride_apart_where_it_does_not_divide_the_image():
    images = ImageList(torch.zeros(1, 3, 800, 800), [(800, 800)])
    generator = make(min_level=5, max_level=6, num_scales=1).anchor_generator
    (anchors,) = generator(images, [torch.zeros(1, 1, 25, 25), torch.zeros(1, 1, 13, 13)])
    centres = (anchors[-1, :2] + anchors[-1, 2:]) / 2
    assert centres.tolist() == [12 * 64, 12 * 64]


def test_anchors_keep_their_digits_in_half_precision():
    maps = [torch.zeros(1, 1, 1 << n, 1 << n) for n in (7, 6, 5, 4, 3)]
    images = ImageList(torch.zeros(1, 3, 1024, 1024), [(1024, 1024)])
    generator = make().anchor_generator
    half = generator(images, [m.bfloat16() for m in maps])
    torch.testing.assert_close(half, generator(images, maps), rtol=0, atol=0)


@pytest.mark.parametrize(("min_level", "max_level"), [(3, 7), (2, 6), (3, 5), (5, 8)])
def test_levels_are_those_asked_for(min_level, max_level):
    model = make(min_level=min_level, max_level=max_level).eval()
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 256, 256))
    sizes = [m.shape[-1] for m in maps.values()]
    assert sizes == [256 >> level for level in range(min_level, max_level + 1)]


@pytest.mark.parametrize("convs", [0, 2, 4])
def test_head_has_the_convolutions_asked_for(convs):
    head = make(head_convs=convs).head
    for part in (head.classification_head, head.regression_head):
        assert sum(isinstance(m, nn.Conv2d) for m in part.conv.modules()) == convs


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_gradients_are_finite(batch, precision):
    model = make()
    parts = losses(model, BATCHES[batch], precision)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in parts.values())
    sum(parts.values()).backward()
    bad = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert bad == []


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (33, 57), (200, 20), (1, 1)])
def test_boxes_lie_inside_their_own_image(size):
    model = loud(make(score_thresh=0.0))
    with torch.no_grad():
        found = model([image(), image(*size)])[1]
    height, width = size
    assert len(found["boxes"]) > 0
    assert found["boxes"].min() >= 0
    assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


def test_boxes_keep_their_digits_under_autocast():
    model = loud(make(score_thresh=0.0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([image()])
    assert {part.dtype for part in found.values()} == {torch.float32, torch.int64}


def test_image_without_detections_gives_empty_tensors():
    with torch.no_grad():
        (found,) = make().eval()([image()])
    assert {k: v.shape for k, v in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }


def test_training_images_keep_their_size_if_asked():
    model = make(min_size=128, max_size=256).train()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    model([image()], [target(BOXES)])
    model.transform.resize_training = False
    model([image()], [target(BOXES)])
    model.eval()([image()])
    assert seen == [(128, 160), (64, 96), (128, 160)]


def test_crowds_are_left_out_of_training():
    crowd = torch.tensor([True, False, False])
    with_crowd = make().train()([image()], [target(BOXES, iscrowd=crowd)])
    without = make().train()([image()], [target(BOXES[1:], labels=torch.tensor([2, 1]))])
    torch.testing.assert_close(with_crowd, without, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": torch.tensor([[1.0, 2, 5, 9], [4, 4, 4, 9]])}, r"box 1 .*17\) is not left < r"),
        ({"boxes": torch.tensor([[1.0, 9, 5, 2], [4, 4, 5, 9]])}, "box 0 .* top < bottom"),
        ({"boxes": torch.tensor([[1.0, 2, 5, 9], [4, 4, 81, 9]])}, "box 1 .* 80 wide and 64 high"),
        ({"boxes": torch.tensor([[-3.0, 2, 5, 9], [4, 4, 8, 9]])}, "box 0 .* inside the image"),
        ({"boxes": torch.tensor([[1.0, 2, 5, float("nan")], [4, 4, 8, 9]])}, "box 0"),
        ({"boxes": torch.tensor([[1.0, 2, float("inf"), 9], [4, 4, 8, 9]])}, "box 0 .* inside"),
        ({"boxes": torch.tensor([[1, 2, 5, 9], [4, 4, 8, 9]])}, "int64 .* expected floats"),
        ({"boxes": torch.zeros(0)}, r"of shape \(0,\), expected"),
        ({"labels": torch.tensor([1, 3])}, "label 1 .* is 3, expected 1 to 2; num_classes=3"),
        ({"labels": torch.tensor([0, 1])}, "label 0 .* is 0"),
        ({"labels": torch.tensor([1])}, "one for each of the 2 boxes"),
        ({"labels": torch.tensor([1.0, 2.0])}, r"labels .* torch\.float32"),
    ],
)
def test_wrong_target_is_named(changes, said):
    good = target(BOXES[1:])
    with pytest.raises(ValueError, match=said) as caught:
        make().train()([image(), image()], [good, good | changes])
    assert "image 1 (image_id 17)" in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (None, "2 images, but none targets"),
        ([target(BOXES)], "2 images, but 1 targets"),
        ([target(BOXES), {"boxes": torch.zeros(0, 4)}], "image 1 has no 'labels'"),
    ],
)
def test_missing_target_is_named(targets, said):
    with pytest.raises(ValueError, match=said):
        make().train()([image(), image()], targets)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no images"),
        ([image(), image()[:1]], r"image 1 has shape \(1, 64, 80\), expected \(3, H, W\)"),
        ([image()[0]], r"shape \(64, 80\)"),
        ([image()[:, :0]], r"shape \(3, 0, 80\)"),
        ([(255 * image()).byte()], "image 0 is of torch.uint8"),
        ([image(), 255 * image()], "image 1 has values from .* expected 0 to 1"),
        ([4 * image() - 2], "subtracts the mean"),
        ([image() * float("nan")], "image 0 has values from nan"),
    ],
)
def test_wrong_image_is_named(images, said):
    with pytest.raises(ValueError, match=said):
        make().eval()(images)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("retinanett", {}, "unknown detector 'retinanett'; the nearest is 'retinanet'"),
        ("retinanet", {}, "'retinanet' refuses its arguments: .*'backbone'"),
        ("retinanet", {"backbone": "aa_resnet_nan"}, "the nearest is 'aa_resnet_nano'"),
        ("aa_retinanet_resnet50", {"backbone": "resnet18"}, "'backbone'"),
        ("retinanet", {"backbone": "resnet_nano", "score_tresh": 0.1}, "'score_thresh'"),
        ("retinanet", {"backbone": "resnet_nano", "min_level": 6}, "min_level=6"),
        ("retinanet", {"backbone": "resnet_nano", "max_level": 2}, "max_level=2"),
        ("retinanet", {"backbone": "resnet_nano", "head_convs": 5}, "head_convs=5"),
        ("retinanet", {"backbone": "resnet_nano", "num_classes": 1}, "num_classes=1 leaves no"),
    ],
)
def test_wrong_argument_is_named(name, kwargs, said):
    with pytest.raises(ValueError, match=said):
        create_detector(name, **{"num_classes": 3} | kwargs)


def test_thresholds_reach_torchvision():
    model = make(score_thresh=0.0, detections_per_img=7)
    with torch.no_grad():
        (found,) = model.eval()([image()])
    assert len(found["scores"]) == 7


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_detect_the_same(clone):
    model = loud(make())
    with torch.no_grad():
        torch.testing.assert_close(clone(model)([image()]), model([image()]), rtol=0, atol=0)


def test_attention_is_captured():
    model = make().eval()
    with torch.no_grad(), convattn.capture_attention(model, queries="mean") as maps:
        model([image()])
    # The image is padded to 64 x 96; strides 8, halved once more, 16 and 32.
    assert [m.shape[-2:] for m in maps.values()] == [(4, 6), (4, 6), (2, 3)]


def test_checkpointing_reaches_the_backbone():
    model = make()
    model.set_grad_checkpointing(True)
    assert model.backbone.levels.body.model.grad_checkpointing


@cache
def counted(name):
    with torch.device("meta"):
        return DETECTORS[name](num_classes=91, num_scales=2).eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("retinanet_resnet50", "33.4"),
        ("se_retinanet_resnet50", "35.9"),
        ("aa_retinanet_resnet50", "33.1"),
        ("retinanet_resnet101", "52.4"),
        ("se_retinanet_resnet101", "57.2"),
        ("aa_retinanet_resnet101", "51.8"),  # the paper has 51.7
    ],
)
def test_with_six_anchors_a_place_parameters_are_the_papers(name, millions):
    assert f"{sum(p.numel() for p in counted(name).parameters()) / 1e6:.1f}" == millions


@pytest.mark.parametrize("name", ["retinanet_resnet50", "aa_retinanet_resnet50"])
def test_with_six_anchors_a_place_flops_are_the_papers(name):
    model = counted(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.head(list(model.backbone(torch.empty(1, 3, 640, 640)).values()))
    assert counter.get_total_flops() / 1e9 == pytest.approx(182, rel=0.01)
