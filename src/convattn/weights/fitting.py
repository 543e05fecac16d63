"""Trained weights into a network, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from timm.models import adapt_input_conv
from torch import Tensor, nn

from convattn.layers import LearnedAggregation2d
from convattn.layers.pools import Pool
from convattn.text import list_names
from convattn.weights.names import names_of_timm
from convattn.weights.reading import mismatch_error, read_weights, tensor_differences

_IMAGE_CHANNELS = 3  # of every released network


def load_checked(model: nn.Module, file: Path, weights: Mapping[str, Tensor]) -> None:
    """Fill a network with tensors of exactly its names and shapes.

    Args:
        file: Where they come from, for the error.

    Raises:
        ValueError: If a name or a shape differs, or a tensor holds NaN; the network is then as
            before.
    """
    differences = tensor_differences(weights, model.state_dict())
    if differences:
        raise mismatch_error(file, weights, differences)
    check_finite_weights(file, weights)
    model.load_state_dict(weights)


def check_finite_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse trained tensors that hold NaN; a mask may hold infinities.

    Args:
        file: Where they come from, for the error.

    Raises:
        ValueError: If one holds NaN; names the first.
    """
    bad = [name for name, x in weights.items() if x.is_floating_point() and x.isnan().any()]
    if bad:
        raise ValueError(
            f"{file} holds numbers that are not finite: NaN in {bad[0]}, one of {len(bad)} such "
            f"tensors of {len(weights)}; its training has diverged, or it was damaged: use other "
            "weights"
        )


def load_backbone(network: nn.Module, path: Path) -> None:
    """Fill a network with trained weights of the same one, whatever its classes or its pool.

    Tensors under timm's names, which are torchvision's for its ResNets, or an EfficientNet-Lite's
    own; counts of batches that an older file lacks stay as they are.

    Args:
        network: Of timm's, ours among them, or of torchvision's; with a classifier or without.
        path: As ``read_weights`` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another network.
    """
    file, weights = read_weights(path)
    own = network.state_dict()
    head = _head_names(network)
    theirs = under_own_names(weights, own)
    fitting = {name: tensor for name, tensor in theirs.items() if not name.startswith(head)}
    kept = {name: tensor for name, tensor in own.items() if name.startswith(head)}
    differences = tensor_differences(fitting | kept, own)
    if differences:
        raise mismatch_error(file, weights, differences)
    check_finite_weights(file, fitting)
    network.load_state_dict(fitting | kept)


def load_trunk(network: nn.Module, path: Path) -> str:
    """Fill all of a network but its classifier with trained weights, whatever else they hold.

    Counts of batches that the file lacks stay as they are. What the file has behind the trunk, as a
    classifier or a pool that was trained with it, is left out.

    Args:
        network: Of timm's, ours among them.
        path: As ``read_weights`` takes it.

    Returns:
        How many tensors were loaded, and which were left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another network.
    """
    file, weights = read_weights(path)
    own, head = network.state_dict(), _head_names(network)
    trunk = {name: tensor for name, tensor in own.items() if not name.startswith(head)}
    theirs = names_of_timm(weights, own)
    left_out = sorted(theirs.keys() - trunk.keys())
    parts = {name.partition(".")[0] for name in trunk}
    # What lies inside a part of the trunk is no head: the file is of a larger network.
    foreign = [name for name in left_out if name.partition(".")[0] in parts]
    fitting = {name: tensor for name, tensor in theirs.items() if name in trunk or name in foreign}
    counts = {name: own[name] for name in trunk if name.endswith("num_batches_tracked")}
    differences = tensor_differences(counts | fitting, trunk)
    if differences:
        raise mismatch_error(file, weights, differences)
    check_finite_weights(file, fitting)
    network.load_state_dict(own | fitting)
    told = f"{len(fitting)} of {len(theirs)} tensors loaded"
    return f"{told}, {len(left_out)} left out: {list_names(left_out)}" if left_out else told


def under_own_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors as a network of timm's calls them, with the counts that older files lack.

    Args:
        weights: Under timm's names, which are torchvision's for its ResNets, or as the PyTorch port
            of EfficientNet(-Lite) calls them.
        own: State dict of the network; its counts of batches stand in for missing ones.
    """
    found = names_of_timm(weights, own)
    norms = {name.rpartition(".")[0] for name in found if name.endswith("running_mean")}
    counts = {
        name: tensor
        for name, tensor in own.items()
        if name.endswith("num_batches_tracked") and name.rpartition(".")[0] in norms
    }
    return counts | found


def _head_names(network: nn.Module) -> tuple[str, ...]:
    """Beginnings of names of tensors that are no part of a backbone."""
    pools = [
        f"{name}."
        for name, module in network.named_modules()
        if isinstance(module, Pool | LearnedAggregation2d)
    ]
    cfg = getattr(network, "pretrained_cfg", None)
    if cfg is None:  # torchvision's call it so
        return ("fc.", "classifier.", "heads.", "AuxLogits.", "aux1.", "aux2.", *pools)
    named = cast(Mapping[str, Any], cfg).get("classifier") or ()
    names = [named] if isinstance(named, str) else list(named)
    return (*(f"{name}." for name in names), *pools)


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the modules that a model of timm's calls its classifier.

    Args:
        model: A model of timm's.
    """
    found = cast(Any, model).get_classifier()
    classifiers = found if isinstance(found, tuple | list) else (found,)
    modules = model.named_modules()
    return [name for name, module in modules if any(module is one for one in classifiers)]


def adapt_classifier(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a network of other classes.

    The classifier, and class tokens, are the network's own where those of the weights have another
    shape, and left out where the network has none. The token of a network that has a single one
    becomes that of every class.

    Args:
        model: A model of timm's.
        weights: Trained tensors of the same architecture.
    """
    own, per_class = model.state_dict(), _per_class_names(model)
    found = {}
    for name, tensor in weights.items():
        if not name.startswith(per_class):
            found[name] = tensor
        elif name in own:
            found[name] = _for_classes(name, tensor, own[name])
    return found


def adapt_input_channels(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a network whose images have other channels than three.

    The first convolution's weights are summed for one channel, and repeated for others, as timm
    does.

    Args:
        model: A model of timm's.
        weights: Trained tensors of the same architecture.
    """
    own, found = model.state_dict(), dict(weights)
    for name in _first_convs(model):
        if name in own and name in found and found[name].dim() == own[name].dim() == 4:
            found[name] = _for_channels(found[name], own[name].shape[1])
    return found


def _for_classes(name: str, theirs: Tensor, own: Tensor) -> Tensor:
    if theirs.shape == own.shape:
        return theirs
    single_token = name.endswith(".token") and len(theirs) == 1
    return theirs.expand_as(own) if single_token else own


def _per_class_names(model: nn.Module) -> tuple[str, ...]:
    tokens = [
        f"{name}.token"
        for name, module in model.named_modules()
        if isinstance(module, LearnedAggregation2d) and module.class_tokens
    ]
    return (*(f"{name}." for name in classifier_names(model)), *tokens)


def _first_convs(model: nn.Module) -> list[str]:
    names = cast(Mapping[str, Any], model.pretrained_cfg).get("first_conv") or ()
    return [f"{name}.weight" for name in ([names] if isinstance(names, str) else names)]


def _for_channels(weight: Tensor, in_chans: int) -> Tensor:
    from_images = weight.shape[1] == _IMAGE_CHANNELS
    return adapt_input_conv(in_chans, weight) if from_images else weight
