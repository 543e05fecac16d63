import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.kernels.attention import chunked
from convattn.kernels.attention.biases import relative_biases
from convattn.kernels.attention.chunked import chunked_attention
from convattn.kernels.attention.plain import plain_attention
from tests.watching import LargestTensor

SIDES = st.integers(1, 7)


def draw(
    height, width, *, batch=2, heads=3, dim=4, v_dim=2, dtype=torch.float64, scale=1.0, seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (normal(batch, heads, height * width, w) for w in (dim, dim, v_dim))
    tables = (normal(2 * side - 1, dim) for side in (height, width))
    return [t.to(dtype) for t in (scale * q, k, v, *tables)]


def chunked_on(size):
    return lambda q, k, v, rel_h, rel_w: chunked_attention(q, k, v, rel_h, rel_w, size)


def plain_on(size):
    return lambda q, k, v, rel_h, rel_w: plain_attention(
        q, k, v, *relative_biases(q, rel_h, rel_w, size)
    )


def with_gradients(attention, inputs):
    leaves = [t.detach().requires_grad_() for t in inputs]
    tables = leaves[3:] or [None, None]
    out = attention(*leaves[:3], *tables)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


def assert_equal_to_plain(inputs, size):
    torch.testing.assert_close(
        with_gradients(chunked_on(size), inputs),
        with_gradients(plain_on(size), inputs),
        rtol=1e-10,
        atol=1e-10,
    )


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from([1, 7, 60, 500, 10**6]), st.sampled_from([0, 10**6]))
def test_equals_the_plain_path_however_it_is_cut(height, width, numbers, widened_below):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_NUMBERS_A_THREAD", numbers)
        patch.setattr(chunked, "_WIDENED_BELOW", widened_below)
        assert_equal_to_plain(draw(height, width), (height, width))


def test_no_positions():
    assert_equal_to_plain(draw(4, 6)[:3], (4, 6))


@pytest.mark.parametrize("widened_below", [0, 10**6])
@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_sharp_attention(scale, widened_below, monkeypatch):
    """Over many draws: in one, plain rounding may happen to be ten times better, or worse."""
    monkeypatch.setattr(chunked, "_WIDENED_BELOW", widened_below)
    errors, allowed = [], []
    for seed in range(20):
        inputs = draw(6, 7, scale=scale, dtype=torch.float32, seed=seed)
        exact = with_gradients(plain_on((6, 7)), [t.double() for t in inputs])
        ours = with_gradients(chunked_on((6, 7)), inputs)
        theirs = with_gradients(plain_on((6, 7)), inputs)
        for rows, found in ((errors, ours), (allowed, theirs)):
            off = [
                (low - high).norm() / high.norm() for low, high in zip(found, exact, strict=True)
            ]
            rows.append(torch.stack(off).detach())
    mean_error, mean_allowed = (torch.stack(rows).mean(0) for rows in (errors, allowed))
    assert (mean_error <= 2 * mean_allowed + 1e-6).all()


def test_a_sharp_map_beside_others():
    inputs = draw(5, 4)
    inputs[0][0, 1] *= 1e4
    assert_equal_to_plain(inputs, (5, 4))


def test_logits_far_from_zero():
    q, k, v, *tables = draw(5, 6, dtype=torch.float32)
    q[..., 0] = 1
    far = k.clone()
    far[..., 0] += 4e3  # the same for all keys, so that nothing changes but what is rounded
    attention = chunked_on((5, 6))
    torch.testing.assert_close(
        attention(q, far, v, *tables), attention(q, k, v, *tables), rtol=1e-2, atol=1e-2
    )


def test_queries_whose_bound_is_far_above_their_logits():
    # The longest key is at right angles to the queries: exponentials below the bound are all 0.
    q = torch.zeros(1, 1, 4, 2)
    k = torch.zeros(1, 1, 4, 2)
    q[..., 0], k[..., 1] = 1e3, 1e3
    v = torch.eye(4)[None, None]
    out = chunked_attention(q, k, v, None, None, (2, 2))
    torch.testing.assert_close(out, torch.full((1, 1, 4, 4), 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_numbers_are_rounded_once(dtype):
    inputs = draw(5, 9, dim=8, dtype=dtype)
    exact = with_gradients(chunked_on((5, 9)), [t.float() for t in inputs])
    for low, high in zip(with_gradients(chunked_on((5, 9)), inputs), exact, strict=True):
        assert low.dtype == dtype
        # The gradient starts at the sine of an output that is rounded already.
        assert (low - high).norm() <= 2 * torch.finfo(dtype).eps * high.norm()


def test_inputs_of_any_strides():
    inputs = [t.mT.contiguous().mT for t in draw(3, 5)]
    assert_equal_to_plain(inputs, (3, 5))


@pytest.mark.parametrize("side", [16, 32])
def test_nothing_is_larger_than_queries_and_keys(side, monkeypatch):
    monkeypatch.setattr(chunked, "_NUMBERS_A_THREAD", 2**13)
    inputs = draw(side, side, batch=4)
    with LargestTensor() as watch:
        out, *sums = chunked.forward(*inputs, side, side)
        chunked.backward(torch.ones_like(out), *inputs, side, side, out, *sums)
    assert watch.largest == inputs[0].numel()


def test_operators_keep_pytorchs_rules():
    inputs = draw(2, 3)
    torch.library.opcheck(chunked._attention, (*inputs, 2, 3))
    out, *sums = chunked.forward(*inputs, 2, 3)
    backward_inputs = (torch.ones_like(out), *inputs, 2, 3, out, *sums)
    torch.library.opcheck(chunked._attention_backward, backward_inputs)


def test_compiles_into_one_graph():
    inputs = draw(3, 4)
    attention = chunked_on((3, 4))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(with_gradients(compiled, inputs), with_gradients(attention, inputs))


def test_work_is_counted_as_that_of_the_definition():
    inputs = [t.requires_grad_() for t in draw(4, 5)]
    with FlopCounterMode(display=False) as forward:
        out = chunked_on((4, 5))(*inputs)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    with FlopCounterMode(display=False) as plain:
        plain_on((4, 5))(*inputs)
    assert forward.get_total_flops() == plain.get_total_flops()
    queries = 2 * 3 * 20
    assert backward.get_total_flops() == 2 * queries * (20 * (3 * 4 + 2 * 2) + 9 * 3 * 4)


def test_a_second_derivative_is_refused():
    inputs = [t.requires_grad_() for t in draw(2, 2)]
    (grad,) = torch.autograd.grad(chunked_on((2, 2))(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="chunked_attention_backward"):
        grad.sum().backward()


def test_leaves_the_inputs_alone():
    inputs = draw(4, 4)
    before = [t.clone() for t in inputs]
    with_gradients(chunked_on((4, 4)), inputs)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


def test_the_same_bits_again():
    inputs = draw(24, 24, dtype=torch.float32)
    first, again = (with_gradients(chunked_on((24, 24)), inputs) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_an_empty_batch():
    out, *grads = with_gradients(chunked_on((2, 3)), draw(2, 3, batch=0))
    assert out.shape == (0, 3, 6, 2)
    assert [grad.shape for grad in grads] == [t.shape for t in draw(2, 3, batch=0)]


def test_half_of_a_network_may_not_need_gradients():
    q, k, v, *tables = draw(3, 3)
    layer = nn.Linear(2, 2).double()
    chunked_on((3, 3))(q, k, layer(v), *tables).sum().backward()
    assert layer.weight.grad is not None
