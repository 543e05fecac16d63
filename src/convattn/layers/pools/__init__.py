"""Pools: a map in, one vector out, and the weights that say where it came from.

One contract: ``forward`` takes (B, C, H, W) to (B, ``out_features``), for any H and W;
``attention_weights`` gives (B, queries, H, W), whose every map sums to 1. Pools whose output is
linear in what they weigh have ``contributions`` besides: an exact share of each position in any
linear reading of the output.

=========== ==================== =============== ===================================================
name        parameters           linear          what it is
=========== ==================== =============== ===================================================
avg         0                    yes             the mean
max         0                    no              the largest, a channel at a time
gem         1                    no              generalised mean
lse         0                    no              smooth maximum
query       C                    yes             one query, of channels in their own units
residual    2C                   yes             the mean, and one query's difference from it
ep          QC + C^2 / d         yes             efficient probing: Q queries, no keys
simpool     2C^2 + 2C            yes             the mean asks, normed positions answer
abmil       2Ch + 3h + 1         yes             gated attention of multiple-instance learning
class       2KC + K              yes             a query and a weight vector a class: logits
map         10C^2 and more       no              a latent asks, an MLP follows
aggregation 10C^2 and more       no              the paper's: Touvron et al. 2021
=========== ==================== =============== ===================================================

Weights come from features as they are, or normed; values are never normed but in ``simpool``: a
position's length says how much it matters.
"""

from convattn.layers.pools.base import Pool, class_maps, mean_shares
from convattn.layers.pools.blocks import LatentAttentionPool, LearnedAggregationPool
from convattn.layers.pools.classes import ClassQueryPool, ClassTokenPool
from convattn.layers.pools.plain import AveragePool, GeMPool, LogSumExpPool, MaxPool
from convattn.layers.pools.published import EfficientProbingPool, GatedAttentionPool, SimPool
from convattn.layers.pools.queries import GatedPool, QueryPool, ResidualQueryPool
from convattn.layers.pools.table import POOLS, create_pool, looks, pool_from_state_dict

__all__ = [
    "POOLS",
    "AveragePool",
    "ClassQueryPool",
    "ClassTokenPool",
    "EfficientProbingPool",
    "GatedAttentionPool",
    "GatedPool",
    "GeMPool",
    "LatentAttentionPool",
    "LearnedAggregationPool",
    "LogSumExpPool",
    "MaxPool",
    "Pool",
    "QueryPool",
    "ResidualQueryPool",
    "SimPool",
    "class_maps",
    "create_pool",
    "looks",
    "mean_shares",
    "pool_from_state_dict",
]
