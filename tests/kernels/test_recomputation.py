import pytest
import torch
import torch.nn.functional as F

from convattn.bench import HeldTensors
from convattn.kernels.recomputation import recompute


def test_what_is_recomputed_is_not_held():
    x = torch.randn(10, 50, requires_grad=True)
    with HeldTensors() as watched:
        y = x.sin()
        with recompute(y, x.sin):
            z = y.square()
        before = watched.held()
        del y
    assert before - watched.held() == 500
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], 2 * x.sin() * x.cos())


def test_views_and_other_layouts_are_recomputed_as_they_were():
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(lean):
        y = x.exp()
        with recompute(y, x.exp) if lean else torch.enable_grad():
            return F.conv2d(y.permute(0, 3, 1, 2), weight, padding=1, groups=6)

    lean, plain = (torch.autograd.grad(function(c).sin().sum(), [x, weight]) for c in (True, False))
    torch.testing.assert_close(lean, plain, rtol=0, atol=0)


def test_it_can_be_differentiated_twice():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x):
        y = x.sin()
        with recompute(y, x.sin):
            return y * y * y

    assert torch.autograd.gradgradcheck(function, x)


def test_autocast_holds_when_it_is_recomputed():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, weight)
        with recompute(y, lambda: F.linear(x, weight)):
            z = (y * y).sum()
    expected = 2 * F.linear(x.bfloat16(), weight.bfloat16()).float()
    (grad,) = torch.autograd.grad(z, y)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.compile])
def test_transforms_follow_it(transform):
    def function(x):
        y = x.sin()
        with recompute(y, x.sin):
            return (y * y).sum()

    kwargs = {"backend": "aot_eager", "fullgraph": True} if transform is torch.compile else {}
    x = torch.randn(5)
    result = transform(function, **kwargs)(x)
    expected = 2 * x.sin() * x.cos() if transform is torch.func.grad else (x.sin() ** 2).sum()
    torch.testing.assert_close(result, expected)


def test_without_gradients_it_is_never_made_again():
    def refuse():
        raise AssertionError("made again")

    x = torch.randn(3)
    y = x.sin()
    with torch.no_grad(), recompute(y, refuse):
        torch.testing.assert_close(y * y, x.sin() ** 2)
