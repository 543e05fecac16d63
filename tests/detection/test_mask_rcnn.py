import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

import convattn
from convattn.detection import DETECTORS, create_detector
from convattn.detection.mask_rcnn import mask_rcnn
from tests.detection.images import BATCHES, BOXES, HEIGHT, WIDTH, image, losses, target

SMALL = {
    "num_classes": 3,
    "channels": 8,
    "box_channels": 16,
    "mask_channels": 8,
    "min_size": HEIGHT,
    "max_size": WIDTH,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 5,
}


def make(backbone="patchconvnet_nano", **kwargs):
    torch.manual_seed(0)
    return mask_rcnn(backbone, **SMALL | kwargs)


def theirs_like(model):
    """torchvision's own network on the same modules and weights."""
    theirs = torchvision.models.detection.MaskRCNN(
        copy.deepcopy(model.backbone),
        box_head=copy.deepcopy(model.roi_heads.box_head),
        box_predictor=copy.deepcopy(model.roi_heads.box_predictor),
        mask_head=copy.deepcopy(model.roi_heads.mask_head),
        mask_predictor=copy.deepcopy(model.roi_heads.mask_predictor),
        min_size=HEIGHT,
        max_size=2 * HEIGHT,
        box_score_thresh=0.0,
        box_detections_per_img=5,
    )
    theirs.load_state_dict(model.state_dict())
    return theirs


def test_losses_are_torchvisions():
    model = make(max_size=2 * HEIGHT)
    theirs = theirs_like(model).train()
    got = losses(model, [BOXES, BOXES[2:]])
    torch.manual_seed(0)  # of the regions that are sampled
    targets = [
        {k: torch.as_tensor(v).as_subclass(torch.Tensor) for k, v in target(boxes).items()}
        for boxes in (BOXES, BOXES[2:])
    ]
    expected = theirs([image(seed=0), image(seed=1)], targets)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_detections_are_torchvisions():
    model = make(max_size=2 * HEIGHT).eval()
    images = [image(64, 128), image(64, 64)]
    with torch.no_grad():
        got, expected = model(images), theirs_like(model).eval()(images)
    assert all(len(found["boxes"]) == 5 for found in got)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_anchors_are_torchvisions():
    maps = [torch.zeros(1, 1, 256 >> level, 384 >> level) for level in range(2, 7)]
    images = ImageList(torch.zeros(1, 3, 256, 384), [(256, 384)])
    expected = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)(
        images, maps
    )
    got = make().rpn.anchor_generator(images, maps)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_gradients_are_finite(batch, precision):
    model = make()
    parts = losses(model, BATCHES[batch], precision)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in parts.values())
    sum(parts.values()).backward()
    bad = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert bad == []


def test_loss_is_finite_where_every_proposal_lies_outside():
    model = make()
    with torch.no_grad():
        model.rpn.head.bbox_pred.bias.fill_(1e4)
    assert all(loss.isfinite() for loss in losses(model, BATCHES["all without"]).values())


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (33, 57), (100, 20)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_boxes_and_masks_lie_on_their_own_image(size, precision):
    model = make().eval()
    amp = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.no_grad(), amp:
        found = model([image(), image(*size)])[1]
    height, width = size
    assert found["masks"].shape == (5, 1, height, width)
    assert found["masks"].dtype == torch.float32
    assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
    assert found["boxes"].min() >= 0
    assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


def test_image_without_detections_gives_empty_tensors():
    with torch.no_grad():
        (found,) = make(box_score_thresh=0.999).eval()([image()])
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 1, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masks": torch.zeros(2, 10, 80)}, r"\(2, 10, 80\), expected \(2, 64, 80\)"),
        ({"masks": torch.zeros(1, 64, 80)}, r"\(1, 64, 80\), expected \(2, 64, 80\)"),
        ({"labels": torch.tensor([1, 9])}, "label 1 .* is 9"),
    ],
)
def test_wrong_target_is_named(changes, said):
    good = target(BOXES[1:])
    with pytest.raises(ValueError, match=said) as caught:
        make().train()([image(), image()], [good, good | changes])
    assert "image 1 (image_id 17)" in str(caught.value)


def test_missing_masks_are_named():
    boxes_alone = {k: v for k, v in target(BOXES).items() if k != "masks"}
    with pytest.raises(ValueError, match="has no 'masks'"):
        make().train()([image()], [boxes_alone])


def test_wrong_argument_is_named():
    with pytest.raises(ValueError, match="'box_score_tresh'; the nearest is 'box_score_thresh'"):
        create_detector("mask_rcnn", num_classes=3, backbone="resnet_nano", box_score_tresh=0.1)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_detect_the_same(clone):
    model = make().eval()
    with torch.no_grad():
        torch.testing.assert_close(clone(model)([image()]), model([image()]), rtol=0, atol=0)


def test_attention_is_captured():
    model = make("aa_resnet_nano").eval()
    with torch.no_grad(), convattn.capture_attention(model, queries="mean") as maps:
        model([image()])
    assert len(maps) == 3


@pytest.mark.parametrize("size", ["s60", "s120"])
def test_parameters_are_the_trunks_and_torchvisions_around_it(size):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        model = DETECTORS[f"mask_rcnn_patchconvnet_{size}"](num_classes=91)
        trunk = timm.create_model(f"patchconvnet_{size}", global_pool="")
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights_backbone=None)
    around = count(theirs) - count(theirs.backbone.body) - count(theirs.backbone.fpn.inner_blocks)
    enlarging = 3 * (4 * 384 * 384 + 384) + 2 * 384
    lateral = 4 * (384 * 256 + 256)
    assert count(model) == count(trunk) + around + enlarging + lateral
