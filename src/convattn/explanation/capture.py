"""Attention maps out of any network that holds our layers, without patching it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convattn.explanation.geometry import Grid, GridTracker
from convattn.layers import AAConv2d, LearnedAggregation2d, Pool
from convattn.layers.pools import looks
from convattn.models.pyramid import FeatureLevels
from convattn.modes import eager_mode, own_calls

AttentionLayer = AAConv2d | LearnedAggregation2d | Pool
Queries = Sequence[tuple[int, int]] | Literal["mean"]


class AttentionMaps(dict[str, Tensor]):
    """Name of each layer -> its attention, and where that lies on the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[str, Grid] = {}
        """Name of each layer -> the places of its map's cells on the network's input."""


def attention_layers(model: nn.Module) -> dict[str, AttentionLayer]:
    """The layers of ours in a network by their names, as ``capture_attention`` calls them.

    Args:
        model: Any network, compiled or not.
    """
    return {
        ".".join(part for part in name.split(".") if part != "_orig_mod"): module
        for name, module in model.named_modules()
        if isinstance(module, AAConv2d | LearnedAggregation2d)
        or (isinstance(module, Pool) and looks(module))
    }


def named_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, AttentionLayer]:
    """The layers of ours with these names.

    Args:
        names: As ``attention_layers`` has them; None takes all, at least one.

    Raises:
        ValueError: If there is none at all, or none of a name.
    """
    layers = attention_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no layer with attention (AAConv2d, "
            "LearnedAggregation2d, a pool of POOLS); create one of convattn's models, or give it "
            "attention with convattn.augment"
        )
    for name in names or ():
        if name not in layers:
            raise ValueError(
                f"{type(model).__name__} has no layer with attention named {name!r}; it has "
                f"{', '.join(layers)}"
            )
    return layers if names is None else {name: layers[name] for name in names}


@contextmanager
def capture_attention(
    model: nn.Module,
    *,
    queries: Queries | None = None,
    point: tuple[float, float] | None = None,
    layers: Sequence[str] | None = None,
) -> Iterator[AttentionMaps]:
    """Collects the attention of every layer of ours while the model runs.

    The layers run as always, by their fused path; the maps are computed beside them from the
    same inputs, without gradients; what other threads run meanwhile is not seen. After the block
    the model is as it was, also after an error. What ``torch.compile`` has compiled runs
    uncompiled inside the block, with a warning that says so: compiled code does not show its
    layers.

    Args:
        model: Any network; layers of other kinds are left alone.
        queries: Which rows of the attention of an AAConv2d to keep. None keeps all, N x N weights a
            head for a map of N positions. A list of (row, column), positions of the layers'
            attention maps, keeps those: a map of 128 x 128 then costs 64 KB a query and head
            instead of 1 GB a head. ``"mean"`` keeps the mean over all rows: how much each
            position is looked at.
        point: y and x in pixels of the network's input: of every AAConv2d the row of the position
            that is nearest to it is kept; instead of ``queries``.
        layers: Names of the layers to look at; None takes all.

    Yields:
        A dictionary that every forward pass refills: name of the layer -> attention after softmax,
        float32 or, of a float64 model, float64. LearnedAggregation2d: (B, heads, tokens, H, W).
        A pool: (B, queries, 1, H, W), or (B, 1, classes, H, W) of one with a map a class.
        AAConv2d: (B, heads, N, N), N the positions of its attention map row by row; with
        ``queries`` (B, heads, Q, H, W), Q being 1 for ``"mean"``; with a ``point`` Q is 1. Its
        ``grids`` tell where the maps lie on the network's input; a detector's is the batch that it
        makes of its images, resized, and padded at the right and below. Of a layer that runs more
        than once in a pass, the last run stays.

    Raises:
        ValueError: If the model holds no layer with attention, or none of a name, or there are
            both ``queries`` and a ``point``; inside the block, if a query lies outside a layer's
            map, or a point is asked for where a map has no place on the input.

    Examples:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10).eval()
        >>> with capture_attention(model) as maps:
        ...     logits = model(torch.randn(2, 3, 64, 64))
        >>> maps["head"].shape, maps.grids["head"].stride
        (torch.Size([2, 1, 1, 8, 8]), (8.0, 8.0))
    """
    if queries is not None and point is not None:
        raise ValueError("queries and a point say the same of two kinds; give one of them")
    chosen = named_layers(model, layers)
    maps, grids = AttentionMaps(), GridTracker()

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            (x,) = args[:1]
            with torch.no_grad():
                first: Queries | None = queries if point is None else [(0, 0)]
                size, weights = _weights(module, x, first)
                grid = grids.of(weights, size)
                if point is not None:
                    if grid is None:
                        raise ValueError(f"{name} has no place on the input; give queries")
                    _, weights = _weights(module, x, [grid.cell(point)])
                maps[name] = weights.to(torch.promote_types(weights.dtype, torch.float32))
            if grid is not None:
                maps.grids[name] = grid

        return hook

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            grids.begin(args[0])

    if _is_compiled(model):
        warnings.warn(
            f"{type(model).__name__} is compiled; it runs uncompiled while its attention is "
            "captured",
            stacklevel=3,
        )
    # A detector resizes and pads its images before its backbone gets them.
    inputs = [model, *(module for module in model.modules() if isinstance(module, FeatureLevels))]
    handles = [module.register_forward_pre_hook(own_calls(begin)) for module in inputs]
    handles += [
        module.register_forward_pre_hook(own_calls(record(name))) for name, module in chosen.items()
    ]
    try:
        with eager_mode(), grids:
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def check_logits(model: nn.Module, out: Any) -> Tensor:
    """What a network returned, if that is logits.

    Args:
        model: The network, for its name.
        out: What it returned.

    Returns:
        (B, classes).

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(out, Tensor) and out.ndim == 2:
        return out
    what = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else "no tensor"
    if isinstance(out, dict | list | tuple):
        inside = ", ".join(map(str, out)) if isinstance(out, dict) else f"{len(out)} things"
        what = f"a {type(out).__name__} of {inside}"
    raise ValueError(
        f"{type(model).__name__} returns {what}, expected logits of shape (B, classes): only "
        "classifiers are explained; wrap the network in a module that returns its logits alone"
    )


def _weights(
    layer: nn.Module, x: Tensor, queries: Queries | None
) -> tuple[tuple[int, int], Tensor]:
    """The size of a layer's map, and its attention as ``capture_attention`` hands it out."""
    if isinstance(layer, LearnedAggregation2d):
        return (x.shape[2], x.shape[3]), layer.attention_weights(x)
    if isinstance(layer, Pool):
        weights = layer.attention_weights(x)  # of queries, or a map a class
        return (x.shape[2], x.shape[3]), weights.unsqueeze(1 if layer.per_class else 2)
    assert isinstance(layer, AAConv2d)
    size = layer.attention_size(x)
    if queries is None:
        return size, layer.attention_weights(x)
    if queries == "mean":
        weights = layer.mean_attention(x).unsqueeze(2)
    else:
        weights = layer.attention_weights(x, queries)
    return size, weights.unflatten(-1, size)


def _is_compiled(model: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and any(
        isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )
