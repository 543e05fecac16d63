"""Evidence: an exact share of every logit for every position of the last map.

Where a network's head is linear in what its pool weighs, ``logit_k = b_k + sum_n e_kn``, and
``e_kn`` says what position n spoke for class k, or against it. For an average pool and a linear
layer that is the class activation map of Zhou et al. 2016, https://arxiv.org/abs/1512.04150, over
the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convattn.exceptions import NoEvidenceError
from convattn.explanation.geometry import Grid, GridTracker
from convattn.layers import LearnedAggregation2d, Pool
from convattn.layers.pools import ClassQueryPool, ClassTokenPool, looks, mean_shares
from convattn.modes import frozen_eval_mode, own_calls
from convattn.surgery.adapters import AggregationPool, GlobalPool
from convattn.text import one_line

_CHUNK = 128  # classes whose gradients are taken at once, at most
_GRADIENT_NUMBERS = 1 << 25  # of such a chunk, at most
_TOLERANCE = 1e-4  # of the logits' scale, in float32; what is not linear misses it by far


class Evidence(NamedTuple):
    """Shares of logits: ``maps.sum((2, 3)) + bias`` are the logits."""

    maps: Tensor
    """(B, K, h, w), signed: what each position spoke for a class, or against it."""
    bias: Tensor
    """(K,): what no position has spoken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """How a network's logits follow from its last map, exactly."""

    name: str
    """Of the pool, or of the module behind which a function call pools."""
    pools: bool
    """Whether that module pools; else its output is the map that a function call pools."""
    rectified: bool
    """Whether a ReLU stands between the module and that call."""
    classes: tuple[int, ...]
    """Numbers of the classes."""
    weight: Tensor
    """(K, C): what a class reads of its pooled vector."""
    bias: Tensor
    """(K,): the logits of a pooled vector of zeros."""

    def last_map(self, given: Tensor, made: Tensor) -> Tensor:
        """What is pooled, (B, C, h, w), of what the module was given and made."""
        if self.pools:
            return given
        return made.relu() if self.rectified else made

    def shares(self, model: nn.Module, x: Tensor) -> Tensor:
        """What every position of a map says for and against each class.

        Args:
            model: The network.
            x: Its last map, (B, C, h, w).

        Returns:
            (B, K, h, w).
        """
        module = model.get_submodule(self.name)
        if isinstance(module, ClassTokenPool):
            rows = self.weight.new_zeros(len(module.queries), self.weight.shape[1])
            chosen = torch.tensor(self.classes, dtype=torch.int64, device=rows.device)
            return module.contributions(x, rows.index_copy(0, chosen, self.weight))[:, chosen]
        if isinstance(module, Pool):
            return module.contributions(x, self.weight)
        return mean_shares(x, self.weight)


class _Place(NamedTuple):
    """Where a network pools its last map, as one run shows it."""

    name: str
    module: nn.Module
    pools: bool
    rectified: bool
    map: Tensor
    """What is pooled, (B, C, h, w)."""
    pooled: Tensor
    """What the module gave, or the mean of the map that a function call pools."""
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

    Examples:
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
    with frozen_eval_mode(model):
        maps, head, _ = _shares(model, images, classes)
    return Evidence(maps=maps, bias=head.bias)


def linear_head(model: nn.Module, images: Tensor) -> LinearHead:
    """How the logits of all classes follow from the last map, found by running these images.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised.

    Raises:
        NoEvidenceError: If they do not follow linearly.
    """
    return _shares(model, images, None)[1]


def evidence_of_classes(
    model: nn.Module, images: Tensor, classes: Sequence[int]
) -> tuple[Tensor, Tensor, Grid]:
    """As ``evidence``, and where the cells of its maps lie.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised, on the model's device.
        classes: Numbers of the classes.

    Returns:
        Maps (B, K, h, w), signed; (K,), what is added to their sums; the grid of the cells.

    Raises:
        NoEvidenceError: As ``evidence``.
    """
    maps, head, grid = _shares(model, images, classes)
    return maps, head.bias, grid


def evidence_maps(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Grid]:
    """One map of evidence an image, and where its cells lie.

    Args:
        model: In evaluation mode, its parameters frozen.
        images: (B, C, H, W), normalised, on the model's device.
        targets: (B,) class numbers.

    Returns:
        (B, h, w), signed, and the grid of the cells.

    Raises:
        NoEvidenceError: As ``evidence``.
    """
    numbers, at = targets.unique(return_inverse=True)
    maps, _, grid = evidence_of_classes(model, images, numbers.tolist())
    return maps[torch.arange(len(images), device=at.device), at], grid


def _shares(
    model: nn.Module, images: Tensor, classes: Sequence[int] | None
) -> tuple[Tensor, LinearHead, Grid]:
    with torch.inference_mode(False), torch.no_grad():
        images = images.detach().clone()  # tensors of inference mode take no part in gradients
        place, grid = _find_place(model, images)
        numbers = _checked_classes(classes, place.logits.shape[1])
        head = _linear_reading(model, images, place, numbers)
        maps = head.shares(model, place.map)
        _check_sum(model, place, maps, head.bias, numbers)
        return maps, head, grid


def _checked_classes(classes: Sequence[int] | None, count: int) -> list[int]:
    if classes is None:
        return list(range(count))
    for number in classes:
        if not 0 <= number < count:
            raise ValueError(f"class {number} is not among the network's 0 to {count - 1}")
    return list(classes)


def _find_place(model: nn.Module, images: Tensor) -> tuple[_Place, Grid]:
    """Where the last map is pooled; a module that pools goes before a function that does."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    grids = GridTracker()

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                calls.append((name, module, args[0], out))

        return hook

    def grid_of(x: Tensor) -> Grid:
        size, image = (x.shape[2], x.shape[3]), (images.shape[2], images.shape[3])
        return grids.of(x, size) or Grid.regular(size, image)

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(own_calls(watch(name))) for name, module in named]
    kind = type(model).__name__
    try:
        grids.begin(images)
        with grids:
            logits = model(images)
    except (RuntimeError, AssertionError) as error:
        shape = tuple(images.shape)
        raise ValueError(f"{kind} refuses images of shape {shape}: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise NoEvidenceError(
            f"{kind} does not give logits (B, classes); evidence is for classifiers"
        )
    for name, module, x, out in reversed(calls):
        if isinstance(module, AggregationPool | LearnedAggregation2d):
            raise NoEvidenceError(
                f"{name!r} is learned aggregation, with an MLP and a LayerNorm behind its "
                "attention: its logits have no exact shares; ask for attention or Grad-CAM"
            )
        if isinstance(module, GlobalPool) and module.other is not None:
            raise NoEvidenceError(
                f"{name!r} adds attention to a {type(module.other).__name__}, which is no mean "
                "of the map: its logits have no exact shares; ask for attention or Grad-CAM"
            )
        if not isinstance(module, Pool) and any(isinstance(m, Pool) for m in module.modules()):
            continue  # the pool inside it
        if isinstance(module, Pool) and _is_map(x):
            if not module.is_linear:
                others = "attention or Grad-CAM" if looks(module) else "Grad-CAM"
                raise NoEvidenceError(
                    f"{name!r} ({type(module).__name__}) is not linear in the map: its logits have "
                    f"no exact shares; ask for {others}"
                )
            return _Place(name, module, True, False, x, out, logits), grid_of(x)
        if _is_map(x) and out.numel() == x.shape[0] * x.shape[1] and _has_no_matrix(module):
            means = torch.allclose(out.flatten(1), x.mean((2, 3)), rtol=1e-4, atol=1e-5)
            if not means:
                raise NoEvidenceError(
                    f"{name!r} ({type(module).__name__}) is no mean of the map, and its output has "
                    "no exact shares; ask for Grad-CAM"
                )
            return _Place(name, module, True, False, x, out, logits), grid_of(x)
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
                return _Place(name, module, False, rectified, x, mean, logits), grid_of(out)
        break
    raise NoEvidenceError(
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

    handle = module.register_forward_hook(own_calls(hook))
    try:
        yield
    finally:
        handle.remove()


def _linear_reading(
    model: nn.Module, images: Tensor, place: _Place, numbers: Sequence[int]
) -> LinearHead:
    """The logits as a linear function of what is pooled.

    Raises:
        NoEvidenceError: If they are none.
    """
    image = images[:1]
    pooled = place.pooled[:1]
    chosen = torch.tensor(numbers, dtype=torch.int64, device=images.device)

    def tail(pooled: Tensor) -> Tensor:
        with _replaced(place.module, pooled):
            logits: Tensor = model(image)
        return logits[0, chosen]

    generator = torch.Generator().manual_seed(0)
    size = 1 + place.pooled.abs().max()
    leaf = (torch.rand(pooled.shape, generator=generator).to(pooled) * size).requires_grad_()
    per_class = isinstance(place.module, ClassTokenPool)  # its output is (1, classes, C)
    rows = [leaf.new_empty(0, pooled.shape[-1] if per_class else pooled.numel())]
    step = max(1, min(_CHUNK, _GRADIENT_NUMBERS // pooled.numel()))
    own = True
    with torch.enable_grad():
        logits = tail(leaf)
        for start in range(0, len(numbers), step):
            part = logits[start : start + step]
            ones = torch.eye(len(part), dtype=part.dtype, device=part.device)
            (grads,) = torch.autograd.grad(
                part, leaf, ones, is_grads_batched=True, retain_graph=True
            )
            if per_class:
                at = torch.arange(len(part), device=part.device), chosen[start : start + step]
                row = grads[:, 0][at]
                own &= bool(grads.count_nonzero() == row.count_nonzero())
                rows.append(row)
            else:
                rows.append(grads.flatten(1))
    weight = torch.cat(rows)
    bias = tail(torch.zeros_like(leaf))
    some = leaf.detach()
    # The network may begin by cutting off what is negative; its pool then never gives such.
    cut = not place.pools and bool((place.map >= 0).all())
    for x in (pooled, 2 * pooled, some, *(() if cut else (-some,))):
        read = (weight * x[0, chosen]).sum(1) if per_class else weight @ x.flatten()
        logits, expected = tail(x), bias + read
        if not own or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * _scale(logits)):
            where = _first_nonlinear(model, image, place)
            raise NoEvidenceError(
                f"behind the pool {place.name!r} stands {where}, which is not linear: the logits "
                "have no exact shares; ask for attention or Grad-CAM"
            )
    if isinstance(place.module, ClassQueryPool):  # it adds a bias of its own
        bias = bias + weight @ place.module.bias.to(weight.dtype)
    return LinearHead(
        name=place.name,
        pools=place.pools,
        rectified=place.rectified,
        classes=tuple(numbers),
        weight=weight,
        bias=bias,
    )


def _first_nonlinear(model: nn.Module, image: Tensor, place: _Place) -> str:
    """The first layer behind the pool on which twice or minus its input has another effect."""
    behind: list[tuple[str, nn.Module, Tensor]] = []
    seen_pool = False
    names = {module: name for name, module in model.named_modules()}

    def watch(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal seen_pool
        if module is place.module:
            seen_pool = True
        elif seen_pool and not list(module.children()) and args and isinstance(args[0], Tensor):
            behind.append((names[module], module, args[0]))

    handles = [module.register_forward_hook(own_calls(watch)) for module in names]
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
    model: nn.Module, place: _Place, maps: Tensor, bias: Tensor, numbers: Sequence[int]
) -> None:
    """The promise itself, for every image."""
    logits = place.logits[:, torch.tensor(numbers, dtype=torch.int64, device=maps.device)]
    found = maps.sum((2, 3)) + bias
    tolerance = _TOLERANCE if maps.dtype in (torch.float32, torch.float64) else 0.05
    if logits.numel() and float((found - logits).abs().max()) > tolerance * _scale(logits):
        raise NoEvidenceError(
            f"{type(model).__name__} does more with an image than its pool {place.name!r} and what "
            "is behind it: the logits have no exact shares; ask for Grad-CAM"
        )
