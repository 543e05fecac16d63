"""Checksums of what is in a file of weights, or of a training's state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TENSORS_SHA256 = "tensors_sha256"
"""Key of a ``.safetensors`` file's metadata that keeps ``digest_of_tensors``."""
ENTRIES_SHA256 = "entries_sha256"
"""Key of a checkpoint that keeps ``digest_of_entries`` of the rest."""


def digest_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of tensors, their names, types and shapes, and of the words beside them.

    Args:
        tensors: On the CPU, in any order.
        metadata: Its own entry ``TENSORS_SHA256`` does not count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for key, text in sorted(metadata.items()):
        if key != TENSORS_SHA256:
            digest.update(f"{key}\0{text}\0".encode())
    return digest.hexdigest()


def digest_of_entries(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a checkpoint consists of: every entry, number and word, every tensor's shape.

    The bytes of tensors have checksums in the archive that ``torch.save`` writes.

    Args:
        content: Mappings, sequences, tensors, numbers and words; its own entry ``ENTRIES_SHA256``
            does not count.
    """
    digest = hashlib.sha256()
    _add(digest, {key: value for key, value in content.items() if key != ENTRIES_SHA256})
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\0".encode())
    elif isinstance(value, Mapping):
        digest.update(f"{{{len(value)}\0".encode())
        for key, item in value.items():
            digest.update(f"{key!r}\0".encode(errors="backslashreplace"))
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}\0".encode())
        for item in value:
            _add(digest, item)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(f"{value!r}\0".encode(errors="backslashreplace"))
    else:
        digest.update(f"{type(value).__name__}\0".encode())
