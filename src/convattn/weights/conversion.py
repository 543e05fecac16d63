"""A file of weights into another: our names or the authors', safetensors or torch.save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

from convattn.files import sha256_of, written_whole
from convattn.ownership import owned
from convattn.text import json_text
from convattn.weights.names import architecture_of, patchconvnet_to_released
from convattn.weights.reading import mismatch_error, read_metadata, read_weights, tensor_differences
from convattn.weights.releases import RELEASES
from convattn.weights.writing import with_digest

_SUFFIXES = (".safetensors", ".pth")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a file that was made holds."""

    model: str | None
    """Name of its network, None if it is not known."""
    tensors: int
    """How many."""
    parameters: int
    """Numbers in them."""


def convert_weights(
    source: Path,
    target: Path,
    *,
    to: Literal["ours", "released"] = "ours",
    model: str | None = None,
) -> Converted:
    """Write trained weights under other names or in another format.

    A ``.safetensors`` file tells in its metadata what it was made from, by name and SHA-256, and
    as ``pretrained_cfg`` what its images need, if the network is known.

    Args:
        source: As ``read_weights`` takes it.
        target: ``.safetensors``, or ``.pth``, which holds the tensors under ``model`` as the
            released files do.
        to: Names and shapes: ours, or those of the authors of PatchConvNet.
        model: Name of the network, with or without a tag; None takes that of the release that has
            the file's name, or of the published PatchConvNet that the tensors are of.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If the target exists.
        ValueError: If the source is damaged, of another network than ``model``, or has no such
            names.
    """
    if target.suffix not in _SUFFIXES:
        raise ValueError(f"{target} is not named as one of {', '.join(_SUFFIXES)}")
    if target.exists():
        raise FileExistsError(f"{target} exists and is never overwritten; name another file")
    file, tensors = read_weights(source)
    name = model or _released_as(file) or architecture_of(tensors)
    metadata = read_metadata(file) | {"source": file.name, "source_sha256": sha256_of(file)}
    if name is not None:
        metadata["pretrained_cfg"] = json_text(_checked_cfg(name, file, tensors))
    if to == "released":
        tensors = patchconvnet_to_released(tensors)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # parts of one stay apart
    with owned(target), written_whole(target) as part:
        if target.suffix == ".pth":
            with part.open("wb") as stream:
                torch.save({"model": tensors}, stream)
        else:
            safetensors.torch.save_file(tensors, part, with_digest(tensors, metadata))
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Converted(model=name, tensors=len(tensors), parameters=parameters)


def _released_as(file: Path) -> str | None:
    return next((name for name, one in RELEASES.items() if one.file == file.name), None)


def _checked_cfg(name: str, file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What timm knows of a network, for the classes and channels of tensors that fit it."""
    cfg: dict[str, Any] = timm.models.get_pretrained_cfg(name).to_dict(remove_source=True)
    num_classes, in_chans = cfg["num_classes"], cfg["input_size"][0]
    if f"{cfg['classifier']}.weight" in tensors:
        num_classes = len(tensors[f"{cfg['classifier']}.weight"])
    if f"{cfg['first_conv']}.weight" in tensors:
        in_chans = tensors[f"{cfg['first_conv']}.weight"].shape[1]
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
    differences = tensor_differences(tensors, network.state_dict())
    if differences:
        raise mismatch_error(file, tensors, differences)
    return cfg | {"num_classes": num_classes, "input_size": (in_chans, *cfg["input_size"][1:])}
