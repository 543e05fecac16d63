"""The papers' networks, registered with timm on import."""

from timm.models import list_models, register_notrace_module

from convattn.layers import AAConv2d, LearnedAggregation2d
from convattn.layers.pools import Pool
from convattn.models import (
    aa_mnasnet,
    aa_resnet,
    aa_wide_resnet,
    augmented,
    map_classifier,
    patchconvnet,
)

_MADE_OF_OTHERS = (augmented, map_classifier)  # registered, and no paper's networks
_MODULES = (patchconvnet, aa_resnet, aa_wide_resnet, aa_mnasnet)
OUR_MODELS: tuple[str, ...] = tuple(
    name for module in _MODULES for name in list_models(module=module.__name__.split(".")[-1])
)
"""The names under which ``timm.create_model`` knows our networks."""

# They choose by the size of their input, which symbolic tracing cannot follow: one node each.
for _layer in (AAConv2d, LearnedAggregation2d, Pool, patchconvnet.PatchConvBlock):
    register_notrace_module(_layer)

__all__ = ["OUR_MODELS"]
