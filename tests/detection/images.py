"""Images and targets for detectors, and what every detector must do with them."""

import torch
from torchvision import tv_tensors

HEIGHT, WIDTH = 64, 80
# As large as the image, half a pixel, ordinary.
BOXES = [[0.0, 0.0, WIDTH, HEIGHT], [3.0, 4.0, 3.5, 4.5], [10.0, 12.0, 40.0, 30.0]]


def image(height=HEIGHT, width=WIDTH, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(boxes, **changes):
    """A target as the data sets make them, with rectangles as masks."""
    corners = torch.tensor(boxes).reshape(-1, 4)
    masks = torch.zeros(len(corners), HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, corners.int().tolist(), strict=True):
        mask[top : bottom + 1, left : right + 1] = 1
    return {
        "image_id": 17,
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
        "labels": 1 + torch.arange(len(corners)) % 2,
        "masks": tv_tensors.Mask(masks),
        "area": torch.ones(len(corners)),
        "iscrowd": torch.zeros(len(corners), dtype=torch.bool),
        **changes,
    }


BATCHES = {
    "objects": [BOXES, BOXES[1:]],
    "one without": [[], BOXES],
    "all without": [[], []],
    "tiny": [[BOXES[1]], [BOXES[1]]],
    "whole": [[BOXES[0]], [BOXES[0]]],
}


def losses(model, boxes, precision=torch.float32):
    """One forward pass in training, under autocast for bfloat16."""
    torch.manual_seed(0)
    images = [image(seed=seed) for seed in range(len(boxes))]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        return model.train()(images, [target(b) for b in boxes])
