import warnings

import pytest
import torch

import convattn.kernels.attention as kernels
from convattn import AAConv2d, relative_attention_2d
from convattn.kernels import measured
from convattn.kernels.attention import BACKENDS, VARIABLE, attention

SIZE = (2, 3)


@pytest.fixture
def used(monkeypatch):
    """The kernels that ran, in order."""
    names = []

    def watch(name, kernel):
        def watched(*inputs):
            names.append(name)
            return kernel(*inputs)

        return watched

    for name in ("chunked", "sdpa", "plain"):
        kernel = getattr(kernels, f"{name}_attention")
        monkeypatch.setattr(kernels, f"{name}_attention", watch(name, kernel))
    return names


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 6, 4), (2, 2, 6, 4), (2, 2, 6, 2), (3, 4), (5, 4)]
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def small(**words):
    return AAConv2d(8, 8, 3, padding=1, num_heads=2, feat_size=(4, 5), **words)


def test_the_cpu_takes_blocks(used):
    attention(*inputs(), feat_size=SIZE)
    assert used == ["chunked"]


@pytest.mark.parametrize(("gradients", "expected"), [(True, "chunked"), (False, "sdpa")])
def test_matrix_units_for_bfloat16_take_the_wider_product(used, monkeypatch, gradients, expected):
    monkeypatch.setattr(kernels, "_HAS_AMX", True)
    with torch.set_grad_enabled(gradients):
        attention(*(t.bfloat16() for t in inputs()), feat_size=SIZE)
    attention(*inputs(), feat_size=SIZE)
    assert used == [expected, "chunked"]


def test_the_variable_overrides(used, monkeypatch):
    monkeypatch.setenv(VARIABLE, "plain")
    small()(torch.randn(1, 8, 4, 5))
    assert used == ["plain"]


def test_the_argument_counts_more_than_the_variable(used, monkeypatch):
    monkeypatch.setenv(VARIABLE, "plain")
    small(attn_backend="sdpa")(torch.randn(1, 8, 4, 5))
    assert used == ["sdpa"]


def test_an_empty_variable_is_none(used, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    attention(*inputs(), feat_size=SIZE)
    assert used == ["chunked"]


def test_an_unknown_variable_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"{VARIABLE}='fast' is not one of auto, plain, chunked"):
        attention(*inputs(), feat_size=SIZE)


def test_an_unknown_variable_is_named_when_a_layer_is_made(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"^{VARIABLE}='fast' is not one of auto, plain, chunked"):
        small()


def test_an_unknown_backend_is_refused_when_the_layer_is_made():
    with pytest.raises(ValueError, match="attn_backend='fast' is not one of auto, plain, chunked"):
        small(attn_backend="fast")


def test_an_impossible_backend_names_the_possible_ones():
    message = (
        "'experimental_triton' runs on cuda, and the tensors are on cpu: "
        "choose among auto, plain, chunked"
    )
    with pytest.raises(ValueError, match=message):
        attention(*inputs(), feat_size=SIZE, backend="experimental_triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_networks_are_built_and_counted_whatever_runs_them_later(backend):
    out = attention(*(t.to("meta") for t in inputs()), feat_size=SIZE, backend=backend)
    assert out.shape == (2, 2, 6, 2)


def test_an_exported_program_holds_no_operator_of_ours():
    program = torch.export.export(small(), (torch.randn(1, 8, 4, 5),))
    assert "scaled_dot_product_attention" in str(program.graph)
    assert "convattn" not in str([node.target for node in program.graph.nodes])


def test_a_traced_module_holds_no_operator_of_ours(used):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and speaks of sizes
        torch.jit.trace(small().eval(), torch.randn(1, 8, 4, 5), check_trace=False)
    assert used == ["sdpa"]


def test_a_compiled_layer_is_one_graph():
    layer, x = small(), torch.randn(2, 8, 4, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_samples():
    q, k, v = (torch.randn(3, 2, 6, 4) for _ in range(3))
    rel_h, rel_w = torch.randn(3, 4), torch.randn(5, 4)

    def loss(q, k, v):
        out = relative_attention_2d(q[None], k[None], v[None], rel_h, rel_w, feat_size=(2, 3))
        return out.sin().sum()

    of_each = torch.func.vmap(torch.func.grad(loss))(q, k, v)
    leaf = q[1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf, k[1], v[1]), leaf)
    torch.testing.assert_close(of_each[1], grad)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_layer_that_runs_out_of_memory_says_what_helps(error, monkeypatch):
    def starve(*_):
        raise error

    monkeypatch.setattr(kernels, "chunked_attention", starve)
    message = r"AAConv2d\(8, 8, .* 3 maps of 4 x 5; attn_downsample=2, smaller .*" + str(error)[:9]
    with pytest.raises(torch.OutOfMemoryError, match=message):
        small()(torch.randn(3, 8, 4, 5))


def test_other_errors_pass(monkeypatch):
    def fail(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(kernels, "chunked_attention", fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        small()(torch.randn(3, 8, 4, 5))


@pytest.fixture
def refusing(monkeypatch):
    """Triton's kernels, where they take no heads of that width."""
    monkeypatch.setitem(kernels._DEVICES, "experimental_triton", ("cpu",))
    monkeypatch.setattr(kernels, "_refusal", lambda *_: "heads of 300 channels are too wide")


def test_what_was_asked_for_and_refuses_is_an_error(refusing):
    with pytest.raises(ValueError, match="'experimental_triton' cannot be had: heads of 300"):
        attention(*inputs(), feat_size=SIZE, backend="experimental_triton")


def test_only_triton_refuses():
    q, _, v, *_ = inputs()
    assert [name for name in BACKENDS if kernels._refusal(name, q, v) is not None] in (
        [],
        ["experimental_triton"],
    )


class Somewhere:
    """A device and a dtype, as a tensor has them."""

    def __init__(self, device, dtype):
        self.device, self.dtype, self.shape = torch.device(device), dtype, (2, 2, 6, 4)


@pytest.fixture
def table(monkeypatch):
    """Measurements of a device that was invented."""
    monkeypatch.setattr(measured, "_name", lambda _: "Invented 9000")
    entry = {"bfloat16": {"inference": "experimental_triton", "training": "plain"}}
    monkeypatch.setattr(measured, "TABLE", {"Invented 9000": entry})
    return entry


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_measured_device_has_its_own_default(table, monkeypatch, dtype, training):
    monkeypatch.setattr(kernels, "_refusal", lambda *_: None)
    expected = {False: "experimental_triton", True: "plain"}[training]
    there = Somewhere("cuda", dtype)
    with torch.set_grad_enabled(training):
        chosen = kernels._chosen(None, there, there)
    assert chosen == (expected if dtype == torch.bfloat16 else "sdpa")


def test_a_measured_default_that_refuses_gives_way(table, refusing):
    there = Somewhere("cuda", torch.bfloat16)
    with torch.no_grad():
        assert kernels._chosen(None, there, there) == "sdpa"


def test_measurements_are_of_gpus_alone(table, used):
    attention(*inputs(), feat_size=SIZE)
    assert used == ["chunked"]


def test_other_devices_have_the_default_of_before(table, monkeypatch):
    monkeypatch.setattr(measured, "_name", lambda _: "Invented 9001")
    there = Somewhere("cuda", torch.bfloat16)
    assert kernels._chosen(None, there, there) == "sdpa"


def test_the_table_names_backends():
    for dtypes in measured.TABLE.values():
        for kinds in dtypes.values():
            assert kinds.keys() <= {"inference", "training"}
            assert set(kinds.values()) <= set(BACKENDS) - {"auto", "chunked"}


def test_every_backend_is_described():
    for name in set(BACKENDS) - {"auto"}:
        assert f"\n{name} " in kernels.__doc__
