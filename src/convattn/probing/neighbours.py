"""k nearest neighbours on averaged maps: what the features are worth without training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.probing.cache import MapCache
from convattn.probing.scores import is_multi_label, training_loss

NUMBERS = (1, 5, 10, 20, 50, 100)
"""Of neighbours, among which is chosen."""
_TEMPERATURE = 0.07  # Caron et al. 2021, https://arxiv.org/abs/2104.14294
_LEAST_SHARE = 1e-3  # of a class that no neighbour has
_BATCH = 256


def averages(cache: MapCache) -> Tensor:
    """The mean of each image's map as the network is tested with, of length 1: (N, C)."""
    images = torch.arange(len(cache.labels))
    means = [cache.read(cache.rows(part)).mean((2, 3)) for part in images.split(_BATCH)]
    return F.normalize(torch.cat(means), dim=1)


def choose_number(vectors: Tensor, labels: Tensor, fit: Tensor, valid: Tensor, classes: int) -> int:
    """How many neighbours give the least loss on the validation part.

    Args:
        vectors: (N, C), of length 1.
        labels: (N,) or (N, K).
        fit: Places of the neighbours.
        valid: Places of the validation part.
        classes: Their number.
    """
    losses = {
        number: float(
            training_loss(vote(vectors, labels, fit, valid, classes, number), labels[valid])
        )
        for number in NUMBERS
        if number <= len(fit)
    }
    return min(losses, key=losses.__getitem__)


def vote(
    vectors: Tensor, labels: Tensor, known: Tensor, asked: Tensor, classes: int, number: int
) -> Tensor:
    """Logits of the classes by the nearest known images, weighted by exp(cosine / 0.07).

    Args:
        vectors: (N, C), of length 1.
        labels: (N,) or (N, K).
        known: Places of the neighbours.
        asked: (M,) places of the images in question.
        classes: Their number.
        number: Of neighbours.

    Returns:
        (M, classes): logarithms of shares; log-odds where an image may have several classes.
    """
    several = is_multi_label(labels)
    truth = labels[known].float() if several else F.one_hot(labels[known], classes).float()
    shares = []
    for part in asked.split(_BATCH):
        near = (vectors[part] @ vectors[known].T).topk(number, 1)
        weights = (near.values / _TEMPERATURE).softmax(1)
        shares.append(torch.einsum("mn,mnk->mk", weights, truth[near.indices]))
    found = torch.cat(shares)
    if several:
        return found.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE).logit()
    return (found + _LEAST_SHARE).log()
