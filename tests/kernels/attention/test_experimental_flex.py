import pytest
import torch

from convattn.kernels.attention.experimental_flex import flex_attention
from convattn.kernels.attention.plain import plain_attention

# Nothing else runs uncompiled on purpose: on the CPU there is no other way.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")


def make_inputs(height, width, dim, v_dim, *, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    count = height * width
    return [
        torch.randn(2, 3, count, last, generator=generator).to(device, dtype)
        for last in (dim, dim, v_dim, height, width)
    ]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dim", "v_dim"), [(20, 2), (8, 8), (16, 40)])
def test_equals_the_plain_path(dim, v_dim, biased):
    inputs = make_inputs(3, 5, dim, v_dim)
    if not biased:
        inputs[3:] = None, None
    torch.testing.assert_close(flex_attention(*inputs), plain_attention(*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (9, 33), (32, 32)])
def test_gradients_equal_the_plain_ones_on_cuda(size):
    leaves = [t.requires_grad_() for t in make_inputs(*size, 20, 2, device="cuda")]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    flex_attention(*leaves).sin().sum().backward()
    plain_attention(*exact).sin().sum().backward()
    for ours, reference in zip(leaves, exact, strict=True):
        assert (ours.grad.double() - reference.grad).norm() <= 1e-3 * reference.grad.norm()
