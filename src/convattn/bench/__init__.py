"""What networks, layers and steps cost: parameters, multiply-adds, activations, time, memory.

:func:`measure` is for one network in many variants, :func:`compare` for any steps beside each
other, :func:`peak_memory` for what one needs at its peak.
"""

from convattn.bench.comparison import Comparison, Quartiles, Timing, compare, interleave
from convattn.bench.counts import Counts, count
from convattn.bench.figures import draw_costs
from convattn.bench.measurement import measure
from convattn.bench.memory import HeldTensors, peak_memory
from convattn.bench.report import Costs, Dtype, Row, Variant
from convattn.bench.steps import (
    OUT_OF_MEMORY,
    Step,
    StepError,
    describe_error,
    forward,
    forward_backward,
    num_threads,
    step_seconds,
    training_step,
)
from convattn.bench.subjects import (
    LAYERS,
    Layer,
    Subject,
    layer_subject,
    model_subject,
    run_subject,
)

__all__ = [
    "LAYERS",
    "OUT_OF_MEMORY",
    "Comparison",
    "Costs",
    "Counts",
    "Dtype",
    "HeldTensors",
    "Layer",
    "Quartiles",
    "Row",
    "Step",
    "StepError",
    "Subject",
    "Timing",
    "Variant",
    "compare",
    "count",
    "describe_error",
    "draw_costs",
    "forward",
    "forward_backward",
    "interleave",
    "layer_subject",
    "measure",
    "model_subject",
    "num_threads",
    "peak_memory",
    "run_subject",
    "step_seconds",
    "training_step",
]
