"""Networks as they run when nothing is to be learned any more: the same logits, sooner."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from convattn.inference.aggregation import fold_aggregations
from convattn.inference.blocks import KERNELS, Kernels, fold_blocks
from convattn.inference.folding import fold_batch_norms
from convattn.inference.int8 import quantize_int8
from convattn.inference.processor import compiler_trouble, emulates
from convattn.modes import hooks_of
from convattn.surgery.copying import computes_weight, copy_network, fix_computed_weights
from convattn.surgery.trace import check_network

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    kernels: Kernels = "torch",
) -> nn.Module:
    """A copy of a trained network that gives the same logits faster, and can only do that.

    BatchNorm goes into the convolutions and attention branches before it; in PatchConvNets the
    factors of LayerNorm and layer scale go into the 1x1 convolutions; in a learned aggregation the
    tokens, which never change, go into its matrices; and every parameter is frozen. For any
    network of ours, any that ``augment`` made, and any convolutional network of timm or
    torchvision.

    Args:
        model: In evaluation mode, without hooks but such as compute weights (``weight_norm``,
            ``spectral_norm``, pruning); left alone.
        dtype: Number format of weights and activations; the weights are cast once, and images
            of any floating format are taken. None keeps float32. ``torch.int8`` computes the
            blocks' large matrix products in int8, see :func:`convattn.inference.int8.
            quantize_int8`, and everything else in float32. Where the processor has no fast
            instructions for a format, a warning says so and float32 takes its place.
        compile: Compile with ``torch.compile``: on the CPU with weights that are constants, on
            CUDA as CUDA graphs; no gradients pass. Every size and batch gets code of its own at
            its first call, in about a minute, and after eight of them (PyTorch's
            ``torch._dynamo.config.recompile_limit``) others run as they are. Without a compiler, a
            warning says so, and the network runs as it is.
        kernels: Of PatchConvNet's blocks. "experimental_triton" takes kernels of our own on CUDA,
            see :mod:`convattn.kernels.patchconv_block.experimental_triton`; interpreted on the CPU
            and compiled ahead of time in the tests, never run or timed on a GPU.

    Returns:
        The network: of the same class, with the same methods, its parameters folded.

    Raises:
        ValueError: If the model is in training mode, has hooks or is wrapped, there is no such
            ``dtype`` or no such ``kernels``, or what was asked for cannot run there.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano").eval()
        >>> fast = optimize_for_inference(model)
        >>> x = torch.randn(2, 3, 64, 64)
        >>> with torch.inference_mode():
        ...     bool((fast(x) - model(x)).abs().max() < 1e-5)
        True
    """
    check_network(model, "optimise")
    _refuse(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = _usable(dtype, device)
    _check_kernels(kernels, device)
    network = copy_network(model)
    fix_computed_weights(network)
    network.requires_grad_(False)
    fold_blocks(network, kernels)
    network = fold_aggregations(network)
    fold_batch_norms(network)
    if chosen == torch.int8:
        quantize_int8(network)
    elif chosen is not None:
        network.to(chosen)
    network.eval().register_forward_pre_hook(_Prepare(network))
    if compile:
        _compile(network, device)
    return network


def _refuse(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"its module {name!r}" if name else "the model"
        if module.training:
            raise ValueError(
                f"{where} is in training mode, where dropout and batch statistics are at work; "
                "call model.eval() first"
            )
        if any(isinstance(hook, _Prepare) for hook in hooks_of(module)):
            raise ValueError("the model is optimised already; optimise what it was made of")
        if any(not _is_part(hook) for hook in hooks_of(module)):
            raise ValueError(
                f"{where} has hooks, which would see other maps than before or none; remove them "
                "first, and leave capture_attention() if this is inside it"
            )


def _is_part(hook: object) -> bool:
    """Whether it belongs to the network: keeps a detector's precision, or computes a weight."""
    own = getattr(hook, "__module__", "").startswith("convattn.detection")
    return own or computes_weight(hook)


def _usable(dtype: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    if dtype is None:
        return None
    if dtype not in _DTYPES:
        names = ", ".join(str(one).removeprefix("torch.") for one in _DTYPES)
        raise ValueError(f"dtype={dtype} is not one of {names} of torch, or None")
    if emulates(dtype, device):
        warnings.warn(
            f"this processor has no {str(dtype).removeprefix('torch.')} instructions and would be "
            "slower for emulating them: float32 takes its place",
            stacklevel=3,
        )
        return torch.float32
    return dtype


def _check_kernels(kernels: str, device: torch.device) -> None:
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r} is not one of {', '.join(KERNELS)}")
    if kernels == "experimental_triton" and device.type != "cuda":
        raise ValueError(f"kernels={kernels!r} runs on cuda, and the model is on {device}: move it")


class _Prepare:
    """Gives images the network's number format, and lays their channels last."""

    def __init__(self, network: nn.Module) -> None:
        floating = (p.dtype for p in network.parameters() if p.dtype.is_floating_point)
        self.dtype = next(floating, torch.float32)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tree_map_only(Tensor, self._prepared, args)

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype) if x.is_floating_point() else x
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _compile(network: nn.Module, device: torch.device) -> None:
    trouble = compiler_trouble(device)
    if trouble is not None:
        warnings.warn(
            f"torch.compile does not work here, so the network runs as it is: {trouble}",
            stacklevel=3,
        )
    elif device.type == "cpu":
        # Without the threshold, the compiler adds up all earlier residual branches in every block.
        network.compile(dynamic=False, options=_FREEZING | {"realize_reads_threshold": 2})
        assert network._compiled_call_impl is not None
        network._compiled_call_impl = _Frozen(network._compiled_call_impl)
    else:
        network.compile(dynamic=False, mode="reduce-overhead")


_FREEZING = {"freezing": True}


class _Frozen:
    """Calls what is compiled so that its weights become constants.

    The option alone does not do that: the tracer reads the setting itself, and only where no
    gradients are recorded.
    """

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), torch._inductor.config.patch(_FREEZING):
            return self.compiled(*args, **kwargs)
