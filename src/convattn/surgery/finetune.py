"""Training an augmented network further: which parameters are new, how fast each learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.layers import AAConv2d, LearnedAggregation2d, Pool


def new_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that attention brought: all of its layers' but the convolutions'."""
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, AAConv2d | LearnedAggregation2d | Pool):
            names |= {
                f"{prefix}.{name}" if prefix else name
                for name, _ in module.named_parameters()
                if not (isinstance(module, AAConv2d) and name.startswith("conv."))
            }
    return names


def param_groups(
    model: nn.Module, *, lr: float, new_lr_scale: float = 10.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any optimiser of torch or timm: new layers learn faster than old ones.

    Parameters of one dimension (biases, norms, scales) and what ``model.no_weight_decay()`` names
    are not decayed; frozen ones are left out.

    Args:
        lr: Learning rate of the old parameters.
        new_lr_scale: The new ones' learning rate over the old ones'.
        weight_decay: Weight decay of matrices and kernels.

    Raises:
        ValueError: If ``lr`` or ``new_lr_scale`` is not above 0, or nothing can be trained.

    Examples:
        >>> import timm, torch
        >>> from convattn.surgery import augment
        >>> model = augment(timm.create_model("resnet18"), pool="attention")
        >>> groups = param_groups(model, lr=1e-4, weight_decay=0.05)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> sorted({group["lr"] for group in groups})
        [0.0001, 0.001]
    """
    for word, value in (("lr", lr), ("new_lr_scale", new_lr_scale)):
        if not value > 0:
            raise ValueError(f"{word}={value!r} is not above 0; for instance {word}=0.1")
    names_spared = getattr(model, "no_weight_decay", None)
    spared = set(names_spared()) if callable(names_spared) else set()
    new = new_parameters(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() > 1 and name not in spared
            groups.setdefault((name in new, decayed), []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen; there is nothing to train")
    return [
        {
            "params": parameters,
            "lr": lr * new_lr_scale if is_new else lr,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (is_new, decayed), parameters in groups.items()
    ]


def freeze(model: nn.Module, *, trainable: Sequence[str] = ()) -> None:
    """Leave only the new attention, and what is named, to be trained; in place.

    Batch normalisation of the frozen part goes to evaluation mode, so that its statistics stay.
    ``model.train()`` would undo that: call ``freeze`` after it.

    Args:
        trainable: Names of further modules that go on learning, such as a new classifier.

    Raises:
        ValueError: If a name is no module of the network.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in trainable if name not in modules]
    if unknown:
        raise ValueError(
            f"trainable={unknown[0]!r} names no module of {type(model).__name__}; for instance "
            f"{next(reversed(modules))!r}"
        )
    within = tuple(trainable)
    new = new_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new or _inside(name, within))
    for name, module in modules.items():
        if isinstance(module, _BatchNorm) and not _inside(name, within):
            module.eval()


def _inside(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
