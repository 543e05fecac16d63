"""What a detector found, and where its backbone looks from there: an image for the docs.

    python benchmarks/detection_attention.py RUN --out docs/howto/detection.png

RUN is a finished run of a detector whose backbone has attention-augmented convolutions. Of its
first test images with a sure object are drawn: what it found; what the chosen layer looks at on
the whole, the mean over all positions and heads; and what the most decided of its heads looks at
from the middle of the surest object. Both maps are drawn from their lowest to their highest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import to_pil_image

from convattn.detection import finds_masks
from convattn.detection.dataset import open_data
from convattn.detection.prediction import detect
from convattn.drawing import draw_sheet, save_png
from convattn.explanation import attention_layers, capture_attention
from convattn.explanation.overlay import overlay
from convattn.runs import Run

ENLARGED = 5


def looked_at(
    model: Any, image: torch.Tensor, layer: str, centre: tuple[float, float]
) -> Iterator[Any]:
    """Heat maps of the layer's attention on the image: on the whole, and from a point of it."""
    height, width = image.shape[1:]
    scale = min(
        model.transform.min_size[0] / min(height, width),
        model.transform.max_size / max(height, width),
    )
    with torch.inference_mode(), capture_attention(model, queries="mean", layers=[layer]) as mean:
        model([image])
    grid = mean.grids[layer]
    y, x = (scale * side for side in centre)
    cell = (int((grid.rows - y).abs().argmin()), int((grid.columns - x).abs().argmin()))
    with torch.inference_mode(), capture_attention(model, queries=[cell], layers=[layer]) as one:
        model([image])
    # The network saw the image resized, and padded at the right and below.
    size = (round(grid.image_size[0] / scale), round(grid.image_size[1] / scale))
    heads = one[layer][0, :, 0]
    for weights in (mean[layer].mean(1)[0, 0], heads[heads.flatten(1).amax(1).argmax()]):
        heat = grid.heat(weights - weights.min(), size=size)
        yield heat[:height, :width].numpy()


def main() -> None:
    """Draw the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layer", help="name of the layer; the last but one unless told")
    parser.add_argument("--count", type=int, default=6)
    options = parser.parse_args()
    model = Run.open(options.run).load_model()
    config = Run.open(options.run).config
    source = open_data(config.data, masks=finds_masks(config.model.name), training=False)
    layer = options.layer or list(attention_layers(model))[-2]
    groups = []
    for pixels, _ in map(source.test.__getitem__, range(len(source.test))):
        image = to_pil_image(pixels)
        found = detect(model, image)
        if found.scores is None or len(found.labels) == 0:
            continue
        best = found.boxes[found.scores.argmax()]
        centre = ((best[1] + best[3]) / 2, (best[0] + best[2]) / 2)
        point = (float(centre[0]), float(centre[1]))
        mean, one = looked_at(model, pixels / 255, layer, point)
        size = (ENLARGED * image.width, ENLARGED * image.height)
        shown = [
            overlay(image, heat).resize(size, Image.Resampling.BICUBIC) for heat in (mean, one)
        ]
        y, x = (ENLARGED * side for side in point)
        ImageDraw.Draw(shown[1]).ellipse((x - 8, y - 8, x + 8, y + 8), outline="white", width=3)
        groups.append((found.draw(image), *shown))
        if len(groups) == options.count:
            break
    captions = ("found", "attention of all positions", "attention of the circle")
    title = f"{config.model.title} on {config.data.name}, {layer.split('.model.')[-1]}"
    save_png(draw_sheet(groups, captions, title), options.out)


if __name__ == "__main__":
    main()
