import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn.functional import (
    aggregate,
    aggregation_weights,
    multiply_tokens,
    relative_attention_2d,
    relative_attention_weights_2d,
    weighted_values,
)
from tests.watching import LargestTensor

GOLDEN = Path(__file__).parent / "golden"
FUSED = ("chunked", "sdpa")
BACKENDS = (*FUSED, "plain")


def attention_by_loop(q, k, v, rel_h, rel_w, height, width):
    """Every pair of positions, one after the other."""
    batch, heads, count, dim = q.shape
    out = torch.empty(batch, heads, count, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(count):
                logits = torch.empty(count, dtype=q.dtype)
                for j in range(count):
                    dy, dx = j // width - i // width, j % width - i % width
                    key = k[b, h, j] + rel_h[dy + height - 1] + rel_w[dx + width - 1]
                    logits[j] = q[b, h, i] @ key / math.sqrt(dim)
                out[b, h, i] = logits.softmax(0) @ v[b, h]
    return out


def make_inputs(height, width, *, heads=2, dim=4, v_dim=3, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    count = height * width
    return (
        draw(batch, heads, count, dim),
        draw(batch, heads, count, dim),
        draw(batch, heads, count, v_dim),
        draw(2 * height - 1, dim),
        draw(2 * width - 1, dim),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(3, 3), (2, 5), (4, 1), (1, 4), (1, 1)])
def test_equals_the_loop_over_all_pairs(size, backend):
    inputs = make_inputs(*size)
    out = relative_attention_2d(*inputs, feat_size=size, backend=backend)
    torch.testing.assert_close(out, attention_by_loop(*inputs, *size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["1x4", "5x7", "8x8"])
def test_golden_values_and_gradients(name, backend):
    golden = load_file(GOLDEN / f"relative_attention_{name}.safetensors")
    leaves = {n: golden[n].clone().requires_grad_() for n in ("q", "k", "v", "rel_h", "rel_w")}
    height, width = (int(side) for side in name.split("x"))
    out = relative_attention_2d(**leaves, feat_size=(height, width), backend=backend)
    (out * golden["output_weight"]).sum().backward()
    torch.testing.assert_close(out, golden["output"], rtol=0, atol=1e-9)
    for n, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, golden[f"grad_{n}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["1x4", "5x7", "8x8"])
def test_golden_weights(name):
    golden = load_file(GOLDEN / f"relative_attention_{name}.safetensors")
    height, width = (int(side) for side in name.split("x"))
    weights = relative_attention_weights_2d(
        golden["q"], golden["k"], golden["rel_h"], golden["rel_w"], feat_size=(height, width)
    )
    torch.testing.assert_close(weights, golden["attention"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("position", [True, False])
def test_chosen_rows_are_those_of_the_whole(position):
    q, k, _, *tables = make_inputs(3, 5, heads=2, dim=4, v_dim=2, dtype=torch.float64)
    tables = tables if position else []
    whole = relative_attention_weights_2d(q, k, *tables, feat_size=(3, 5))
    rows = torch.tensor([14, 0, 7, 7])
    chosen = relative_attention_weights_2d(q, k, *tables, feat_size=(3, 5), queries=rows)
    torch.testing.assert_close(chosen, whole[:, :, rows], rtol=0, atol=1e-12)


def run_with_gradients(inputs, backend):
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = relative_attention_2d(*leaves, feat_size=(8, 10), backend=backend)
    out.sin().sum().backward()
    return [out, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fused_is_near_plain_float64_in_low_precision(dtype, tolerance, backend):
    inputs = make_inputs(8, 10, heads=4, dim=20, v_dim=6, dtype=dtype)
    ours = run_with_gradients(inputs, backend)
    exact = run_with_gradients([t.double() for t in inputs], "plain")
    for low, high in zip(ours, exact, strict=True):
        assert (low.double() - high).norm() <= tolerance * high.norm()


def test_none_positions_are_plain_attention():
    q, k, v, _, _ = make_inputs(3, 4)
    out = relative_attention_2d(q, k, v, feat_size=(3, 4))
    expected = (q @ k.mT / 2).softmax(-1) @ v
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_fused_never_holds_the_whole_matrix(backend):
    side = 24
    leaves = [t.requires_grad_() for t in make_inputs(side, side, batch=1, dtype=torch.float32)]
    with LargestTensor() as watch, sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        relative_attention_2d(*leaves, feat_size=(side, side), backend=backend).sum().backward()
    whole_matrix = 2 * side**4
    assert (watch.largest < whole_matrix) == (backend != "plain")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fused_takes_the_flash_kernel_in_every_dtype(dtype):
    inputs = make_inputs(5, 7, dtype=dtype)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # an error where it would fall back
        out = relative_attention_2d(*inputs, feat_size=(5, 7), backend="sdpa")
    assert out.dtype == dtype


def test_wrong_sizes_are_named():
    q, k, v, rel_h, rel_w = make_inputs(3, 4)
    with pytest.raises(ValueError, match="feat_size=4x4 needs 16 positions, but q has 12"):
        relative_attention_2d(q, k, v, rel_h, rel_w, feat_size=(4, 4))
    with pytest.raises(ValueError, match="rel_h has 7 rows, but feat_size=3x4 needs 5"):
        relative_attention_2d(q, k, v, rel_w, rel_w, feat_size=(3, 4))
    with pytest.raises(ValueError, match="go together"):
        relative_attention_2d(q, k, v, rel_h, None, feat_size=(3, 4))


def aggregate_by_loop(x, query, wk, wv, bk, bv, heads, token):
    """Keys and values of every patch, one head after the other, as the paper writes it."""
    dim = query.shape[1]
    size = dim // heads
    out = torch.empty(len(x), len(query), dim, dtype=x.dtype)
    weights = []
    for b, patches in enumerate(x):
        items = patches if token is None else torch.cat([token, patches])
        keys, values = items @ wk.T + bk, items @ wv.T + bv
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            a = (query[:, part] @ keys[:, part].T / math.sqrt(size)).softmax(-1)
            weights.append(a)
            out[b, :, part] = a @ values[:, part]
    return out, torch.stack(weights).unflatten(0, (len(x), heads))


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize(("queries", "patches"), [(1, 49), (3, 5), (40, 6), (40, 200), (2, 1)])
def test_aggregate_equals_the_loop_in_every_order(queries, patches, heads, with_token):
    torch.manual_seed(0)
    dim = 8
    x, query = torch.randn(2, patches, dim).double(), torch.randn(queries, dim).double()
    wk, wv = torch.randn(2, dim, dim).double()
    bk, bv = torch.randn(2, dim).double()
    token = torch.randn(1, dim).double() if with_token else None
    leaves = [t.requires_grad_() for t in (x, query, wk, wv, bv)]
    expected, weights = aggregate_by_loop(x, query, wk, wv, bk, bv, heads, token)
    expected_grads = torch.autograd.grad(expected.sin().sum(), leaves)
    out = aggregate(x, query, wk, wv, bk, bv, num_heads=heads, token=token)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    ours = aggregation_weights(x, query, wk, bk, num_heads=heads, token=token)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours, weights, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_token", [True, False])
def test_values_without_a_matrix_are_the_patches(with_token):
    torch.manual_seed(0)
    x, weights = torch.randn(2, 6, 8).double(), torch.rand(2, 4, 3, 6 + with_token).double()
    token = torch.randn(1, 8).double() if with_token else None
    unit = torch.eye(8).double()
    expected = weighted_values(weights, x, unit, num_heads=4, token=token)
    torch.testing.assert_close(weighted_values(weights, x, num_heads=4, token=token), expected)


def test_aggregate_names_the_heads_that_do_not_fit():
    weight = torch.eye(8)
    with pytest.raises(ValueError, match="num_heads=3 does not divide the 8 channels"):
        aggregate(torch.zeros(1, 2, 8), torch.zeros(1, 8), weight, weight, num_heads=3)


@pytest.mark.parametrize("training", [False, True])
def test_each_token_has_a_row_of_its_own(training):
    x, weight = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    found = multiply_tokens(x, weight, training=training)
    loop = torch.stack([torch.stack([x[b, k] @ weight[k] for k in range(5)]) for b in range(3)])
    torch.testing.assert_close(found, loop)
