"""Figures of a classifier's run: where it looks on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from convattn.explanation import attention_maps
from convattn.explanation.overlay import overlay


def draw_attention(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int],
    out: Path,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    boxes: Tensor | None = None,
    title: str,
) -> None:
    """Test images beside themselves with the attention laid over.

    Args:
        model: The trained classifier, which has attention.
        images: (B, C, H, W), normalised; 12 fill the page.
        labels: The true class numbers.
        out: The PNG to write.
        class_names: Name of each class number.
        mean: Of the normalisation, per channel.
        std: Of the normalisation, per channel.
        boxes: (B, 4) in pixels, drawn where there are any.
        title: Stands above.

    Raises:
        ValueError: If the model has no attention.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits, maps, grid = attention_maps(model.eval(), images.to(device))
    predicted = logits.argmax(1).tolist()
    size = grid.image_size
    heats = grid.heat(maps).cpu().numpy()
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    shown = [to_pil_image(image) for image in (images * scale + shift).clamp(0, 1)]
    # One axes for the whole page: matplotlib takes seconds to lay out dozens of them.
    num_pairs, gap, title_height = min(4, len(images)), 0.06, 0.2
    tall = size[0] / size[1]
    num_rows = math.ceil(len(images) / num_pairs)
    width, height = num_pairs * (2 + 3 * gap) - 2 * gap, num_rows * (tall + title_height)
    figure = Figure(figsize=(13, 13 * height / width + 0.55), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes = figure.subplots()
    axes.axis("off")
    for index, (image, heat) in enumerate(zip(shown, heats, strict=True)):
        image = image.convert("RGB")
        row, pair = divmod(index, num_pairs)
        top = row * (tall + title_height) + title_height
        left = pair * (2 + 3 * gap)
        right = left + 1 + gap
        guess, truth = predicted[index], labels[index]
        verdict, colour = ("✓", "#006d2c") if guess == truth else ("✗", "#cb181d")
        for panel, start, label, ink in (
            (image, left, class_names[truth], "black"),
            (overlay(image, heat), right, f"{verdict} {class_names[guess]}", colour),
        ):
            axes.imshow(panel, extent=(start, start + 1, top + tall, top))
            axes.text(start + 0.5, top - 0.04, label, ha="center", fontsize=10, color=ink)
        if boxes is not None:
            xmin, ymin, xmax, ymax = boxes[index].tolist()
            axes.add_patch(
                Rectangle(
                    (right + xmin / size[1], top + ymin / size[1]),
                    (xmax - xmin) / size[1],
                    (ymax - ymin) / size[1],
                    fill=False,
                    edgecolor="white",
                    linewidth=1.2,
                )
            )
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.savefig(out, dpi=110)
