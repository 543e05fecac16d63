"""Where a network looks."""

from convattn.explain.capture import capture_attention
from convattn.explain.heatmap import cell_centres, image_sized

__all__ = ["capture_attention", "cell_centres", "image_sized"]
