"""Released and other trained weights: where they are, how they are read, what they map to."""

from convattn.weights.conversion import convert_weights
from convattn.weights.download import cached_path, check_reachable, fetch
from convattn.weights.fitting import (
    adapt_classifier,
    adapt_input_channels,
    classifier_names,
    load_backbone,
    load_checked,
    load_trunk,
    under_own_names,
)
from convattn.weights.names import (
    architecture_of,
    patchconvnet_from_released,
    patchconvnet_to_released,
    remap_keys,
)
from convattn.weights.offline import find_installed
from convattn.weights.public_layers import aa_conv_from_public
from convattn.weights.reading import (
    mismatch_error,
    read_checkpoint,
    read_metadata,
    read_pretrained_cfg,
    read_weights,
    tensor_differences,
)
from convattn.weights.releases import RELEASES, Release
from convattn.weights.writing import with_digest, write_checkpoint, write_weights

__all__ = [
    "RELEASES",
    "Release",
    "aa_conv_from_public",
    "adapt_classifier",
    "adapt_input_channels",
    "architecture_of",
    "cached_path",
    "check_reachable",
    "classifier_names",
    "convert_weights",
    "fetch",
    "find_installed",
    "load_backbone",
    "load_checked",
    "load_trunk",
    "mismatch_error",
    "patchconvnet_from_released",
    "patchconvnet_to_released",
    "read_checkpoint",
    "read_metadata",
    "read_pretrained_cfg",
    "read_weights",
    "remap_keys",
    "tensor_differences",
    "under_own_names",
    "with_digest",
    "write_checkpoint",
    "write_weights",
]
