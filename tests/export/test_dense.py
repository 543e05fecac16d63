"""Detectors and segmenters as files: boxes, scores and order are the network's own."""

import copy
import json
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from convattn.detection import create_detector
from convattn.export import choose_boxes, dense, export_onnx, export_program, nms, onnx_file
from tests.dense_networks import CFG, detector, segmenter

slow = partial(pytest.param, marks=pytest.mark.slow)
SIZES = ((64, 64), (96, 70), (51, 83))


def batches(draw):
    torch.manual_seed(7)
    return [draw(count, 3, *size) for size in SIZES for count in (1, 2)]


def own_boxes(model, images):
    """What the detector itself finds on images that it does not resize."""
    own = []
    for image in images:
        model.transform.min_size = (min(image.shape[1:]),)
        model.transform.max_size = max(image.shape[1:])
        own += model([image])
    return own


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Exported once: of each network, by its name."""
    folder = tmp_path_factory.mktemp("files")
    networks = {"detector": detector("resnet_nano"), "segmenter": segmenter("resnet_nano")}
    return {
        name: (network, export_onnx(network, folder / f"{name}.onnx"))
        for name, network in networks.items()
    }


def finds_the_same(model, exported):
    """How many boxes the file and the detector find, which are the same."""
    assert {one.batch_size for one in exported.checks} == {1, 3}
    assert len(exported.checks) == 6
    session = onnxruntime.InferenceSession(exported.file)
    metadata = session.get_modelmeta().custom_metadata_map
    cfg = json.loads(metadata["pretrained_cfg"])
    assert cfg["label_names"] == ["a", "b", "c"]
    num_found = 0
    for images in batches(torch.rand):
        boxes, scores = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = own_boxes(copy.deepcopy(model), images)
        for number, own in enumerate(expected):
            ours = choose_boxes(boxes[number], scores[number], images.shape[2:], cfg)
            assert torch.allclose(ours["scores"], own["scores"], atol=1e-4)
            num_found += number_alike(ours, own)
    return num_found


def number_alike(ours, own):
    """How many boxes have a twin of their class; only of equal scores some may be others.

    Boxes whose scores differ by less than rounding may change places.
    """
    count, last = 0, own["scores"][-1] + 1e-4
    for box, label, score in zip(own["boxes"], own["labels"], own["scores"], strict=True):
        near = (ours["scores"] - score).abs() < 1e-4
        twins = near & (ours["labels"] == label) & ((ours["boxes"] - box).abs().amax(1) < 1e-2)
        assert twins.any() or score < last
        count += bool(twins.any())
    return count


@pytest.mark.long
def test_onnx_finds_what_the_detector_finds(files):
    assert finds_the_same(*files["detector"]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["aa_resnet_nano", "patchconvnet_nano"])
def test_onnx_of_attention_finds_the_same(tmp_path, backbone):
    model = detector(backbone)
    assert finds_the_same(model, export_onnx(model, tmp_path / "x.onnx")) > 50


@pytest.mark.slow
def test_program_finds_what_the_detector_finds(tmp_path):
    model = detector("resnet_nano")
    found = export_program(model, tmp_path / "x.pt2")
    program = torch.export.load(found.file).module()
    images = torch.rand(2, 3, 70, 90)
    boxes, scores = program(images)
    (own, _) = own_boxes(model, images)
    ours = choose_boxes(boxes[0], scores[0], (70, 90), dense.RawDetector(model).cfg(None))
    assert torch.equal(ours["labels"], own["labels"])
    assert torch.allclose(ours["boxes"], own["boxes"], atol=1e-3)


def segments_the_same(model, exported):
    session = onnxruntime.InferenceSession(exported.file)
    for images in batches(torch.randn):
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            own = model(images).numpy()
        assert np.abs(logits - own).max() <= 1e-4 * np.abs(own).max()


def test_onnx_segments_as_the_segmenter_does(files):
    segments_the_same(*files["segmenter"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["aa_resnet_nano", "patchconvnet_nano"])
def test_onnx_of_attention_segments_the_same(tmp_path, backbone):
    model = segmenter(backbone)
    segments_the_same(model, export_onnx(model, tmp_path / "x.onnx"))


def program_segments_the_same(model, exported):
    program = torch.export.load(exported.file).module()
    for images in batches(torch.randn):
        with torch.inference_mode():
            own, found = model(images), program(images)
        assert (found - own).abs().max() <= 1e-4 * own.abs().max()


@pytest.mark.long
def test_program_segments_as_the_segmenter_does(tmp_path):
    model = segmenter("resnet_nano")
    program_segments_the_same(model, export_program(model, tmp_path / "x.pt2"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["aa_resnet_nano", "patchconvnet_nano"])
def test_program_of_attention_segments_the_same(tmp_path, backbone):
    model = segmenter(backbone)
    program_segments_the_same(model, export_program(model, tmp_path / "x.pt2"))


def few_boxes(**arguments):
    """A detector that finds some on every image, and fewer than it may."""
    model = detector("resnet_nano", **arguments)
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -6.0)
    return model


@pytest.mark.long
@pytest.mark.parametrize(
    "make",
    [
        few_boxes,
        slow(lambda: detector("resnet_nano", detections_per_img=40)),  # more are found
        slow(lambda: few_boxes(topk_candidates=20)),  # of each level
    ],
)
def test_chosen_boxes_are_the_detectors(tmp_path, make):
    model = make()
    exported = export_onnx(model, tmp_path / "x.onnx", nms=True)
    session = onnxruntime.InferenceSession(exported.file)
    num_found = 0
    for images in batches(torch.rand):
        outputs = session.run(["boxes", "labels", "scores"], {"images": images.numpy()})
        with torch.inference_mode():
            expected = own_boxes(copy.deepcopy(model), images)
        for own, *rows in zip(expected, *map(torch.from_numpy, outputs), strict=True):
            boxes, labels, scores = rows
            count = int((scores > 0).sum())
            assert torch.allclose(scores[:count], own["scores"], atol=1e-4)
            assert len(scores) == model.detections_per_img
            assert not boxes[count:].any()
            assert not labels[count:].any()
            ours = {"boxes": boxes[:count], "labels": labels[:count], "scores": scores[:count]}
            num_found += number_alike(ours, own)
    assert num_found > 50


@pytest.mark.slow
def test_the_chosen_ones_are_compared_with_the_detectors(tmp_path, monkeypatch):
    """A graph of another threshold is not kept."""

    def other(model, *, nms_thresh, **more):
        nms.add_nms(model, nms_thresh=nms_thresh / 4, **more)

    monkeypatch.setattr(onnx_file, "add_nms", other)
    with pytest.raises(ValueError, match=r"differs from the network by .* nothing is kept"):
        export_onnx(few_boxes(), tmp_path / "x.onnx", nms=True)
    assert not list(tmp_path.iterdir())


def test_a_segmenter_has_no_boxes_to_choose(tmp_path):
    with pytest.raises(ValueError, match="UPerNet finds no boxes; leave nms out"):
        export_onnx(segmenter("resnet_nano"), tmp_path / "x.onnx", nms=True)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (6, 7), (13, 5), (24, 24)])
def test_pools_of_any_size_are_torchs(size, shape):
    x = torch.randn(2, 4, *shape)
    own = nn.functional.adaptive_avg_pool2d(x, size)
    assert torch.allclose(dense._AnySizePool(size)(x), own, atol=1e-6)


def test_the_network_is_left_as_it_was(files):
    model, _ = files["detector"]
    fresh = detector("resnet_nano")
    image = torch.rand(3, 50, 70)
    assert torch.equal(model([image])[0]["boxes"], fresh([image])[0]["boxes"])
    expected = fresh.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_what_a_file_cannot_give_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"RetinaNet gives no maps in a file; leave attention out"):
        export_onnx(detector(), tmp_path / "x.onnx", attention=True)
    masks = create_detector("mask_rcnn", backbone="patchconvnet_nano", num_classes=3, channels=16)
    masks.pretrained_cfg = CFG
    with pytest.raises(ValueError, match=r"MaskRCNN is not exported.*export a retinanet"):
        export_onnx(masks, tmp_path / "x.onnx")


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    model = detector("resnet_nano")
    whole = dense.RawDetector.agree

    def other(self, outputs, images):
        whole(self, (outputs[0] + 3, outputs[1]), images)

    monkeypatch.setattr(dense.RawDetector, "agree", other)
    with pytest.raises(ValueError, match="are not the detector's own"):
        export_program(model, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_the_graph_says_what_may_change(files):
    graph = onnx.load(files["segmenter"][1].file).graph
    sides = graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param for side in sides] == ["batch", "", "height", "width"]
