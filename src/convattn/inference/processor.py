"""What the machine at hand can do."""

import platform
import warnings

import torch


def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU is known to have no instructions for a number format.

    Other architectures than x86, and GPUs, are taken at their word.

    Args:
        dtype: A number format.
        device: Where the computation runs.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if dtype == torch.bfloat16:
        return not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    if dtype == torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if dtype == torch.int8:
        return not torch.cpu._is_vnni_supported()
    return False


def compiler_trouble(device: torch.device) -> str | None:
    """Why ``torch.compile`` does not work on a device; None if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:
        return str(error).strip().partition("\n")[0]
    return None
