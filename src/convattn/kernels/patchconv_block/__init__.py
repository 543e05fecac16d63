"""PatchConvNet's block on the form that suits the place: one contract, several ways.

The block of Touvron et al. 2021, https://arxiv.org/abs/2112.13692, on (B, H, W, C) maps.

=================== ================================== =========================================
form                where                              what it is
=================== ================================== =========================================
in_place            without gradients                  maps in the memory of the last one
manual_backward     training with LayerNorm            a backward pass by hand
recomputing         gradients everywhere else          autograd, which keeps five maps of eight
experimental_triton folded networks on CUDA            three kernels for eight operations
plain               tests                              the paper; the oracle
=================== ================================== =========================================

``fast_form`` takes the first of the upper three that fits; the conditions stand beside
them. ``experimental_triton`` must be asked for: it was run interpreted on the CPU, and compiled
ahead of time for NVIDIA's targets, never run or timed on a GPU.
"""

from collections.abc import Callable

from torch import Tensor

from convattn.kernels.patchconv_block.contract import Block, Norm, normalize, project
from convattn.kernels.patchconv_block.in_place import fits_in_place, in_place_block
from convattn.kernels.patchconv_block.manual_backward import (
    fits_manual_backward,
    manual_backward_block,
)
from convattn.kernels.patchconv_block.recomputing import (
    fits_recomputing,
    recomputing_block,
    recomputing_branch,
)

Form = Callable[[Block, Tensor, float], Tensor]

_FORMS: tuple[tuple[Callable[[Block, Tensor], bool], Form], ...] = (
    (fits_in_place, in_place_block),
    (fits_manual_backward, manual_backward_block),
    (fits_recomputing, recomputing_block),
)


def fast_form(block: Block, x: Tensor) -> Form | None:
    """The first form that fits, called with block, ``x`` and a factor of the branch.

    None where the layers have to be called one by one: under tracing, or where hooks watch a pass
    without gradients.

    Args:
        block: Its layers.
        x: (B, H, W, C).
    """
    return next((form for fits, form in _FORMS if fits(block, x)), None)


__all__ = ["Block", "Form", "Norm", "fast_form", "normalize", "project", "recomputing_branch"]
