"""Data: sets of labelled images by name, and what is done to the images before a network."""

from convattn.data.annotated import AnnotatedImages, describe_skipped
from convattn.data.cluttered_digits import cluttered_digits
from convattn.data.coco import DETECTION_DATASETS, DetectionSource, load_detection
from convattn.data.dense_transforms import (
    detection_test_transform,
    detection_train_transform,
    segmentation_test_transform,
    segmentation_train_transform,
)
from convattn.data.imagenet import ImageNetValidation, load_imagenet_validation
from convattn.data.images import ImageFiles, TensorImages, UnreadableImageError
from convattn.data.masks import SEGMENTATION_DATASETS, SegmentationSource, load_segmentation
from convattn.data.scenes import Scenes, cluttered_scenes
from convattn.data.sources import DATASETS, Source, load_source
from convattn.data.transforms import batch_mix, eval_transform, train_transform, transform_of

__all__ = [
    "DATASETS",
    "DETECTION_DATASETS",
    "SEGMENTATION_DATASETS",
    "AnnotatedImages",
    "DetectionSource",
    "ImageFiles",
    "ImageNetValidation",
    "Scenes",
    "SegmentationSource",
    "Source",
    "TensorImages",
    "UnreadableImageError",
    "batch_mix",
    "cluttered_digits",
    "cluttered_scenes",
    "describe_skipped",
    "detection_test_transform",
    "detection_train_transform",
    "eval_transform",
    "load_detection",
    "load_imagenet_validation",
    "load_segmentation",
    "load_source",
    "segmentation_test_transform",
    "segmentation_train_transform",
    "train_transform",
    "transform_of",
]
