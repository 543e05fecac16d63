"""PatchConvNet's block on the form that suits the place: one contract, several ways.

The block of Touvron et al. 2021, https://arxiv.org/abs/2112.13692, on (B, H, W, C) maps.

=================== ================================== =========================================
form                where                              what it is
=================== ================================== =========================================
in_place            without gradients                  maps in the memory of the last one
manual_backward     training with LayerNorm            a backward pass by hand
recomputing         gradients everywhere else          autograd, which keeps five maps of eight
folded              ``optimize_for_inference``         factors in the matrices: see ``folded.py``
experimental_triton folded, on CUDA                    three kernels for eight operations
plain               tests                              the paper; the oracle
=================== ================================== =========================================

``fast_form`` takes the first of the upper three that fits; the conditions stand beside them.
``experimental_triton`` must be asked for: it was run interpreted on the CPU, and compiled ahead of
time for NVIDIA's targets, never run or timed on a GPU.

In training at S60's width, CPU time as a multiple of plain autograd's and megabytes of resident
memory, by ``benchmarks/patchconv_block.py --threads 1 --rounds 3`` (float32, 12 blocks) and with
``--depth 4 --autocast`` (bfloat16, 4 blocks); 14 x 14, batch 8, AMD EPYC with AVX-512 and without
AMX, one thread of two, both shared with other work, torch 2.15.0+cu132, 2026-11-28:

========================== ====================== ==== ====================== ====
form                       float32                MB   bfloat16               MB
========================== ====================== ==== ====================== ====
plain autograd             1.00 (1.00 to 1.00)    266  1.00 (1.00 to 1.00)    53
recomputing                1.00 (0.98 to 1.04)    234  0.99 (0.96 to 0.99)    50
recomputing, GELUs too     1.05 (1.01 to 1.13)    221  1.03 (0.98 to 1.04)    52
manual_backward            0.98 (0.95 to 1.21)    176  0.98 (0.96 to 1.02)    45
manual_backward, GELUs too 1.00 (0.98 to 1.01)    118  1.03 (0.97 to 1.03)    40
selective checkpoint       1.12 (1.10 to 1.12)    150  1.27 (1.22 to 1.35)    39
checkpoint                 1.20 (1.18 to 1.21)    100  1.24 (1.19 to 1.38)    47
========================== ====================== ==== ====================== ====

The backward pass by hand is kept for its memory, at the same time; selective checkpointing is no
form: it is slower everywhere, and what of memory it saves the recomputed GELUs save as well.
"""

from convattn.kernels.patchconv_block.forms import (
    Block,
    Form,
    Norm,
    apply_form,
    fast_form,
    normalize,
    project,
)

__all__ = ["Block", "Form", "Norm", "apply_form", "fast_form", "normalize", "project"]
