"""What attention could replace in a network, where, and at what cost; changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from convattn.layers.rel_pos import Position
from convattn.surgery.convs import conv_plans
from convattn.surgery.pools import pool_plan
from convattn.surgery.records import ConvFilter, ConvPlan, Plan, Pool, PoolPlan, Wish
from convattn.surgery.trace import Trace, trace


def plan(
    model: nn.Module,
    input_size: int | Sequence[int] | None = None,
    *,
    pool: Pool | None = "attention",
    conv: ConvFilter | None = "all",
    num_heads: int = 8,
    qk_ratio: float = 0.2,
    v_ratio: float = 0.1,
    min_head_dim: int = 20,
    position: Position = "relative",
    attn_downsample: int | Mapping[int, int] | Literal["auto"] = "auto",
    pool_heads: int = 1,
    mlp_ratio: float = 3.0,
    pool_name: str | None = None,
    classifier_name: str | None = None,
    preserve: bool = True,
) -> Plan:
    """What ``augment`` would do with the same arguments: where, how, at what cost, or why not.

    The network is run once without computing anything, so that it is read from what it does and
    not from how its parts are called; it is left as it was.

    Args:
        model: Any convolutional network.
        input_size: The picture's side, (H, W) or (C, H, W) in pixels; None takes the model's
            ``pretrained_cfg``, as timm's have, or 224 x 224.
        pool: As in ``augment``.
        conv: As in ``augment``.
        num_heads: As in ``augment``.
        qk_ratio: As in ``augment``.
        v_ratio: As in ``augment``.
        min_head_dim: As in ``augment``.
        position: As in ``augment``.
        attn_downsample: As in ``augment``.
        pool_heads: As in ``augment``.
        mlp_ratio: As in ``augment``.
        pool_name: As in ``augment``.
        classifier_name: As in ``augment``.
        preserve: As in ``augment``.

    Raises:
        ValueError: If the model cannot be read, or an argument names nothing in it.

    Example:
        >>> import timm
        >>> found = plan(timm.create_model("resnet18"), conv="last-2-stages")
        >>> found.pool.name, found.pool.feat_size, found.pool.classifier
        ('global_pool.pool', (7, 7), 'fc')
        >>> [conv.name for conv in found.convs if conv.replaced][:2]
        ['layer3.0.conv1', 'layer3.0.conv2']
    """
    wish = Wish(
        pool=pool,
        conv=conv,
        num_heads=num_heads,
        qk_ratio=qk_ratio,
        v_ratio=v_ratio,
        min_head_dim=min_head_dim,
        position=position,
        attn_downsample=attn_downsample,
        pool_heads=pool_heads,
        mlp_ratio=mlp_ratio,
        pool_name=pool_name,
        classifier_name=classifier_name,
        preserve=preserve,
    )
    return read(model, input_size, wish, count_macs=True)


def read(
    model: nn.Module, input_size: int | Sequence[int] | None, wish: Wish, *, count_macs: bool
) -> Plan:
    """The plan of a wish.

    Args:
        model: The network.
        input_size: As in ``plan``.
        wish: What was asked for.
        count_macs: Count the network's multiply-adds, which takes longest; else they are 0.

    Raises:
        ValueError: As ``plan``.
    """
    _check_model(model)
    run = _trace(model, _input_sizes(model, input_size), count_macs=count_macs)
    convs = conv_plans(model, run, wish)
    pool = pool_plan(model, run, wish)
    params = sum(parameter.numel() for parameter in model.parameters())
    parts: list[ConvPlan | PoolPlan] = [*convs, pool]
    return Plan(
        model=type(model).__name__,
        input_size=run.input_size,
        pool=pool,
        convs=tuple(convs),
        preserve=wish.preserve,
        params=params,
        params_after=params + sum(part.params_after - part.params for part in parts),
        macs=run.macs,
        macs_after=run.macs + sum(part.macs_after - part.macs for part in parts),
    )


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r} is no network; give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{kind} is a scripted module, whose code is frozen; augment the Python module it was "
            "made of, then script that"
        )
    wrappers = {
        "OptimizedModule": ("torch.compile", "model._orig_mod"),
        "DataParallel": ("DataParallel", "model.module"),
        "DistributedDataParallel": ("DistributedDataParallel", "model.module"),
        "FullyShardedDataParallel": ("FullyShardedDataParallel", "model.module"),
    }
    if kind in wrappers:
        wrapper, inner = wrappers[kind]
        raise ValueError(
            f"the network is wrapped by {wrapper}; augment {inner}, then wrap it again"
        )


def _input_sizes(model: nn.Module, given: int | Sequence[int] | None) -> list[tuple[int, int, int]]:
    """The size of the pictures, with each number of channels that they may have."""
    cfg = getattr(model, "pretrained_cfg", None)
    usual = tuple(cfg.get("input_size", ())) if isinstance(cfg, Mapping) else ()
    sides = (usual or 224) if given is None else given
    sizes = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if len(sizes) not in (2, 3) or any(not isinstance(side, int) or side < 1 for side in sizes):
        raise ValueError(
            f"input_size={given!r} is not a side, (H, W) or (C, H, W) in pixels; for instance 224"
        )
    height, width = sizes[-2:]
    if given is not None and len(sizes) == 3:
        return [(sizes[0], height, width)]
    # The first convolution tells, unless the network rearranges the picture before it.
    first = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = dict.fromkeys([next(first, 3), *usual[:1], 3])
    return [(count, height, width) for count in channels]


def _trace(model: nn.Module, sizes: Sequence[tuple[int, int, int]], *, count_macs: bool) -> Trace:
    """The run on the first of the sizes that the network takes."""
    for size in sizes[:-1]:
        with contextlib.suppress(ValueError):
            return trace(model, size, count_macs=count_macs)
    return trace(model, sizes[-1], count_macs=count_macs)
