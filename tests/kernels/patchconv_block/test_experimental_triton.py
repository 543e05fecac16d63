"""The kernels of PatchConvNet's block against PyTorch in float64; see attention's tests."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton", reason="no Triton for this machine")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convattn.inference.blocks import FoldedPatchConvBlock
from convattn.kernels.patchconv_block import experimental_triton as ours
from convattn.models.patchconvnet import PatchConvBlock
from tests.kernels.interpreter import DEVICE, INTERPRETED

EPS = 1e-6
# Of the result's largest number. What enters a product is rounded once, and so is the result: by
# 2^-12 in float16, and by 2^-9 in bfloat16, or 2^-8 in the interpreter, which cuts off. The errors
# of 64 products hardly add up; in float32 they are all there is.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
CASES = pytest.mark.parametrize(
    ("size", "channels", "dtype"),
    [
        ((3, 5), 40, torch.float32),
        ((1, 4), 64, torch.float32),
        ((14, 14), 5, torch.float32),
        ((3, 5), 40, torch.float16),
        ((3, 5), 40, torch.bfloat16),
    ],
    ids=str,
)
FUNCTIONS = pytest.mark.parametrize(
    "function", [ours.norm_linear_gelu, ours.depthwise_gelu_sums, ours.scale_linear_residual]
)


def draw(*shapes, dtype=torch.float32):
    """As float64 numbers that ``dtype`` can hold."""
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.to(dtype).double() for t in numbers]


def inputs_of(function, *, size=(3, 5), channels=20, outputs=None, batch=2, dtype=torch.float32):
    """Arguments that are tensors, the map first."""
    outputs = channels if outputs is None else outputs
    vectors = {
        ours.norm_linear_gelu: [(batch, *size, channels), (outputs, channels), (outputs,)],
        ours.depthwise_gelu_sums: [(batch, *size, channels), (channels, 1, 3, 3), (channels,)],
        ours.scale_linear_residual: [
            (batch, size[0] * size[1], channels),
            (batch, channels),
            (outputs, channels),
            (outputs,),
            (batch, size[0] * size[1], outputs),
        ],
    }
    return draw(*vectors[function], dtype=dtype)


def norm_linear_gelu(x, weight, bias, eps=EPS):
    return F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], eps=eps), weight, bias))


def depthwise_gelu_sums(x, weight, bias):
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    x = F.gelu(x).permute(0, 2, 3, 1)
    return x, x.sum((1, 2))


def scale_linear_residual(x, gate, weight, bias, residual):
    return residual + F.linear(x * gate[:, None], weight, bias)


def arguments(function, inputs, dtype=torch.float32, device=DEVICE):
    extra = [EPS] if function is ours.norm_linear_gelu else []
    return [*(t.to(device, dtype) for t in inputs), *extra]


def run(function, inputs, dtype=torch.float32):
    return function(*arguments(function, inputs, dtype))


def check(got, expected, dtype, *, tolerance=None):
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    scale = expected.abs().max().item()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.gpu
@CASES
def test_norm_linear_gelu_equals_float64(size, channels, dtype):
    inputs = inputs_of(ours.norm_linear_gelu, size=size, channels=channels, outputs=72, dtype=dtype)
    got = run(ours.norm_linear_gelu, inputs, dtype)
    check(got, norm_linear_gelu(*inputs), dtype)


@pytest.mark.gpu
@CASES
def test_depthwise_equals_float64(size, channels, dtype):
    inputs = inputs_of(ours.depthwise_gelu_sums, size=size, channels=channels, dtype=dtype)
    got, _ = run(ours.depthwise_gelu_sums, inputs, dtype)
    check(got, depthwise_gelu_sums(*inputs)[0], dtype)


@pytest.mark.gpu
@CASES
def test_sums_are_of_numbers_before_rounding(size, channels, dtype):
    inputs = inputs_of(ours.depthwise_gelu_sums, size=size, channels=channels, dtype=dtype)
    _, sums = run(ours.depthwise_gelu_sums, inputs, dtype)
    check(sums, depthwise_gelu_sums(*inputs)[1], torch.float32)


@pytest.mark.gpu
@CASES
def test_scale_linear_residual_equals_float64(size, channels, dtype):
    inputs = inputs_of(
        ours.scale_linear_residual, size=size, channels=channels, outputs=72, dtype=dtype
    )
    got = run(ours.scale_linear_residual, inputs, dtype)
    check(got, scale_linear_residual(*inputs), dtype)


@pytest.mark.gpu
def test_maps_wider_than_a_tile_have_no_seams():
    inputs = inputs_of(ours.depthwise_gelu_sums, size=(9, 17), channels=3, batch=1)
    got, sums = run(ours.depthwise_gelu_sums, inputs, torch.float32)
    expected, expected_sums = depthwise_gelu_sums(*inputs)
    check(got, expected, torch.float32)
    check(sums, expected_sums, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [ours.norm_linear_gelu, ours.scale_linear_residual])
def test_large_tiles_equal_float64(function, monkeypatch):
    monkeypatch.setattr(ours._Tile, "of", lambda *_: ours._Tile(128, 128, 32, 8, 4))
    inputs = inputs_of(function, size=(10, 20), outputs=140, dtype=torch.bfloat16)
    oracle = globals()[function.__name__]
    check(run(function, inputs, torch.bfloat16), oracle(*inputs), torch.bfloat16)


@pytest.mark.gpu
def test_a_large_mean_costs_no_more_than_its_rounding():
    x, weight, bias = inputs_of(ours.norm_linear_gelu)
    x = (x + 1e4).float().double()
    got = run(ours.norm_linear_gelu, [x, weight, bias], torch.float32)
    # The mean of numbers near 1e4 is wrong by up to 1e-3, a thousandth of their deviation.
    check(got, norm_linear_gelu(x, weight, bias), torch.float32, tolerance=2e-3)


def first(results):
    return results[0] if isinstance(results, tuple) else results


@pytest.mark.gpu
@FUNCTIONS
def test_an_empty_batch_gives_an_empty_batch(function):
    inputs = inputs_of(function, batch=0)
    assert first(run(function, inputs, torch.float32)).shape == inputs[0].shape


@pytest.mark.gpu
def test_sums_of_an_empty_batch_are_empty():
    inputs = inputs_of(ours.depthwise_gelu_sums, batch=0)
    assert run(ours.depthwise_gelu_sums, inputs, torch.float32)[1].shape == (0, 20)


@pytest.mark.gpu
def test_sums_are_the_same_to_the_bit_in_every_call():
    inputs = inputs_of(ours.depthwise_gelu_sums, size=(9, 17), channels=3, batch=1)
    one, other = (run(ours.depthwise_gelu_sums, inputs, torch.float32)[1] for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.gpu
@FUNCTIONS
def test_any_strides_do(function):
    inputs = inputs_of(function)
    expected = first(run(function, inputs, torch.float32))
    turned = [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in inputs]
    got = first(run(function, turned, torch.float32))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.gpu
@FUNCTIONS
def test_compiled_it_is_one_graph(function):
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    inputs = inputs_of(function)
    got, expected = first(compiled(*arguments(function, inputs))), first(run(function, inputs))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.gpu
@FUNCTIONS
def test_the_operators_keep_the_rules_of_operators(function):
    operator = getattr(torch.ops.convattn, function.__name__).default
    torch.library.opcheck(operator, arguments(function, inputs_of(function)))


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (ours.norm_linear_gelu, 2 * 2 * 15 * 20 * 72),
        (ours.depthwise_gelu_sums, 2 * 2 * 15 * 20 * 9),
        (ours.scale_linear_residual, 2 * 2 * 15 * 20 * 72),
    ],
)
def test_counts_products(function, flops):
    inputs = inputs_of(function, outputs=72)
    with FlopCounterMode(display=False) as counter:
        function(*arguments(function, inputs, device="meta"))
    assert counter.get_total_flops() == flops


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes any device")
def test_refuses_other_devices():
    inputs = inputs_of(ours.norm_linear_gelu)
    with pytest.raises(ValueError, match="need a CUDA device, not cpu: use PyTorch's own"):
        ours.norm_linear_gelu(*arguments(ours.norm_linear_gelu, inputs, device="cpu"))


def test_refuses_other_dtypes():
    inputs = [t.to("meta") for t in inputs_of(ours.depthwise_gelu_sums)]
    with pytest.raises(ValueError, match=r"not torch\.float64: use PyTorch's own"):
        ours.depthwise_gelu_sums(*inputs)


@pytest.mark.parametrize(
    ("function", "place"),
    [(ours.norm_linear_gelu, 1), (ours.norm_linear_gelu, 2)]
    + [(ours.depthwise_gelu_sums, i) for i in (1, 2)]
    + [(ours.scale_linear_residual, i) for i in range(1, 5)],
)
@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_refuses_what_does_not_fit_the_map(function, place, wrong):
    given = arguments(function, inputs_of(function), device="meta")
    given[place] = given[place][..., 1:] if wrong == "shape" else given[place].half()
    with pytest.raises(ValueError, match=r"is \(.*; with x \(2, .*\) it must be \("):
        function(*given)


@pytest.mark.parametrize(
    ("function", "expected"),
    [(ours.depthwise_gelu_sums, "(B, H, W, C)"), (ours.scale_linear_residual, "(B, N, C)")],
)
def test_refuses_maps_of_another_kind(function, expected):
    x, *others = (t.to("meta", torch.float32) for t in inputs_of(function))
    with pytest.raises(ValueError, match=re.escape(f"which is not {expected}: reshape it")):
        function(x[0], *others)


def words_of(kernel, dtype, channels):
    """What a launch of the kernel on 256 maps of 14 x 14 says, less the tensors and numbers."""
    if kernel is ours._depthwise_gelu_sums_kernel:
        return {"C": channels} | ours._DEPTHWISE
    weight = torch.empty(channels, channels, dtype=dtype, device="meta")
    return ours._options(weight, 256, 196)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a kernel as a launch would, for a GPU that need not be here."""

    def build(kernel, dtype, channels, capability):
        words = words_of(kernel, dtype, channels)
        numbers = "*bf16" if dtype == torch.bfloat16 else "*fp32"
        kinds = dict.fromkeys(("size", "height", "width"), "i32") | {"eps": "fp32", "sums": "*fp32"}
        signature, constants, aligned = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            if name.isupper():
                signature[name], constants[place,] = "constexpr", words[name]
            else:
                signature[name] = kinds.get(name, numbers)
                if signature[name].startswith("*"):
                    aligned[place,] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        options = {n: v for n, v in words.items() if n not in kernel.arg_names}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield build


@pytest.mark.parametrize(
    "name",
    ["_norm_linear_gelu_kernel", "_depthwise_gelu_sums_kernel", "_scale_linear_residual_kernel"],
)
@pytest.mark.parametrize(
    ("channels", "dtype", "capability"),
    [
        (384, torch.bfloat16, 80),
        (1024, torch.float32, 80),
        (1024, torch.bfloat16, 90),
        (384, torch.float32, 90),
    ],
    ids=str,
)
def test_compiles_within_the_shared_memory_of_small_gpus(build, name, channels, dtype, capability):
    kernel = build(getattr(ours, name), dtype, channels, capability)
    assert f".target sm_{capability}" in kernel.asm["ptx"]
    assert kernel.metadata.shared < 99 * 1024


@pytest.mark.parametrize("name", ["_norm_linear_gelu_kernel", "_scale_linear_residual_kernel"])
def test_bfloat16_takes_the_matrix_units_of_hopper(build, name):
    kernel = build(getattr(ours, name), torch.bfloat16, 1024, 90)
    assert "wgmma.mma_async" in kernel.asm["ptx"]


@pytest.mark.parametrize("name", ["_norm_linear_gelu_kernel", "_scale_linear_residual_kernel"])
def test_float32_stays_float32_on_ampere(build, name):
    assert "tf32" not in build(getattr(ours, name), torch.float32, 1024, 80).asm["ptx"]


@pytest.mark.parametrize(
    ("images", "size", "rows"),
    [(256, 196, 128), (1, 196, 64), (1, 256 * 196, 128), (999, 49, 64)],
)
def test_small_tiles_are_for_little_work(images, size, rows):
    assert ours._Tile.of(torch.bfloat16, images, size, 384).rows == rows


@pytest.mark.gpu
def test_a_folded_block_is_the_same_by_the_kernels():
    torch.manual_seed(0)
    block = PatchConvBlock(16, layer_scale=0.5)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    folded = FoldedPatchConvBlock(block).eval()
    x = torch.randn(2, 16, 3, 5)
    with torch.no_grad():
        expected = folded.double()(x.double())
        folded.float().to(DEVICE).kernels = "experimental_triton"
        found = folded(x.to(DEVICE))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
