import copy
import math
import pickle
from pathlib import Path

import pytest
import timm.layers
import torch
from safetensors.torch import load_file
from timm.layers import AttentionPoolLatent
from torch import nn
from torch.export import Dim, export

import convattn
from convattn import POOLS, create_pool, pool_from_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = {
    "ep": {"num_queries": 4},
    "class": {"num_classes": 5},
    "map": {"num_heads": 2},
    "simpool": {"num_heads": 2},
    "abmil": {"hidden": 6},
}
LINEAR = ("avg", "query", "residual", "ep", "simpool", "abmil", "class")
SHAPES = ((3, 3), (2, 5), (4, 1), (1, 4), (7, 7))


def make(name, **more):
    """A pool of 8 channels whose zeros have been given values, as after some training."""
    torch.manual_seed(0)
    pool = create_pool(name, 8, **OPTIONS.get(name, {}) | more).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return pool.eval()


def image(height=3, width=5, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 8, height, width, generator=generator, dtype=torch.float64)
    return x.abs() + 0.1  # the generalised mean is for what is positive


@pytest.mark.parametrize(
    ("file", "name", "options"),
    [
        ("ep_4_queries", "ep", {}),
        ("ep_8_queries_half_width", "ep", {}),
        ("simpool_1_heads", "simpool", {"num_heads": 1}),
        ("simpool_4_heads", "simpool", {"num_heads": 4}),
        ("gated_abmil", "abmil", {}),
    ],
)
@pytest.mark.parametrize("hooked", [False, True])
def test_values_weights_and_gradients_are_the_authors(file, name, options, hooked):
    golden = load_file(GOLDEN / f"pool_{file}.safetensors")
    state = {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}
    pool = pool_from_state_dict(name, {k: v.double() for k, v in state.items()}, **options)
    if hooked:  # every layer is called then, in the other order of operations
        for layer in pool.modules():
            layer.register_forward_hook(lambda *_: None)
    x = golden["input"].requires_grad_()
    out = pool(x)
    assert out.shape[1] == pool.out_features
    torch.testing.assert_close(out, golden["output"], rtol=1e-9, atol=1e-9)
    weights = pool.attention_weights(x).flatten(2)
    torch.testing.assert_close(weights, golden["attention"], rtol=1e-9, atol=1e-9)
    (out * golden["weight"]).sum().backward()
    torch.testing.assert_close(x.grad, golden["grad/input"], rtol=1e-9, atol=1e-9)
    renamed = convattn.layers.pools.table._AUTHORS_NAMES[name]
    for key, theirs in golden.items():
        if key.startswith("grad/") and key != "grad/input":
            ours = pool.get_parameter(renamed[key.removeprefix("grad/")]).grad
            torch.testing.assert_close(ours, theirs.view_as(ours), rtol=1e-9, atol=1e-9)


def test_simpool_is_timms():
    if not hasattr(timm.layers, "SimPool2d"):
        pytest.skip("needs a timm that has SimPool2d")
    torch.manual_seed(0)
    theirs = timm.layers.SimPool2d(8, num_heads=2).double()
    ours = pool_from_state_dict("simpool", theirs.state_dict(), num_heads=2, norm_eps=1e-5)
    torch.testing.assert_close(ours(image()), theirs(image()), rtol=1e-6, atol=1e-6)


def test_map_is_timms():
    torch.manual_seed(0)
    theirs = AttentionPoolLatent(8, num_heads=2, norm_layer=nn.LayerNorm).double()
    ours = pool_from_state_dict("map", theirs.state_dict(), num_heads=2)
    x = image()
    expected = theirs(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", SHAPES)
def test_any_size_gives_a_vector_and_maps_that_sum_to_one(name, size):
    pool, x = make(name), image(*size)
    assert pool(x).shape == (2, pool.out_features)
    weights = pool.attention_weights(x)
    assert weights.shape[2:] == size
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones_like(weights[..., 0, 0]))


def slow(name, pool, x):
    """The definition, a position at a time, of one image (C, H, W)."""
    positions = [x[:, row, column] for row in range(x.shape[1]) for column in range(x.shape[2])]
    number, channels = len(positions), x.shape[0]

    def softmax(logits):
        powers = [math.exp(float(one)) for one in logits]
        return [one / sum(powers) for one in powers]

    mean = sum(positions) / number
    if name == "avg":
        return mean
    if name == "max":
        return torch.stack([max(one[c] for one in positions) for c in range(channels)])
    if name == "gem":
        return (sum(one**pool.p for one in positions) / number) ** (1 / pool.p)
    if name == "lse":
        return (sum((pool.r * one).exp() for one in positions) / number).log() / pool.r
    if name == "query":
        weights = softmax([(pool.query * pool.running_var.rsqrt()) @ one for one in positions])
        return sum(a * one for a, one in zip(weights, positions, strict=True))
    if name == "residual":
        weights = softmax([pool.query @ one / channels**0.5 for one in positions])
        seen = sum(a * one for a, one in zip(weights, positions, strict=True))
        return mean + pool.gate * (seen - mean)
    if name == "class":
        logits = []
        for query, weight, bias in zip(pool.queries, pool.weight, pool.bias, strict=True):
            weights = softmax([query @ one / channels**0.5 for one in positions])
            seen = sum(a * one for a, one in zip(weights, positions, strict=True))
            logits.append(weight @ seen + bias)
        return torch.stack(logits)
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["avg", "max", "gem", "lse", "query", "residual", "class"])
def test_pool_is_the_slow_loop(name):
    pool, x = make(name).eval(), image()
    with torch.no_grad():
        expected = torch.stack([slow(name, pool, one) for one in x])
        torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("size", SHAPES)
def test_contributions_sum_to_any_linear_reading(name, size):
    pool, x = make(name), image(*size)
    weight = torch.randn(3, pool.out_features, dtype=torch.float64)
    shares = pool.contributions(x, weight)
    assert shares.shape == (2, 3, *size)
    read = pool(x) @ weight.T
    if name == "class":
        read = read - pool.bias @ weight.T
    torch.testing.assert_close(shares.sum((2, 3)), read)


@pytest.mark.parametrize("name", sorted(set(POOLS) - set(LINEAR)))
def test_pool_without_exact_shares_says_so(name):
    pool = make(name)
    assert not pool.is_linear
    with pytest.raises(ValueError, match=r"not linear in the map.*Grad-CAM"):
        pool.contributions(image(), torch.ones(1, pool.out_features))


def test_contributions_are_of_their_own_position():
    """Moving the map moves the shares with it."""
    for name in LINEAR:
        pool, x = make(name), image(3, 4)
        weight = torch.randn(2, pool.out_features, dtype=torch.float64)
        moved = pool.contributions(x.flip(3), weight)
        torch.testing.assert_close(moved, pool.contributions(x, weight).flip(3))


@pytest.mark.parametrize("name", ["query", "residual", "class"])
def test_light_pools_begin_as_the_average(name):
    torch.manual_seed(0)
    pool, x = create_pool(name, 8, **OPTIONS.get(name, {})).double(), image()
    mean = x.mean((2, 3))
    if name == "class":
        mean = mean @ pool.weight.T
    torch.testing.assert_close(pool(x), mean)


@pytest.mark.parametrize(
    ("name", "options"), [("query", {}), ("residual", {"gate": 1, "query_std": 0}), ("class", {})]
)
def test_queries_of_zero_begin_with_equal_weights(name, options):
    pool = create_pool(name, 8, **OPTIONS.get(name, {}), **options)
    weights = pool.attention_weights(image().float())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 15))


@pytest.mark.parametrize(
    ("name", "channels", "options", "expected"),
    [
        ("avg", 512, {}, 0),
        ("query", 512, {}, 512),
        ("residual", 512, {}, 2 * 512),
        ("ep", 512, {"num_queries": 32}, 512**2 + 32 * 512),
        ("ep", 512, {"num_queries": 8, "values": False}, 8 * 512),
        ("ep", 512, {"num_queries": 8, "out_features": 256}, 512 * 256 + 8 * 512),
        ("simpool", 512, {}, 2 * 512**2 + 2 * 512),
        ("abmil", 512, {"hidden": 128}, 2 * 512 * 128 + 3 * 128 + 1),
        ("class", 512, {"num_classes": 40}, 2 * 40 * 512 + 40),
    ],
)
def test_parameters_are_as_the_table_says(name, channels, options, expected):
    pool = create_pool(name, channels, **options)
    assert sum(parameter.numel() for parameter in pool.parameters()) == expected


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_number_formats(name, dtype):
    pool, x = make(name).to(dtype), image().to(dtype)
    exact = make(name)(image()).float()
    out = pool(x)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.12, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.float(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", POOLS)
def test_autocast(name):
    pool, x = make(name).float(), image().float()
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = pool(x), pool.attention_weights(x)
    torch.testing.assert_close(out.float(), pool(x), rtol=0.1, atol=0.1)
    sums = weights.float().sum((2, 3))
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.02, atol=0.02)


def test_weights_of_half_precision_are_taken_in_float32():
    pool = create_pool("ep", 8, num_queries=2, values=False).half()
    with torch.no_grad():
        pool.queries.fill_(40.0)
    x = torch.full((1, 8, 2, 2), 200.0, dtype=torch.float16)
    x[..., 1] -= 1
    weights = pool.attention_weights(x)
    assert weights.isfinite().all()
    assert weights.float().sum((2, 3)).sub(1).abs().max() < 1e-2


@pytest.mark.parametrize("name", POOLS)
def test_batch_of_none_and_channels_last(name):
    pool, x = make(name), image()
    assert pool(x[:0]).shape == (0, pool.out_features)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool(last), pool(x))


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_compute_the_same(name, clone):
    pool = make(name)
    assert torch.equal(clone(pool)(image()), pool(image()))


@pytest.mark.parametrize("name", POOLS)
def test_every_parameter_gets_a_gradient(name):
    pool, x = make(name), image().requires_grad_()
    pool(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    for key, parameter in pool.named_parameters():
        if key.endswith(("k.bias", "c.bias")):  # softmax does not feel it
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", POOLS)
def test_every_parameter_learns_from_the_start(name):
    torch.manual_seed(0)
    pool = create_pool(name, 8, **OPTIONS.get(name, {}))
    head = torch.nn.Linear(pool.out_features, 3)
    before = {key: tensor.clone() for key, tensor in pool.state_dict().items()}
    optimizer = torch.optim.AdamW([*pool.parameters(), *head.parameters()], 1e-2, weight_decay=0)
    x, y = torch.randn(6, 8, 3, 5), torch.arange(6) % 3
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(pool(x)), y).backward()
        optimizer.step()
    still = [key for key, tensor in pool.state_dict().items() if tensor.equal(before[key])]
    # Softmax does not feel what all positions have in common.
    assert [key for key in still if not key.endswith(("k.bias", "c.bias"))] == []


def test_a_query_counts_channels_in_their_own_deviation():
    """Of the batch in training, of all batches alike so far in evaluation, then a running one."""
    pool = create_pool("query", 8).double()
    with torch.no_grad():
        pool.query.normal_()
    x = image()
    units = torch.logspace(-1, 2, 8, dtype=torch.float64)[:, None, None]
    pool.attention_weights(x)
    assert pool.num_batches_tracked == 0  # looking is not learning
    weights = pool.attention_weights(x)
    torch.testing.assert_close(pool.attention_weights(x * units), weights, rtol=1e-2, atol=1e-4)
    batches = [image() * factor for factor in (1, 2, 5)]
    for batch in batches:
        pool(batch)
    mean = sum(batch.var((0, 2, 3), correction=0) for batch in batches) / 3
    torch.testing.assert_close(pool.running_var, mean)
    pool.eval()
    kept = pool.running_var.clone()
    pool(x)
    assert torch.equal(pool.running_var, kept)
    pool.train().num_batches_tracked += 100
    pool(x)
    expected = 0.9 * kept + 0.1 * x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(pool.running_var, expected)
    with pytest.raises(ValueError, match=r"momentum=0 must lie above 0"):
        create_pool("query", 8, momentum=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_query_knows_deviations_far_from_zero(memory_format):
    generator = torch.Generator().manual_seed(0)
    x = 100 + 0.1 * torch.randn(4, 8, 5, 6, generator=generator)
    x[:, 0] = 3  # one channel never changes
    pool = create_pool("query", 8).train()
    assert pool(x.contiguous(memory_format=memory_format)).isfinite().all()
    expected = x.double().var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(pool.running_var, expected, rtol=1e-3, atol=1e-7)
    assert (pool.running_var >= 0).all()


def test_residual_with_nothing_to_begin_from_is_refused():
    with pytest.raises(ValueError, match="no gradient"):
        create_pool("residual", 8, gate=0.0, query_std=0.0)


class Each(nn.Module):
    """What every pool makes of one map: its vector or, if asked for, where that came from too."""

    def __init__(self, maps=False):
        super().__init__()
        self.pools = nn.ModuleList(make(name) for name in POOLS)
        self.maps = maps

    def forward(self, x):
        if self.maps:
            return [(pool(x), pool.attention_weights(x)) for pool in self.pools]
        return [pool(x) for pool in self.pools]


def check_each(found, x, each, **tolerance):
    """Compare what a compiled or exported ``Each`` gives, a pool at a time."""
    for name, ours, theirs in zip(POOLS, each(x), found, strict=True):
        torch.testing.assert_close(
            theirs, ours, msg=lambda told, name=name: f"{name}: {told}", **tolerance
        )


@pytest.mark.long
def test_each_compiles_in_one_graph():
    each = Each()
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    check_each(compiled(image()), image(), each)


@pytest.mark.long
def test_each_exports_for_any_batch_and_size():
    each = Each()
    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=2), 3: Dim("width", min=2)}
    program = export(each, (image(4, 6),), dynamic_shapes={"x": sizes}).module()
    for size in ((3, 5), (7, 2)):
        x = image(*size, batch=3)
        check_each(program(x), x, each)


@pytest.mark.long
def test_onnxruntime_agrees_on_each_at_any_batch_and_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    each, sizes = Each(maps=True).float(), dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    program = export(each, (torch.rand(3, 8, 4, 5),), dynamic_shapes=(sizes,))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "pools.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pools.onnx")
    for shape in ((3, 8, 4, 5), (1, 8, 2, 2), (4, 8, 7, 3)):
        x = torch.rand(shape)
        flat = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        found = map(torch.from_numpy, flat)
        check_each(list(zip(found, found, strict=True)), x, each, atol=1e-4, rtol=1e-4)


class Adapter(nn.Linear):
    """A layer with something added, as LoRA adds it."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.added = nn.Parameter(0.5 * torch.randn_like(layer.weight))
        self.double()

    def forward(self, x):
        return super().forward(x) + x @ self.added.T


@pytest.mark.parametrize("name", POOLS)
def test_what_is_hung_on_a_layer_learns_and_merges(name):
    plain = make(name)
    layers = [key for key, module in plain.named_modules() if isinstance(module, nn.Linear)]
    for key in layers:
        if name == "aggregation" and key.split(".")[-1] in ("k", "v"):
            continue  # the paper's block reads these weights
        adapted, merged = copy.deepcopy(plain), copy.deepcopy(plain)
        adapted.set_submodule(key, Adapter(plain.get_submodule(key)))
        layer = adapted.get_submodule(key)
        with torch.no_grad():
            merged.get_submodule(key).weight.add_(layer.added)
        torch.testing.assert_close(adapted(image()), merged(image()))
        adapted(image()).square().sum().backward()
        assert layer.added.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (
            lambda: create_pool("simpol", 8),
            "unknown pool 'simpol'; the nearest is 'simpool' of attention, avg",
        ),
        (lambda: create_pool("attentoin", 8), "the nearest is 'attention' of"),
        (
            lambda: create_pool("ep", 8, num_queries=3),
            "num_queries=3 does not divide out_features=8",
        ),
        (lambda: create_pool("ep", 8, num_queries=3), "nearest that works: 2"),
        (
            lambda: create_pool("ep", 8, num_queries=2, values=False, out_features=4),
            "matrix of val",
        ),
        (lambda: create_pool("map", 8, num_heads=0), "num_heads=0 does not divide in_features=8"),
        (lambda: create_pool("avg", 0), "in_features=0 must be at least 1"),
        (lambda: create_pool("avg", 8, heads=2), "refuses its options"),
        (lambda: create_pool("class", 8), "refuses its options.*num_classes"),
        (lambda: create_pool("gem", 8, p=-1.0), "p=-1.0 must be above 0"),
        (lambda: create_pool("lse", 8, r=0.0), "r=0.0 must be above 0"),
        (lambda: create_pool("abmil", 8, hidden=0), "hidden=0 must be at least 1"),
        (lambda: create_pool("avg", 8)(torch.ones(2, 7, 3, 3)), r"expected \(B, 8, H, W\)"),
        (lambda: create_pool("ep", 8, num_queries=2)(torch.ones(2, 8)), r"expected \(B, 8, H, W\)"),
        (lambda: pool_from_state_dict("avg", {}), "no importer for the pool 'avg'"),
        (lambda: pool_from_state_dict("ep", {"a": torch.ones(1)}), "cls_token is not among a"),
        (
            lambda: pool_from_state_dict("simpool", {"wq.weight": torch.ones(4, 4)}),
            "not those of the pool 'simpool': see k.weight, norm.bias",
        ),
    ],
)
def test_mistakes_are_one_sentence(make_it, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_it()
    assert "\n" not in str(caught.value)
