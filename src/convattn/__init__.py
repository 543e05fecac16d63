"""Attention for any convolutional network: inside its convolutions and in place of its pool.

Importing this package registers its models with timm.
"""

from convattn.explanation import capture_attention, evidence, explain
from convattn.finetuning import finetune
from convattn.functional import aggregate, relative_attention_2d
from convattn.inference import optimize_for_inference
from convattn.layers import (
    POOLS,
    AAConv2d,
    LearnedAggregation2d,
    create_pool,
    pool_from_state_dict,
)
from convattn.models import OUR_MODELS
from convattn.probing import probe
from convattn.surgery import augment, freeze, param_groups, plan

__version__ = "0.1.0"

__all__ = [
    "OUR_MODELS",
    "POOLS",
    "AAConv2d",
    "LearnedAggregation2d",
    "aggregate",
    "augment",
    "capture_attention",
    "create_pool",
    "evidence",
    "explain",
    "finetune",
    "freeze",
    "optimize_for_inference",
    "param_groups",
    "plan",
    "pool_from_state_dict",
    "probe",
    "relative_attention_2d",
]
