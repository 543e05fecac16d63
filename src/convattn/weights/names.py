"""How the tensors of the released PatchConvNets map to ours, in both directions."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# (name in the released PatchConvNets, our name); {} stands for a block's number.
_PATCHCONVNET_NAMES = (
    ("blocks.{}.norm1.", "blocks.{}.norm."),
    ("blocks.{}.attn.qkv_pos.0.", "blocks.{}.conv_pw."),
    ("blocks.{}.attn.qkv_pos.2.", "blocks.{}.conv_dw."),
    ("blocks.{}.attn.qkv_pos.4.conv_reduce.", "blocks.{}.se.reduce."),
    ("blocks.{}.attn.qkv_pos.4.conv_expand.", "blocks.{}.se.expand."),
    ("blocks.{}.attn.qkv_pos.5.", "blocks.{}.conv_pwl."),
    ("blocks.{}.gamma_1", "blocks.{}.gamma"),
    ("blocks_token_only.0.norm1.", "head.norm1."),
    ("blocks_token_only.0.norm2.", "head.norm2."),
    ("blocks_token_only.0.attn.", "head.attn."),
    ("blocks_token_only.0.gamma_1", "head.gamma1"),
    ("blocks_token_only.0.gamma_2", "head.gamma2"),
    ("blocks_token_only.0.mlp.fc1.", "head.mlp.0."),
    ("blocks_token_only.0.mlp.fc2.", "head.mlp.2."),
    ("patch_embed.proj.0.0.", "stem.0."),
    ("patch_embed.proj.2.0.", "stem.2."),
    ("patch_embed.proj.4.0.", "stem.4."),
    ("patch_embed.proj.6.0.", "stem.6."),
    ("cls_token", "head.token"),
    ("norm.", "head.norm."),
    ("head.", "head.fc."),
)
_OWN_TO_THEM = "blocks.0.attn.qkv_pos.0.weight"  # no other network has a tensor of that name
_SIZES = {
    (384, 60): "s60",
    (384, 120): "s120",
    (768, 60): "b60",
    (768, 120): "b120",
    (1024, 60): "l60",
    (1024, 120): "l120",
}  # (embed_dim, depth)
_PER_CLASS = re.compile(r"head\.(\d+)\.(weight|bias)")
_POINTWISE = re.compile(r"blocks\.\d+\.(conv_pw|conv_pwl|se\.reduce|se\.expand)\.weight")


def _rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        match = re.match(pattern, name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    raise ValueError(
        f"tensor {name!r} belongs to no released PatchConvNet; expected names like "
        f"{pairs[0][0].format(0)}weight"
    )


def patchconvnet_from_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a PatchConvNet with the authors' names and shapes, under ours.

    1x1 convolutions become matrices; the linear units that the multi-class network holds one a
    class become the rows of one matrix.

    Args:
        state_dict: Tensors as in the released files, under their key ``model``.

    Raises:
        ValueError: If a name is not among the released ones.
    """
    out: dict[str, Tensor] = {}
    per_class: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state_dict.items():
        match = _PER_CLASS.fullmatch(name)
        if match:
            per_class.setdefault(match[2], {})[int(match[1])] = tensor
            continue
        new = _rename(name, _PATCHCONVNET_NAMES)
        if new == "head.token":
            tensor = tensor[0]
        elif _POINTWISE.fullmatch(new):
            tensor = tensor[:, :, 0, 0]
        out[new] = tensor
    for kind, rows in per_class.items():
        if sorted(rows) != list(range(len(rows))):
            raise ValueError(
                f"the multi-class head misses classes: {len(rows)} tensors head.*.{kind}, "
                f"the highest number is {max(rows)}"
            )
        out[f"head.fc.{kind}"] = torch.cat([rows[i] for i in range(len(rows))])
    return out


def patchconvnet_to_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`patchconvnet_from_released`.

    Args:
        state_dict: Tensors of one of our PatchConvNets with a learned aggregation.

    Raises:
        ValueError: If a name has no counterpart in the released networks.
    """
    back = tuple((ours, released) for released, ours in _PATCHCONVNET_NAMES)
    multi_class = len(state_dict.get("head.token", ())) > 1
    out: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new = _rename(name, back)
        if multi_class and name.startswith("head.fc."):
            kind = name.removeprefix("head.fc.")
            for i, row in enumerate(tensor):
                out[f"head.{i}.{kind}"] = row[None]
            continue
        if name == "head.token":
            tensor = tensor[None]
        elif _POINTWISE.fullmatch(name):
            tensor = tensor[:, :, None, None]
        out[new] = tensor
    return out


OWN_TO_LITE = "_conv_stem.weight"
"""A tensor of EfficientNets as their PyTorch port names them, and of no other network."""


def names_of_timm(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An EfficientNet(-Lite) as its PyTorch port names it under timm's names; others as they are.

    Both list the same layers in the same order, so their shapes must agree one by one.

    Args:
        tensors: A state dict.
        own: That of timm's network, classifier or not.

    Examples:
        >>> given = {"_conv_stem.weight": torch.ones(2, 3)}
        >>> list(names_of_timm(given, {"conv_stem.weight": torch.zeros(2, 3)}))
        ['conv_stem.weight']
    """
    if OWN_TO_LITE not in tensors or OWN_TO_LITE in own:
        return dict(tensors)
    theirs = {name: tensor for name, tensor in tensors.items() if not _is_count(name)}
    classifier = {name: theirs.pop(name) for name in ("_fc.weight", "_fc.bias") if name in theirs}
    names = [name for name in own if not _is_count(name) and not name.startswith("classifier.")]
    if len(names) != len(theirs):
        return dict(tensors)
    found = dict(zip(names, theirs.values(), strict=True))
    return found | {name.replace("_fc", "classifier"): x for name, x in classifier.items()}


def _is_count(name: str) -> bool:
    """Whether it is a BatchNorm's number of batches, which older files lack."""
    return name.endswith("num_batches_tracked")


def remap_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A PatchConvNet as released under our names; any other state dict as it is."""
    return patchconvnet_from_released(tensors) if _OWN_TO_THEM in tensors else dict(tensors)


def architecture_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the published PatchConvNet that a state dict is of, None for another network.

    Args:
        tensors: A state dict under our names.

    Examples:
        >>> import convattn, timm
        >>> with torch.device("meta"):
        ...     model = timm.create_model("patchconvnet_b60", num_classes=10)
        >>> architecture_of(model.state_dict())
        'patchconvnet_b60'
    """
    token, gate = tensors.get("head.token"), tensors.get("blocks.0.gamma")
    if token is None or gate is None or token.dim() != 2:
        return None
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    size = _SIZES.get((token.shape[1], depth))
    if len(token) == 1:
        return size and f"patchconvnet_{size}"
    return "patchconvnet_s60_multi" if size == "s60" else None
