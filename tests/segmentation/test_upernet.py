import copy

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn
from torchvision import tv_tensors

import convattn
from convattn.models.pyramid import FeatureLevels, feature_levels
from convattn.segmentation import (
    SEGMENTERS,
    UPerNet,
    create_segmenter,
    segmentation_loss,
    sliding_window,
)
from convattn.segmentation.upernet import upernet

SMALL = {"channels": 8, "aux_channels": 8}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return upernet("patchconvnet_nano", num_classes=5, **SMALL)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 31), (64, 64)])
@pytest.mark.parametrize("training", [False, True])
def test_logits_have_the_size_of_the_image(model, size, training):
    output = model.train(training)(torch.randn(1, 3, *size))
    shapes = [logits.shape for logits in (output if training else [output])]
    assert shapes == [(1, 5, *size)] * (1 + training)


def test_the_decoder_computes_what_the_original_does(model):
    torch.manual_seed(1)
    original = UPerNetDecoder((0, 0, *model.levels.channels), decoder_channels=8)
    original.load_state_dict(model.decoder.state_dict())
    sizes = [(16, 12), (8, 6), (4, 3), (2, 2)]
    for training in (True, False):
        maps = [torch.randn(2, model.levels.channels[i], *size) for i, size in enumerate(sizes)]
        expected = original.train(training)([None, None, *maps])
        assert torch.equal(model.decoder.train(training)([None, None, *maps]), expected)


def test_a_norm_of_one_value_takes_its_running_statistics(model):
    norm = copy.deepcopy(model.decoder.psp.blocks[0][1][1])
    norm.running_mean.normal_()
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(1, 8, 1, 1)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


def test_every_parameter_gets_a_gradient(model):
    model.zero_grad()
    output = model.train()(torch.randn(2, 3, 48, 48))
    segmentation_loss(output, torch.randint(5, (2, 48, 48))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = upernet("patchconvnet_nano", num_classes=3, drop_rate=0.0, **SMALL).double()
    x, mask = torch.randn(2, 3, 32, 32).double(), torch.randint(3, (2, 32, 32))
    gradients = []
    for enable in (False, True):
        other = copy.deepcopy(model)
        other.set_grad_checkpointing(enable)
        segmentation_loss(other(x), mask).backward()
        gradients.append([p.grad for p in other.parameters()])
    torch.testing.assert_close(*gradients)


def test_attention_in_the_backbone_is_captured():
    model = upernet("aa_resnet_nano", num_classes=3, **SMALL).eval()
    with convattn.capture_attention(model) as maps:
        model(torch.randn(1, 3, 32, 32))
    assert maps


def test_the_paper_s_network_has_its_number_of_parameters():
    with torch.device("meta"):
        model = create_segmenter("upernet_patchconvnet_s60", num_classes=150)
    assert sum(p.numel() for p in model.parameters()) == 55_250_492


def test_the_patchconvnets_of_the_paper_are_named():
    sizes = ("s60", "b60", "b120", "l120")
    assert {"upernet"} | {f"upernet_patchconvnet_{size}" for size in sizes} == set(SEGMENTERS)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("upernett", {}, "unknown segmenter 'upernett'; the nearest is 'upernet'"),
        ("upernet", {}, "refuses its arguments: .*'backbone'"),
        ("upernet_patchconvnet_s60", {"chanels": 8}, "refuses its arguments: .*'chanels'"),
        ("upernet", {"backbone": "patchconvnet_nan"}, "the nearest is 'patchconvnet_nano'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_segmenter(name, num_classes=3, **arguments)


@pytest.mark.parametrize("num_classes", [0, 256])
def test_a_number_of_classes_that_no_mask_can_hold_is_refused(num_classes):
    with pytest.raises(ValueError, match=f"num_classes={num_classes}; expected 1 to 255"):
        upernet("patchconvnet_nano", num_classes=num_classes)


def test_other_strides_are_refused():
    levels = feature_levels("patchconvnet_nano", strides=(8, 16, 32))
    assert isinstance(levels, FeatureLevels)
    with pytest.raises(ValueError, match=r"levels of strides \(8, 16, 32\); expected"):
        UPerNet(levels, num_classes=3)


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    logits, auxiliary = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.randint(4, (2, 3, 3), generator=torch.Generator().manual_seed(1))
    mask[0, :2] = 255

    def slow(logits):
        terms = [
            -logits[b, :, y, x].log_softmax(0)[mask[b, y, x]]
            for b, y, x in (mask != 255).nonzero().tolist()
        ]
        return torch.stack(terms).mean()

    loss = segmentation_loss((logits, auxiliary), tv_tensors.Mask(mask), aux_weight=0.4)
    torch.testing.assert_close(loss, slow(logits) + 0.4 * slow(auxiliary))


def test_no_pixel_that_counts_gives_neither_loss_nor_gradient():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 3, 3), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


class Blur(nn.Module):
    """Depends on its neighbours and on the window's edge; remembers how much it was shown."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return F.avg_pool2d(x, 3, stride=1, padding=1)


def slow_sliding_window(model, image, window, stride):
    total, count = torch.zeros_like(image), torch.zeros_like(image)
    height, width = image.shape[2:]
    y = 0
    while True:
        bottom = min(y + window[0], height)
        top = max(bottom - window[0], 0)
        x = 0
        while True:
            right = min(x + window[1], width)
            left = max(right - window[1], 0)
            total[:, :, top:bottom, left:right] += model(image[:, :, top:bottom, left:right])
            count[:, :, top:bottom, left:right] += 1
            if right == width:
                break
            x += stride[1]
        if bottom == height:
            break
        y += stride[0]
    return total / count


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((20, 31), (9, 12), (6, 8)),
        ((20, 31), (20, 31), (6, 8)),
        ((20, 31), (5, 5), (5, 5)),
        ((7, 31), (9, 12), (6, 8)),
        ((4, 3), (9, 12), (1, 1)),
    ],
)
def test_windows_are_averaged_as_the_slow_loop_does(size, window, stride):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    expected = slow_sliding_window(Blur(), image, window, stride)
    torch.testing.assert_close(sliding_window(Blur(), image, window, stride), expected)


def test_the_stride_is_two_thirds_of_the_window():
    image = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(0)).double()
    expected = slow_sliding_window(Blur(), image, (12, 15), (8, 10))
    torch.testing.assert_close(sliding_window(Blur(), image, (12, 15)), expected)


def test_a_pointwise_model_does_not_see_the_windows():
    model, image = nn.Conv2d(3, 4, 1).double(), torch.randn(2, 3, 30, 41).double()
    torch.testing.assert_close(sliding_window(model, image, (8, 8)), model(image))


def test_at_most_a_batch_of_windows_runs_together():
    model = Blur()
    sliding_window(model, torch.randn(2, 3, 20, 20), (8, 8), batch_size=3)
    assert max(size[0] for size in model.sizes) == 3
    assert {size[2:] for size in model.sizes} == {(8, 8)}


@pytest.mark.parametrize(
    "arguments",
    [{"window": (0, 4)}, {"window": (4, 4), "stride": (5, 4)}, {"window": (4, 4), "batch_size": 0}],
)
def test_windows_that_leave_gaps_are_refused(arguments):
    with pytest.raises(ValueError, match="expected 1 or more each, and a stride no larger"):
        sliding_window(Blur(), torch.randn(1, 3, 8, 8), **arguments)
