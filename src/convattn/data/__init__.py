"""Data: sets of labelled images by name, and what is done to the images before a network."""

from convattn.data.annotated import AnnotatedImages, describe_skipped
from convattn.data.bands import read_bands
from convattn.data.cluttered_digits import generate_cluttered_digits
from convattn.data.dense_transforms import (
    detection_test_transform,
    detection_train_transform,
    segmentation_test_transform,
    segmentation_train_transform,
)
from convattn.data.detection import DETECTION_DATASETS, DetectionSource, load_detection
from convattn.data.generated import GENERATED
from convattn.data.imagenet import ImageNetValidation, load_imagenet_validation
from convattn.data.images import ImageFiles, TensorImages
from convattn.data.labelled import Source
from convattn.data.long_range import generate_count, generate_same_different
from convattn.data.pathfinder import generate_pathfinder
from convattn.data.reading import ImageSource, read_image
from convattn.data.scenes import Scenes, generate_scenes
from convattn.data.segmentation import (
    SEGMENTATION_DATASETS,
    SegmentationSource,
    load_segmentation,
)
from convattn.data.sources import DATASETS, load_source
from convattn.data.transforms import batch_mix, eval_transform, train_transform, transform_of
from convattn.exceptions import UnreadableImageError

__all__ = [
    "DATASETS",
    "DETECTION_DATASETS",
    "GENERATED",
    "SEGMENTATION_DATASETS",
    "AnnotatedImages",
    "DetectionSource",
    "ImageFiles",
    "ImageNetValidation",
    "ImageSource",
    "Scenes",
    "SegmentationSource",
    "Source",
    "TensorImages",
    "UnreadableImageError",
    "batch_mix",
    "describe_skipped",
    "detection_test_transform",
    "detection_train_transform",
    "eval_transform",
    "generate_cluttered_digits",
    "generate_count",
    "generate_pathfinder",
    "generate_same_different",
    "generate_scenes",
    "load_detection",
    "load_imagenet_validation",
    "load_segmentation",
    "load_source",
    "read_bands",
    "read_image",
    "segmentation_test_transform",
    "segmentation_train_transform",
    "train_transform",
    "transform_of",
]
