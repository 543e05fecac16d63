import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from convattn.layers import LearnedAggregation2d

KINDS = [{}, {"class_tokens": True}, {"num_heads": 2}, {"num_heads": 4, "class_tokens": True}]


def by_the_paper(layer, x):
    """The block as the paper writes it: concatenate, normalise, project everything, attend."""
    patches = x.flatten(2).mT
    tokens = layer.token.expand(len(x), -1, -1)
    u = layer.norm1(torch.cat([tokens, patches], 1))
    count = tokens.shape[1]
    sources = u[:, count:] if layer.class_tokens else u
    heads = layer.attn.num_heads
    q, k, v = (
        linear(t).unflatten(-1, (heads, -1)).transpose(1, 2)
        for linear, t in (
            (layer.attn.q, u[:, :count]),
            (layer.attn.k, sources),
            (layer.attn.v, sources),
        )
    )
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    out = layer.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    tokens = tokens + layer.gamma1 * out
    tokens = layer.norm(tokens + layer.gamma2 * layer.mlp(layer.norm2(tokens)))
    if layer.class_tokens:
        return torch.stack([tokens[:, i] @ w for i, w in enumerate(layer.fc.weight)], 1) + (
            layer.fc.bias
        )
    return layer.fc(tokens[:, 0])


@pytest.mark.parametrize("num_classes", [5, 40])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (14, 14)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_paper_s_order_of_operations(kind, size, num_classes):
    torch.manual_seed(0)
    layer = LearnedAggregation2d(16, num_classes, layer_scale=0.7, **kind).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    expected = by_the_paper(layer, x)
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    expected_grads = torch.autograd.grad(expected.sin().sum(), leaves)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_sum_to_one_but_for_the_token_s_own_share(kind):
    layer = LearnedAggregation2d(16, 5, **kind)
    maps = layer.attention_weights(torch.randn(2, 16, 3, 7))
    heads = kind.get("num_heads", 1)
    assert maps.shape == (2, heads, 5 if "class_tokens" in kind else 1, 3, 7)
    total = maps.sum((-2, -1))
    if "class_tokens" in kind:
        torch.testing.assert_close(total, torch.ones_like(total))
    else:
        assert ((total > 0) & (total < 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    torch.manual_seed(0)
    layer = LearnedAggregation2d(4, 3, mlp_ratio=1, layer_scale=0.5, **kind).double()
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    layer = LearnedAggregation2d(16, 5, **kind)
    layer(torch.randn(2, 16, 4, 4)).sin().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_reset_gives_another_number_of_classes(kind):
    layer = LearnedAggregation2d(16, 5, **kind).eval()
    x = torch.randn(2, 16, 4, 4)
    layer.reset(7)
    assert layer(x).shape == (2, 7)
    layer.reset(0)
    assert layer(x).shape == (2, 16)
    torch.testing.assert_close(layer(x), layer(x, pre_logits=True))
    layer.reset(3)
    assert layer(x).shape == (2, 3)
    assert layer.attention_weights(x).shape[2] == (3 if "class_tokens" in kind else 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_empty_batch(kind, dtype):
    layer = LearnedAggregation2d(16, 5, **kind, dtype=dtype).eval()
    out = layer(torch.randn(2, 16, 4, 5, dtype=dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert layer(torch.randn(0, 16, 4, 5, dtype=dtype)).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_near_float32(kind):
    torch.manual_seed(0)
    layer = LearnedAggregation2d(16, 5, layer_scale=1.0, **kind)
    x = torch.randn(2, 16, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    expected = layer(x)
    assert (out.float() - expected).norm() < 2e-2 * expected.norm()


def test_layout_does_not_matter():
    layer = LearnedAggregation2d(16, 5)
    x = torch.randn(2, 16, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS[:2])
def test_compiles_and_exports_with_dynamic_batch_and_size(kind):
    layer = LearnedAggregation2d(16, 5, **kind).eval()
    x = torch.randn(2, 16, 8, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    sizes = {0: Dim("batch"), 2: Dim("height", min=2), 3: Dim("width", min=2)}
    program = export(layer, (x,), dynamic_shapes=(sizes,))
    other = torch.randn(3, 16, 5, 12)
    torch.testing.assert_close(program.module()(other), layer(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone):
    layer, x = LearnedAggregation2d(16, 5, class_tokens=True).eval(), torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(clone(layer)(x), layer(x), rtol=0, atol=0)


def test_stands_where_pool_and_classifier_stood():
    body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4), nn.ReLU())
    net = nn.Sequential(body, LearnedAggregation2d(16, 10))
    assert net(torch.randn(2, 3, 40, 64)).shape == (2, 10)


def test_dropout_acts_in_training_alone():
    layer = LearnedAggregation2d(16, 5, drop=0.5)
    x = torch.randn(2, 16, 4, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide in_features=16; nearest that works: [24]"),
        ({"num_classes": -1}, "num_classes=-1 is negative"),
        ({"drop": 1.0}, "drop=1.0 is no probability below 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedAggregation2d(**{"in_features": 16, "num_classes": 5} | options)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"input of shape \(2, 16\), expected \(B, 16, H, W\)"):
        LearnedAggregation2d(16, 5)(torch.randn(2, 16))


def residual_by_the_loop(layer, x):
    """A head's share of the channels is the mean of the map by the head's weights, and so on."""
    heads = layer.attn.num_heads
    share = layer.in_features // heads
    pooled = torch.zeros(len(x), len(layer.token), layer.in_features, dtype=x.dtype)
    values = torch.zeros_like(pooled)
    patches = x.flatten(2).mT
    normal = layer.norm1(patches)
    for b, k, h in itertools.product(range(len(x)), range(len(layer.token)), range(heads)):
        part = slice(h * share, (h + 1) * share)
        query = layer.attn.q(layer.norm1(layer.token[k]))[part]
        logits = [query @ layer.attn.k(u)[part] * share**-0.5 for u in normal[b]]
        for weight, u, v in zip(torch.stack(logits).softmax(0), normal[b], patches[b], strict=True):
            pooled[b, k, part] += weight * v[part]
            values[b, k, part] += weight * layer.attn.v(u)[part]
    pooled = pooled + layer.gamma1 * layer.attn.proj(values)
    pooled = pooled + layer.gamma2 * layer.mlp(layer.norm2(pooled))
    if layer.class_tokens:
        return (pooled * layer.fc.weight).sum(-1) + layer.fc.bias
    return layer.fc(pooled[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_residual_equals_the_loop(kind):
    torch.manual_seed(0)
    layer = LearnedAggregation2d(8, 3, residual=True, **kind).double()
    for parameter in (layer.gamma1, layer.gamma2, layer.attn.q.weight, layer.attn.k.bias):
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), residual_by_the_loop(layer, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_begins_as_the_average_pool(kind):
    layer = LearnedAggregation2d(16, 5, residual=True, **kind)
    x = torch.randn(2, 16, 3, 7)
    mean = x.mean((2, 3))
    expected = torch.nn.functional.linear(mean, layer.fc.weight, layer.fc.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x, pre_logits=True), mean)
    maps = layer.attention_weights(x)
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 21))
