"""Learned aggregation as it runs when nothing is to be learned any more."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.inference.blocks import InplaceGELU
from convattn.inference.folding import folded_linear
from convattn.layers import LearnedAggregation2d


class FoldedAggregation(LearnedAggregation2d):
    """A trained aggregation whose tokens, which never change, are multiplied into its matrices.

    A token's query and key become one vector that patches are compared with; values, projection,
    layer scale and the norm's factors become one matrix. A key's bias moves all logits of a query
    alike, and so drops out.

    Args:
        head: The trained head; shares its parameters.

    Shape:
        As LearnedAggregation2d.

    Raises:
        ValueError: If the head is one that ``takes`` refuses.
    """

    probe: Tensor
    merged: Tensor
    base: Tensor
    own_logit: Tensor
    own_value: Tensor

    @torch.no_grad()
    def __init__(self, head: LearnedAggregation2d) -> None:
        if not self.takes(head):
            raise ValueError(f"an aggregation cannot be folded: {head}")
        first, _, last = head.mlp
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        dim, hidden = head.in_features, first.out_features
        super().__init__(
            dim,
            head.num_classes,
            num_heads=head.attn.num_heads,
            class_tokens=head.class_tokens,
            mlp_ratio=(hidden + 0.5) / dim,
            norm_eps=head.norm1.eps,
            device=torch.device("meta"),
        )
        for name, child in head.named_children():
            self.set_submodule(name, child)
        self.token, self.gamma1, self.gamma2 = head.token, head.gamma1, head.gamma2
        self.eval()
        self._fold_attention(head)
        self._fold_mlp(first, last)

    @staticmethod
    def takes(head: LearnedAggregation2d) -> bool:
        """Whether a head can be folded to an advantage.

        Args:
            head: Any.
        """
        many_maps = head.class_tokens and head.attn.num_heads > 1
        return type(head) is LearnedAggregation2d and not head.residual and not many_maps

    def _fold_attention(self, head: LearnedAggregation2d) -> None:
        attn, norm, heads = head.attn, head.norm1, head.attn.num_heads
        dim = head.in_features // heads
        factor, shift = norm.weight.double(), norm.bias.double()
        token = head.token.double()
        normed = F.layer_norm(token, token.shape[-1:], factor, shift, norm.eps)
        query = F.linear(normed, attn.q.weight.double(), attn.q.bias.double())
        query = query.unflatten(-1, (heads, dim)).transpose(0, 1) * dim**-0.5  # (heads, K, d)
        probe = query @ attn.k.weight.double().unflatten(0, (heads, dim))  # (heads, K, C)
        scale = head.gamma1.double()
        proj = attn.proj.weight.double() * scale[:, None]
        value = attn.v.weight.double().unflatten(0, (heads, dim))  # (heads, d, C)
        both = proj.unflatten(1, (heads, dim)).transpose(0, 1) @ value  # (heads, C, C)
        bias = proj @ attn.v.bias.double() + attn.proj.bias.double() * scale
        self._keep("probe", (probe * factor).flatten(0, 1))
        self._keep("merged", (both * factor).transpose(1, 2).flatten(0, 1))  # (heads*C, C)
        self._keep("base", token + bias + (both @ shift).sum(0))
        if not head.class_tokens:
            own = normed[0] - shift
            self._keep("own_logit", (probe * own).sum(-1))  # (heads, 1)
            self._keep("own_value", both @ own)  # (heads, C)

    def _fold_mlp(self, first: nn.Linear, last: nn.Linear) -> None:
        norm, weight, scale = self.norm2, first.weight.double(), self.gamma2.double()
        bias = first.bias.double() + weight @ norm.bias.double()
        self.mlp = nn.Sequential(
            folded_linear(weight * norm.weight.double(), bias, first),
            InplaceGELU(),
            folded_linear(last.weight.double() * scale[:, None], last.bias.double() * scale, last),
        ).eval()

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.to(self.token.dtype).contiguous(), persistent=False)

    def pool(self, x: Tensor) -> Tensor:
        """What each token has gathered: (B, in_features, H, W) -> (B, tokens, in_features)."""
        self._check_input(x)
        patches = F.layer_norm(x.flatten(2).transpose(1, 2), self._width, eps=self.norm1.eps)
        pooled = self.gather(patches)
        normed = F.layer_norm(pooled, self._width, eps=self.norm2.eps)
        return self.drop(self.norm(self.mlp(normed).add_(pooled)))

    @property
    def _width(self) -> tuple[int]:
        return (self.in_features,)

    def gather(self, patches: Tensor) -> Tensor:
        """The tokens with what their attention adds.

        Args:
            patches: (B, N, in_features), each of mean 0 and variance 1.

        Returns:
            (B, tokens, in_features).
        """
        if not self.class_tokens:
            return self._gather_once(patches)
        weights = (self.probe @ patches.transpose(1, 2)).softmax(-1)  # (B, K, N)
        if len(self.probe) > self.in_features:
            return torch.baddbmm(self.base, weights, patches @ self.merged)
        return (weights @ patches) @ self.merged + self.base

    def _gather_once(self, patches: Tensor) -> Tensor:
        """Of the single token, which is among the keys: (B, N, C) -> (B, 1, C)."""
        logits = F.linear(patches, self.probe).transpose(1, 2)  # (B, heads, N)
        own = self.own_logit.expand(len(patches), -1, -1)
        weights = torch.cat([own, logits], dim=-1).softmax(-1)
        gathered = torch.bmm(weights[..., 1:], patches).flatten(1)  # (B, heads*C)
        base = torch.addmm(self.base, weights[..., 0], self.own_value)
        return torch.addmm(base, gathered, self.merged).unsqueeze(1)


def fold_aggregations(network: nn.Module) -> nn.Module:
    """Puts a folded aggregation in the place of every one that can be folded.

    Args:
        network: In evaluation mode; altered in place.

    Returns:
        The network, or its fold if it is nothing but an aggregation.
    """
    if isinstance(network, LearnedAggregation2d):
        return FoldedAggregation(network) if FoldedAggregation.takes(network) else network
    for name, module in list(network.named_modules()):
        if isinstance(module, LearnedAggregation2d) and FoldedAggregation.takes(module):
            network.set_submodule(name, FoldedAggregation(module))
    return network
