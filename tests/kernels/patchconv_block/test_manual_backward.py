import pytest
import torch

from convattn.kernels.patchconv_block.manual_backward import manual_backward

C, R = 4, 3


def _given():
    torch.manual_seed(0)
    shapes = [(2, 3, 2, C)]
    shapes += [(C, C), (C,), (C, 1, 3, 3), (C,), (R, C), (R,), (C, R), (C,), (C, C), (C,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def _run(recomputes):
    def run(x, w1, b1, wd, bd, wr, br, we, be, w2, b2):
        return manual_backward(
            *(x, (w1, b1), (wd, bd), (wr, br), (we, be), (w2, b2)),
            eps=1e-6,
            recomputes_gelu=recomputes,
        )

    return run


@pytest.mark.parametrize("recomputes", [False, True])
def test_gradients_are_those_of_small_differences(recomputes):
    assert torch.autograd.gradcheck(_run(recomputes), _given())
