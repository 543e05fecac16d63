"""Small networks of many makes."""

import timm
import torch
import torch.nn.functional as F
from torch import nn

TIMM = {
    "test_resnet": "basic blocks",
    "test_convnext": "a norm behind the pool",
    "test_efficientnet": "depthwise convolutions, squeeze and excitation",
    "test_nfnet": "standardised weights",
    "test_byobnet": "grouped convolutions",
    "lcnet_035": "a convolution between pool and classifier",
    "tf_mobilenetv3_small_minimal_100": "TensorFlow's padding",
}


def timm_network(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments).eval()


class Plain(nn.Module):
    """Three convolutions, a pool module, a classifier."""

    def __init__(self, pool=None, channels=16, features=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, channels, 3, stride=2, padding=1)
        self.gather = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.say = nn.Linear(features or channels, 5)

    def features(self, x):
        return F.relu(self.body(F.relu(self.stem(x))))

    def forward(self, x):
        return self.say(self.gather(self.features(x)).flatten(1))


class CallsMean(nn.Module):
    """Pools by a function call, right behind a module."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))


class CallsMeanOfRelu(CallsMean):
    """As torchvision's DenseNet: a ReLU by function between module and pool."""

    def forward(self, x):
        return self.head(F.relu(self.trunk(x)).mean((2, 3)))


class CallsMeanOfSquare(CallsMean):
    """What is pooled comes of no module."""

    def forward(self, x):
        return self.head(self.trunk(x).square().mean((2, 3)))


class CallsMax(CallsMean):
    """What a function call takes the maximum of cannot be averaged before."""

    def forward(self, x):
        return self.head(self.trunk(x).amax((2, 3)))


class SharesPool(Plain):
    """One pool module for a gate and for the head."""

    def features(self, x):
        x = super().features(x)
        return x * self.gather(x).sigmoid()


def images(size=(64, 64), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def relative(ours, theirs):
    """Largest difference, in units of the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
