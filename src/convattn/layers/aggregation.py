"""Learned aggregation: attention in place of a convnet's average pool."""

import torch
from torch import Tensor, nn

from convattn.functional import (
    aggregation_weights,
    multiply_tokens,
    weighted_values,
    weights_by_keys,
)
from convattn.kernels.tracing import as_number, refuse_scripting
from convattn.modes import is_unmodified


class ClassTokenLinear(nn.Module):
    """One linear unit a class, each reading its own class token.

    Args:
        in_features: Channels of a token.
        num_classes: Tokens and outputs.
        device: As in nn.Linear.
        dtype: As in nn.Linear.

    Shape:
        (B, num_classes, in_features) -> (B, num_classes).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = num_classes
        self.weight = nn.Parameter(
            torch.empty(num_classes, in_features, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_classes, in_features) -> (B, num_classes)."""
        return multiply_tokens(x, self.weight, training=self.training) + self.bias


class _TokenAttention(nn.Module):
    """Projections of the attention whose queries are class tokens.

    Their weights are read, which is cheaper, where that does all that calling them would.
    """

    def __init__(
        self, dim: int, num_heads: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.k = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.v = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def weights(self, query: Tensor, x: Tensor, token: Tensor | None) -> Tensor:
        query = self.q(query)
        if not is_unmodified(self.k):
            own = None if token is None else self.k(token)
            return weights_by_keys(query, self.k(x), num_heads=self.num_heads, token=own)
        return aggregation_weights(
            x,
            query,
            self.k.weight,
            self.k.bias,
            num_heads=self.num_heads,
            token=token,
        )

    def values(self, weights: Tensor, x: Tensor, token: Tensor | None) -> Tensor:
        if not is_unmodified(self.v):
            own = None if token is None else self.v(token)
            values = self.v(x)
            return self.proj(weighted_values(weights, values, num_heads=self.num_heads, token=own))
        many = as_number(weights.shape[2]) > self.v.in_features
        if many and self.num_heads == 1 and token is None and is_unmodified(self.proj):
            # One product of both matrices is less than one with each of so many queries.
            both = self.proj.weight @ self.v.weight
            return weighted_values(weights, x, both, self.proj(self.v.bias))
        pooled = weighted_values(
            weights, x, self.v.weight, self.v.bias, num_heads=self.num_heads, token=token
        )
        return self.proj(pooled)


class LearnedAggregation2d(nn.Module):
    """Attention pooling and classifier, a drop-in for a convnet's average pool and linear layer.

    Touvron et al. 2021, https://arxiv.org/abs/2112.13692. A learned class token asks every patch
    how much it matters and takes their weighted mean; a small MLP, a LayerNorm and a linear layer
    follow. With ``class_tokens`` every class has a token, and so a map, of its own.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 leaves the classifier out.
        num_heads: Attention heads.
        class_tokens: One token a class instead of one for all. The single token is itself among
            the keys and values, class tokens are not, as in the released networks.
        mlp_ratio: Hidden channels of the MLP per channel.
        layer_scale: Initial factor of both residual branches.
        drop: Dropout before the classifier.
        norm_eps: Epsilon of the LayerNorms.
        residual: Begin as the average pool that it replaces: the weighted mean is taken of the map
            itself, its weights start equal, and the paper's values and MLP are added to it through
            zero factors (``layer_scale`` is not used, and there is no last LayerNorm). Not in the
            paper; for networks that are trained already.
        device: As in nn.Linear.
        dtype: As in nn.Linear.

    Shape:
        (B, in_features, H, W) -> (B, num_classes); (B, in_features) without a classifier.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_features``, or an argument has no
            meaning.

    Examples:
        >>> head = LearnedAggregation2d(64, num_classes=10)
        >>> features = torch.randn(2, 64, 7, 9)
        >>> head(features).shape, head.attention_weights(features).shape
        (torch.Size([2, 10]), torch.Size([2, 1, 1, 7, 9]))
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        in_features: int,
        num_classes: int = 1000,
        *,
        num_heads: int = 1,
        class_tokens: bool = False,
        mlp_ratio: float = 3.0,
        layer_scale: float = 1e-4,
        drop: float = 0.0,
        norm_eps: float = 1e-6,
        residual: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} is negative; 0 leaves the classifier out")
        if num_heads < 1 or in_features % num_heads:
            good = [n for n in range(1, in_features + 1) if in_features % n == 0]
            raise ValueError(
                f"num_heads={num_heads} does not divide in_features={in_features}; nearest that "
                f"works: {min(good, key=lambda n: abs(n - num_heads))}"
            )
        if not 0 <= drop < 1:
            raise ValueError(f"drop={drop} is no probability below 1; for instance drop=0.1")
        self.in_features = in_features
        self.num_classes = num_classes
        self.class_tokens = class_tokens
        self.residual = residual
        if residual:
            layer_scale = 0.0
        hidden = int(in_features * mlp_ratio)
        num_tokens = max(num_classes, 1) if class_tokens else 1
        self.token = nn.Parameter(torch.empty(num_tokens, in_features, device=device, dtype=dtype))
        self.norm1 = nn.LayerNorm(in_features, eps=norm_eps, device=device, dtype=dtype)
        self.attn = _TokenAttention(in_features, num_heads, device, dtype)
        self.gamma1 = nn.Parameter(
            torch.full((in_features,), layer_scale, device=device, dtype=dtype)
        )
        self.norm2 = nn.LayerNorm(in_features, eps=norm_eps, device=device, dtype=dtype)
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden, device=device, dtype=dtype),
            nn.GELU(),
            nn.Linear(hidden, in_features, device=device, dtype=dtype),
        )
        self.gamma2 = nn.Parameter(
            torch.full((in_features,), layer_scale, device=device, dtype=dtype)
        )
        self.norm = (
            nn.Identity()
            if residual
            else nn.LayerNorm(in_features, eps=norm_eps, device=device, dtype=dtype)
        )
        self.drop = nn.Dropout(drop)
        # The paper's 0.02 at its widths; narrower maps keep S60's variance, or attention would
        # begin too flat to learn from.
        std = 0.02 * max(1.0, (384 / in_features) ** 0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.token, std=0.02)
        if residual:
            nn.init.zeros_(self.attn.q.weight)
        self.fc = self._classifier()

    def _classifier(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        device, dtype = self.token.device, self.token.dtype
        if self.class_tokens:
            return ClassTokenLinear(self.in_features, self.num_classes, device=device, dtype=dtype)
        fc = nn.Linear(self.in_features, self.num_classes, device=device, dtype=dtype)
        nn.init.trunc_normal_(fc.weight, std=0.02)
        nn.init.zeros_(fc.bias)
        return fc

    def reset(self, num_classes: int) -> None:
        """Makes a new classifier, and with ``class_tokens`` new tokens, for so many classes.

        Args:
            num_classes: Classes; 0 leaves the classifier out and keeps the tokens.
        """
        self.num_classes = num_classes
        if self.class_tokens and num_classes:
            self.token = nn.Parameter(self.token.new_empty(num_classes, self.in_features))
            nn.init.trunc_normal_(self.token, std=0.02)
        self.fc = self._classifier().train(self.training)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or as_number(x.shape[1]) != self.in_features:
            raise ValueError(
                f"input of shape {tuple(x.shape)}, expected (B, {self.in_features}, H, W)"
            )

    def _attn_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised tokens, normalised patches (B, H*W, C), and what joins them as a key."""
        self._check_input(x)
        patches = self.norm1(x.flatten(2).transpose(1, 2))
        tokens = self.norm1(self.token)
        return tokens, patches, None if self.class_tokens or self.residual else tokens

    def attention_weights(self, x: Tensor) -> Tensor:
        """Where the tokens look.

        Args:
            x: (B, in_features, H, W).

        Returns:
            (B, heads, tokens, H, W) after softmax. A class token's map sums to 1, and with
            ``residual`` every map; the single token's to less, by what it keeps for itself.
        """
        tokens, patches, key_token = self._attn_inputs(x)
        weights = self.attn.weights(tokens, patches, key_token)
        return weights[..., -patches.shape[1] :].unflatten(-1, (x.shape[2], x.shape[3]))

    def pool(self, x: Tensor) -> Tensor:
        """What each token has gathered: (B, in_features, H, W) -> (B, tokens, in_features)."""
        tokens, patches, key_token = self._attn_inputs(x)
        weights = self.attn.weights(tokens, patches, key_token)
        pooled: Tensor = self.token
        if self.residual:
            own = x.flatten(2).transpose(1, 2)
            pooled = weighted_values(weights, own, num_heads=self.attn.num_heads)
        pooled = pooled + self.gamma1 * self.attn.values(weights, patches, key_token)
        pooled = pooled + self.gamma2 * self.mlp(self.norm2(pooled))
        return self.drop(self.norm(pooled))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, in_features, H, W) -> (B, num_classes), or (B, in_features) before the classifier.

        With class tokens, the features before the classifier are the mean over the tokens.
        """
        pooled = self.pool(x)
        if pre_logits or not self.num_classes:
            return pooled.mean(1)
        return self.fc(pooled if self.class_tokens else pooled[:, 0])

    def extra_repr(self) -> str:
        """What the children do not show."""
        return (
            f"{self.in_features}, {self.num_classes}, class_tokens={self.class_tokens}"
            f"{', residual=True' if self.residual else ''}"
        )
