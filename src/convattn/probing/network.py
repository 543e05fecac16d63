"""A backbone, a pool and a classifier as ``Run.open`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convattn.config import DataConfig, ModelConfig, Scalar, TrainConfig
from convattn.data import Source
from convattn.files import replace_atomically
from convattn.probing.backbone import Frozen
from convattn.probing.heads import pool_options
from convattn.text import json_text
from convattn.weights import write_weights


def run_config(
    recipe: str,
    data: DataConfig,
    frozen: Frozen,
    pool: str,
    num_classes: int,
    *,
    norm: bool = True,
    **more: Any,
) -> TrainConfig:
    """What ``config.json`` of the run folder holds.

    Args:
        recipe: What made the network.
        data: The images.
        frozen: The backbone.
        pool: Name of the pool.
        num_classes: Classes.
        norm: Whether a BatchNorm follows the pool.
        **more: Fields of the training.
    """
    options = pool_options(pool, frozen.backbone.num_features)
    arguments: dict[str, Scalar] = {
        **frozen.arguments,
        "pool": pool,
        "norm": norm,
        **{f"pool_{name}": value for name, value in options.items()},
    }
    model = ModelConfig(name="map_classifier", num_classes=num_classes, model_args=arguments)
    return TrainConfig(recipe=recipe, data=data, model=model, **more)


def network_cfg(frozen: Frozen, source: Source) -> dict[str, Any]:
    """What the network needs of an image, and its classes, in timm's words.

    Args:
        frozen: The backbone.
        source: Has the classes.
    """
    several = {"multi_label": True} if source.multi_label else {}
    return {
        "architecture": "map_classifier",
        "num_classes": len(source.class_names),
        **frozen.cfg,
        "label_names": list(source.class_names),
        **several,
    }


def join_tensors(frozen: Frozen, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the whole network, by the names that ``map_classifier`` gives them.

    Args:
        frozen: The backbone.
        head: Tensors of the pool and the classifier, by their names.
    """
    parts = {"backbone": frozen.backbone.state_dict(), "head": head}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def save_network(
    folder: Path, tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], config: TrainConfig
) -> None:
    """Write a network into a run folder, each file whole or not at all.

    Args:
        folder: Of the run.
        tensors: By their names.
        cfg: What it needs of an image.
        config: How it is built.
    """
    write_weights(folder / "model.safetensors", tensors, {"pretrained_cfg": json_text(cfg)})
    replace_atomically(folder / "config.json", config.to_json().encode())
