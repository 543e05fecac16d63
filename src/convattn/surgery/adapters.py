"""What stands in a network where a pool or a classifier stood, and fits what is around it."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.layers import LearnedAggregation2d, Pool
from convattn.layers.aggregation import ClassTokenLinear
from convattn.layers.pools import ClassTokenPool


def _pool_norm(channels: int, wanted: bool) -> nn.Module:
    """Psomas et al. 2026 normalise so behind their pool: by batch, without factors."""
    return nn.BatchNorm1d(channels, eps=1e-6, affine=False) if wanted else nn.Identity()


class AggregationPool(nn.Module):
    """Learned aggregation in a pool's place, with the pool's output shape.

    With class tokens each token's features go on as an image of their own, so that whatever lies
    between pool and classifier treats them alike; :class:`TokenClassifier` gathers them again.

    Args:
        aggregation: The layer, its classifier an identity.
        pool: A pool that is no average, to which the attention's difference from the average is
            added; None if the attention stands alone.
        keepdim: Whether the output is a map of one position.
        norm: Whether a BatchNorm without factors follows.

    Shape:
        (B, C, H, W) -> (B * tokens, C), or (B * tokens, C, 1, 1) with ``keepdim``.
    """

    def __init__(
        self,
        aggregation: LearnedAggregation2d,
        *,
        pool: nn.Module | None,
        keepdim: bool,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.pool = pool
        self.keepdim = keepdim
        self.norm = _pool_norm(aggregation.in_features, norm)

    def reset(self, num_classes: int) -> None:
        """New tokens, for so many classes."""
        self.aggregation.reset(num_classes)
        self.aggregation.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * tokens, C), or (B * tokens, C, 1, 1) with ``keepdim``."""
        tokens, channels = self.aggregation.token.shape
        # Called, not asked for its parts, so that hooks see it.
        pooled = self.aggregation(x).reshape(x.shape[0], tokens, channels)
        if self.pool is not None:
            pooled = pooled + (self.pool(x).flatten(1) - x.mean((2, 3)))[:, None]
        pooled = self.norm(pooled.flatten(0, 1))
        return pooled[:, :, None, None] if self.keepdim else pooled


class GlobalPool(nn.Module):
    """A pool of ``convattn.POOLS`` in a network's pool's place, with that one's output shape.

    With a vector a class each goes on as an image of its own, as in :class:`AggregationPool`.

    Args:
        pool: Pools.
        other: A pool that is no average, to which the attention's difference from the average is
            added; None if the pool stands alone.
        norm: Whether a BatchNorm without factors follows.
        keepdim: Whether the output is a map of one position.

    Shape:
        (B, C, H, W) -> (B * vectors, C), or (B * vectors, C, 1, 1) with ``keepdim``.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        other: nn.Module | None = None,
        norm: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.other = other
        self.norm = _pool_norm(pool.out_features, norm)
        self.keepdim = keepdim

    def reset(self, num_classes: int) -> None:
        """New queries, for so many classes."""
        old = self.pool
        assert isinstance(old, ClassTokenPool)
        like = old.queries
        self.pool = ClassTokenPool(
            old.in_features, num_classes=num_classes, device=like.device, dtype=like.dtype
        ).train(old.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * vectors, C), or (B * vectors, C, 1, 1) with ``keepdim``."""
        pooled = self.pool(x)
        if self.other is not None:
            added = self.other(x).flatten(1) - x.mean((2, 3))
            pooled = pooled + (added if pooled.dim() == 2 else added[:, None])
        pooled = self.norm(pooled.reshape(-1, self.pool.out_features))
        return pooled[:, :, None, None] if self.keepdim else pooled


class TokenClassifier(nn.Module):
    """A classifier whose every class reads the features of its own token.

    Args:
        classifier: The linear layer or 1x1 convolution that stood here; its weights are kept.

    Shape:
        (B * classes, C) -> (B, classes); (B * classes, C, 1, 1) -> (B, classes, 1, 1).
    """

    def __init__(self, classifier: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight, bias = classifier.weight.detach().flatten(1), classifier.bias
        self.fc = ClassTokenLinear(
            weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype
        )
        self.fc.weight = nn.Parameter(weight.clone(), classifier.weight.requires_grad)
        if bias is not None:
            self.fc.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)

    @property
    def in_features(self) -> int:
        """Channels that a class reads, as of nn.Linear."""
        return self.fc.in_features

    @property
    def out_features(self) -> int:
        """Number of classes, as of nn.Linear."""
        return self.fc.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(B * classes, C) -> (B, classes); (B * classes, C, 1, 1) -> (B, classes, 1, 1)."""
        classes = self.fc.out_features
        logits = self.fc(x.reshape(x.shape[0] // classes, classes, self.fc.in_features))
        return logits if x.dim() == 2 else logits[:, :, None, None]
