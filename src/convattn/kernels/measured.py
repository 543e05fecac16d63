"""Which attention backend is fastest on a device: what ``benchmarks/gpu.py --adopt`` has written.

``measured.json`` beside this file: name of the device, as CUDA tells it -> dtype -> "inference" or
"training" -> backend. A device, dtype or pass that is not there has no measured backend.
"""

import json
from pathlib import Path

import torch

FILE = Path(__file__).with_name("measured.json")
TABLE: dict[str, dict[str, dict[str, str]]] = json.loads(FILE.read_text())


def fastest(device: torch.device, dtype: torch.dtype, *, training: bool) -> str | None:
    """The backend that was right and fastest there; None where none was measured.

    Args:
        device: Where the tensors are.
        dtype: Theirs.
        training: Whether gradients are wanted.
    """
    if device.type != "cuda" or not TABLE:
        return None
    found = TABLE.get(_name(device.index or 0), {}).get(str(dtype).removeprefix("torch."), {})
    return found.get("training" if training else "inference")


@torch.compiler.assume_constant_result
def _name(index: int) -> str:
    return str(torch.cuda.get_device_name(index))
