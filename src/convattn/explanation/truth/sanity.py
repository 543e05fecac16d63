"""Does a map follow the network's weights and the class, and do networks of other seeds agree?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of each map with another, equal values at their mean rank.

    Args:
        maps: (B, h, w).
        others: Alike.

    Returns:
        (B,) float64 between -1 and 1; 0 where a map is the same everywhere.

    Examples:
        >>> rank_correlation(torch.tensor([[[1.0, 2, 9]]]), torch.tensor([[[0.0, 5, 6]]]))
        tensor([1.0000], dtype=torch.float64)
    """
    from scipy.stats import rankdata

    ranks = [
        torch.from_numpy(np.asarray(rankdata(part.flatten(1).cpu().numpy(), axis=1)))
        for part in (maps, others)
    ]
    one, other = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    size = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(1) / torch.where(size == 0, 1.0, size)


def randomised_copies(
    model: nn.Module, num_stages: int | None = None, *, seed: int = 0
) -> list[nn.Module]:
    """Copies of a network in which more and more layers are random, from the logits down.

    The cascade of Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, layer by layer as Quantus
    has it: a layer begins anew by its own ``reset_parameters``; what has none is drawn from a
    normal distribution with the spread that it had.

    Args:
        model: Any network; left as it was.
        num_stages: Copies, with as many layers more each; None takes one a layer.
        seed: Of the draws.

    Returns:
        The copies; of the last one all layers are random.
    """
    names = [name for name, module in model.named_modules() if _has_values(module)][::-1]
    count = len(names) if num_stages is None else min(num_stages, len(names))
    last, copies = model, []
    with torch.random.fork_rng(devices=[]):
        for part in np.array_split(np.array(names, dtype=object), count):
            last = copy.deepcopy(last)
            for name in part:
                torch.manual_seed(seed)
                _randomise(last.get_submodule(name))
            copies.append(last)
    return copies


def _has_values(module: nn.Module) -> bool:
    own = any(True for _ in module.parameters(recurse=False))
    return own or (hasattr(module, "reset_parameters") and not any(module.children()))


def _randomise(module: nn.Module) -> None:
    reset: Any = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
        return
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.normal_(std=spread or float(parameter.abs().mean()) or 0.02)


def other_classes(targets: Tensor, num_classes: int, seed: int) -> Tensor:
    """A random class for each image that is not its own.

    Args:
        targets: (B,) class numbers.
        num_classes: At least 2.
        seed: Of the draw.

    Returns:
        (B,) class numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    step = torch.randint(1, num_classes, (len(targets),), generator=generator)
    return (targets + step.to(targets.device)) % num_classes


def agreements(maps: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """``rank_correlation`` of maps with each of several others.

    Args:
        maps: (B, h, w).
        stages: As many maps each.

    Returns:
        (B, stages) float64.
    """
    return torch.stack([rank_correlation(maps, others) for others in stages], 1)
