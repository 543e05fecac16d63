"""OpenVINO's intermediate representation."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.export.checking import Exported, Runnable, check_free, checked
from convattn.export.networks import prepare
from convattn.export.onnx_file import check_installed, to_onnx
from convattn.files import written_whole

OPENVINO_METADATA = "convattn"
"""The entry of ``rt_info`` that holds the metadata."""


def export_openvino(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    attention: bool = False,
    evidence: bool = False,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write a classifier for OpenVINO, for any batch and image size, and compare it there.

    Inputs and outputs are those of :func:`export_onnx`. The weights are float32, in a file of the
    same name that ends in ``.bin``. The metadata of :func:`export_onnx` are in the model's
    ``rt_info`` under ``convattn``: ``model.get_rt_info(["convattn", "pretrained_cfg"])``.

    Args:
        model: Left as it is; dropout and the like are switched off in what is written.
        path: The file to write, ``.xml``; one that exists is never overwritten.
        attention: As for :func:`export_onnx`.
        evidence: As for :func:`export_onnx`.
        size: Height and width of its images, in pixels; None takes ``pretrained_cfg``'s.

    Returns:
        The file and its checks; its size is that of both files.

    Raises:
        FileExistsError: If there is such a file, or one for its weights.
        FileNotFoundError: If there is no folder for it.
        ImportError: If OpenVINO is missing.
        ValueError: As for :func:`export_onnx`.
    """
    check_installed()
    openvino = import_openvino()
    file = check_free(path, ".xml")
    weights = check_free(file.with_suffix(".bin"), ".bin")
    network = prepare(model, attention, evidence, size).cpu()
    with written_whole(weights) as weights_part:

        def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
            written = to_onnx(network, example, metadata, opset=None)
            read = openvino.Core().read_model(written.SerializeToString())
            for name, text in metadata.items():
                read.set_rt_info(text, [OPENVINO_METADATA, name])
            openvino.serialize(read, part, weights_part)

        def reopen(part: Path) -> Runnable:
            return _open_openvino(part, weights_part)

        exported = checked(network, file, size, write, reopen)
        return Exported(
            file=file,
            size=exported.size + weights_part.stat().st_size,
            checks=exported.checks,
        )


def import_openvino() -> Any:
    """OpenVINO, which else would tell its makers over the network that it was imported.

    Raises:
        ImportError: If it is missing.
    """
    teller = "openvino_telemetry"
    before = sys.modules.get(teller)
    sys.modules[teller] = None  # type: ignore[assignment]  # to be found missing
    try:
        import openvino
    finally:
        del sys.modules[teller]
        if before is not None:
            sys.modules[teller] = before
    return openvino


def _open_openvino(file: Path, weights: Path) -> Runnable:
    core = import_openvino().Core()
    # bfloat16, which some CPUs would take by themselves, is too coarse to compare.
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(file, weights), "CPU", exactly)
    return lambda images: tuple(
        torch.from_numpy(output.copy()) for output in compiled(images.numpy()).values()
    )
