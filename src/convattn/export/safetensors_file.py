"""Tensors alone."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from convattn.export.checking import Exported, Runnable, as_tuple, check_free, checked
from convattn.export.networks import prepare
from convattn.surgery.copying import copy_network
from convattn.weights import with_digest


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

    Examples:
        >>> import tempfile, timm
        >>> model = timm.create_model("patchconvnet_nano", embed_dim=16, depth=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_safetensors(model, f"{folder}/nano.safetensors")
        >>> len(exported.checks), exported.checks[0].differences
        (6, {'logits': 0.0})
    """
    file = check_free(path, ".safetensors")
    network = prepare(model, attention=False, evidence=False, size=size)

    def write(part: Path, example: Tensor, metadata: dict[str, str]) -> None:
        # Tensors that share memory would be refused.
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        safetensors.torch.save_file(tensors, part, with_digest(tensors, metadata))

    def reopen(part: Path) -> Runnable:
        copied = copy_network(network)
        copied.load_state_dict(safetensors.torch.load_file(part))
        return lambda images: as_tuple(copied(images))

    return checked(network, file, size, write, reopen)
