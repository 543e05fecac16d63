"""Fixed factors and shifts, multiplied into the weights beside them once and for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from convattn.layers import AAConv2d
from convattn.models.patchconvnet import PatchConvBlock
from convattn.surgery.trace import Trace, trace_usual

_FOLDABLE = (nn.Conv2d, Conv2dSame, AAConv2d)  # exactly these: others may compute their weights


def fold_batch_norms(network: nn.Module) -> int:
    """Multiplies BatchNorms into the convolutions before them, in place.

    Which convolution feeds which norm is read from a run of the network. A norm stays where it is
    if anything else reads the convolution's output, or if either runs more than once.

    Args:
        network: In evaluation mode.

    Returns:
        How many are gone.

    Raises:
        ValueError: If the network cannot run on an image of its usual size.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return 0
    pairs = list(_pairs(network, trace_usual(network)))
    for conv, norm in pairs:
        layer = network.get_submodule(norm)
        assert isinstance(layer, nn.BatchNorm2d)
        _fold(network.get_submodule(conv), *scale_and_shift(layer))
        rest = layer.act if isinstance(layer, BatchNormAct2d) else nn.Identity()
        network.set_submodule(norm, rest)
    return len(pairs)


def _pairs(network: nn.Module, run: Trace) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the norms that alone read what they make."""
    times = Counter(call.name for call in run.calls)
    for call in run.calls:
        norm = network.get_submodule(call.name)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        if call.source is None or call.source == run.output:
            continue
        inside = (call.name, f"{call.name}.")
        readers = (value.owner for value in run.values if call.source in value.sources)
        if not all(owner == inside[0] or owner.startswith(inside[1]) for owner in readers):
            continue
        for made in run.calls_to(call.source):
            conv = network.get_submodule(made.name)
            fits = type(conv) in _FOLDABLE and not is_parametrized(conv)
            if fits and times[made.name] == times[call.name] == 1:
                yield made.name, call.name
                break


def scale_and_shift(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """What a BatchNorm multiplies by and adds in evaluation, (C,) of float64 each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _fold(conv: nn.Module, scale: Tensor, shift: Tensor) -> None:
    if isinstance(conv, AAConv2d):
        _fold_augmented(conv, scale, shift)
    else:
        assert isinstance(conv, nn.Conv2d)
        _multiply(conv, scale, shift)


def _fold_augmented(layer: AAConv2d, scale: Tensor, shift: Tensor) -> None:
    """The convolution makes the first channels, or all; the projection makes the last."""
    kept = layer.out_channels - layer.v_channels
    if layer.residual:
        assert layer.conv is not None
        _multiply(layer.conv, scale, shift)
        _multiply(layer.proj, scale[kept:], torch.zeros_like(shift[kept:]))
        return
    if layer.conv is not None:
        _multiply(layer.conv, scale[:kept], shift[:kept])
    _multiply(layer.proj, scale[kept:], shift[kept:])


def _multiply(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    weight, bias = conv.weight.double(), shift
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    like = conv.weight
    conv.weight = _frozen(weight * scale[:, None, None, None], like)
    conv.bias = _frozen(bias, like)


def fold_block(block: PatchConvBlock) -> tuple[nn.Linear, nn.Linear]:
    """Both 1x1 convolutions of a block, with what the norm and layer scale multiply and add.

    Args:
        block: Left as it is.

    Returns:
        The first, which reads the normalised map, or the map itself where the norm is by batch;
        and the last.
    """
    norm, first, last = block.norm, block.conv_pw, block.conv_pwl
    if isinstance(norm, nn.LayerNorm):
        scale, shift = norm.weight.double(), norm.bias.double()
    else:
        scale, shift = scale_and_shift(norm)
    weight, gamma = first.weight.double(), block.gamma.double()
    return (
        folded_linear(weight * scale, first.bias.double() + weight @ shift, first),
        folded_linear(last.weight.double() * gamma[:, None], last.bias.double() * gamma, last),
    )


def folded_linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    """A frozen linear layer.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,).
        like: Of the same sizes; gives the number format.
    """
    layer = nn.Linear(like.in_features, like.out_features, device="meta")
    layer.weight = _frozen(weight, like.weight)
    layer.bias = _frozen(bias, like.weight)
    return layer.eval()


def _frozen(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to(like.dtype), requires_grad=False)
