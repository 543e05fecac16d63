"""Where a network looks, and whether its map tells the truth.

``explain`` is its door.
"""

from convattn.explanation.attention import attention_maps
from convattn.explanation.capture import AttentionMaps, attention_layers, capture_attention
from convattn.explanation.classes import class_names, class_probabilities
from convattn.explanation.faithfulness import (
    Report,
    deletion_insertion,
    energy_in_box,
    measure_faithfulness,
    peak_in_box,
)
from convattn.explanation.geometry import Grid, GridTracker, cell_centres
from convattn.explanation.gradcam import cam_layers, grad_cam
from convattn.explanation.heatmap import (
    Explanation,
    Prediction,
    attention_through,
    explain,
    explain_classes,
)
from convattn.explanation.linear_evidence import Evidence, evidence
from convattn.explanation.preprocessing import preprocess

__all__ = [
    "AttentionMaps",
    "Evidence",
    "Explanation",
    "Grid",
    "GridTracker",
    "Prediction",
    "Report",
    "attention_layers",
    "attention_maps",
    "attention_through",
    "cam_layers",
    "capture_attention",
    "cell_centres",
    "class_names",
    "class_probabilities",
    "deletion_insertion",
    "energy_in_box",
    "evidence",
    "explain",
    "explain_classes",
    "grad_cam",
    "measure_faithfulness",
    "peak_in_box",
    "preprocess",
]
