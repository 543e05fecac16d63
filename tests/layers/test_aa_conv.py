import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from torch.export import Dim, export
from torch.utils.checkpoint import checkpoint

from convattn.functional import relative_attention_2d
from convattn.layers import AAConv2d
from convattn.layers.rel_pos import POSITIONS

GOLDEN = Path(__file__).parents[1] / "golden" / "aaconv_5x7.safetensors"
OUR_NAMES = {
    "conv_layer": "conv",
    "qkv_layer": "qkv",
    "attn_layer": "proj",
    "key_rel_h": "rel_pos.height",
    "key_rel_w": "rel_pos.width",
}


def small(**kwargs):
    args = {"num_heads": 2, "min_head_dim": 4, "v_ratio": 0.5, "feat_size": (5, 7)} | kwargs
    return AAConv2d(6, 16, 3, **{"padding": 1} | args)


def golden_part(golden, prefix):
    part = {}
    for name, tensor in golden.items():
        if name.startswith(prefix):
            module, _, rest = name.removeprefix(prefix).partition(".")
            part[".".join(filter(None, [OUR_NAMES[module], rest]))] = tensor
    return part


@pytest.mark.parametrize("backend", ["chunked", "sdpa", "plain"])
def test_golden_layer_values_and_gradients(backend):
    golden = load_file(GOLDEN)
    layer = small(num_heads=4, min_head_dim=6, attn_backend=backend).double()
    layer.load_state_dict(golden_part(golden, "state/"))
    x = golden["input"].clone().requires_grad_()
    out = layer(x)
    weight = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out)
    (out * weight).sum().backward()
    torch.testing.assert_close(out, golden["output"], rtol=0, atol=1e-9)
    torch.testing.assert_close(x.grad, golden["input_grad"], rtol=0, atol=1e-9)
    for name, grad in golden_part(golden, "grad/").items():
        torch.testing.assert_close(layer.get_parameter(name).grad, grad, rtol=0, atol=1e-9)


def test_attention_weights_are_the_ones_that_the_forward_pass_uses():
    layer = small().double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    weights = layer.attention_weights(x)
    v = layer.qkv(x)[:, -8:].flatten(2).unflatten(1, (2, 4)).mT  # (B, heads, N, d_v)
    attended = (weights @ v).mT.flatten(1, 2).unflatten(2, (5, 7))
    torch.testing.assert_close(layer(x)[:, 8:], layer.proj(attended))
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize(
    "window", [{}, {"stride": 2}, {"padding": 0}, {"stride": 2, "attn_downsample": 2}]
)
def test_attention_size_is_that_of_the_map_that_attention_runs_on(window):
    layer, x = small(**window), torch.randn(1, 6, 11, 14)
    height, width = layer.attention_size(x)
    assert (height, width) == tuple(layer._attn_input(x).shape[2:])
    assert layer.attention_weights(x).shape[-1] == height * width


def test_queries_choose_rows_and_the_mean_is_over_all(monkeypatch):
    monkeypatch.setattr("convattn.layers.aa_conv._WEIGHTS_AT_ONCE", 2 * 2 * 35 * 3)
    layer, x = small().double(), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    whole = layer.attention_weights(x)
    rows = layer.attention_weights(x, [(0, 6), (4, 2)])
    torch.testing.assert_close(rows, whole[:, :, [6, 30]])
    torch.testing.assert_close(layer.mean_attention(x), whole.mean(2))
    assert layer.mean_attention(x[:0]).shape == (0, 2, 35)


@pytest.mark.parametrize("query", [(5, 0), (0, 7), (-1, 0)])
def test_a_query_outside_the_map_is_named(query):
    message = rf"query \({query[0]}, {query[1]}\) lies outside .* 5 x 7; .* at most \(4, 6\)"
    with pytest.raises(ValueError, match=message):
        small().attention_weights(torch.randn(1, 6, 5, 7), [(0, 0), query])


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("position", POSITIONS)
def test_fast_and_plain_path_agree(position, downsample):
    layer = small(position=position, attn_downsample=downsample, stride=2).double()
    x = torch.randn(2, 6, 12, 9, dtype=torch.float64, requires_grad=True)
    runs = []
    for layer.attn_backend in ("chunked", "sdpa", "plain"):
        out = layer(x)
        runs.append([out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])])
    for fast in runs[:-1]:
        torch.testing.assert_close(fast, runs[-1], rtol=1e-10, atol=1e-12)


def same_size_cases():
    kernels = [1, 2, 3, (3, 5)]
    for case in itertools.product(kernels, [1, 2, 3, (2, 1)], [0, 1, 2, "same", "valid"], [1, 2]):
        kernel, stride, padding, _ = case
        widest = max(kernel) if isinstance(kernel, tuple) else kernel
        if padding == "same" and (stride != 1 or widest == 2):  # PyTorch warns of even kernels
            continue
        if widest == 1 and padding == 2:
            continue
        yield case


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), list(same_size_cases()))
def test_output_size_is_the_convolution_s(kernel, stride, padding, dilation, downsample):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    conv = nn.Conv2d(2, 4, kernel, **options)
    layer = AAConv2d(2, 4, kernel, num_heads=1, attn_downsample=downsample, **options)
    for size in [(9, 9), (10, 13), (16, 11)]:
        x = torch.randn(1, 2, *size)
        assert layer(x).shape == conv(x).shape


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3),
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 3),
)  # fmt: skip
def test_output_size_property(kernel, stride, padding, dilation, height, width, downsample):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if min(height, width) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    x = torch.randn(1, 1, height, width)
    layer = AAConv2d(1, 2, kernel, num_heads=1, attn_downsample=downsample, **options)
    assert layer(x).shape[2:] == nn.Conv2d(1, 1, kernel, **options)(x).shape[2:]


def test_the_attention_sees_what_the_window_is_centred_on():
    layer = AAConv2d(1, 2, 3, num_heads=1, v_ratio=0.5, position="none")  # no padding: 5 -> 3
    x = torch.randn(1, 1, 5, 6)
    torch.testing.assert_close(layer._attn_input(x), x[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("downsample", [1, 2])
def test_every_position_encoding_runs_and_trains_at_any_size(position, downsample):
    layer = small(position=position, attn_downsample=downsample, stride=2)
    for size in [(10, 14), (7, 20), (1, 1), (3, 2)]:
        layer.zero_grad()
        layer(torch.randn(2, 6, *size)).sin().sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("position", ["relative", "sine", "coord"])
def test_a_position_encoding_breaks_the_symmetry_that_none_has(position):
    torch.manual_seed(0)
    x = torch.randn(1, 6, 5, 7)
    for kind in ("none", position):
        layer = small(position=kind)
        straight = layer(x)[:, 8:]
        turned = layer(x.flip(2, 3))[:, 8:].flip(2, 3)
        assert torch.allclose(straight, turned, atol=1e-6) == (kind == "none")


def test_tables_are_equal_at_feat_size_and_resampled_elsewhere():
    layer = small()
    height, width = layer.rel_pos((5, 7))
    assert height is layer.rel_pos.height
    assert width is layer.rel_pos.width
    assert [len(table) for table in layer.rel_pos((8, 3))] == [15, 5]


def test_no_convolution_branch_when_attention_takes_all_channels():
    layer = AAConv2d(6, 16, 3, padding=1, stride=2, num_heads=4, qk_ratio=1, v_ratio=1)
    assert layer.conv is None
    assert layer(torch.randn(2, 6, 9, 8)).shape == (2, 16, 5, 4)


def test_channels_follow_the_paper_s_rule():
    layer = AAConv2d(64, 512, 3, num_heads=8, qk_ratio=0.2, v_ratio=0.1)
    assert (layer.qk_channels, layer.v_channels) == (160, 48)
    layer = AAConv2d(64, 1024, 3, num_heads=8, qk_ratio=0.25, v_ratio=0.25)
    assert (layer.qk_channels, layer.v_channels) == (256, 256)
    assert layer.conv.out_channels == 768


def test_groups_are_the_convolution_branch_s():
    layer = small(groups=2)
    assert layer.conv.groups == 2
    assert layer.qkv.groups == 1


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_for_all_three_convolutions(bias):
    layer = small(bias=bias)
    assert [c.bias is not None for c in (layer.conv, layer.qkv, layer.proj)] == [bias] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("position", POSITIONS)
def test_dtypes(dtype, position):
    layer = small(position=position).to(dtype)
    out = layer(torch.randn(2, 6, 5, 7, dtype=dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("position", POSITIONS)
def test_autocast_is_near_float32(position):
    layer = small(position=position)
    x = torch.randn(2, 6, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    expected = layer(x)
    assert (out.float() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("downsample", [1, 2])
def test_memory_format_is_kept(layout, downsample):
    layer = small(attn_downsample=downsample).to(memory_format=layout)
    x = torch.randn(2, 6, 10, 14).contiguous(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)


def test_batch_of_zero():
    assert small().eval()(torch.randn(0, 6, 5, 7)).shape == (0, 16, 5, 7)


@pytest.mark.parametrize("position", POSITIONS)
def test_gradcheck(position):
    torch.manual_seed(0)
    layer = AAConv2d(
        2, 4, 3, stride=2, padding=1, num_heads=1, min_head_dim=4, v_ratio=0.5,
        position=position, feat_size=2,
    ).double()  # fmt: skip
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.long
def test_compiles_whole():
    layer = small(stride=2).eval()
    x = torch.randn(2, 6, 10, 14)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    Version(torch.__version__).release < (2, 15),
    reason="torch.export of before cannot hold sizes free of a downsampled map (2.9 to 2.13 tried)",
)
@pytest.mark.parametrize("position", POSITIONS)
def test_exports_with_dynamic_batch_and_size(position):
    layer = small(position=position, attn_downsample=2, feat_size=(16, 24)).eval()
    sizes = {0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)}
    program = export(layer, (torch.randn(2, 6, 16, 20),), dynamic_shapes=(sizes,))
    for shape in [(2, 6, 16, 24), (3, 6, 33, 9), (1, 6, 8, 64)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone):
    layer, x = small(), torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(clone(layer)(x), layer(x), rtol=0, atol=0)


def test_gradient_checkpointing_changes_nothing():
    layer, x = small(), torch.randn(2, 6, 5, 7, requires_grad=True)
    params = [x, *layer.parameters()]
    plain = torch.autograd.grad(layer(x).sin().sum(), params)
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sin().sum(), params)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_every_parameter_is_there_from_the_start():
    layer = small()
    names = set(layer.state_dict())
    layer(torch.randn(1, 6, 9, 4))
    assert set(layer.state_dict()) == names


def test_layer_uses_the_function():
    layer = small(position="none").double()
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    q, k, v = layer._project(x)
    out = relative_attention_2d(q, k, v, feat_size=(5, 7), backend="plain")
    out = layer.proj(out.mT.flatten(1, 2).unflatten(2, (5, 7)))
    torch.testing.assert_close(layer(x)[:, 8:], out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 is not a positive integer"),
        ({"num_heads": 7, "v_ratio": 1.0}, "num_heads=7 cannot share out_channels=16.*=8"),
        ({"num_heads": 32}, "num_heads=32 cannot share out_channels=16.*num_heads=16"),
        ({"qk_ratio": 2}, "qk_ratio=2 is not between 0 and 1"),
        ({"v_ratio": -0.1}, "v_ratio=-0.1 is not between 0 and 1"),
        ({"position": "rotary"}, "'rotary' is not one of relative, sine, coord, none"),
        ({"groups": 3}, "groups=3 does not divide the 8 channels.*groups=2"),
        ({"stride": 0}, "stride=0 is not an integer of at least 1"),
        ({"feat_size": (3, 4, 5)}, "feat_size=.3, 4, 5. is not"),
        ({"attn_downsample": 0}, "attn_downsample=0 is not a positive integer"),
    ],
)
def test_wrong_arguments_are_named_with_one_that_works(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"input of shape \(2, 5, 8, 8\), expected \(B, 6, H, W\)"):
        small()(torch.randn(2, 5, 8, 8))


@pytest.mark.parametrize("words", [{}, {"stride": 2}, {"groups": 2}, {"v_ratio": 1.0}])
def test_residual_attention_is_added_to_the_last_channels(words):
    torch.manual_seed(0)
    layer = small(residual=True, **words).double()
    nn.init.normal_(layer.proj.weight)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    attention = small(**{**words, "groups": 1}).double()
    for name in ("qkv", "proj", "rel_pos"):
        getattr(attention, name).load_state_dict(getattr(layer, name).state_dict())
    expected = layer.conv(x).clone()
    expected[:, -layer.v_channels :] += attention(x)[:, -layer.v_channels :]
    torch.testing.assert_close(layer(x), expected)


def test_residual_attention_begins_as_the_convolution():
    layer = small(residual=True)
    x = torch.randn(2, 6, 9, 8)
    assert torch.equal(layer(x), layer.conv(x))


def test_residual_attention_takes_groups_that_the_paper_s_layer_cannot():
    layer = AAConv2d(16, 16, 3, padding=1, groups=16, num_heads=2, residual=True)
    assert layer(torch.randn(1, 16, 5, 5)).shape == (1, 16, 5, 5)
    with pytest.raises(ValueError, match="groups=16 does not divide"):
        AAConv2d(16, 16, 3, padding=1, groups=16, num_heads=2)
