"""A task of seconds: what patch lies somewhere in the noise, and where."""

import torch
from torch import nn

from convattn.modes import frozen_eval_mode

SIDE, PATCH, CLASSES = 24, 8, 3


def make_stripes(number, seed=0):
    """Images (N, 1, 24, 24), class numbers (N,) and the patches' pixels (N, 24, 24)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(number, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, CLASSES, (number,), generator=generator)
    corners = torch.randint(0, SIDE - PATCH + 1, (number, 2), generator=generator).tolist()
    wave = torch.tensor([2.0, 2.0, -2.0, -2.0]).repeat(PATCH // 4)
    across, down = wave.expand(PATCH, PATCH), wave[:, None].expand(PATCH, PATCH)
    patterns = [across, down, across * down / 2]
    masks = torch.zeros(number, SIDE, SIDE, dtype=torch.bool)
    for image, mask, label, (y, x) in zip(images, masks, labels.tolist(), corners, strict=True):
        image[0, y : y + PATCH, x : x + PATCH] += patterns[label]
        mask[y : y + PATCH, x : x + PATCH] = True
    return images, labels, masks


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def train(seed=0, steps=150):
    """A network that knows the patterns."""
    model = make_network(seed)
    images, labels, _ = make_stripes(512, seed=100 + seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        few = torch.arange(64 * step, 64 * step + 64) % 512
        loss = nn.functional.cross_entropy(model(images[few]), labels[few])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with frozen_eval_mode(model), torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.95
    return model.eval()
