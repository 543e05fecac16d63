"""Where a segmenter looks for the pixels of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from convattn.explanation.classes import find_class
from convattn.explanation.dense import DenseExplanation, Levels, attention_from
from convattn.modes import check_finite, frozen_eval_mode
from convattn.segmentation.prediction import prepared


def explain_pixels(
    model: nn.Module,
    image: Image.Image,
    targets: Sequence[str | int] | None = None,
    *,
    count: int = 1,
) -> list[DenseExplanation]:
    """What of the image speaks for the pixels of a class, by gradient times activation.

    The score is the sum of the class's logits over the pixels that are taken for it, as in
    Seg-Grad-CAM, https://arxiv.org/abs/2002.11434; over all pixels where there are none.

    Args:
        model: A segmenter, as ``segment`` takes it; left as it is.
        image: Of any mode and size.
        targets: Names or numbers of classes; None: those of the most pixels.
        count: How many classes, where none are given.

    Raises:
        ValueError: If there is no such class.
    """
    names = list(cast(Any, model).pretrained_cfg["label_names"])
    batch, size = prepared(model, image), (image.height, image.width)
    seen = (batch.shape[2], batch.shape[3])
    with frozen_eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        run = Levels(model, lambda: model(batch.clone()))
        logits = run.output
        check_finite(logits)
        classes = logits[0].argmax(0)
        counts = classes.flatten().bincount(minlength=len(names))
        order = counts.argsort(descending=True, stable=True).tolist()[:count]
        chosen = [find_class(one, names) for one in targets] if targets else order
        explained = []
        for number in chosen:
            inside = (
                (classes == number)
                if counts[number]
                else torch.ones_like(classes, dtype=torch.bool)
            )
            heat = run.heat(logits[0, number][inside].sum(), seen, size)
            explained.append(
                DenseExplanation.of(
                    image,
                    heat,
                    method="gradcam",
                    name=names[number],
                    score=float(counts[number]) / classes.numel(),
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
    """What a segmenter's backbone looks at from a point, see ``attention_from``.

    Args:
        model: A segmenter with attention in its backbone.
        image: Of any mode and size.
        point: y and x in pixels of the image.
        layer: Name of the layer; None takes the last.
        head: Number of the head; None takes the mean of all.
    """
    batch: Tensor = prepared(model, image)
    seen = (batch.shape[2], batch.shape[3])
    return attention_from(
        model, lambda: model(batch), image, point, seen=seen, layer=layer, head=head
    )
