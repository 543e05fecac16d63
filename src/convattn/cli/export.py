"""``convattn export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from convattn.cli.targets import Target, Weights, check_free, check_weights, find_target
from convattn.cli.words import UsageError, parse
from convattn.text import say

if TYPE_CHECKING:
    from torch import nn

    from convattn.export import Exported

Format = Literal["onnx", "openvino", "torch-export", "safetensors"]

_SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "safetensors": ".safetensors",
}
_LONGEST = 16_384  # pixels
_OPTIONS: dict[str, tuple[Format, ...]] = {
    "attention": ("onnx", "openvino", "torch-export"),
    "evidence": ("onnx", "openvino", "torch-export"),
    "nms": ("onnx",),
    "opset": ("onnx",),
    "quantize": ("onnx",),
    "device": ("torch-export",),
}
"""Option -> the formats that heed it."""

_HOW_TO_CHOOSE = """\
  from convattn.export import choose_boxes
  found = choose_boxes(boxes[0], scores[0], images.shape[2:], cfg)"""

_HOW_TO_RUN: dict[Format, str] = {
    "onnx": """\
  import onnxruntime
  session = onnxruntime.InferenceSession({file!r})
  [{outputs}] = session.run(None, {{"images": images}})""",
    "openvino": """\
  import openvino
  model = openvino.compile_model({file!r})
  [{outputs}] = model(images).values()""",
    "torch-export": """\
  import torch
  program = torch.export.load({file!r}).module()
  {outputs} = program(images)""",
    "safetensors": """\
  import safetensors.torch
  model.load_state_dict(safetensors.torch.load_file({file!r}))
  {outputs} = model(images)""",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained network as a file for other software, checked against the network."""

    format: Format = "onnx"
    """What to write: ONNX, OpenVINO, a program of torch.export, or the tensors alone."""
    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""
    num_classes: int | None = None
    """Number of classes of those weights; None takes the model's own."""
    attention: bool = False
    """Also give where the network looks: a map a head, or one a class."""
    evidence: bool = False
    """Also give every position's exact share of every logit."""
    quantize: Literal["int8"] | None = None
    """Compute in int8 up to the last convolution, calibrated on the run's training images; the test
    images tell what it costs."""
    nms: bool = False
    """RetinaNet: give the boxes that it finds, by non-maximum suppression in the graph, and not all
    for choose_boxes."""
    size: tuple[int, int] | None = None
    """Height and width that the file is checked and labelled with; None takes the network's own."""
    opset: int | None = None
    """Version of ONNX's operators; None takes PyTorch's choice."""
    device: str | None = None
    """Where a program of torch.export is to run, for example cuda; None: cpu."""
    out: str | None = None
    """File to write; None makes NAME here, with the format's suffix."""


def command(arguments: list[str]) -> int:
    """Run ``convattn export``."""
    prog = "convattn export"
    target = find_target(ExportOptions(), arguments, prog=prog, model="MODEL", dense=True)
    options = parse(ExportOptions, ExportOptions(), arguments[1:], prog=f"{prog} {target.name}")
    check_weights(target.run, options.weights)
    if target.run is not None and options.num_classes is not None:
        raise UsageError("--num-classes goes with a model's name; a run has its own classes")
    if options.nms and not target.task.models:
        raise UsageError(f"--nms is for detectors; {target.name} does {target.task.name}")
    if target.task.models:
        _check_dense(target, options)
    for name, formats in _OPTIONS.items():
        if options.format not in formats and getattr(options, name):
            raise UsageError(f"--{name} is for {_joined(formats)}, not {options.format}")
    if options.size is not None and not all(1 <= side <= _LONGEST for side in options.size):
        height, width = options.size
        raise UsageError(f"--size {height} {width}: expected 1 pixel or more, {_LONGEST:,} at most")
    name = target.name if target.folder is None else target.folder.resolve().name
    out = options.out or f"{name}{_SUFFIXES[options.format]}"
    check_free(out)

    if options.quantize is None:
        exported = _export(target, out, options)
    else:
        exported = _quantize(target, out, options)
    outputs = ", ".join(exported.checks[0].differences)
    kind = "images of 0 to 1" if "boxes" in outputs else "normalised images"
    say(f"\nrun it on {kind} (B, C, H, W), float32:")
    say(_HOW_TO_RUN[options.format].format(file=str(exported.file), outputs=outputs))
    if "boxes" in outputs and not options.nms:
        say("\nwhat is found on image 0, cfg being pretrained_cfg of the file's metadata:")
        say(_HOW_TO_CHOOSE)
    say(f"\n{exported.file}  {exported.size / 1e6:.1f} MB")
    return 0


def _check_dense(target: Target, options: ExportOptions) -> None:
    """Refuse what a detector's or segmenter's file cannot have."""
    for name in ("attention", "evidence", "quantize"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} is for networks that classify images; {target.name} does "
                f"{target.task.name}"
            )
    if options.format not in ("onnx", "torch-export"):
        raise UsageError(
            f"--format {options.format} is for networks that classify images; {target.name} does "
            f"{target.task.name}: give onnx or torch-export"
        )


def _joined(formats: Sequence[Format]) -> str:
    *most, last = formats
    return f"{', '.join(most)} and {last}" if most else last


def _export(target: Target, out: str, options: ExportOptions) -> Exported:
    from convattn.export import (
        TOLERANCE,
        export_onnx,
        export_openvino,
        export_program,
        export_safetensors,
    )

    model = target.load_model(checkpoint=options.weights, num_classes=options.num_classes)
    maps = {"attention": options.attention, "evidence": options.evidence}
    if options.format == "onnx":
        exported = export_onnx(
            model, out, **maps, size=options.size, opset=options.opset, nms=options.nms
        )
    elif options.format == "openvino":
        exported = export_openvino(model, out, **maps, size=options.size)
    elif options.format == "torch-export":
        _move(model, options.device or "cpu")
        exported = export_program(model, out, **maps, size=options.size)
    else:
        exported = export_safetensors(model, out, size=options.size)
    say(f"{exported.table()}\n\nlargest difference from the network; {TOLERANCE:.0e} is allowed")
    return exported


def _quantize(target: Target, out: str, options: ExportOptions) -> Exported:
    if target.run is None:
        raise UsageError(
            "--quantize needs a run, whose images it is calibrated on and tested with, and "
            f"{target.name} is a model; in Python convattn.export.export_int8 takes any images"
        )
    from convattn.export import export_int8_run

    found = export_int8_run(
        target.run,
        out,
        attention=options.attention,
        evidence=options.evidence,
        size=options.size,
        opset=options.opset,
    )
    say(f"{found.exported.table()}\n\nlargest difference of int8 from the network")
    say(
        f"calibrated on {found.num_images:,} training images; of {found.after.num_images:,} test "
        f"images: {found.before.headline} before, {found.after.headline} after"
    )
    return found.exported


def _move(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used here: {reason}") from None
