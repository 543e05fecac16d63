"""Runs: networks from names, and the folders that training leaves."""

from convattn.runs.build import (
    augment_arguments,
    create_dense_model,
    create_model,
    plan_model,
    starting_cfg,
)
from convattn.runs.folder import Run, open_model

__all__ = [
    "Run",
    "augment_arguments",
    "create_dense_model",
    "create_model",
    "open_model",
    "plan_model",
    "starting_cfg",
]
