"""Where a network looked on each image of a batch, by its own attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from convattn.explanation.capture import (
    AttentionLayer,
    Queries,
    capture_attention,
    check_logits,
    named_layers,
)
from convattn.explanation.geometry import Grid
from convattn.layers import AAConv2d, LearnedAggregation2d

_IMAGES_AT_ONCE = 32


def attention_maps(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    layer: str | None = None,
    head: int | None = None,
    query: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Grid]:
    """The logits of a batch and where the network looked, one map an image, its sum 1.

    The attention pool says it directly; with a token a class it is the token of the class asked
    for. Without a pool it is how much the positions of the last attention convolution are looked
    at. Runs a few images at a time, without gradients.

    Args:
        model: A network with attention, in evaluation mode.
        images: (B, C, H, W), normalised, on the model's device.
        targets: (B,) class numbers; None takes the predicted classes.
        layer: Name of the layer with attention; None takes the last pool, or the last layer.
        head: Number of the attention head; None takes their mean.
        query: y and x in pixels of the input: what does an attention convolution look at from the
            position that is nearest? None takes the mean over all positions.

    Returns:
        (B, num_classes), (B, h, w), and where the cells lie on the images.

    Raises:
        ValueError: If the network has no attention, or no such layer or head.
    """
    logits, maps = [], []
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        few = slice(start, start + _IMAGES_AT_ONCE)
        found, per_token, grid = run_with_attention(model, images[few], layer, head, query)
        logits.append(found)
        maps.append(select_classes(per_token, found.argmax(1) if targets is None else targets[few]))
    return torch.cat(logits), torch.cat(maps), grid


def run_with_attention(
    model: nn.Module,
    images: Tensor,
    layer: str | None,
    head: int | None,
    query: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Grid]:
    """The logits, the attention of every token (B, tokens, h, w), and where its cells lie."""
    name, found = find_attention_layer(model, layer)
    if head is not None and not 0 <= head < num_heads(found):
        raise ValueError(
            f"head={head}, but {name} has {num_heads(found)}; give a number from 0 to "
            f"{num_heads(found) - 1}"
        )
    if query is not None and not isinstance(found, AAConv2d):
        raise ValueError(
            f"query={query} asks what a position looks at, but in {name} a learned token looks, "
            "not a position; name an attention convolution as layer, or leave query out"
        )
    logits, per_head, grids = attention_of_layers(model, images, [name], query)
    check_logits(model, logits)
    per_token = per_head[name].mean(1) if head is None else per_head[name][:, head]
    return logits, per_token, grids[name]


def select_classes(per_token: Tensor, classes: Tensor) -> Tensor:
    """The map of each image's class, (B, h, w), its sum 1; a single token serves all classes."""
    token = classes if per_token.shape[1] > 1 else torch.zeros_like(classes)
    maps = per_token[torch.arange(len(token), device=token.device), token]
    return maps / maps.sum((1, 2), keepdim=True)


def attention_of_layers(
    model: nn.Module, images: Tensor, names: Sequence[str], query: tuple[float, float] | None
) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Grid]]:
    """The logits, each layer's attention (B, heads, tokens, h, w), and where its cells lie."""
    asked: Queries | None = "mean" if query is None else None
    with (
        torch.no_grad(),
        capture_attention(model, queries=asked, point=query, layers=names) as maps,
    ):
        logits = model(images)
    return logits, maps, maps.grids


def num_heads(layer: AttentionLayer) -> int:
    """Attention heads of a layer; queries of a light pool."""
    if isinstance(layer, LearnedAggregation2d):
        return layer.attn.num_heads
    if isinstance(layer, AAConv2d):
        return layer.num_heads
    return layer.num_maps


def find_attention_layer(model: nn.Module, layer: str | None = None) -> tuple[str, AttentionLayer]:
    """The layer whose attention says where a network looks, with its name.

    Args:
        layer: Its name; None takes the last pool, or without one the last attention convolution.

    Raises:
        ValueError: If the network has no attention, or no such layer.
    """
    layers = named_layers(model, None if layer is None else [layer])
    pools = [name for name, one in layers.items() if not isinstance(one, AAConv2d)]
    name = [*layers, *pools][-1]
    return name, layers[name]


def has_aggregation(model: nn.Module) -> bool:
    """Whether learned aggregation is somewhere in the network."""
    return any(isinstance(module, LearnedAggregation2d) for module in model.modules())
