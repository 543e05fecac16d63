"""Small networks, images and caches to probe."""

from pathlib import Path

import torch
from torch import nn

from convattn.data import TensorImages, eval_transform
from convattn.probing.cache import CacheOptions, write_maps

TRANSFORM = eval_transform(16, crop_pct=1.0)


class Counted(nn.Module):
    """A convolution that counts the images it sees and stops after so many batches."""

    def __init__(self, channels=6, stops_after=None):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, channels, 5, stride=4, padding=2)
        self.images = 0
        self.batches = 0
        self.stops_after = stops_after

    def forward(self, x):
        if self.batches == self.stops_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.images += len(x)
        return self.conv(x).relu()


def draw_images(number, classes=3, seed=0, several=False):
    """Images whose classes have a colour each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    images = torch.randint(0, 130, (number, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(number), labels % 3, 4:12, 4:12] += 120
    if several:
        other = torch.rand(number, generator=generator) < 0.4
        labels = torch.nn.functional.one_hot(labels, classes).bool()
        labels[:, 0] |= other
        images[other, 0, 4:12, 4:12] |= 128
    return TensorImages(images, labels)


def options(root, **more):
    return CacheOptions(root=Path(root), name="tiny", **more)


def write(root, *, network=None, train=90, test=30, several=False, about=None, **more):
    """A cache of coloured images."""
    network = network or Counted()
    parts = [draw_images(n, seed=n, several=several) for n in (train, test)]
    return write_maps(
        network,
        [parts[0].with_transform(TRANSFORM)],
        parts[1].with_transform(TRANSFORM),
        labels=torch.cat([part.labels for part in parts]),
        shape=(network.conv.out_channels, 4, 4),
        about={"layer": "last"} if about is None else about,
        options=options(root, **more),
    )
