"""Attention maps out of any network that holds our layers, without patching it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers import AAConv2d, LearnedAggregation2d


@contextmanager
def capture_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the attention of every layer of ours while the model runs.

    The layers run as always, by their fused path; the maps are computed beside them from the
    same inputs, without gradients. After the block the model is as it was, also after an error.

    Args:
        model: Any network; layers of other kinds are left alone.

    Yields:
        A dictionary that every forward pass refills: name of the layer -> attention after
        softmax. (B, heads, tokens, H, W) for LearnedAggregation2d; (B, heads, N, N) for
        AAConv2d, N the positions of its attention map row by row.

    Raises:
        ValueError: If the model holds no layer with attention.

    Example:
        >>> import timm
        >>> model = timm.create_model("patchconvnet_nano", num_classes=10).eval()
        >>> with capture_attention(model) as maps:
        ...     logits = model(torch.randn(2, 3, 64, 64))
        >>> maps["head"].shape
        torch.Size([2, 1, 1, 8, 8])
    """
    maps: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, AAConv2d | LearnedAggregation2d)
            with torch.no_grad():
                maps[name] = module.attention_weights(args[0])

        return hook

    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AAConv2d | LearnedAggregation2d)
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no layer with attention (AAConv2d, "
            "LearnedAggregation2d); create one of convattn's models, or use one of its layers"
        )
    handles = [module.register_forward_pre_hook(record(name)) for name, module in layers.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
