"""Segmenters with attention in their backbone: the class of every pixel.

They are not timm models; their backbones are.
"""

from convattn.segmentation.registry import SEGMENTERS, create_segmenter
from convattn.segmentation.upernet import UPerNet, segmentation_loss, sliding_window

__all__ = ["SEGMENTERS", "UPerNet", "create_segmenter", "segmentation_loss", "sliding_window"]
