"""Finished runs of tiny networks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from convattn.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from convattn.runs.build import build_trained, create_model

FIGURES = {
    "num_images": 153,
    "top1": 0.9412,
    "top1_interval": [0.902, 0.974],
    "balanced_accuracy": 0.9413,
    "macro_f1": 0.9408,
    "ece": None,
}
ARGUMENTS = {"backbone": "test_resnet", "pool": "attention", "image_size": 64}


def make_run(
    folder: Path,
    *,
    name: str = "map_classifier",
    arguments: Mapping[str, Any] = ARGUMENTS,
    pool: str | None = None,
    **cfg: object,
) -> Path:
    """The folder of a run whose network tells ants from bees."""
    folder.mkdir()
    config = TrainConfig(
        recipe="finetune",
        data=DataConfig(name="folder", root="/home/somebody/hymenoptera"),
        model=ModelConfig(name=name, num_classes=2, model_args=dict(arguments)),
        augment=AugmentConfig(pool=pool),
    )
    (folder / "config.json").write_text(config.to_json())
    torch.manual_seed(0)
    augment = None if pool is None else {"pool": pool}
    network = create_model(name, num_classes=2, augment=augment, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():  # some begin at zero and would hide the rest
            parameter += 0.02 * torch.randn(parameter.shape)
    cfg = {
        "num_classes": 2,
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.25],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "label_names": ["ants", "bees"],
        **cfg,
    }
    safetensors.torch.save_file(
        network.state_dict(), folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    (folder / "evaluation.json").write_text(json.dumps(FIGURES))
    return folder


def make_dense_run(folder: Path, *, name: str, **_: object) -> Path:
    """The folder of a run of a detector or a segmenter with random weights."""
    folder.mkdir()
    config = TrainConfig(
        data=DataConfig(name="coco", root="/home/somebody/coco"),
        model=ModelConfig(
            name=name, backbone="resnet_nano", num_classes=2, checkpoint="/home/somebody/first"
        ),
        out="/home/somebody/run",
    )
    (folder / "config.json").write_text(config.to_json())
    cfg = {
        "num_classes": 2,
        "input_size": [3, 64, 64],
        "image_size": 64,
        "max_size": 64,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.25],
        "label_names": ["ants", "bees"],
    }
    torch.manual_seed(0)
    network = build_trained(config.model, cfg=cfg, augment=AugmentConfig())
    safetensors.torch.save_file(
        network.state_dict(), folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    return folder
