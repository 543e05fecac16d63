"""Weights and checkpoints into files, whole or not at all, with their checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convattn.files import replace_atomically, written_whole
from convattn.weights.digests import (
    ENTRIES_SHA256,
    TENSORS_SHA256,
    digest_of_entries,
    digest_of_tensors,
)


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a ``.safetensors`` file, which ``read_weights`` reads and checks.

    Args:
        tensors: By name, on the CPU.
        metadata: Words beside them; the checksum of all is added.

    Raises:
        UnwritableError: If the disk is full, or the folder is gone.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, with_digest(plain, metadata))
    replace_atomically(file, _in_fixed_order(content))


def _in_fixed_order(content: bytes) -> bytes:
    """A file whose metadata are sorted: its writer has them in another order every time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def with_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file with its checksum.

    Args:
        tensors: Of the file.
        metadata: The rest.
    """
    return {**metadata, TENSORS_SHA256: digest_of_tensors(tensors, metadata)}


def write_checkpoint(file: Path, content: Mapping[str, Any]) -> None:
    """Write the state of a training, which ``read_checkpoint`` reads and checks.

    Args:
        content: Mappings, sequences, tensors, numbers and words.

    Raises:
        UnwritableError: If the disk is full, or the folder is gone.
    """
    with written_whole(file) as part, part.open("wb") as stream:
        torch.save({**content, ENTRIES_SHA256: digest_of_entries(content)}, stream)
