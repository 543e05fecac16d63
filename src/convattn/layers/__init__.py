"""Layers: drop-ins for a convolution and for a convnet's pool and classifier."""

from convattn.layers.aa_conv import AAConv2d
from convattn.layers.aggregation import LearnedAggregation2d
from convattn.layers.pools import POOLS, Pool, create_pool, pool_from_state_dict
from convattn.layers.rel_pos import resample_table

__all__ = [
    "POOLS",
    "AAConv2d",
    "LearnedAggregation2d",
    "Pool",
    "create_pool",
    "pool_from_state_dict",
    "resample_table",
]
