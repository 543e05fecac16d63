"""Embeddings in a file of numpy's or safetensors' that grows by rows; its header comes last."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

_RESERVED = 256  # bytes for the header, whose length must not depend on the number of rows


def begin(part: Path) -> None:
    """Make a file without rows.

    Args:
        part: Replaced if it is there.
    """
    part.write_bytes(bytes(_RESERVED))


def append(part: Path, rows: Tensor) -> None:
    """Add rows.

    Args:
        part: What ``begin`` made.
        rows: (M, ...) float32, on the CPU; the rest of the shape is that of the others.
    """
    with part.open("ab") as file:
        file.write(rows.numpy().astype("<f4").tobytes())


def num_bytes(shape: Sequence[int]) -> int:
    """Length of a file of rows.

    Args:
        shape: (N, ...).
    """
    return _RESERVED + 4 * math.prod(shape)


def finish(part: Path, shape: Sequence[int], suffix: str) -> None:
    """Write the header.

    Args:
        part: What ``begin`` made, with all its rows.
        shape: (N, ...) of these.
        suffix: ``.npy``, or ``.safetensors``, where the tensor is called ``embeddings``.
    """
    header = _npy(shape) if suffix == ".npy" else _safetensors(shape)
    with part.open("r+b") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())


def _npy(shape: Sequence[int]) -> bytes:
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", _RESERVED - 10)
    told = repr({"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}).encode()
    return start + told.ljust(_RESERVED - len(start) - 1) + b"\n"


def _safetensors(shape: Sequence[int]) -> bytes:
    # https://huggingface.co/docs/safetensors: spaces may follow the header
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}
    told = json.dumps({"embeddings": entry}).encode()
    return struct.pack("<Q", _RESERVED - 8) + told.ljust(_RESERVED - 8)
