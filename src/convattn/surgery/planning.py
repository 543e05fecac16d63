"""What attention could replace in a network, where, and at what cost; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from convattn.config import PoolName
from convattn.layers.rel_pos import Position
from convattn.surgery.convs import plan_convs
from convattn.surgery.pools import plan_pool
from convattn.surgery.records import (
    AugmentOptions,
    ConvFilter,
    ConvPlan,
    Plan,
    PoolPlan,
    num_params,
)
from convattn.surgery.trace import check_network, check_plain, trace_usual


def plan(
    model: nn.Module,
    input_size: int | Sequence[int] | None = None,
    *,
    pool: PoolName | None = "attention",
    conv: ConvFilter | None = "all",
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
) -> Plan:
    """What ``augment`` would do with the same arguments: where, how, at what cost, or why not.

    The network is run once without computing anything, so that it is read from what it does and
    not from how its parts are called; it is left as it was.

    Args:
        model: Any convolutional network.
        input_size: The image's side, (H, W) or (C, H, W) in pixels; None takes the model's
            ``pretrained_cfg``, as timm's have, or 224 x 224.

    Raises:
        ValueError: If the model cannot be read, or an argument names nothing in it.

    Examples:
        >>> import timm
        >>> found = plan(timm.create_model("resnet18"), conv="last-2-stages")
        >>> found.pool.name, found.pool.feat_size, found.pool.classifier
        ('global_pool.pool', (7, 7), 'fc')
        >>> [conv.name for conv in found.convs if conv.replaced][:2]
        ['layer3.0.conv1', 'layer3.0.conv2']
    """
    options = AugmentOptions.of(locals())
    return make_plan(model, input_size, options, count_macs=True)


def make_plan(
    model: nn.Module,
    input_size: int | Sequence[int] | None,
    options: AugmentOptions,
    *,
    count_macs: bool,
) -> Plan:
    """The plan of what these options ask for.

    Args:
        input_size: As in ``plan``.
        count_macs: Count the network's multiply-adds, which takes longest; else they are 0.

    Raises:
        ValueError: As ``plan``.
    """
    check_network(model, "augment")
    check_plain(model)
    run = trace_usual(model, input_size, count_macs=count_macs)
    convs = plan_convs(model, run, options)
    pool = plan_pool(model, run, options)
    params = num_params(model)
    parts: list[ConvPlan | PoolPlan] = [*convs, pool]
    return Plan(
        model=type(model).__name__,
        input_size=run.input_size,
        pool=pool,
        convs=tuple(convs),
        preserve=options.preserve,
        params=params,
        params_after=params + sum(part.params_after - part.params for part in parts),
        macs=run.macs,
        macs_after=run.macs + sum(part.macs_after - part.macs for part in parts),
    )
