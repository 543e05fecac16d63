"""Attention for networks that exist already: what could be replaced, replacing it, fine-tuning."""

from convattn.surgery.augmentation import augment, augmented_conv
from convattn.surgery.finetune import freeze, new_parameters, param_groups
from convattn.surgery.planning import plan
from convattn.surgery.records import ConvPlan, Plan, PoolPlan

__all__ = [
    "ConvPlan",
    "Plan",
    "PoolPlan",
    "augment",
    "augmented_conv",
    "freeze",
    "new_parameters",
    "param_groups",
    "plan",
]
