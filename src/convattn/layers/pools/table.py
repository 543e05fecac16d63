"""Pools by name, and out of their authors' tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from convattn.config import pool_layer
from convattn.layers.aggregation import LearnedAggregation2d
from convattn.layers.pools.base import Pool
from convattn.layers.pools.blocks import LatentAttentionPool, LearnedAggregationPool
from convattn.layers.pools.classes import ClassQueryPool
from convattn.layers.pools.plain import AveragePool, GeMPool, LogSumExpPool, MaxPool
from convattn.layers.pools.published import EfficientProbingPool, GatedAttentionPool, SimPool
from convattn.layers.pools.queries import QueryPool, ResidualQueryPool
from convattn.text import nearest

POOLS: Mapping[str, Callable[..., Pool]] = {
    "avg": AveragePool,
    "max": MaxPool,
    "gem": GeMPool,
    "lse": LogSumExpPool,
    "query": QueryPool,
    "residual": ResidualQueryPool,
    "ep": EfficientProbingPool,
    "simpool": SimPool,
    "abmil": GatedAttentionPool,
    "class": ClassQueryPool,
    "map": LatentAttentionPool,
    "aggregation": LearnedAggregationPool,
}
"""Every pool by its name."""

_AUTHORS_NAMES: Mapping[str, Mapping[str, str]] = {
    "ep": {"cls_token": "queries", "v.weight": "v.weight"},
    "simpool": {
        "wq.weight": "q.weight",
        "wk.weight": "k.weight",
        "norm_patches.weight": "norm.weight",
        "norm_patches.bias": "norm.bias",
    },
    "abmil": {
        f"attention_{part}{'' if part == 'c' else '.0'}.{kind}": f"{part}.{kind}"
        for part in "abc"
        for kind in ("weight", "bias")
    },
    "map": {
        "mlp.fc1.weight": "mlp.0.weight",
        "mlp.fc1.bias": "mlp.0.bias",
        "mlp.fc2.weight": "mlp.2.weight",
        "mlp.fc2.bias": "mlp.2.bias",
    },
}
"""Pool -> its authors' names of tensors -> ours, where they differ."""


def create_pool(name: str, in_features: int, **options: Any) -> Pool:
    """A pool by its name.

    Args:
        name: One of ``POOLS``, or "attention" for the default among them.
        in_features: Channels of the map.
        options: Of the pool, see its class.

    Raises:
        ValueError: If there is no such pool, or it refuses an option.

    Examples:
        >>> create_pool("ep", 64, num_queries=8).out_features
        64
    """
    name = pool_layer(name)
    if name not in POOLS:
        names = ("attention", *POOLS)
        raise ValueError(
            f"unknown pool {name!r}; the nearest is {nearest(name, names)!r} of {', '.join(names)}"
        )
    try:
        return POOLS[name](in_features, **options)
    except TypeError as error:
        raise ValueError(f"pool {name!r} refuses its options: {error}") from error


def pool_from_state_dict(name: str, state_dict: Mapping[str, Tensor], **options: Any) -> Pool:
    """A pool out of the tensors of its authors' module, by their names.

    Args:
        name: "ep", "simpool", "abmil" or "map".
        state_dict: The tensors; sizes are read from them.
        options: What they do not tell: ``num_heads`` of simpool and map.

    Raises:
        ValueError: If there is no importer for that pool, or a tensor is missing or one too many.
    """
    if name not in _AUTHORS_NAMES:
        known = ", ".join(_AUTHORS_NAMES)
        raise ValueError(f"there is no importer for the pool {name!r}; there are {known}")
    names = _AUTHORS_NAMES[name]
    tensors = {names.get(key, key): tensor for key, tensor in state_dict.items()}
    if name == "ep" and "queries" in tensors:
        tensors["queries"] = queries = tensors["queries"].flatten(0, -2)
        options |= {"num_queries": len(queries), "values": "v.weight" in tensors}
        if "v.weight" in tensors:
            options["out_features"] = len(tensors["v.weight"])
    if name == "abmil" and "a.weight" in tensors:
        options["hidden"] = len(tensors["a.weight"])
    if name == "map" and "mlp.0.weight" in tensors:
        hidden, width = tensors["mlp.0.weight"].shape
        options["mlp_ratio"] = hidden / width
    first = {"ep": "queries", "simpool": "q.weight", "abmil": "a.weight", "map": "latent"}[name]
    if first not in tensors:
        theirs = next((key for key, ours in names.items() if ours == first), first)
        raise ValueError(
            f"the tensors are not those of the pool {name!r}: {theirs} is not among "
            f"{', '.join(state_dict) or 'none'}"
        )
    pool = create_pool(name, tensors[first].shape[-1], **options).to(tensors[first].dtype)
    own = pool.state_dict()
    if own.keys() != tensors.keys():
        wrong = ", ".join(sorted(own.keys() ^ tensors.keys()))
        raise ValueError(f"the tensors are not those of the pool {name!r}: see {wrong}")
    pool.load_state_dict(tensors)
    return pool


def looks(pool: Pool) -> bool:
    """Whether a pool itself, not one inside it, weighs positions unequally.

    Args:
        pool: Any.
    """
    inside = any(isinstance(child, Pool | LearnedAggregation2d) for child in pool.children())
    return not inside and type(pool) is not AveragePool
