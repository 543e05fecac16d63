"""Where a detector looks for what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from convattn.explanation.classes import find_class
from convattn.explanation.dense import DenseExplanation, Levels, attention_from
from convattn.modes import frozen_eval_mode


def explain_boxes(
    model: nn.Module,
    image: Image.Image,
    targets: Sequence[str | int] | None = None,
    *,
    count: int = 1,
    places: Sequence[int] | None = None,
) -> list[DenseExplanation]:
    """What of the image speaks for the surest boxes, by gradient times activation.

    Args:
        model: A detector whose ``pretrained_cfg`` has ``label_names``; left as it is.
        image: Of any mode and size.
        targets: Names or numbers (from 0) of classes: the surest box of each. None: of all.
        count: How many boxes, where no classes are given.
        places: Of boxes among those that the detector gives, instead of both.

    Raises:
        ValueError: If it finds no box, or none of a class, or there is no such class.
    """
    names = list(cast(Any, model).pretrained_cfg["label_names"])
    pixels = _pixels(model, image)
    size = (image.height, image.width)
    with frozen_eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        run = Levels(model, lambda: model([pixels])[0])
        labels, scores = run.output["labels"], run.output["scores"]
        explained = []
        for place in places or _chosen(labels, scores.detach(), names, targets, count):
            heat = run.heat(scores[place], _seen(model, size), size)
            box = run.output["boxes"][place].detach().tolist()
            explained.append(
                DenseExplanation.of(
                    image,
                    heat,
                    method="gradcam",
                    name=names[int(labels[place]) - 1],
                    score=float(scores[place].detach()),
                    box=(box[0], box[1], box[2], box[3]),
                )
            )
    return explained


def attention_of_point(
    model: nn.Module,
    image: Image.Image,
    point: tuple[float, float],
    *,
    layer: str | None = None,
    head: int | None = None,
) -> DenseExplanation:
    """What a detector's backbone looks at from a point, see ``attention_from``.

    Args:
        model: A detector with attention in its backbone.
        image: Of any mode and size.
        point: y and x in pixels of the image.
        layer: Name of the layer; None takes the last.
        head: Number of the head; None takes the mean of all.
    """
    pixels = _pixels(model, image)
    seen = _seen(model, (image.height, image.width))
    return attention_from(
        model, lambda: model([pixels]), image, point, seen=seen, layer=layer, head=head
    )


def _pixels(model: nn.Module, image: Image.Image) -> Tensor:
    device = next(model.parameters()).device
    return to_dtype(pil_to_tensor(image.convert("RGB")), torch.float32, scale=True).to(device)


def _seen(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the image as the detector resizes it."""
    transform = cast(Any, model).transform
    scale = min(transform.min_size[-1] / min(size), transform.max_size / max(size))
    return int(size[0] * scale), int(size[1] * scale)


def _chosen(
    labels: Tensor,
    scores: Tensor,
    names: Sequence[str],
    targets: Sequence[str | int] | None,
    count: int,
) -> list[int]:
    """Places of the boxes, which come with the surest first."""
    if not len(labels):
        raise ValueError("the detector finds no box on the image; give another image")
    order = scores.argsort(descending=True, stable=True).tolist()
    if not targets:
        return order[:count]
    chosen = []
    for target in targets:
        label = find_class(target, names) + 1
        of_class = [place for place in order if int(labels[place]) == label]
        if not of_class:
            found = sorted({names[int(one) - 1] for one in labels})
            raise ValueError(
                f"no box of {names[label - 1]!r} is found on the image; there are boxes of "
                f"{', '.join(found)}"
            )
        chosen.append(of_class[0])
    return chosen
