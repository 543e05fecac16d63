"""How good predictions are, for one class an image or for several."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.classification.evaluation import average_precisions, calibration_error, macro_f1


def is_multi_label(labels: Tensor) -> bool:
    """Whether an image may have several classes: labels (N, K) and not (N,)."""
    return labels.dim() == 2


def training_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, or of several classes an image the binary one, their mean.

    Args:
        logits: (B, K).
        labels: (B,) class numbers, or (B, K) of 0 and 1.
        weights: (B,), how much each image counts, or (B, K), each class of it; None: all alike.
    """
    if is_multi_label(labels):
        each = None if weights is None else weights.view(len(weights), -1)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight=each)
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of 1, and the loss in nats.

    ``accuracy`` is the share of images whose likeliest class is right, ``balanced_accuracy`` its
    mean over the classes, ``ece`` the expected calibration error. Of several classes an image,
    they are of the yes and no of each class: ``balanced_accuracy`` is the mean of sensitivity and
    specificity; and there are ``map``, the mean average precision, and ``macro_f1``. What a class
    without such images leaves undefined is left out of the means.

    Args:
        logits: (N, K), of the whole test.
        labels: (N,) class numbers, or (N, K) of 0 and 1.
    """
    logits = logits.double()
    loss = float(training_loss(logits, labels))
    if is_multi_label(labels):
        return {**_of_several(logits, labels.bool()), "cross_entropy": loss}
    right = logits.argmax(1) == labels
    recalls = [right[labels == number].double().mean() for number in labels.unique()]
    confidence = logits.softmax(1).amax(1)
    return {
        "accuracy": float(right.double().mean()),
        "balanced_accuracy": float(torch.stack(recalls).mean()),
        "cross_entropy": loss,
        "ece": calibration_error(confidence, right),
    }


def per_image(logits: Tensor, labels: Tensor) -> Tensor:
    """What ``accuracy`` is the mean of, (N,)."""
    if is_multi_label(labels):
        return ((logits > 0) == labels.bool()).double().mean(1)
    return (logits.argmax(1) == labels).double()


def _of_several(logits: Tensor, truth: Tensor) -> dict[str, float]:
    shares, said = logits.sigmoid(), logits > 0
    having = truth.any(0)
    sensitivity = (said & truth).sum(0) / truth.sum(0)
    specificity = (~said & ~truth).sum(0) / (~truth).sum(0)
    precisions = average_precisions(shares, truth).values()
    return {
        "accuracy": float((said == truth).double().mean()),
        "balanced_accuracy": float(((sensitivity + specificity) / 2).nanmean()),
        "ece": calibration_error(shares.flatten(), truth.flatten()),
        "map": sum(precisions) / max(1, len(precisions)),
        "macro_f1": macro_f1(said[:, having], truth[:, having]),
    }
