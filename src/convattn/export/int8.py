"""ONNX whose convolutions compute in int8, calibrated on images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convattn.export.checking import Exported, check_free, checked
from convattn.export.networks import prepare
from convattn.export.onnx_file import check_installed, open_onnx, quiet, to_onnx

if TYPE_CHECKING:
    from onnx import GraphProto

INT8_TOLERANCE = 1.0
"""Largest difference from the network, as a share of the largest number: beyond it is nonsense."""

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_ACTIVATIONS = ("Add", "Clip", "Relu")  # else what they cut off would cost int8 its range


def export_int8(
    model: nn.Module,
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    attention: bool = False,
    evidence: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
) -> Exported:
    """Write a classifier as ONNX that computes in int8 up to the last convolution.

    Weights are int8 by channel, maps int8 in the range that they have on the images (onnxruntime's
    static quantisation, QuantizeLinear and DequantizeLinear). What follows the last convolution,
    as a rule the pool and the classifier, stays float32, so that evidence sums to the logits as
    before. The file is compared with the network on the same images; how good it is, only a test
    tells.

    Args:
        model: Left as it is.
        path: The file to write, ``.onnx``; one that exists is never overwritten.
        images: Normalised images like those that it will see, (N, C, H, W), three or more; 100
            training images are enough.
        attention: As for :func:`export_onnx`.
        evidence: As for :func:`export_onnx`.
        size: As for :func:`export_onnx`.
        opset: As for :func:`export_onnx`.

    Returns:
        The file and its checks, whose differences are those of int8.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
        ValueError: As for :func:`export_onnx`; or if there is no convolution, or too few images.
    """
    check_installed()
    file = check_free(path, ".onnx")
    if images.dim() != 4 or len(images) < 3:
        raise ValueError(
            f"images of shape {tuple(images.shape)} were given to calibrate by; expected "
            "(N, C, H, W), N at least 3"
        )
    network = prepare(model, attention, evidence, size).cpu()

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        import onnx

        exact = to_onnx(network, example, metadata, opset)
        with TemporaryDirectory() as folder:
            source, ready = Path(folder, "exact.onnx"), Path(folder, "ready.onnx")
            onnx.save_model(exact, source)
            _quantize(source, ready, part, images.cpu())
        written = onnx.load(part)
        onnx.helper.set_model_props(written, metadata)
        onnx.save_model(written, part)

    return checked(
        network, file, size, write, open_onnx, images=images.cpu(), tolerance=INT8_TOLERANCE
    )


def _quantize(source: Path, ready: Path, out: Path, images: Tensor) -> None:
    import onnx
    from onnxruntime import quantization

    with quiet("onnxruntime.quantization"):
        quantization.quant_pre_process(source, ready, skip_symbolic_shape=True)
        graph = onnx.load(ready, load_external_data=False).graph
        quantization.quantize_static(
            ready,
            out,
            _batches_of(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*_PRODUCTS, *_ACTIVATIONS],
            nodes_to_exclude=_after_the_last_convolution(graph),
            per_channel=True,
        )


def _after_the_last_convolution(graph: GraphProto) -> list[str]:
    """Names of nodes; the activation of that convolution belongs to it."""
    nodes = list(graph.node)
    convolutions = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
    if not convolutions:
        raise ValueError("the network has no convolution that int8 could make faster")
    last = nodes[convolutions[-1]]
    return [
        node.name
        for node in nodes[convolutions[-1] + 1 :]
        if node.op_type not in _ACTIVATIONS or last.output[0] not in node.input
    ]


def _batches_of(images: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        """The images, some at a time."""

        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(images.split(8))

        def get_next(self) -> dict[str, Any] | None:
            """The next ones."""
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    return Batches()
