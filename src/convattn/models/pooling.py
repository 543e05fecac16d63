"""Networks of timm's classes whose ``global_pool`` may be one of ``convattn.POOLS``."""

from __future__ import annotations

from typing import Any, cast, get_args

from timm.models import build_model_with_cfg
from torch import Tensor, nn

from convattn.config import PoolName
from convattn.layers import Pool, create_pool
from convattn.layers.pools import ClassTokenPool
from convattn.surgery import augment
from convattn.surgery.adapters import GlobalPool, TokenClassifier

_TIMMS = ("avg", "max")  # as timm makes them
OUR_POOLS = tuple(name for name in get_args(PoolName) if name not in _TIMMS)
"""Pools that timm does not have: "attention", "residual", "ep", "aggregation" ..."""


def build_pooled(cls: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """A network by timm's builder; its pool is ours if ``global_pool`` names one.

    It is then what ``convattn.augment(preserve=False)`` makes of the same network: the same layers
    under the same names, with trained weights or without.

    Args:
        cls: A classifier of timm's kind.
        variant: Its name in timm's registry.
        pretrained: Whether to load released weights.
        **kwargs: Of the network and of timm's builder.

    Raises:
        ValueError: If the network has nothing that such a pool could stand for.
    """
    pool = kwargs.get("global_pool")
    if pool not in OUR_POOLS:
        return cast(nn.Module, build_model_with_cfg(cls, variant, pretrained, **kwargs))
    kwargs["global_pool"] = "avg"
    model = cast(nn.Module, build_model_with_cfg(cls, variant, pretrained, **kwargs))
    if kwargs.get("features_only"):  # there is no pool left
        return model
    return augment(model, pool=cast(PoolName, pool), preserve=False, inplace=True)


class PooledClassifier(nn.Module):
    """One of ``convattn.POOLS``, a BatchNorm without factors if wanted, and a linear layer.

    All of it is linear in the map once the pool's weights are given, where the pool is: so its
    logits have exact shares, ``convattn.evidence``.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 leaves the classifier out.
        pool: Name of the pool; "class" has a query a class.
        drop: Dropout before the classifier.
        norm: Whether the BatchNorm is there.
        **options: Of the pool.

    Shape:
        (B, C, H, W) -> (B, num_classes), or (B, C) without a classifier.

    Raises:
        ValueError: If there is no such pool, or it refuses an option.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool: str,
        drop: float = 0.0,
        *,
        norm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        per_class = pool == "class" and num_classes > 0
        own: Pool
        if per_class:
            own = ClassTokenPool(in_features, num_classes=num_classes, **options)
        else:
            own = create_pool("attention" if pool == "class" else pool, in_features, **options)
        self.pool = GlobalPool(own, norm=norm)
        self.drop = nn.Dropout(drop)
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            fc = nn.Linear(own.out_features, num_classes)
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)
            self.fc = TokenClassifier(fc) if per_class else fc

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, num_classes), or (B, C) before the classifier."""
        pooled = self.drop(self.pool(x))  # a row an image, or a row an image and class
        if not pre_logits:
            return cast(Tensor, self.fc(pooled))
        if isinstance(self.fc, TokenClassifier):
            return cast(Tensor, pooled.unflatten(0, (x.shape[0], self.fc.out_features)).mean(1))
        return cast(Tensor, pooled)
