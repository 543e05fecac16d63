"""Cases carry the marker ``gpu``; ``test_interpreted`` runs them on the CPU.

That computes with NumPy what the kernels say: whether they are right, but not whether they compile.
Another test compiles them for two GPUs.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convattn.kernels.attention.plain import plain_attention

pytest.importorskip("triton", reason="no Triton for this machine")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convattn.kernels.attention import experimental_triton as ours
from tests.kernels.interpreter import DEVICE, INTERPRETED

NAMES = ("out", "q", "k", "v", "bias_h", "bias_w")


def make_inputs(size, dim, v_dim, *, pairs=(1, 1), dtype=torch.float32, biased=True, sharpness=1.0):
    """As float64 numbers that ``dtype`` can hold; and weights for the output."""
    height, width = size
    generator = torch.Generator().manual_seed(0)

    def draw(last):
        shape = (*pairs, height * width, last)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).double()

    q, k, v, weight = draw(dim), draw(dim), draw(v_dim), draw(v_dim)
    q = (q * sharpness * dim**-0.5).to(dtype).double()
    biases = [sharpness * draw(height), sharpness * draw(width)] if biased else [None, None]
    return [q, k, v, *biases], weight


def run(attention, inputs, weight, dtype, device):
    """The output and all gradients, in float64."""
    leaves = [None if t is None else t.to(device, dtype).requires_grad_() for t in inputs]
    out = attention(*leaves)
    out.backward(weight.to(device, dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def check(inputs, weight, tolerance, *, dtype=torch.float32, attention=ours.triton_attention):
    results = run(attention, inputs, weight, dtype, DEVICE)
    exact = run(plain_attention, inputs, weight, torch.float64, "cpu")
    for name, got, expected in zip(NAMES, results, exact, strict=False):
        assert got.dtype == dtype, name
        # A map of one row gives that row's bias no gradient at all.
        scale = max(expected.norm().item(), 1e-2 * weight.norm().item())
        assert (got.cpu().double() - expected).norm().item() <= tolerance * scale, name


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(3, 5), (7, 7), (14, 14), (9, 33), (1, 40), (20, 3)])
def test_equals_the_plain_path_at_every_size(size):
    check(*make_inputs(size, 20, 2), 1e-5)


@pytest.mark.slow  # in the interpreter
@pytest.mark.gpu
def test_equals_the_plain_path_at_the_size_of_cifar():
    check(*make_inputs((32, 32), 20, 2, dtype=torch.bfloat16), 1e-2, dtype=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "v_dim"), [(20, 2), (8, 8), (16, 5), (40, 64), (5, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_plain_path_for_all_heads_and_types(dim, v_dim, dtype):
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    check(*make_inputs((6, 7), dim, v_dim, dtype=dtype), tolerance, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(5, 7), (9, 8)])
def test_without_biases_it_is_plain_attention(size):
    check(*make_inputs(size, 20, 2, biased=False), 1e-5)


@pytest.mark.gpu
def test_images_and_heads_are_apart():
    check(*make_inputs((3, 5), 8, 3, pairs=(2, 3)), 1e-5)


@pytest.mark.gpu
def test_an_empty_batch_gives_an_empty_batch():
    inputs, weight = make_inputs((3, 5), 8, 3, pairs=(0, 2))
    results = run(ours.triton_attention, inputs, weight, torch.float32, DEVICE)
    assert [tuple(t.shape[:3]) for t in results] == 6 * [(0, 2, 15)]


@pytest.mark.gpu
def test_sharp_logits_lose_no_more_than_their_rounding():
    check(*make_inputs((7, 7), 20, 2, sharpness=30.0), 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_lose_no_more_than_their_rounding(shift):
    inputs, weight = make_inputs((7, 7), 20, 2)
    inputs[3] = (inputs[3] + shift).float().double()
    check(inputs, weight, 2e-3)  # float32 steps by 1e-3 at 1e4


@pytest.mark.gpu
def test_any_strides_do():
    inputs, weight = make_inputs((3, 5), 20, 4, pairs=(1, 2))
    expected = run(ours.triton_attention, inputs, weight, torch.float32, DEVICE)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (*inputs, weight)]
    got = run(ours.triton_attention, turned[:5], turned[5], torch.float32, DEVICE)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.gpu
def test_compiled_it_is_one_graph():
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(ours.triton_attention, fullgraph=True, backend=backend)
    check(*make_inputs((7, 7), 20, 2), 1e-5, attention=compiled)


# opcheck itself looks at gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.gpu
def test_the_operator_keeps_the_rules_of_operators():
    inputs, _ = make_inputs((3, 5), 8, 3)
    leaves = [t.float().to(DEVICE).requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.convattn.triton_attention.default, leaves)


def test_counts_the_work_of_attention_alone():
    q = torch.empty(2, 3, 35, 20, device="meta", requires_grad=True)
    v = torch.empty(2, 3, 35, 2, device="meta", requires_grad=True)
    biases = (torch.empty(2, 3, 35, side, device="meta", requires_grad=True) for side in (5, 7))
    with FlopCounterMode(display=False) as counter:
        out = ours.triton_attention(q, q, v, *biases)
    forward = 2 * 2 * 3 * 35**2 * (20 + 2)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 3 * 35**2 * (3 * 20 + 2 * 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "device", "reason"),
    [
        ((1, 1, 4, 8), torch.float32, "cpu", "need a CUDA device, not cpu"),
        ((1, 1, 4, 8), torch.float64, "cuda", "not torch.float64"),
        (
            (1, 1, 4, 300),
            torch.float32,
            "cuda",
            "at most 128 channels in torch.float32, not 300 and 300",
        ),
        ((1, 1, 4, 256), torch.bfloat16, "cuda", None),
    ],
)
def test_says_what_it_cannot_take(shape, dtype, device, reason):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(shape, dtype=dtype, device=device)
    said = ours.refusal(q, q)
    assert said == reason if reason is None else reason in said


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a kernel as a launch would, for a GPU that need not be here."""

    def build(kernel, dtype, capability, *, dim=20, v_dim=2, size=(14, 14)):
        q, v, *biases = (
            torch.empty(1, 1, size[0] * size[1], last, dtype=dtype, device="meta")
            for last in (dim, v_dim, *size)
        )
        words = ours._options(q, v, *biases, backward=kernel is not ours._forward)
        words["WHOLE_ROWS"] = True
        numbers = "*bf16" if dtype == torch.bfloat16 else "*fp32"
        signature, constants, aligned = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            if name.isupper():
                signature[name], constants[place,] = "constexpr", words[name]
            elif name in words:
                signature[name] = "i32"
            else:
                signature[name] = "*fp32" if name in ("logsumexp", "delta") else numbers
                aligned[place,] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        options = {n: words[n] for n in ("num_warps", "num_stages", "enable_fp_fusion")}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield build


KERNELS = pytest.mark.parametrize("name", ["_forward", "_backward_queries", "_backward_keys"])


@KERNELS
def test_bfloat16_takes_the_matrix_units_of_hopper(name, build):
    kernel = build(getattr(ours, name), torch.bfloat16, 90)
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert kernel.metadata.shared < 99 * 1024


@KERNELS
def test_float32_stays_float32_on_ampere(name, build):
    kernel = build(getattr(ours, name), torch.float32, 80)
    assert "tf32" not in kernel.asm["ptx"]
    assert kernel.metadata.shared < 99 * 1024


@pytest.mark.parametrize(
    ("size", "keys", "shape"),
    [
        ((7, 7), 64, (8, 8)),
        ((14, 14), 64, (4, 16)),
        ((32, 32), 64, (2, 32)),
        ((40, 40), 64, (8, 8)),
        ((64, 64), 64, (1, 64)),
        ((128, 128), 64, (1, 64)),
        ((32, 32), 32, (1, 32)),
        ((1, 1), 32, (1, 32)),
    ],
)
def test_tiles_leave_little_of_the_map_empty(size, keys, shape):
    assert ours._tile_shape(*size, keys) == shape
