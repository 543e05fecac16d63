"""Where a network looks, and whether its map tells the truth.

``convattn.explain`` is the function; import this package's parts by
``from convattn.explain import ...``.
"""

from convattn.explain.capture import AttentionMaps, attention_layers, capture_attention
from convattn.explain.faithfulness import (
    Report,
    deletion_insertion,
    energy_in_box,
    faithfulness,
    peak_in_box,
)
from convattn.explain.geometry import Grid, GridTracker, cell_centres
from convattn.explain.gradcam import cam_layers, grad_cam
from convattn.explain.heatmap import (
    Explanation,
    Prediction,
    attention_maps,
    attention_through,
    class_names,
    explain,
    explain_classes,
)
from convattn.explain.images import read_image, see

__all__ = [
    "AttentionMaps",
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
    "deletion_insertion",
    "energy_in_box",
    "explain",
    "explain_classes",
    "faithfulness",
    "grad_cam",
    "peak_in_box",
    "read_image",
    "see",
]
