"""What is exported of a network: a copy that evaluates, with its maps, and what its images need."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from convattn.explanation.attention import find_attention_layer
from convattn.explanation.capture import attention_layers
from convattn.explanation.classes import pretrained_cfg
from convattn.explanation.linear_evidence import LinearHead, linear_head
from convattn.export.dense import DenseNetwork, raw_network
from convattn.layers import AAConv2d, LearnedAggregation2d, Pool
from convattn.surgery.copying import copy_network
from convattn.surgery.trace import check_network


class WithMaps(nn.Module):
    """A network that also gives the attention of one of its layers, its evidence, or both."""

    weight: Tensor

    def __init__(self, model: nn.Module, layer: str | None, head: LinearHead | None) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.head = head
        if head is not None:
            self.register_buffer("weight", head.weight, persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        attention = ("attention",) if self.layer is not None else ()
        return ("logits", *attention, *(("evidence",) if self.head is not None else ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> (B, num_classes), and (B, maps, H', W') of each."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handles = []
        for name in {self.layer, None if self.head is None else self.head.name} - {None}:
            assert name is not None

            def record(
                module: nn.Module, args: tuple[Any, ...], out: Tensor, name: str = name
            ) -> None:
                seen[name] = args[0], out

            handles.append(self.model.get_submodule(name).register_forward_hook(record))
        try:
            outputs = [self.model(images)]
        finally:
            for handle in handles:
                handle.remove()
        if self.layer is not None:
            layer = self.model.get_submodule(self.layer)
            outputs.append(_attention(layer, seen[self.layer][0]))
        if self.head is not None:
            head = dataclasses.replace(self.head, weight=self.weight)
            outputs.append(head.shares(self.model, head.last_map(*seen[head.name])))
        return tuple(outputs)


def _attention(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, LearnedAggregation2d):
        return layer.attention_weights(x).flatten(1, 2)
    if isinstance(layer, Pool):
        return layer.attention_weights(x)
    assert isinstance(layer, AAConv2d)
    return layer.attention_weights(x).mean(2).unflatten(2, layer.attention_size(x))


def prepare(
    model: nn.Module,
    attention: bool,
    evidence: bool,
    size: tuple[int, int] | None,
    *,
    nms: bool = False,
) -> nn.Module:
    """A copy to export: it evaluates, and nobody else's hooks or modes are touched.

    Args:
        model: A classifier, RetinaNet or UPerNet in float32.
        attention: Whether the copy also gives where it looks.
        evidence: Whether it also gives every position's share of every logit.
        size: Height and width of its images, in pixels; None takes ``pretrained_cfg``'s.
        nms: Whether a detector's file chooses its boxes.

    Raises:
        ValueError: If it is none, or has no such maps or boxes.
    """
    check_network(model, "export")
    dtypes = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if dtypes:
        raise ValueError(f"the network holds {dtypes.pop()}; export it in float32: model.float()")
    network = copy_network(model).eval().requires_grad_(False)
    dense = raw_network(network, nms=nms)
    if dense is not None:
        if attention or evidence:
            raise ValueError(
                f"{type(model).__name__} gives no maps in a file; leave "
                f"{'attention' if attention else 'evidence'} out"
            )
        return dense
    layer, head = None, None
    if attention:
        if not attention_layers(network):
            raise ValueError(
                f"{type(network).__name__} has no attention whose maps could be an output; leave "
                "attention out, or give it some with convattn.augment(model, pool='attention')"
            )
        layer, _ = find_attention_layer(network)
    if evidence:
        images = noise(*image_cfg(network, size)["input_size"], like=next(network.parameters()))[0]
        head = linear_head(network, images)
    return WithMaps(network, layer, head) if attention or evidence else network


def output_names(network: nn.Module) -> tuple[str, ...]:
    """What the outputs of a prepared network are called."""
    return network.outputs if isinstance(network, WithMaps | DenseNetwork) else ("logits",)


def image_cfg(network: nn.Module, size: tuple[int, int] | None) -> dict[str, Any]:
    """What is to be known of a network's images, in timm's words.

    Args:
        network: A prepared one.
        size: Height and width, in pixels; None takes its own.
    """
    if isinstance(network, DenseNetwork):
        return network.cfg(size)
    known = pretrained_cfg(classifier_of(network))
    about = {key: known[key] for key in ("architecture", "tag", "license") if known.get(key)}
    resolved = resolve_data_config(pretrained_cfg=dict(known))
    channels, *own = resolved["input_size"]
    return about | resolved | {"input_size": (channels, *(size or own))}


def classifier_of(network: nn.Module) -> nn.Module:
    """The network whose logits a prepared one gives."""
    return network.model if isinstance(network, WithMaps | DenseNetwork) else network


def noise(channels: int, height: int, width: int, *, like: Tensor) -> list[Tensor]:
    """Images of noise: of the own size, of a larger one and of a longer one, both odd."""
    sizes = [
        (height, width),
        (height + height // 4 + 1, width + width // 4 + 1),
        (height, width + width // 2 - 1),
    ]
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch_size, channels, *size, generator=draw).to(like)
        for size in sizes
        for batch_size in (1, 3)
    ]
