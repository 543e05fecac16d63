"""Programs of torch.export."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.export.checking import Exported, Runnable, as_tuple, check_free, checked
from convattn.export.networks import prepare
from convattn.export.tracing import trace
from convattn.text import json_text

METADATA_FILE = "convattn.json"
"""The extra file of a program that holds its metadata."""


def export_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    attention: bool = False,
    evidence: bool = False,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write a classifier as a program of ``torch.export``, for any batch and image size.

    ``torch.export.load(path).module()`` runs it without this package, on the device that the model
    is on now. Its extra file ``convattn.json`` holds what the metadata of :func:`export_onnx` do.

    Args:
        model: Left as it is; dropout and the like are switched off in what is written.
        path: The file to write, ``.pt2``; one that exists is never overwritten.
        attention: As for :func:`export_onnx`; the program then gives several tensors.
        evidence: As for :func:`export_onnx`, and alike.
        size: Height and width of its images, in pixels; None takes ``pretrained_cfg``'s.

    Returns:
        The file and its checks.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
        ValueError: As for :func:`export_onnx`.
    """
    file = check_free(path, ".pt2")
    network = prepare(model, attention, evidence, size)

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        program = trace(network, example)
        torch.export.save(program, part, extra_files={METADATA_FILE: json_text(metadata)})

    return checked(network, file, size, write, _open_program)


def _open_program(part: Path) -> Runnable:
    program = torch.export.load(part).module()
    return lambda images: as_tuple(program(images))
