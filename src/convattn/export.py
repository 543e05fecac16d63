"""Trained classifiers as files for other software, checked before they are kept.

Each file is read back and compared with the network at three image sizes and two batch sizes;
one that differs is not kept. It holds what its images need and what its classes are called.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from timm.data import resolve_data_config
from timm.layers import padding
from torch import SymInt, Tensor, nn
from torch.export import Dim, ExportedProgram

from convattn import __version__
from convattn.explanation.capture import attention_layers
from convattn.explanation.heatmap import class_names, find_attention_layer, pretrained_cfg
from convattn.explanation.linear_evidence import LinearHead, linear_head
from convattn.files import written_whole
from convattn.layers import AAConv2d, LearnedAggregation2d, Pool
from convattn.surgery.trace import check_network

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4
"""Largest difference that is allowed, as a share of the largest number."""
METADATA_FILE = "convattn.json"
"""The extra file of a torch-export program that holds its metadata."""

_OLDEST_OPSET = 18  # that PyTorch's exporter writes
_AXES = {0: "batch", 2: "height", 3: "width"}
_Outputs = tuple[Tensor, ...]
_Run = Callable[[Tensor], _Outputs]


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a file is from its network on one batch."""

    height: int
    """Of the images, in pixels."""
    width: int
    """Of the images, in pixels."""
    batch_size: int
    """Images at once."""
    differences: dict[str, float]
    """Name of each output -> largest difference, as a share of its largest number."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and how it was checked."""

    file: Path
    """Where it is."""
    size: int
    """Bytes."""
    checks: tuple[Check, ...]
    """One an image size and batch size."""

    def table(self) -> str:
        """The checks as a small table."""
        names = list(self.checks[0].differences)
        lines = [f"{'pixels':>11}  batch" + "".join(f"  {name:>9}" for name in names)]
        for check in self.checks:
            numbers = "".join(f"  {check.differences[name]:>9.1e}" for name in names)
            size = f"{check.height} x {check.width}"
            lines.append(f"{size:>11}  {check.batch_size:>5}{numbers}")
        return "\n".join(lines)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    attention: bool = False,
    evidence: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
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

    Returns:
        The file and its checks.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
        ValueError: If the network is no classifier, has no attention or evidence where that is
            asked for, cannot be exported, or the file differs from it; no file is left then.
    """
    for needed in ("onnx", "onnxruntime", "onnxscript"):
        import_module(needed)  # told before the work, not after it
    file = _free(path, ".onnx")
    network = _network(model, attention, evidence, size).cpu()

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        import onnx

        written = _to_onnx(_program(network, example), _names(network), opset)
        _tidy(written)
        onnx.helper.set_model_props(written, metadata)
        onnx.save_model(written, part)

    return _checked(network, file, size, write, _open_onnx)


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
    file = _free(path, ".pt2")
    network = _network(model, attention, evidence, size)

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        program = _program(network, example)
        torch.export.save(program, part, extra_files={METADATA_FILE: json.dumps(metadata)})

    return _checked(network, file, size, write, _open_program)


def export_safetensors(
    model: nn.Module, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None
) -> Exported:
    """Write a classifier's tensors as safetensors, with the metadata of :func:`export_onnx`.

    Args:
        model: Left as it is.
        path: The file to write, ``.safetensors``; one that exists is never overwritten.
        size: Height and width of its images, in pixels; None takes ``pretrained_cfg``'s.

    Returns:
        The file and its checks.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
        ValueError: If the network is no classifier, or the file differs from it.

    Example:
        >>> import tempfile, timm
        >>> model = timm.create_model("patchconvnet_nano", embed_dim=16, depth=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_safetensors(model, f"{folder}/nano.safetensors")
        >>> len(exported.checks), exported.checks[0].differences
        (6, {'logits': 0.0})
    """
    file = _free(path, ".safetensors")
    network = _network(model, attention=False, evidence=False, size=size)

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        # Tensors that share memory would be refused.
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        safetensors.torch.save_file(tensors, part, metadata)

    def reopen(part: Path) -> _Run:
        copied = copy.deepcopy(network)
        copied.load_state_dict(safetensors.torch.load_file(part))
        return lambda images: _tuple(copied(images))

    return _checked(network, file, size, write, reopen)


class _WithMaps(nn.Module):
    """A network that also gives the attention of one of its layers, its evidence, or both."""

    weight: Tensor

    def __init__(self, model: nn.Module, layer: str | None, head: LinearHead | None) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.head = head
        if head is not None:
            self.register_buffer("weight", head.weight, persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        attention = ("attention",) if self.layer is not None else ()
        return ("logits", *attention, *(("evidence",) if self.head is not None else ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> (B, num_classes), and (B, maps, H', W') of each."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handles = []
        for name in {self.layer, None if self.head is None else self.head.name} - {None}:
            assert name is not None

            def record(
                module: nn.Module, args: tuple[Any, ...], out: Tensor, name: str = name
            ) -> None:
                seen[name] = args[0], out

            handles.append(self.model.get_submodule(name).register_forward_hook(record))
        try:
            outputs = [self.model(images)]
        finally:
            for handle in handles:
                handle.remove()
        if self.layer is not None:
            layer = self.model.get_submodule(self.layer)
            outputs.append(_attention(layer, seen[self.layer][0]))
        if self.head is not None:
            head = dataclasses.replace(self.head, weight=self.weight)
            outputs.append(head.shares(self.model, head.last_map(*seen[head.name])))
        return tuple(outputs)


def _attention(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, LearnedAggregation2d):
        return layer.attention_weights(x).flatten(1, 2)
    if isinstance(layer, Pool):
        return layer.attention_weights(x)
    assert isinstance(layer, AAConv2d)
    return layer.attention_weights(x).mean(2).unflatten(2, layer.attention_size(x))


def _free(path: str | os.PathLike[str], suffix: str) -> Path:
    file = Path(path)
    if file.suffix != suffix:
        raise ValueError(f"{file} must end in {suffix}, as {file.with_suffix(suffix).name} does")
    if file.exists():
        raise FileExistsError(f"{file} exists and is never overwritten; give another name")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} for {file.name}; make it first")
    return file


def _network(
    model: nn.Module, attention: bool, evidence: bool, size: tuple[int, int] | None
) -> nn.Module:
    """A copy to export: it evaluates, and nobody else's hooks or modes are touched."""
    check_network(model, "export")
    dtypes = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if dtypes:
        raise ValueError(f"the network holds {dtypes.pop()}; export it in float32: model.float()")
    network = copy.deepcopy(model).eval().requires_grad_(False)
    layer, head = None, None
    if attention:
        if not attention_layers(network):
            raise ValueError(
                f"{type(network).__name__} has no attention whose maps could be an output; leave "
                "attention out, or give it some with convattn.augment(model, pool='attention')"
            )
        layer, _ = find_attention_layer(network)
    if evidence:
        images = _batches(*_cfg(network, size)["input_size"], like=next(network.parameters()))[0]
        head = linear_head(network, images)
    return _WithMaps(network, layer, head) if attention or evidence else network


def _names(network: nn.Module) -> tuple[str, ...]:
    return network.outputs if isinstance(network, _WithMaps) else ("logits",)


def _cfg(network: nn.Module, size: tuple[int, int] | None) -> dict[str, Any]:
    """What is to be known of a network's images, in timm's words."""
    known = pretrained_cfg(_classifier(network))
    about = {key: known[key] for key in ("architecture", "tag", "license") if known.get(key)}
    resolved = resolve_data_config(pretrained_cfg=dict(known))
    channels, *own = resolved["input_size"]
    return about | resolved | {"input_size": (channels, *(size or own))}


def _classifier(network: nn.Module) -> nn.Module:
    return network.model if isinstance(network, _WithMaps) else network


def _checked(
    network: nn.Module,
    file: Path,
    size: tuple[int, int] | None,
    write: Callable[[Path, Tensor, dict[str, str]], None],
    reopen: Callable[[Path], _Run],
) -> Exported:
    """Write a file, read it back, compare, and only then give it its name."""
    cfg = _cfg(network, size)
    batches = _batches(*cfg["input_size"], like=next(network.parameters(), torch.empty(())))
    expected = [_eager(network, images) for images in batches]
    num_classes = expected[0][0].shape[1]
    names = class_names(_classifier(network), num_classes)
    cfg |= {"num_classes": num_classes, "label_names": names}
    if isinstance(network, _WithMaps) and network.head is not None:
        cfg["evidence_bias"] = network.head.bias.tolist()
    metadata = {"convattn_version": __version__, "pretrained_cfg": json.dumps(cfg)}
    with written_whole(file) as part:
        write(part, batches[-1], metadata)
        run = _reopened(reopen, part, file.name)
        checks = tuple(
            Check(
                height=images.shape[2],
                width=images.shape[3],
                batch_size=images.shape[0],
                differences=_differences(run, images, wanted, _names(network), file.name),
            )
            for images, wanted in zip(batches, expected, strict=True)
        )
    return Exported(file=file, size=file.stat().st_size, checks=checks)


def _reopened(reopen: Callable[[Path], _Run], part: Path, file: str) -> _Run:
    try:
        return reopen(part)
    except Exception as error:  # runtimes have classes of their own
        raise ValueError(
            f"{file} cannot be read back, and nothing is kept: {_first_line(error)}"
        ) from error


def _batches(channels: int, height: int, width: int, *, like: Tensor) -> list[Tensor]:
    """Images of noise: of the own size, of a larger one and of a longer one, both odd."""
    sizes = [
        (height, width),
        (height + height // 4 + 1, width + width // 4 + 1),
        (height, width + width // 2 - 1),
    ]
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch_size, channels, *size, generator=draw).to(like)
        for size in sizes
        for batch_size in (1, 3)
    ]


@contextmanager
def _exactly() -> Iterator[None]:
    """Without gradients, and on CUDA without TF32, whose error is larger than is allowed."""
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def _eager(network: nn.Module, images: Tensor) -> _Outputs:
    """What the network itself gives: logits first."""
    batch_size, _, height, width = images.shape
    try:
        with _exactly():
            outputs = _tuple(network(images))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(_classifier(network)).__name__} fails for {batch_size} images of {height} x "
            f"{width}; only networks that take images of any size are exported: "
            f"{_first_line(error)}"
        ) from error
    logits = outputs[0]
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            f"{type(_classifier(network)).__name__} gives no logits (B, num_classes); only "
            "networks that classify images are exported, no detectors or segmenters"
        )
    return outputs


def _differences(
    run: _Run, images: Tensor, expected: _Outputs, names: tuple[str, ...], file: str
) -> dict[str, float]:
    """Of each output; a ValueError where the file fails or differs too much."""
    batch_size, _, height, width = images.shape
    where = f"for {batch_size} images of {height} x {width}; nothing is kept"
    try:
        with _exactly():
            outputs = run(images)
    except Exception as error:  # runtimes have classes of their own
        raise ValueError(f"{file} fails {where}: {_first_line(error)}") from error
    found = {}
    for name, ours, theirs in zip(names, outputs, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{file} gives {name} of shape {tuple(ours.shape)} instead of "
                f"{tuple(theirs.shape)} {where}"
            )
        largest = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
        found[name] = ((ours - theirs).abs().max() / largest).item()
        if not found[name] <= TOLERANCE:  # NaN neither
            raise ValueError(
                f"{file} differs from the network by {found[name]:.1e} of the largest of the "
                f"{name}, {TOLERANCE:.0e} is allowed, {where}"
            )
    return found


def _program(network: nn.Module, example: Tensor) -> ExportedProgram:
    """The network's operators for any batch, height and width."""
    for layer in network.modules():
        if isinstance(layer, AAConv2d):
            layer.attn_backend = "sdpa"  # PyTorch's own, whatever the layer or the variable asks
    sizes = dict.fromkeys(_AXES, Dim.DYNAMIC)
    try:
        with _traceable_same_padding():
            return torch.export.export(network, (example,), dynamic_shapes=(sizes,))
    except Exception as error:  # of many kinds, from anywhere in the tracer
        raise ValueError(
            f"{type(_classifier(network)).__name__} cannot be exported for any batch and image "
            f"size: {_first_line(error)}"
        ) from error


@contextmanager
def _traceable_same_padding() -> Iterator[None]:
    """Let timm's "same" padding be computed without rounding, which no tracer can simplify.

    The size behind a layer is then (size - 1) // stride + 1, and behind several it stays as short.
    """
    rounding = padding.get_same_padding
    padding.get_same_padding = _same_padding
    try:
        yield
    finally:
        padding.get_same_padding = rounding


def _same_padding(size: int | SymInt, kernel_size: int, stride: int, dilation: int) -> int | SymInt:
    """What is added to a height or width, both sides together."""
    extent = dilation * (kernel_size - 1) + 1
    added = (size - 1) // stride * stride + extent - size
    return added if extent >= stride else torch.sym_max(added, 0)


def _open_program(part: Path) -> _Run:
    program = torch.export.load(part).module()
    return lambda images: _tuple(program(images))


def _to_onnx(program: ExportedProgram, names: tuple[str, ...], opset: int | None) -> ModelProto:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset={opset} is not one of {_OLDEST_OPSET} to {newest}")
    with _quiet("onnxscript"):
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
    """Names for the sizes that may change, and none of this machine's paths."""
    graph = model.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in _AXES.items()}
    for output in graph.output[1:]:
        for axis, name in ((2, "map_height"), (3, "map_width")):
            names[output.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    for node in graph.node:
        del node.metadata_props[:]


def _open_onnx(part: Path) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    return lambda images: tuple(
        torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing but errors of a logger: what an optimiser leaves as it was concerns nobody."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tuple(outputs: Any) -> _Outputs:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
