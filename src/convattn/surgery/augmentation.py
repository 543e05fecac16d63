"""Attention into a network that exists, its trained weights kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from convattn.config import PoolName
from convattn.layers import AAConv2d
from convattn.layers.rel_pos import Position
from convattn.surgery.adapters import AggregationPool, GlobalPool, TokenClassifier
from convattn.surgery.convs import attention_layer
from convattn.surgery.copying import copy_network
from convattn.surgery.planning import make_plan
from convattn.surgery.pools import make_pool
from convattn.surgery.recipe import keep_recipe
from convattn.surgery.records import AugmentOptions, ConvFilter, Plan, PoolPlan
from convattn.surgery.trace import check_runs


def augment(
    model: nn.Module,
    *,
    pool: PoolName | None = None,
    conv: ConvFilter | None = None,
    input_size: int | Sequence[int] | None = None,
    num_heads: int = 8,
    qk_ratio: float = 0.2,
    v_ratio: float = 0.1,
    min_head_dim: int = 20,
    position: Position = "relative",
    attn_downsample: int | Mapping[int, int] | Literal["auto"] = "auto",
    pool_heads: int | None = None,
    pool_queries: int | None = None,
    mlp_ratio: float | None = None,
    pool_norm: bool = False,
    pool_name: str | None = None,
    classifier_name: str | None = None,
    preserve: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Give a convolutional network attention: in its convolutions, in place of its pool, or both.

    A pool of ``convattn.POOLS`` takes the place of the global pool, and the classifier that
    follows reads it; attention-augmented convolutions (Bello et al. 2019,
    https://arxiv.org/abs/1904.09925) take the place of spatial ones. Trained weights stay.
    ``convattn.plan`` with the same arguments says beforehand what happens.

    Call it before the optimiser, ``torch.compile`` and DDP, which hold the old layers.

    Args:
        model: Any convolutional network: timm's, torchvision's, your own.
        pool: "attention": the light pool that docs/results/frozen_pools.md chose, two numbers a
            channel, whose output begins as the average and has exact shares
            (``convattn.evidence``).
            "class": a query a class, each with a map of its own, read by the class's own row of
            the classifier. "aggregation": the block of Touvron et al. 2021,
            https://arxiv.org/abs/2112.13692, 10 C^2 parameters; "class-attention": that with a
            token a class. Any other name of ``convattn.POOLS``. None: the pool stays.
        conv: Which convolutions: "last-3-stages" (spatial ones whose output has one of the three
            lowest resolutions), "all" (spatial ones), a name as in ``model.named_modules()`` (of a
            convolution, or of a part with spatial ones in it), a pattern as in "layer3.*.conv2",
            several of these, or a function of (module, name) that says yes. Where attention does
            not fit, a convolution is left alone, but it is an error if it was named itself. None:
            none.
        input_size: The images' side, (H, W) or (C, H, W) in pixels, for which position tables
            are made; other sizes resample them. None takes the model's ``pretrained_cfg``, as
            timm's have, or 224 x 224.
        num_heads: Attention heads of a convolution.
        qk_ratio: Its query (and key) channels per output channel.
        v_ratio: Share of its output channels that attention computes.
        min_head_dim: Least query channels of a head.
        position: "relative" tables, "sine", "coord" or "none".
        attn_downsample: How many times smaller the map is on which attention runs; "auto" halves
            until it has at most 512 positions; a mapping gives it by stride, as in {8: 2}, and
            means 1 elsewhere.
        pool_heads: Attention heads of aggregation, class-attention, simpool or map.
        pool_queries: Queries of ep.
        mlp_ratio: Hidden channels per channel of the MLP of aggregation, class-attention or map.
        pool_norm: A BatchNorm without factors behind the pool, as the authors of ep have it. It
            changes no logit of a network in evaluation mode until it
            has seen batches in training mode; a trained classifier then has to get used to it.
        pool_name: The module that pools, where it is not found; or, where a function call pools,
            the module that makes the map: attention goes behind it.
        classifier_name: The linear layer or 1x1 convolution that makes the logits, where it is not
            found.
        preserve: The logits stay what they are until the network is trained further: attention is
            added to convolutions that stay whole, through projections that start at zero, and the
            pool starts as the average, what differs from it through gates that start at zero.
            False: the papers' layers as they stand; a convolution loses the filters whose channels
            attention computes, the others keep their weights.
        inplace: Change ``model`` itself; else a copy.

    Returns:
        The augmented network, in the mode, on the device and of the precision of ``model``.

    Raises:
        ValueError: If there is nothing to replace, or what was asked for cannot be; says what was
            found and how to name the place.

    Examples:
        >>> import timm, torch
        >>> plain = timm.create_model("resnet18", num_classes=10).eval()
        >>> model = augment(plain, pool="attention", conv="last-2-stages")
        >>> x = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(model(x), plain(x), atol=1e-5)
        True
    """
    if pool is None and conv is None:
        raise ValueError(
            "augment() was asked for nothing; give pool='attention', conv='last-3-stages' or both"
        )
    options = AugmentOptions.of(locals())
    found = make_plan(model, input_size, options, count_macs=False)
    _check_replaces(found, options)
    model = model if inplace else copy_network(model)
    undo = _Undo(model)
    for item in found.convs:
        if item.replaced:
            old = cast(nn.Conv2d, model.get_submodule(item.name))
            undo.replace(
                item.name, augmented_conv(old, same_padding=item.same_padding, **item.attention)
            )
    if found.pool.replaced:
        _replace_pool(undo, found.pool, options)
    try:
        check_runs(model, found.input_size)
    except ValueError as error:
        undo.all()
        raise ValueError(
            f"{found.model} does not run with {', '.join(found.replaced[:3])} replaced ({error}); "
            "its code uses them in another way than calling them: leave them out, by conv=[names]"
        ) from error
    if found.pool.replaced and callable(getattr(type(model), "reset_classifier", None)):
        model.reset_classifier = partial(_reset_classifier, model)  # type: ignore[assignment]
    keep_recipe(model, found, options)
    return model


def _check_replaces(found: Plan, options: AugmentOptions) -> None:
    pool, conv = options.pool, options.conv
    if pool is not None and found.pool.reason is not None:
        raise ValueError(f"pool={pool!r} cannot be done: {found.pool.reason}")
    if conv is None:
        return
    named = {conv} if isinstance(conv, str) else set() if callable(conv) else set(conv)
    for item in found.convs:
        if item.name in named and item.reason is not None:
            raise ValueError(f"conv={item.name!r} cannot be replaced: {item.reason}")
    if not any(item.replaced for item in found.convs):
        reasons = [item.reason for item in found.convs if item.asked]
        why = max(reasons, key=reasons.count) if reasons else "it has no spatial convolution"
        raise ValueError(f"conv={conv!r} replaces no convolution of {found.model}: {why}")


class _Undo:
    """Replaces modules by name, wherever else they stand too, and can put them back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: list[tuple[str, nn.Module]] = []

    def replace(self, name: str, new: nn.Module) -> None:
        old = self.model.get_submodule(name)
        new.train(old.training)
        names = [
            other
            for other, module in self.model.named_modules(remove_duplicate=False)
            if module is old
        ]
        for other in names:
            self.before.append((other, old))
            self.model.set_submodule(other, new)

    def all(self) -> None:
        for name, old in reversed(self.before):
            self.model.set_submodule(name, old)


def augmented_conv(conv: nn.Conv2d, *, same_padding: bool = False, **attention: Any) -> AAConv2d:
    """The attention-augmented layer that stands where ``conv`` stood, with its filters.

    Its convolution branch is ``conv`` itself, or with fewer channels a copy of its first filters,
    and has a bias only if ``conv`` had one. A subclass, as of standardised weights, stays one.

    Args:
        same_padding: Make ceil(input / stride) positions whatever ``conv.padding`` says.
        **attention: The attention words of AAConv2d.

    Raises:
        ValueError: As AAConv2d.
    """
    layer = attention_layer(
        conv,
        same_padding=same_padding,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **attention,
    )
    if layer.conv is not None:
        kept = layer.conv.out_channels
        layer.conv = conv if kept == conv.out_channels else _keep_first_filters(conv, kept)
    return layer


def _keep_first_filters(conv: nn.Conv2d, kept: int) -> nn.Conv2d:
    """The convolution with its first filters, of every group as many; a subclass stays one."""
    index = torch.arange(conv.out_channels).unflatten(0, (conv.groups, -1))
    index = index[:, : kept // conv.groups].flatten()
    narrowed = copy_network(conv)
    for name, tensor in [*conv.named_parameters(recurse=False), *conv.named_buffers(recurse=False)]:
        if tensor.dim() and tensor.shape[0] == conv.out_channels:
            part = tensor.detach()[index.to(tensor.device)].clone()
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=tensor.requires_grad)
            setattr(narrowed, name, part)
    narrowed.out_channels = kept
    return narrowed


def _replace_pool(undo: _Undo, item: PoolPlan, options: AugmentOptions) -> None:
    assert item.name is not None
    assert item.in_features is not None
    model = undo.model
    like = _neighbour(model, item)
    old = model.get_submodule(item.name)
    kept = None if item.average or not options.preserve else old
    place = make_pool(item.in_features, item.tokens, options, other=kept, keepdim=item.keepdim)
    place.to(device=like.device, dtype=like.dtype)
    if item.place == "instead":
        undo.replace(item.name, place)
    else:
        # The parts of a Sequential keep their names, and with them those of their weights.
        parts = dict(old.named_children()) if type(old) is nn.Sequential else {"map": old}
        if item.place == "behind-relu":
            parts["aggregation_relu"] = nn.ReLU()
        parts["aggregation_pool"] = place
        undo.replace(item.name, nn.Sequential(OrderedDict(parts)))
    if options.per_class:
        assert item.classifier is not None
        classifier = cast("nn.Linear | nn.Conv2d", model.get_submodule(item.classifier))
        undo.replace(item.classifier, TokenClassifier(classifier))


def _neighbour(model: nn.Module, item: PoolPlan) -> torch.Tensor:
    """A trained tensor near the pool: it tells device and precision."""
    if item.classifier is not None:
        return next(model.get_submodule(item.classifier).parameters())
    return list(model.parameters())[-1]


def _reset_classifier(model: Any, num_classes: int, *args: Any, **kwargs: Any) -> None:
    """Timm's ``reset_classifier`` that keeps the attention pool, which timm's own may not."""
    kinds = (AggregationPool, GlobalPool)
    pools = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    tokens = {n: m for n, m in model.named_modules() if isinstance(m, TokenClassifier)}
    if tokens and num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes}, but a map a class needs classes; augment again with "
            "pool='attention'"
        )
    type(model).reset_classifier(model, num_classes, *args, **kwargs)
    if args or kwargs.get("global_pool") is not None:
        return
    for name, pool in pools.items():
        model.set_submodule(name, pool)
        if tokens:
            pool.reset(num_classes)
    for name in tokens:
        model.set_submodule(name, TokenClassifier(model.get_submodule(name)))
