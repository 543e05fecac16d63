"""Data: sets of labelled pictures by name, and what is done to the pictures before a network."""

from convattn.data.cluttered_digits import cluttered_digits
from convattn.data.images import ImageFiles, TensorImages, UnreadableImageError
from convattn.data.sources import DATASETS, Source, load_source
from convattn.data.transforms import batch_mix, eval_transform, train_transform, transform_of

__all__ = [
    "DATASETS",
    "ImageFiles",
    "Source",
    "TensorImages",
    "UnreadableImageError",
    "batch_mix",
    "cluttered_digits",
    "eval_transform",
    "load_source",
    "train_transform",
    "transform_of",
]
