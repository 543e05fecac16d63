"""Attention for any convolutional network: inside its convolutions and in place of its pool.

Importing this package registers its models with timm.
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from convattn.runs import Run

__version__ = "0.1.0"

__all__ = [
    "OUR_MODELS",
    "POOLS",
    "AAConv2d",
    "LearnedAggregation2d",
    "Run",
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


def __getattr__(name: str) -> Any:
    # Only who opens a run waits for the detectors, which it may be of.
    if name == "Run":
        from convattn.runs import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
