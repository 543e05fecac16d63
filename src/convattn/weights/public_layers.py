"""Attention-augmented convolutions of public PyTorch code into ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

# What the layers call their parts -> what AAConv2d does.
_PARTS = {
    "conv_layer": "conv",  # LegenDong/attention-augmented.pytorch
    "qkv_layer": "qkv",
    "attn_layer": "proj",
    "conv_out": "conv",  # sebastiani/pytorch-attention-augmented-convolution
    "conv_qkv": "qkv",
    "conv_attn": "proj",
    "key_rel_h": "rel_pos.height",  # both, and the paper's own code
    "key_rel_w": "rel_pos.width",
}
_SCRAMBLED = ("qkv_conv", "kqv_conv")  # leaderj1001's and those made after it, and MartinGer's


def aa_conv_from_public(
    state_dict: Mapping[str, Tensor], *, order: Literal["qkv", "kqv"] = "qkv"
) -> dict[str, Tensor]:
    """Tensors of a public attention-augmented convolution, for our ``AAConv2d``.

    For the layers of LegenDong/attention-augmented.pytorch and
    sebastiani/pytorch-attention-augmented-convolution, and for those with their names. Their
    relative tables have our order of rows: offset of the key from the query, from the most
    negative on. What the layer computes stays the same if the ``AAConv2d`` has its sizes:
    ``num_heads`` is Nh, ``qk_channels`` dk, ``v_channels`` dv, ``feat_size`` (fh, fw).

    The layers of leaderj1001/Attention-Augmented-Conv2d, d-li14 and MartinGer are refused: they
    reshape what attention has gathered without the transpose that this needs, which mixes up
    positions and channels; weights that were trained so mean nothing in a layer without the error.

    Args:
        state_dict: Tensors of one layer, without a prefix.
        order: How the 1x1 convolution's outputs are packed: queries, keys, values as in both
            repositories, or keys, queries, values as in the code that the paper prints.

    Returns:
        A state dict for ``AAConv2d.load_state_dict``.

    Raises:
        ValueError: If a tensor is of none of these layers, or the layer is known to be wrong.

    Examples:
        >>> from convattn import AAConv2d
        >>> theirs = {
        ...     "conv_layer.weight": torch.randn(12, 6, 3, 3), "conv_layer.bias": torch.zeros(12),
        ...     "qkv_layer.weight": torch.randn(84, 6, 1, 1), "qkv_layer.bias": torch.zeros(84),
        ...     "attn_layer.weight": torch.randn(4, 4, 1, 1), "attn_layer.bias": torch.zeros(4),
        ...     "key_rel_w": torch.randn(13, 20), "key_rel_h": torch.randn(9, 20),
        ... }
        >>> layer = AAConv2d(6, 16, 3, padding=1, num_heads=2, v_ratio=0.25, feat_size=(5, 7))
        >>> layer.load_state_dict(aa_conv_from_public(theirs))
        <All keys matched successfully>
    """
    if order not in ("qkv", "kqv"):
        raise ValueError(f"order={order!r} is not 'qkv' or 'kqv'")
    found: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        part, _, kind = name.partition(".")
        if part in _SCRAMBLED:
            raise ValueError(
                f"{name!r} is of a layer whose output is scrambled (leaderj1001's, MartinGer's and "
                "those made after them): its weights mean nothing in a right one; train anew"
            )
        if part not in _PARTS:
            raise ValueError(
                f"tensor {name!r} is of no public attention-augmented convolution that is known; "
                f"expected {', '.join(_PARTS)}"
            )
        found[".".join(filter(None, (_PARTS[part], kind)))] = tensor
    if order == "kqv":
        v_channels = len(found["proj.weight"])
        for name in ("qkv.weight", "qkv.bias"):
            qk_channels = (len(found[name]) - v_channels) // 2
            k, q, v = found[name].split([qk_channels, qk_channels, v_channels])
            found[name] = torch.cat([q, k, v])
    return found
