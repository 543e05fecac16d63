"""Released and other trained weights: where they are, how they are read, what they map to."""

from convattn.files import hash_file, replace_atomically
from convattn.weights.conversion import convert_weights
from convattn.weights.download import cached_path, fetch
from convattn.weights.fitting import (
    classifier_names,
    load_checked,
    with_own_channels,
    with_own_classes,
)
from convattn.weights.names import (
    architecture_of,
    patchconvnet_from_released,
    patchconvnet_to_released,
    under_our_names,
)
from convattn.weights.public_layers import aa_conv_from_public
from convattn.weights.reading import (
    one_line,
    other_model,
    read_metadata,
    read_weights,
    tensor_differences,
)
from convattn.weights.releases import RELEASES, Release

__all__ = [
    "RELEASES",
    "Release",
    "aa_conv_from_public",
    "architecture_of",
    "cached_path",
    "classifier_names",
    "convert_weights",
    "fetch",
    "hash_file",
    "load_checked",
    "one_line",
    "other_model",
    "patchconvnet_from_released",
    "patchconvnet_to_released",
    "read_metadata",
    "read_weights",
    "replace_atomically",
    "tensor_differences",
    "under_our_names",
    "with_own_channels",
    "with_own_classes",
]
