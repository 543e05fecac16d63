"""ONNX."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from convattn.export.checking import Exported, Runnable, check_free, checked
from convattn.export.dense import BestBoxes
from convattn.export.networks import output_names, prepare
from convattn.export.nms import add_nms
from convattn.export.tracing import AXES, trace

if TYPE_CHECKING:
    from onnx import ModelProto

_OLDEST_OPSET = 18  # that PyTorch's exporter writes


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    attention: bool = False,
    evidence: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    nms: bool = False,
) -> Exported:
    """Write a classifier as ONNX, for any batch and image size, and compare it in onnxruntime.

    The input ``images`` are normalised images (B, C, H, W), float32; the outputs are ``logits``,
    (B, num_classes), and with ``attention`` and ``evidence`` these. The file's metadata holds,
    beside the version of this package, ``pretrained_cfg`` as JSON: ``input_size``, ``mean``,
    ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` as timm has them, and
    ``label_names``.

    Args:
        model: Left as it is; dropout and the like are switched off in what is written.
        path: The file to write, ``.onnx``; one that exists is never overwritten.
        attention: Also give where the network looks, at the map's own resolution: the attention of
            its pool, (B, heads * tokens, H', W'), one map a head or with class tokens one a class;
            without a pool how much each position is looked at in the last attention convolution,
            (B, heads, H', W').
        evidence: Also give every position's exact share of every logit, (B, num_classes, H', W'),
            see ``convattn.evidence``. What is to be added to the sum over positions is in the
            metadata's ``pretrained_cfg`` as ``evidence_bias``, a number a class.
        size: Height and width of its images, in pixels; None takes ``pretrained_cfg``'s.
        opset: Version of ONNX's operators; None takes PyTorch's choice.
        nms: Of a RetinaNet: give the boxes that it finds, ``boxes`` (B, D, 4), ``labels`` (B, D)
            from 1 and ``scores`` (B, D), the surest first and zeros behind, D being the most that
            it finds on an image; without, all boxes, for ``choose_boxes``.

    Returns:
        The file and its checks.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
        ValueError: If the network is no classifier, has no attention or evidence where that is
            asked for, cannot be exported, or the file differs from it; no file is left then.
    """
    check_installed()
    file = check_free(path, ".onnx")
    network = prepare(model, attention, evidence, size, nms=nms).cpu()

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        import onnx

        onnx.save_model(to_onnx(network, example, metadata, opset), part)

    return checked(network, file, size, write, open_onnx)


def check_installed() -> None:
    """Tell what is missing before the work, not after it.

    Raises:
        ImportError: If a package is missing.
    """
    for needed in ("onnx", "onnxruntime", "onnxscript"):
        import_module(needed)


def to_onnx(
    network: nn.Module, example: Tensor, metadata: dict[str, str], opset: int | None
) -> ModelProto:
    """A network as ONNX, in memory.

    Args:
        network: A prepared one.
        example: Images, (B, C, H, W).
        metadata: Names and texts.
        opset: Version of ONNX's operators; None takes PyTorch's choice.

    Raises:
        ValueError: If the network cannot be traced, or there is no such version.
    """
    import onnx

    chooses = isinstance(network, BestBoxes)
    names = ("all_boxes", "all_scores") if chooses else output_names(network)
    written = _converted(trace(network, example), names, opset)
    _tidy(written)
    if isinstance(network, BestBoxes):
        cfg = network.cfg(None)
        wanted = ("score_thresh", "nms_thresh", "detections_per_img")
        add_nms(written, **{name: cfg[name] for name in wanted})
    onnx.helper.set_model_props(written, metadata)
    return written


def _converted(program: ExportedProgram, names: tuple[str, ...], opset: int | None) -> ModelProto:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset={opset} is not one of {_OLDEST_OPSET} to {newest}")
    # onnxscript 0.6 prints how many rules it applied.
    with quiet("onnxscript"), redirect_stdout(StringIO()):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(names),
            opset_version=opset,
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto


def _tidy(model: ModelProto) -> None:
    """Names for the sizes that may change, none of this machine's paths, each shape told once."""
    graph = model.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in AXES.items()}
    for output in graph.output[1:]:
        if len(output.type.tensor_type.shape.dim) < 4:
            continue
        for axis, name in ((2, "map_height"), (3, "map_width")):
            names[output.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    for node in graph.node:
        del node.metadata_props[:]
    # Shapes of weights that are told twice stop onnxruntime's quantisation, which transposes them.
    weights = {weight.name for weight in graph.initializer}
    told = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(told)


def open_onnx(part: Path) -> Runnable:
    """A file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    return lambda images: tuple(
        torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
    )


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Nothing but errors of a logger: what an optimiser leaves as it was concerns nobody."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
