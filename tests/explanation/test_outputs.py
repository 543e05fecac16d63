"""What networks return beside a tensor of logits, and a single logit."""

import math

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from convattn import explain
from convattn.explanation import attention_maps, grad_cam

IMAGE = Image.new("RGB", (64, 64), (200, 30, 30))


class Returns(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = timm.create_model("patchconvnet_nano", depth=1, num_classes=3), how

    def forward(self, x):
        logits = self.net(x)
        return self.how(logits)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda x: {"logits": x, "aux": x}, "a dict of logits, aux"),
        (lambda x: (x, x), "a tuple of 2 things"),
        (lambda x: [x], "a list of 1 things"),
        (lambda x: x[0], r"a tensor of shape \(3,\)"),
        (lambda x: None, "no tensor"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "evidence", "attention", "gradcam"])
def test_what_is_no_logits_is_told(how, told, method):
    with pytest.raises(ValueError, match=f"Returns returns {told}.*expected logits"):
        explain(Returns(how).eval(), IMAGE, method=method)


def test_maps_and_grad_cam_want_logits_too():
    model, images = Returns(lambda x: {"logits": x}).eval(), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="a dict of logits"):
        attention_maps(model, images)
    with pytest.raises(ValueError, match="gives no logits"):
        grad_cam(model, images, torch.tensor([0]))


@pytest.mark.parametrize("logit", [-4.0, 0.5, 4.0])
def test_one_logit_is_a_question(logit):
    model = timm.create_model("test_resnet", num_classes=1).eval()
    nn.init.zeros_(model.fc.weight)
    nn.init.constant_(model.fc.bias, logit)
    found = explain(model, IMAGE)
    assert found.target.probability == pytest.approx(1 / (1 + math.exp(-logit)))
    assert found.logit == pytest.approx(logit)
