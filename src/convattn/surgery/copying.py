"""Copies of a network: one to hand out, and shadows that are run in its place.

Running a network may leave something in it: a cache in an attribute, a user's hooks that record.
So what a network does is found out on a shadow, which has its modules, and its tensors or such
without memory, but none of its hooks.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, TypeVar, cast

from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_Module = TypeVar("_Module", bound=nn.Module)


def copy_network(model: _Module) -> _Module:
    """A copy with its own tensors and the same hooks, every module in the mode of the original.

    ``copy.deepcopy`` refuses weights that a hook has computed (``weight_norm``, pruning), and puts
    graph modules of ``torch.fx`` into training mode.
    """
    return _Copier(_cloned, keep_hooks=True).network(model)


def shadow(model: _Module, *, device: str | None = None) -> _Module:
    """What can be run in a network's place: it has no hooks, and shares nothing that changes.

    Args:
        device: Where its tensors are, as in "meta"; None leaves them where they are, and shares
            the parameters' memory. None of them asks for a gradient.
    """
    return _Copier(partial(_shadowed, device=device), keep_hooks=False).network(model)


def fix_computed_weights(model: nn.Module) -> None:
    """Make plain parameters of weights that a hook of PyTorch's computes before every call.

    Args:
        model: With ``weight_norm``, ``spectral_norm`` or pruning; altered in place.
    """
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if computes_weight(hook):
                cast(Any, hook).remove(module)
                del module._forward_pre_hooks[key]


def computes_weight(hook: object) -> bool:
    """Whether a hook is one that ``fix_computed_weights`` does without."""
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


def _cloned(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def _shadowed(tensor: Tensor, device: str | None) -> Tensor:
    made = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made if device is None else made.to(device), requires_grad=False)
    return made.clone() if device is None else made.to(device)


class _Copier:
    """One copy of a network.

    Args:
        copy_tensor: Makes a tensor of the copy.
        keep_hooks: Whether the copy's modules call what the network's do.
    """

    def __init__(self, copy_tensor: Callable[[Tensor], Tensor], *, keep_hooks: bool) -> None:
        self.copy_tensor = copy_tensor
        self.keep_hooks = keep_hooks
        self.memo: dict[int, Any] = {}  # as copy.deepcopy has it
        self.kept: list[Any] = []  # or an id in the memo could come to mean another object

    def network(self, model: _Module) -> _Module:
        """A copy of a network."""
        # Known beforehand, for modules that copy themselves.
        for module in model.modules():
            if not self.keep_hooks:
                self.memo.update((id(module.__dict__.get(name)), OrderedDict()) for name in _HOOKS)
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            self.copy(tensor)
        return cast(_Module, self.copy(model))

    def copy(self, value: Any) -> Any:
        """A copy of whatever a module holds; what cannot be copied is shared."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        made: Any
        if isinstance(value, fx.GraphModule) or (
            isinstance(value, nn.Module) and not hasattr(value, "__deepcopy__")
        ):
            return self._copy_module(value)
        if isinstance(value, Tensor):
            made = self.copy_tensor(value)
        elif type(value) in (dict, OrderedDict):
            made = type(value)((self.copy(k), self.copy(v)) for k, v in value.items())
        elif type(value) in (list, tuple, set):
            made = type(value)(map(self.copy, value))
        elif isinstance(value, MethodType):
            made = MethodType(value.__func__, self.copy(value.__self__))
        elif type(value) is partial:
            keywords = {name: self.copy(one) for name, one in value.keywords.items()}
            made = partial(self.copy(value.func), *map(self.copy, value.args), **keywords)
        else:
            try:
                made = copy.deepcopy(value, self.memo)
            except Exception:  # a lock, a stream, an open file
                made = value
        self.memo[id(value)] = made
        self.kept.append(value)
        return made

    def _copy_module(self, module: nn.Module) -> nn.Module:
        made = type(module).__new__(type(module))
        self.memo[id(module)] = made
        made.__dict__.update((name, self.copy(value)) for name, value in module.__dict__.items())
        if isinstance(made, fx.GraphModule):
            made.recompile()  # its class, and so its code, is its own
        return made
