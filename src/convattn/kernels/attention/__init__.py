"""2D relative attention on the kernel that suits the place: one contract, several ways.

=================== ========================= ==================================================
name                where                     what it is
=================== ========================= ==================================================
chunked             the CPU                   blocks of queries that fit the cache, backward too
sdpa                any device                a wider problem for ``scaled_dot_product_attention``
experimental_triton CUDA                      biases added in registers
experimental_flex   CUDA (the CPU for tests)  ``flex_attention`` with a ``score_mod``
plain               any device                all pairs of positions; the oracle
=================== ========================= ==================================================

"auto" takes ``chunked`` on the CPU; elsewhere what :mod:`convattn.kernels.measured` knows to be
fastest on that device, and ``sdpa`` where nothing was measured or that one refuses. It also takes
``sdpa`` in exported programs, which can hold no operator of ours, under ``torch.func``, and for
bfloat16 without gradients on processors with matrix units for it (AMX; inferred, not measured).

The experimental ones must be asked for, unless they were measured on the device; where one cannot
take the tensors that is an error. ``experimental_triton`` was run interpreted on the CPU against
the oracle, forward and backward, and compiled ahead of time for NVIDIA's targets, never run or
timed on a GPU. ``experimental_flex`` was run on the CPU without its compiler, and never compiled,
run or timed on a GPU.

An argument overrides all that, and so does the environment variable
``CONVATTN_ATTENTION_BACKEND``; the argument counts more.
"""

import os
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from convattn.kernels import measured
from convattn.kernels.attention.biases import relative_biases
from convattn.kernels.attention.chunked import chunked_attention
from convattn.kernels.attention.plain import plain_attention
from convattn.kernels.attention.sdpa import sdpa_attention
from convattn.kernels.tracing import needs_standard_operators

Backend = Literal["auto", "plain", "chunked", "sdpa", "experimental_flex", "experimental_triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
VARIABLE = "CONVATTN_ATTENTION_BACKEND"

_Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
_HAS_AMX = torch.cpu._is_amx_tile_supported()
_DEVICES = {
    "chunked": ("cpu",),
    "experimental_flex": ("cuda", "cpu"),
    "experimental_triton": ("cuda",),
}


def wanted_backend(backend: str | None = None, *, source: str = "backend") -> str:
    """What an argument called ``source`` asks for, or else the environment variable, or "auto".

    Raises:
        ValueError: If there is no such backend.
    """
    if backend is None:
        backend, source = os.environ.get(VARIABLE) or "auto", VARIABLE
    if backend not in BACKENDS:
        raise ValueError(f"{source}={backend!r} is not one of {', '.join(BACKENDS)}")
    return backend


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    *,
    feat_size: tuple[int, int],
    backend: Backend | None = None,
) -> Tensor:
    """2D relative attention.

    Args:
        q: Scaled queries, (B, heads, N, d).
        k: Keys, as ``q``.
        v: Values, (B, heads, N, d_v).
        rel_h: Vertical table, (2H - 1, d); row ``y_key - y_query + H - 1``. None for no positions.
        rel_w: Horizontal table, (2W - 1, d).
        feat_size: H and W, with H * W = N.
        backend: The kernel; None takes the environment variable's, or "auto".

    Returns:
        (B, heads, N, d_v).

    Raises:
        ValueError: If there is no such backend, it does not run where the tensors are, or it does
            not take their dtype or channels.
    """
    name = _chosen(backend, q, v)
    if name == "chunked":
        return chunked_attention(q, k, v, rel_h, rel_w, feat_size)
    return _kernel(name)(q, k, v, *relative_biases(q, rel_h, rel_w, feat_size))


def _chosen(backend: Backend | None, q: Tensor, v: Tensor) -> str:
    wanted, device = wanted_backend(backend), q.device.type
    if device == "meta" and wanted != "plain":
        return "chunked"  # nothing is computed: shapes and the work are all that is asked for
    if wanted == "auto":
        return _default(q, v)
    if device not in _DEVICES.get(wanted, (device,)):
        fitting = ", ".join(name for name in BACKENDS if device in _DEVICES.get(name, (device,)))
        raise ValueError(
            f"the attention backend {wanted!r} runs on {_DEVICES[wanted][0]}, and the tensors are "
            f"on {device}: choose among {fitting}"
        )
    if (reason := _refusal(wanted, q, v)) is not None:
        raise ValueError(f"the attention backend {wanted!r} cannot be had: {reason}; take 'auto'")
    return wanted


def _default(q: Tensor, v: Tensor) -> str:
    """What "auto" takes."""
    if needs_standard_operators():
        return "sdpa"
    if q.device.type in _DEVICES["chunked"]:
        return "sdpa" if _prefers_matrix_units(q) else "chunked"
    fastest = measured.fastest(q.device, q.dtype, training=torch.is_grad_enabled())
    if fastest is None or _refusal(fastest, q, v) is not None:
        return "sdpa"
    return fastest


def _refusal(name: str, q: Tensor, v: Tensor) -> str | None:
    """Why a backend cannot take these queries and values on a device that it is for."""
    if name != "experimental_triton":
        return None
    from convattn.kernels.attention.experimental_triton import refusal  # absent on some machines

    return refusal(q, v)


def _prefers_matrix_units(q: Tensor) -> bool:
    return _HAS_AMX and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def _kernel(name: str) -> _Kernel:
    if name == "experimental_triton":
        from convattn.kernels.attention.experimental_triton import triton_attention

        return triton_attention
    if name == "experimental_flex":
        from convattn.kernels.attention.experimental_flex import flex_attention

        return flex_attention
    return plain_attention if name == "plain" else sdpa_attention


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an operation found no memory for its result, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
