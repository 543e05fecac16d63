import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from convattn.kernels import chunked
from convattn.kernels.chunked import chunked_attention
from convattn.kernels.plain import plain_attention

SIDES = st.integers(1, 7)


def draw(height, width, *, batch=2, heads=3, dim=4, v_dim=2, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    widths = (dim, dim, v_dim, height, width)
    q, k, v, bias_h, bias_w = (
        torch.randn(batch, heads, height * width, w, generator=generator, dtype=torch.float64)
        for w in widths
    )
    return [t.to(dtype) for t in (scale * q, k, v, scale * bias_h, scale * bias_w)]


def with_gradients(attention, inputs):
    leaves = [t.detach().requires_grad_() for t in inputs]
    biases = leaves[3:] or [None, None]
    out = attention(*leaves[:3], *biases)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


def assert_equal_to_plain(inputs):
    torch.testing.assert_close(
        with_gradients(chunked_attention, inputs),
        with_gradients(plain_attention, inputs),
        rtol=1e-10,
        atol=1e-10,
    )


@given(SIDES, SIDES, st.sampled_from([1, 7, 60, 500, 10**6]), st.sampled_from([0, 10**6]))
def test_equals_the_plain_path_however_it_is_cut(height, width, numbers, widened_below):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_NUMBERS_A_THREAD", numbers)
        patch.setattr(chunked, "_WIDENED_BELOW", widened_below)
        assert_equal_to_plain(draw(height, width))


def test_no_positions():
    assert_equal_to_plain(draw(4, 6)[:3])


@pytest.mark.parametrize("widened_below", [0, 10**6])
@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_sharp_attention(scale, widened_below, monkeypatch):
    monkeypatch.setattr(chunked, "_WIDENED_BELOW", widened_below)
    inputs = draw(6, 7, scale=scale, dtype=torch.float32)
    exact = with_gradients(plain_attention, [t.double() for t in inputs])
    ours = with_gradients(chunked_attention, inputs)
    theirs = with_gradients(plain_attention, inputs)
    for low, other, high in zip(ours, theirs, exact, strict=True):
        error, allowed = (low - high).norm(), (other - high).norm()
        assert error <= 10 * allowed + 1e-6 * high.norm()


def test_a_sharp_map_beside_others():
    inputs = draw(5, 4)
    inputs[0][0, 1] *= 1e4
    assert_equal_to_plain(inputs)


def test_logits_far_from_zero():
    q, k, v, bias_h, bias_w = draw(5, 6, dtype=torch.float32)
    near = chunked_attention(q, k, v, bias_h, bias_w)
    far = chunked_attention(q, k, v, bias_h + 1e3, bias_w - 5e3)
    torch.testing.assert_close(near, far, rtol=1e-2, atol=1e-2)


def test_queries_whose_bound_is_far_above_their_logits():
    # The longest key is at right angles to the queries: exponentials below the bound are all 0.
    q = torch.zeros(1, 1, 4, 2)
    k = torch.zeros(1, 1, 4, 2)
    q[..., 0], k[..., 1] = 1e3, 1e3
    v = torch.eye(4)[None, None]
    out = chunked_attention(q, k, v, None, None)
    torch.testing.assert_close(out, torch.full((1, 1, 4, 4), 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_numbers_are_rounded_once(dtype):
    inputs = draw(5, 9, dim=8, dtype=dtype)
    exact = with_gradients(chunked_attention, [t.float() for t in inputs])
    for low, high in zip(with_gradients(chunked_attention, inputs), exact, strict=True):
        assert low.dtype == dtype
        # The gradient starts at the sine of an output that is rounded already.
        assert (low - high).norm() <= 2 * torch.finfo(dtype).eps * high.norm()


def test_inputs_of_any_strides():
    inputs = [t.mT.contiguous().mT for t in draw(3, 5)]
    assert_equal_to_plain(inputs)


class _LargestTensor(TorchDispatchMode):
    """Watches every tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out


def test_memory_grows_with_the_positions_not_with_their_square(monkeypatch):
    monkeypatch.setattr(chunked, "_NUMBERS_A_THREAD", 2**10)
    largest = []
    for side in (16, 32):
        inputs = draw(side, side, batch=1)
        with _LargestTensor() as watch:
            out, *sums = chunked.forward(*inputs)
            chunked.backward(torch.ones_like(out), *inputs, out, *sums)
        largest.append(watch.largest)
    assert largest[1] < 3 * 32**2 * (2 * 32 + 10)
    assert largest[1] <= 8.5 * largest[0]  # H * W * (H + W), not (H * W)**2


def test_operators_keep_pytorchs_rules():
    inputs = draw(2, 3)
    torch.library.opcheck(chunked._attention, inputs)
    out, *sums = chunked.forward(*inputs)
    backward_inputs = (torch.ones_like(out), *inputs, out, *sums)
    torch.library.opcheck(chunked._attention_backward, backward_inputs)


def test_compiles_into_one_graph():
    inputs = draw(3, 4)
    compiled = torch.compile(chunked_attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        with_gradients(compiled, inputs), with_gradients(chunked_attention, inputs)
    )


def test_work_is_counted_as_two_matrix_products():
    q, k, v, bias_h, bias_w = (t.requires_grad_() for t in draw(4, 5))
    with FlopCounterMode(display=False) as forward:
        out = chunked_attention(q, k, v, bias_h, bias_w)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    with FlopCounterMode(display=False) as plain:
        plain_attention(q, k, v, bias_h, bias_w)
    assert forward.get_total_flops() == plain.get_total_flops()
    pairs = 2 * 3 * 20**2
    assert backward.get_total_flops() == 2 * pairs * (3 * 4 + 2 * 2)


def test_a_second_derivative_is_refused():
    inputs = [t.requires_grad_() for t in draw(2, 2)]
    (grad,) = torch.autograd.grad(chunked_attention(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="chunked_attention_backward"):
        grad.sum().backward()


def test_leaves_the_inputs_alone():
    inputs = draw(4, 4)
    before = [t.clone() for t in inputs]
    with_gradients(chunked_attention, inputs)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


def test_the_same_bits_again():
    inputs = draw(24, 24, dtype=torch.float32)
    first, again = (with_gradients(chunked_attention, inputs) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_an_empty_batch():
    out, *grads = with_gradients(chunked_attention, draw(2, 3, batch=0))
    assert out.shape == (0, 3, 6, 2)
    assert [grad.shape for grad in grads] == [t.shape for t in draw(2, 3, batch=0)]


def test_half_of_a_network_may_not_need_gradients():
    q, k, v, bias_h, bias_w = draw(3, 3)
    layer = nn.Linear(2, 2).double()
    chunked_attention(q, k, layer(v), bias_h, bias_w).sum().backward()
    assert layer.weight.grad is not None
