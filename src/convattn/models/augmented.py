"""Networks of timm's with attention, made anew from their recipe for the hub and folders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
from timm.models import load_pretrained, register_model, resolve_pretrained_cfg
from torch import nn

from convattn import surgery
from convattn.surgery.recipe import AUGMENTED

_OF_TIMMS_BUILDER = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
)


@register_model
def augmented(
    pretrained: bool = False,
    *,
    base: str | None = None,
    augment: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    **arguments: Any,
) -> nn.Module:
    """A network of timm's that ``convattn.augment`` has given attention.

    ``timm.models.save_for_hf`` and ``push_to_hf_hub`` write base and arguments of an augmented
    network into ``config.json``, from which ``timm.create_model("local-dir:FOLDER",
    pretrained=True)`` brings it back here, with its weights. Under its name alone it is the base
    with attention, for ``pretrained`` with the base's released weights.

    Args:
        pretrained: Load weights.
        base: Name of the network in timm's registry.
        augment: Arguments of ``convattn.augment``, or several such, one after the other.
        **arguments: Of the base.

    Raises:
        ValueError: If nothing tells the base, the attention does not fit it, or is described in
            words that this version does not know.

    Examples:
        >>> import timm, convattn
        >>> model = timm.create_model(
        ...     "augmented", base="resnet18", augment={"pool": "attention"}, num_classes=10
        ... )
        >>> model.num_classes
        10
    """
    cfg, *_ = [arguments.pop(word, None) for word in _OF_TIMMS_BUILDER]
    known = dict(cfg) if isinstance(cfg, Mapping) else {}
    recipe = known.pop(AUGMENTED, None) or {}
    base, augment = base or recipe.get("base"), augment or recipe.get("augment")
    if base is None or not augment:
        raise ValueError(
            "'augmented' is a network that convattn.augment was given; say which, as in "
            "timm.create_model('augmented', base='resnet18', augment={'pool': 'attention'}), or "
            "name a folder or repository that it was saved to"
        )
    num_classes = arguments.get("num_classes")
    if known:  # the classifier, and a query a class, are loaded before they make room for others
        arguments["num_classes"] = known["num_classes"]
    model: nn.Module = timm.create_model(base, pretrained=pretrained and not known, **arguments)
    for step in [augment] if isinstance(augment, Mapping) else augment:
        surgery.augment(model, inplace=True, **_from_json(step))
    if known:
        _load(model, known, pretrained, arguments.get("in_chans", 3))
        if num_classes not in (None, known["num_classes"]):
            model.reset_classifier(num_classes)  # type: ignore[operator]
    return model


def _load(model: nn.Module, known: Mapping[str, Any], pretrained: bool, in_chans: int) -> None:
    """Give the model the configuration that was saved with it, and the weights."""
    own = cast(Mapping[str, Any], model.pretrained_cfg)
    saved = resolve_pretrained_cfg(AUGMENTED, dict(known)).to_dict()
    model.pretrained_cfg = {**own, **saved, AUGMENTED: own[AUGMENTED]}  # type: ignore[assignment]
    if pretrained:
        load_pretrained(model, saved, num_classes=known["num_classes"], in_chans=in_chans)


def _from_json(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step as ``convattn.augment`` takes it: JSON's keys are text, its pairs lists."""
    found = dict(step)
    unknown = sorted(found.keys() - inspect.signature(surgery.augment).parameters.keys())
    if unknown:
        raise ValueError(
            f"convattn.augment knows no {', '.join(unknown)}: what was saved comes from a newer "
            "version, or its config.json was changed; upgrade convattn, or take it out there"
        )
    factors = found.get("attn_downsample")
    if isinstance(factors, Mapping):
        found["attn_downsample"] = {int(stride): factor for stride, factor in factors.items()}
    return found
