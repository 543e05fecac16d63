"""Networks from names: of any task, with trained weights and attention."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from convattn import surgery
from convattn.config import AugmentConfig, ModelConfig
from convattn.detection import DETECTORS, create_detector
from convattn.models.pyramid import FeatureLevels
from convattn.segmentation import SEGMENTERS, create_segmenter
from convattn.surgery.recipe import AUGMENTED
from convattn.text import nearest, one_line
from convattn.weights import (
    adapt_classifier,
    adapt_input_channels,
    check_reachable,
    load_checked,
    mismatch_error,
    read_pretrained_cfg,
    read_weights,
    tensor_differences,
    under_own_names,
)
from convattn.weights.names import OWN_TO_LITE, names_of_timm


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    own_classifier: bool = False,
    augment: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Timm's ``create_model`` with errors for people, trained weights and attention.

    Args:
        name: Name in timm's registry, with or without a ``.tag``.
        pretrained: Load the released weights of that name.
        checkpoint: Trained weights, as ``read_weights`` reads them and ``under_own_names`` knows
            them: of the network as it is named here, which are loaded before attention is added, or
            of the network with it.
        own_classifier: Start with a new classifier if the checkpoint's has other classes, and with
            its first convolution adapted if its images have other channels.
        augment: Arguments of ``convattn.augment``, ``input_size`` among them, since position tables
            are made for it; None adds no attention.
        arguments: Arguments of the model; one that is None is left out.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If there is no such model, it has no released weights, refuses an argument or
            cannot be augmented, or the checkpoint is of another one.
    """
    if not timm.is_model(name):
        raise ValueError(
            f"unknown model {name!r}; the nearest is {nearest(name, timm.list_models())!r}"
        )
    try:
        if pretrained:
            check_reachable(name)
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} refuses its arguments: {one_line(error)}") from error
    except FileNotFoundError:  # says where the file is to be put
        raise
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"no released weights of {name!r} could be loaded ({one_line(error)}); "
            "name a file of weights (--weights, or --model.checkpoint in training), or start from "
            "random ones by leaving pretrained out"
        ) from error
    if checkpoint is None:
        return model if augment is None else surgery.augment(model, inplace=True, **augment)
    file, weights = read_weights(checkpoint)

    def fits() -> str:
        theirs = under_own_names(weights, model.state_dict())
        if own_classifier:
            theirs = adapt_input_channels(model, adapt_classifier(model, theirs))
        differences = tensor_differences(theirs, model.state_dict())
        if not differences:
            model.load_state_dict(theirs)
        return differences

    differences = fits()
    if augment is None:
        if differences:
            raise mismatch_error(file, weights, differences)
        return model
    surgery.augment(model, inplace=True, **augment)
    if differences and fits():
        raise ValueError(
            f"{file} fits {name} neither without the attention that is asked for nor with it; "
            f"without it {differences}; create the model that it was saved from"
        )
    return model


def starting_cfg(spec: ModelConfig) -> Mapping[str, Any] | None:
    """What the weights that a training starts from want of an image, in timm's words.

    A run and its checkpoint say it themselves; of other files it is what timm knows of the network.

    Args:
        spec: The network of a run.

    Returns:
        A ``pretrained_cfg``; None for random weights, or where nothing is known.
    """
    if not spec.is_trained:
        return None
    file = spec.checkpoint or spec.backbone_weights
    own = None if file is None else read_pretrained_cfg(Path(file))
    if own is not None:
        return own
    try:
        known = timm.get_pretrained_cfg(spec.backbone or spec.name)
    except RuntimeError:  # a tag that timm does not know, which the making of the network tells
        return None
    return None if known is None else known.to_dict()


def create_dense_model(
    name: str,
    *,
    cfg: Mapping[str, Any],
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    backbone_weights: Path | None = None,
    checkpoint: Path | None = None,
    augment: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """A detector or segmenter, with trained weights if there are some.

    Args:
        name: In ``DETECTORS`` or ``SEGMENTERS``.
        cfg: The ``pretrained_cfg`` that its run has or will have; it becomes the model's.
        backbone: Of the models that leave it open.
        backbone_args: Further arguments of the backbone.
        pretrained: Load the backbone's released weights.
        backbone_weights: Trained weights of a classifier that is its backbone, as ``load_trunk``
            takes them.
        checkpoint: Trained weights, as ``read_weights`` reads them: of the same model, whose
            predictions start anew if it has other classes; or of a classifier that is its backbone.
        augment: Arguments of ``convattn.augment`` for the backbone; None adds no attention.
        arguments: Further arguments of the model; one that is None is left out.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If an argument does not fit, or the checkpoint is of another model.
    """
    given = {
        "backbone": backbone,
        "backbone_args": backbone_args,
        "backbone_weights": backbone_weights,
        "augment": augment,
        **arguments,
    }
    given = {key: value for key, value in given.items() if value is not None}
    model = _DENSE[name](name, cfg, pretrained=pretrained, **given)
    if checkpoint is not None:
        _load_dense(model, checkpoint, backbone)
    model.pretrained_cfg = dict(cfg)  # type: ignore[assignment]
    return model


def _detector(name: str, cfg: Mapping[str, Any], **arguments: Any) -> nn.Module:
    return create_detector(
        name,
        num_classes=cfg["num_classes"] + 1,  # torchvision's detectors count the background
        image_mean=cfg["mean"],
        image_std=cfg["std"],
        min_size=cfg["image_size"],
        max_size=cfg["max_size"],
        **arguments,
    )


def _segmenter(name: str, cfg: Mapping[str, Any], **arguments: Any) -> nn.Module:
    return create_segmenter(name, num_classes=cfg["num_classes"], **arguments)


_DENSE = dict.fromkeys(DETECTORS, _detector) | dict.fromkeys(SEGMENTERS, _segmenter)
"""Name of a detector or segmenter -> what makes it."""


def _load_dense(model: nn.Module, checkpoint: Path, backbone: str | None) -> None:
    """Load the weights of the whole model, or those of its backbone alone.

    Layers that predict other classes stay as they are: they differ in their outputs only.
    """
    file, weights = read_weights(checkpoint)
    if backbone is not None and OWN_TO_LITE in weights:
        with torch.device("meta"):
            named = timm.create_model(backbone).state_dict()
        weights = names_of_timm(weights, named)
    fresh = model.state_dict()
    fitting = {
        name: fresh[name] if name in fresh and _other_outputs(tensor, fresh[name]) else tensor
        for name, tensor in weights.items()
    }
    differences = tensor_differences(fitting, fresh)
    if not differences:
        model.load_state_dict(fitting)
        return
    (levels,) = (module for module in model.modules() if isinstance(module, FeatureLevels))
    own = levels.body.model.state_dict()
    # The classifier, and blocks behind the last map, are no part of a backbone.
    weights = under_own_names(weights, own)
    theirs = {name: tensor for name, tensor in weights.items() if name in own}
    missing = tensor_differences(theirs, own)
    if missing:
        raise ValueError(
            f"{file} fits neither the whole model ({differences}) nor its backbone ({missing}); "
            "create the model that it was saved from"
        )
    levels.body.model.load_state_dict(theirs)


def _other_outputs(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape[:1] != ours.shape[:1] and theirs.shape[1:] == ours.shape[1:]


def augment_arguments(
    config: AugmentConfig, input_size: int | Sequence[int] | None
) -> dict[str, Any] | None:
    """What ``convattn.augment`` is called with for a run, None if it asks for no attention.

    Args:
        config: The attention that is asked for.
        input_size: What the network sees, as ``convattn.augment`` takes it.
    """
    if config.pool is None and not config.conv:
        return None
    arguments = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(AugmentConfig)
        if item.name not in ("lr_scale", "freeze")  # of the training
    }
    return {**arguments, "conv": list(config.conv) or None, "input_size": input_size}


def plan_model(name: str, augment: Mapping[str, Any], **arguments: Any) -> surgery.Plan:
    """What ``create_model`` would do to a network with the same ``augment``.

    Args:
        name: Name in timm's registry.
        augment: Arguments of ``convattn.plan``.
        arguments: Arguments of the model; one that is None is left out.

    Raises:
        ValueError: If there is no such model, or it refuses an argument.
    """
    try:
        with torch.device("meta"):
            return surgery.plan(create_model(name, **arguments), **augment)
    except (ValueError, RuntimeError):
        # Some networks compute something while they are made or run, which needs memory.
        return surgery.plan(create_model(name, **arguments), **augment)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with trained weights; nothing in the file is run.

    Args:
        path: As ``convattn.weights.read_weights`` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its tensors are those of another model; names the first.
    """
    load_checked(model, *read_weights(path))


def is_dense(name: str) -> bool:
    """Whether a model is a detector or a segmenter.

    Args:
        name: Of one, or of a classifier of timm's.
    """
    return name in _DENSE


def needs_backbone(name: str) -> bool:
    """Whether a model leaves its backbone open.

    Args:
        name: Of a detector, a segmenter, or a classifier of timm's.
    """
    create = (DETECTORS | SEGMENTERS).get(name)
    parameters = inspect.signature(create).parameters if create is not None else {}
    return "backbone" in parameters and parameters["backbone"].default is inspect.Parameter.empty


def build_trained(
    spec: ModelConfig, *, cfg: Mapping[str, Any], augment: AugmentConfig
) -> nn.Module:
    """The network of a run, ready for its trained weights, in evaluation mode, on the CPU.

    ``pretrained_cfg`` of the result holds the size, mean, standard deviation, interpolation and
    crop that its images need, and the names of its classes under ``label_names``, as timm's models
    do.

    Args:
        spec: What it is made of.
        cfg: The ``pretrained_cfg`` that was saved with its weights.
        augment: Attention that it was given.

    Raises:
        ValueError: If they contradict each other.
    """
    arguments = augment_arguments(augment, cfg.get("input_size"))
    own: dict[str, Any] = dict(spec.model_args)
    if is_dense(spec.name):
        model = create_dense_model(
            spec.name,
            cfg=cfg,
            backbone=spec.backbone,
            backbone_args=spec.backbone_args or None,
            augment=arguments,
            **own,
        )
        return model.eval()
    model = create_model(
        spec.name,
        num_classes=cfg.get("num_classes", spec.num_classes),
        in_chans=cfg.get("input_size", (3,))[0],
        drop_rate=spec.drop_rate,
        drop_path_rate=spec.drop_path_rate,
        augment=arguments,
        **own,
    )
    # What timm needs besides, to save the model or to give it other classes.
    of_the_network = cast(Mapping[str, Any], model.pretrained_cfg)
    needed = ("architecture", "first_conv", "classifier", AUGMENTED)
    kept = {key: of_the_network[key] for key in needed if key in of_the_network}
    model.pretrained_cfg = kept | dict(cfg)  # type: ignore[assignment]
    return model.eval()
