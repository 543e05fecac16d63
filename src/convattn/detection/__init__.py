"""Detectors on torchvision's, with any backbone: boxes, and instance masks."""

from convattn.detection.mask_rcnn import MaskRCNN
from convattn.detection.registry import DETECTORS, create_detector, finds_masks
from convattn.detection.retinanet import RetinaNet

__all__ = ["DETECTORS", "MaskRCNN", "RetinaNet", "create_detector", "finds_masks"]
