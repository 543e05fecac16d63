"""What tells one test, or one table of predictions, from another: the network and its transform."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.data import resolve_data_config
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of names and values of all tensors."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def transform_words(model: nn.Module) -> dict[str, Any]:
    """What is done to an image, in timm's words and JSON's types.

    Args:
        model: Its ``pretrained_cfg`` says it.
    """
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    return json.loads(json.dumps(resolve_data_config(pretrained_cfg=dict(cfg))))
