"""What a network's classes are called, how likely it finds each, and which are asked for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from convattn.modes import check_finite
from convattn.text import nearest_few

Target = int | str

_IMAGENET = {"input_size": (3, 224, 224)}  # timm's defaults for the rest


def class_probabilities(model: nn.Module, logits: Tensor) -> Tensor:
    """How likely a classifier finds each class, (B, K), between 0 and 1.

    Args:
        model: The classifier; where its ``pretrained_cfg["multi_label"]`` is true every class is a
            question of its own, else they sum to 1. A single logit is such a question always.
        logits: What it gives, (B, K).
    """
    check_finite(logits)
    values = logits.float()
    questions = values.shape[1] == 1 or pretrained_cfg(model).get("multi_label")
    return values.sigmoid() if questions else values.softmax(1)


def class_names(model: nn.Module, num_classes: int) -> list[str]:
    """What a network's classes are called, their numbers where nobody has said.

    Args:
        model: A classifier; ``pretrained_cfg["label_names"]`` has the names, or its ImageNet
            subset tells them.
        num_classes: How many it tells apart.
    """
    names = pretrained_cfg(model).get("label_names")
    if names is not None and len(names) == num_classes:
        return list(names)
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is not None:
        return list(ImageNetInfo(subset).label_descriptions())
    return [str(index) for index in range(num_classes)]


def pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    """What a network says about its images and classes, in timm's words.

    Args:
        model: Any network; torchvision's and others say nothing, which means ImageNet's.
    """
    return getattr(model, "pretrained_cfg", None) or _IMAGENET


def find_class(target: Target, names: Sequence[str]) -> int:
    """The number of a class.

    Args:
        target: Its number, or its name, in whatever case; of several names that ", " separates,
            as ImageNet's have, one is enough.
        names: Name of each class number.

    Raises:
        ValueError: If there is no such class, or more than one.
    """
    last = len(names) - 1
    if not isinstance(target, str):
        try:
            number = operator.index(target)
        except TypeError:
            raise ValueError(
                f"target={target!r}; expected one name or number, explain_classes takes several"
            ) from None
        if not 0 <= number <= last:
            raise ValueError(f"there is no class number {number}; give one from 0 to {last}")
        return number
    asked = target.strip().casefold()
    whole = [name.casefold() for name in names]
    for matches in (
        [i for i, name in enumerate(whole) if name == asked],
        [i for i, name in enumerate(whole) if asked in name.split(", ")],
    ):
        if len(matches) > 1:
            raise ValueError(
                f"{len(matches)} classes are called {target!r}; give a number instead: "
                f"{', '.join(map(str, matches))}"
            )
        if matches:
            return matches[0]
    if asked.isdecimal() and int(asked) <= last:
        return int(asked)
    single = {part.casefold(): part for name in names for part in (name, *name.split(", "))}
    near = nearest_few(asked, single)
    raise ValueError(
        f"unknown class {target!r}; the nearest are {', '.join(repr(single[n]) for n in near)}"
    )


def class_numbers(
    targets: Sequence[Target] | None, top_k: int, names: Sequence[str], order: Sequence[int]
) -> list[int]:
    """The numbers of the classes to explain."""
    if targets is None:
        if not 1 <= top_k <= len(names):
            raise ValueError(f"top_k={top_k}; expected 1 to {len(names)}, the number of classes")
        return list(order[:top_k])
    if not targets:
        raise ValueError("targets is an empty list; name at least one class")
    return [find_class(one, names) for one in targets]
