"""Evidence: an exact share of every logit for every position of the last map.

Where a network's head is linear in what its pool weighs, ``logit_k = b_k + sum_n e_kn``, and
``e_kn`` says what position n spoke for class k, or against it. For an average pool and a linear
layer that is the class activation map of Zhou et al. 2016, https://arxiv.org/abs/1512.04150, over
the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convattn.layers import LearnedAggregation2d, Pool
from convattn.modes import frozen_eval_mode
from convattn.surgery.adapters import AggregationPool
from convattn.text import one_line

_CHUNK = 128  # classes whose gradients are taken at once
_TOLERANCE = 1e-4  # of the logits' scale, in float32; what is not linear misses it by far


class Evidence(NamedTuple):
    """Shares of logits: ``maps.sum((2, 3)) + bias`` are the logits."""

    maps: Tensor
    """(B, K, h, w), signed: what each position spoke for a class, or against it."""
    bias: Tensor
    """(K,): what no position has spoken."""


class _Head(NamedTuple):
    """A network from its last map on."""

    name: str
    """Of the pool, or of the module behind which a function pools."""
    module: nn.Module
    map: Tensor
    """What is pooled, (B, C, h, w)."""
    pooled: Tensor
    """What the module gave, or the map that a function call pools."""
    rectified: bool
    """Whether a ReLU stands between the module and a function that pools."""
    logits: Tensor


def evidence(model: nn.Module, images: Tensor, classes: Sequence[int] | None = None) -> Evidence:
    """An exact share of every logit for every position of a classifier's last map.

    For any classifier that pools its last map by the mean, and has nothing that is not linear
    behind it, without training anything; and for the pools of ``convattn.POOLS`` that are linear.
    BatchNorms and factors behind the pool are folded. The model is left as it was.

    Args:
        model: The classifier.
        images: (B, C, H, W), normalised, where the model is.
        classes: Numbers of the classes; None takes all.

    Returns:
        Maps (B, K, h, w) and bias (K,): ``maps.sum((2, 3)) + bias`` equals
        ``model(images)[:, classes]``, to 1e-5 of their scale in float32.

    Raises:
        ValueError: If the network has no such form, and what stands in the way; or there is no
            such class.

    Example:
        >>> import timm
        >>> model, images = timm.create_model("resnet18"), torch.randn(2, 3, 64, 96)
        >>> maps, bias = evidence(model, images, [3, 5])
        >>> maps.shape
        torch.Size([2, 2, 2, 3])
        >>> with torch.no_grad():
        ...     logits = model.eval()(images)[:, [3, 5]]
        >>> bool((maps.sum((2, 3)) + bias - logits).abs().max() < 1e-4)
        True
    """
    with frozen_eval_mode(model), torch.inference_mode(False), torch.no_grad():
        images = images.detach().clone()  # tensors of inference mode take no part in gradients
        head = _find_head(model, images)
        numbers = _checked_classes(classes, head.logits.shape[1])
        weight, bias = _linear_reading(model, images, head, numbers)
        if isinstance(head.module, Pool):
            maps = head.module.contributions(head.map, weight)
            own = getattr(head.module, "bias", None)
            bias = bias if own is None else bias + weight @ own.to(weight.dtype)
        else:
            height, width = head.map.shape[2:]
            maps = torch.einsum("bchw,kc->bkhw", head.map, weight) / (height * width)
        _check_sum(model, head, maps, bias, numbers)
    return Evidence(maps=maps, bias=bias)


def _checked_classes(classes: Sequence[int] | None, count: int) -> list[int]:
    if classes is None:
        return list(range(count))
    for number in classes:
        if not 0 <= number < count:
            raise ValueError(f"class {number} is not among the network's 0 to {count - 1}")
    return list(classes)


def _find_head(model: nn.Module, images: Tensor) -> _Head:
    """Where the last map is pooled; a module that pools goes before a function that does."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                calls.append((name, module, args[0], out))

        return hook

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(watch(name)) for name, module in named]
    kind = type(model).__name__
    try:
        logits = model(images)
    except (RuntimeError, AssertionError) as error:
        shape = tuple(images.shape)
        raise ValueError(f"{kind} refuses images of shape {shape}: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(f"{kind} does not give logits (B, classes); evidence is for classifiers")
    for name, module, x, out in reversed(calls):
        if isinstance(module, AggregationPool | LearnedAggregation2d):
            raise ValueError(
                f"{name!r} is learned aggregation, with an MLP and a LayerNorm behind its "
                "attention: its logits have no exact shares; ask for attention or Grad-CAM"
            )
        if isinstance(module, Pool) and _is_map(x):
            return _Head(name, module, x, out, False, logits)
        if _is_map(x) and out.numel() == x.shape[0] * x.shape[1] and _has_no_matrix(module):
            means = torch.allclose(out.flatten(1), x.mean((2, 3)), rtol=1e-4, atol=1e-5)
            if not means:
                raise ValueError(
                    f"{name!r} ({type(module).__name__}) is no mean of the map, and its output has "
                    "no exact shares; ask for Grad-CAM"
                )
            return _Head(name, module, x, out, False, logits)
    for name, module, _, out in reversed(calls):
        if not _is_map(out):
            continue
        for rectified in (False, True):
            x = out.relu() if rectified else out
            mean = x.mean((2, 3), keepdim=True)
            try:
                with _replaced(module, mean):
                    found = model(images)
            except (RuntimeError, AssertionError):
                continue  # it reads all positions, one by one
            if torch.allclose(found, logits, rtol=1e-4, atol=1e-4 * _scale(logits)):
                # An in-place ReLU has altered the map already.
                return _Head(name, module, x, mean, rectified or bool((x >= 0).all()), logits)
        break
    raise ValueError(
        f"{kind} has no module that pools a (B, C, H, W) map by its mean, and no function call "
        "behind its last map does; ask for Grad-CAM"
    )


def _is_map(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[2] * x.shape[3] > 1


def _has_no_matrix(module: nn.Module) -> bool:
    return all(parameter.dim() < 2 for parameter in module.parameters())


@contextmanager
def _replaced(module: nn.Module, value: Tensor) -> Iterator[None]:
    """Whatever the module computes, it gives ``value``, for every image of the batch."""

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return value.clone()  # what follows may write into it

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _linear_reading(
    model: nn.Module, images: Tensor, head: _Head, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Weight (K, C) and bias (K,) of the logits as a function of the pooled vector.

    Raises:
        ValueError: If they are no linear function of it.
    """
    image, shape = images[:1], head.pooled[:1].shape
    chosen = torch.tensor(numbers, dtype=torch.int64, device=images.device)

    def tail(pooled: Tensor) -> Tensor:
        with _replaced(head.module, pooled):
            logits: Tensor = model(image)
        return logits[0, chosen]

    generator = torch.Generator().manual_seed(0)
    size = 1 + head.pooled.abs().max()
    leaf = (torch.rand(shape, generator=generator).to(head.pooled) * size).requires_grad_()
    rows = [leaf.new_empty(0, *shape)]
    with torch.enable_grad():
        logits = tail(leaf)
        for start in range(0, len(numbers), _CHUNK):
            part = logits[start : start + _CHUNK]
            ones = torch.eye(len(part), dtype=part.dtype, device=part.device)
            (grads,) = torch.autograd.grad(
                part, leaf, ones, is_grads_batched=True, retain_graph=True
            )
            rows.append(grads)
    weight = torch.cat(rows).flatten(1)
    bias = tail(torch.zeros_like(leaf))
    found = head.pooled[:1]
    for pooled in (found, 2 * found, leaf.detach(), *(() if head.rectified else (-leaf.detach(),))):
        logits, expected = tail(pooled), bias + weight @ pooled.flatten()
        if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * _scale(logits)):
            where = _first_nonlinear(model, image, head)
            raise ValueError(
                f"behind the pool {head.name!r} stands {where}, which is not linear: the logits "
                "have no exact shares; ask for attention or Grad-CAM"
            )
    return weight, bias


def _first_nonlinear(model: nn.Module, image: Tensor, head: _Head) -> str:
    """The first layer behind the pool on which twice or minus its input has another effect."""
    behind: list[tuple[str, nn.Module, Tensor]] = []
    seen_pool = False
    names = {module: name for name, module in model.named_modules()}

    def watch(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal seen_pool
        if module is head.module:
            seen_pool = True
        elif seen_pool and not list(module.children()) and args and isinstance(args[0], Tensor):
            behind.append((names[module], module, args[0]))

    handles = [module.register_forward_hook(watch) for module in names]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    for name, module, x in behind:
        start = module(torch.zeros_like(x))
        effect = module(x) - start
        for factor in (2, -1):
            scaled = module(factor * x) - start
            if not torch.allclose(scaled, factor * effect, rtol=1e-3, atol=1e-3 * _scale(effect)):
                return f"{name!r} ({type(module).__name__})"
    return "a function call"


def _scale(x: Tensor) -> float:
    return float(x.abs().max()) + 1e-6 if x.numel() else 1.0


def _check_sum(
    model: nn.Module, head: _Head, maps: Tensor, bias: Tensor, numbers: Sequence[int]
) -> None:
    """The promise itself, for every image."""
    logits = head.logits[:, torch.tensor(numbers, dtype=torch.int64, device=head.logits.device)]
    found = maps.sum((2, 3)) + bias
    tolerance = _TOLERANCE if maps.dtype in (torch.float32, torch.float64) else 0.05
    if logits.numel() and float((found - logits).abs().max()) > tolerance * _scale(logits):
        raise ValueError(
            f"{type(model).__name__} does more with an image than its pool {head.name!r} and what "
            "is behind it: the logits have no exact shares; ask for Grad-CAM"
        )
