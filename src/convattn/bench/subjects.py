"""What is measured: layers of ours, classifiers by name, runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from convattn.layers import AAConv2d, LearnedAggregation2d
from convattn.runs import Run
from convattn.runs.build import create_model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    name: str
    """What it is called."""
    make: Callable[[], nn.Module]
    """Makes it with new weights; can be pickled, since other processes make it as well."""
    input_size: tuple[int, int, int] | None = None
    """(C, H, W) that it is usually given; None takes the network's ``pretrained_cfg``."""
    is_layer: bool = False
    """Whether it stands inside a network, so that its input needs a gradient, too."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A public layer, and the arguments that it is measured with unless others are given."""

    kind: Callable[..., nn.Module]
    """Its class."""
    channels: str
    """Name of the argument that is the number of channels it reads."""
    size: int
    """Usual height and width of its map."""
    arguments: Mapping[str, Any]
    """The arguments that differ from the class's own, or have no default there."""


LAYERS = {
    "AAConv2d": Layer(
        kind=AAConv2d,
        channels="in_channels",
        size=32,
        arguments={
            "in_channels": 160,
            "out_channels": 160,
            "kernel_size": 3,
            "padding": 1,
            "feat_size": 32,
        },
    ),
    "LearnedAggregation2d": Layer(
        kind=LearnedAggregation2d,
        channels="in_features",
        size=14,
        arguments={"in_features": 384},
    ),
}
"""Layers by the names of their classes: at a stage of AA-Wide-ResNet and at PatchConvNet-S60."""


def layer_subject(name: str, **arguments: Any) -> Subject:
    """A public layer of convattn.

    Args:
        name: In ``LAYERS``.
        arguments: Of the layer; those that are left out are in ``LAYERS``, or the layer's own.

    Raises:
        ValueError: If the layer refuses its arguments.

    Examples:
        >>> layer_subject("AAConv2d", in_channels=64).input_size
        (64, 32, 32)
    """
    layer = LAYERS[name]
    chosen = {**layer.arguments, **arguments}
    make = partial(layer.kind, **chosen)
    make()  # refuses wrong arguments now, not in the midst of the measurements
    channels = chosen[layer.channels]
    return Subject(
        name=name, make=make, input_size=(channels, layer.size, layer.size), is_layer=True
    )


def model_subject(name: str, **arguments: Any) -> Subject:
    """A classifier by its name, with random weights.

    Args:
        name: In timm's registry.
        arguments: As ``convattn.evaluate.create_model`` takes them, ``augment`` among them.
    """
    return Subject(name=name, make=partial(create_model, name, **arguments))


def run_subject(run: Run) -> Subject:
    """The classifier of a run.

    Args:
        run: What ``convattn train`` has made.
    """
    return Subject(name=run.folder.name, make=run.load_model)
