import csv
import multiprocessing
import os
import platform
import signal
import sys
from functools import partial

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from convattn import AAConv2d
from convattn.bench import (
    LAYERS,
    OUT_OF_MEMORY,
    Costs,
    Row,
    Subject,
    count,
    draw_costs,
    layer_subject,
    measure,
    model_subject,
    take_turns,
)

MIB = 2**20
NANO = partial(model_subject, "patchconvnet_nano", embed_dim=16, depth=1)
WIDE = 64  # channels of ``Wide``
seen_gradients = []


class Wide(nn.Sequential):
    """One convolution, whose output is nearly all the memory it needs."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, WIDE, 3, padding=1))


class Heavy(nn.Sequential):
    """Thirty-two weights of a mebibyte each."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 512, 1), *(nn.Conv2d(512, 512, 1, bias=False) for _ in range(32))
        )


class Starves(Wide):
    """Has no memory for more than one image."""

    def forward(self, x):
        if len(x) > 1:
            x.new_empty(2**48)
        return super().forward(x)


class Killed(Wide):
    """The system ends it for more than one image, in a process of its own only."""

    def forward(self, x):
        if len(x) > 1 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Looks(Wide):
    """Tells whether its input needs a gradient."""

    def forward(self, x):
        if self.training:
            seen_gradients.append(x.requires_grad)
        return super().forward(x)


def subject(kind=Wide, size=8, **words):
    return Subject(name=kind.__name__, make=kind, input_size=(3, size, size), **words)


def row(**words):
    usual = {
        "name": "net",
        "device": "cpu",
        "height": 32,
        "width": 32,
        "dtype": "float32",
        "mode": "eager",
        "step": "inference",
        "batch_size": 1,
        "parameters": 10,
        "macs": 20,
        "activations": 30,
        "median_ms": 2.0,
        "low_ms": 1.5,
        "high_ms": 2.5,
        "images_per_second": 500.0,
        "memory_bytes": 3 * MIB,
        "error": None,
    }
    return Row(**usual | words)


STARVED = {
    "median_ms": None,
    "low_ms": None,
    "high_ms": None,
    "images_per_second": None,
    "memory_bytes": None,
    "error": OUT_OF_MEMORY,
}


def costs(*rows):
    return Costs(name="net", device="cpu", threads=1, torch="2.11", rows=rows, interrupted=False)


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs", "activations"),
    [("resnet50", 25.557032, 4.09, 11.11), ("vit_base_patch16_224", 86.567656, 17.56, 16.49)],
)
def test_counts_are_those_of_timms_tables(name, parameters, gmacs, activations):
    with torch.device("meta"):
        network = timm.create_model(name)
    found = count(network, (3, 224, 224))
    assert found.parameters == parameters * 1e6
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=0.006)
    assert found.activations / 1e6 == pytest.approx(activations, abs=0.006)


@pytest.mark.parametrize("backend", [None, "sdpa", "experimental_triton"])
def test_attention_counts_what_the_result_needs_whatever_computes_it(backend):
    layer = AAConv2d(160, 160, 3, padding=1, feat_size=32, attn_backend=backend)
    size, heads, head_dim, dim_v = 32 * 32, 8, 20, 16
    maps = size * (160 * (9 * 144 + 2 * 160 + dim_v) + dim_v**2)
    attention = size**2 * (heads * head_dim + dim_v)
    positions = heads * size * head_dim * (32 + 32)
    assert count(layer, (160, 32, 32)).macs == maps + attention + positions
    assert layer.attn_backend == backend


def test_steps_take_turns_and_one_that_fails_drops_out():
    calls, broken = [], []

    def breaks():
        calls.append("b")
        if broken:
            raise RuntimeError("broken")
        broken.append(True)

    steps = {"a": lambda: calls.append("a"), "b": breaks, "c": lambda: calls.append("c")}
    ticks = iter(range(100))

    def seconds(step):
        step()
        return next(ticks)

    told = list(take_turns(steps, 3, seconds))
    assert "".join(calls) == "abc" + "abc" + "ac"
    assert [(turn, key) for turn, key, _ in told] == [
        *((0, key) for key in "abc"),
        *((1, key) for key in "abc"),
        *((2, key) for key in "ac"),
    ]
    assert [str(result) for _, _, result in told] == ["0", "1", "2", "3", "broken", "4", "5", "6"]


def test_every_size_format_and_step_gets_a_row():
    found = measure(
        subject(), sizes=[8, 4], batch_size=2, dtypes=["float32", "bfloat16"], repeats=1, warn=list
    )
    assert [(one.height, one.dtype, one.step, one.batch_size) for one in found.rows] == [
        (size, dtype, step, batch)
        for size in (8, 4)
        for dtype in ("float32", "bfloat16")
        for step, batch in (("inference", 1), ("inference", 2), ("training", 2))
    ]
    assert all(one.error is None and one.memory_bytes for one in found.rows)
    assert all(one.low_ms <= one.median_ms <= one.high_ms for one in found.rows)
    assert [one.macs for one in found.rows] == 6 * [27 * WIDE * 64] + 6 * [27 * WIDE * 16]


def test_without_training_and_a_larger_batch_one_row_is_left():
    (found,) = measure(subject(), batch_size=1, training=False, repeats=1).rows
    assert found.images_per_second == pytest.approx(1e3 / found.median_ms)


def test_memory_is_that_of_the_batch():
    """64 images of 64 x 64 fill 64 MiB more than none do; a training step needs as much again."""
    batch = 64
    one, several, trained = measure(subject(size=64), batch_size=batch, repeats=1).rows
    more = (several.memory_bytes - one.memory_bytes) / MIB
    assert 0.9 < more / (batch * WIDE * 64 * 64 * 4 / MIB) < 2.5
    assert trained.memory_bytes > 1.5 * several.memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell libraries apart")
def test_memory_does_not_count_what_libraries_the_process_holds():
    (found, *_) = measure(subject(), training=False, repeats=1).rows
    assert found.memory_bytes < 4 * MIB  # libraries take tens, importing PyTorch hundreds


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the highest peak")
def test_memory_does_not_count_the_weights_that_were_converted():
    heavy = Subject(name="heavy", make=Heavy, input_size=(3, 1, 1))
    (found, *_) = measure(heavy, dtypes=["bfloat16"], training=False, repeats=1, warn=list).rows
    assert 0.9 < found.memory_bytes / (2 * found.parameters) < 1.5


@pytest.mark.parametrize("kind", [Starves, Killed])
def test_what_has_no_memory_says_so_and_the_rest_goes_on(kind):
    one, several, trained = measure(subject(kind), batch_size=2, repeats=1).rows
    assert one.error is None
    assert one.median_ms > 0
    assert several.error == trained.error == OUT_OF_MEMORY
    assert several.median_ms is trained.memory_bytes is None


@pytest.mark.parametrize(("is_layer", "step"), [(True, "a layer"), (False, "a network")])
def test_only_a_layers_input_needs_a_gradient(is_layer, step):
    seen_gradients.clear()
    measure(subject(Looks, is_layer=is_layer), repeats=1)
    assert set(seen_gradients) == {is_layer}, step


def test_a_size_that_is_refused_is_named_before_anything_is_measured():
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 refuses sizes=320: .*224x224$"):
        measure(model_subject("vit_tiny_patch16_224"), sizes=[224, 320], progress=pytest.fail)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"sizes": [0]}, "sizes=0 is no height and width in pixels; try 64"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"dtypes": []}, "dtypes is empty"),
        ({"device": "tpu"}, "device='tpu' is not cpu, cuda"),
        ({"device": "cuda:99"}, "device='cuda:99', but there are"),
    ],
)
def test_an_argument_without_meaning_is_named(words, expected):
    with pytest.raises(ValueError, match=expected):
        measure(NANO(), **words)


def test_ctrl_c_keeps_what_was_measured():
    rounds = []

    def progress(done, total, what):
        rounds.append(what)
        if what.startswith("round 4"):
            raise KeyboardInterrupt

    found = measure(subject(), batch_size=2, repeats=9, progress=progress)
    assert found.interrupted
    assert len(found.rows) == 3
    assert all(one.median_ms > 0 for one in found.rows)
    assert not any(what.startswith("round 5") for what in rounds)


def test_ctrl_c_at_once_leaves_no_rows():
    def progress(*_):
        raise KeyboardInterrupt

    found = measure(subject(), progress=progress)
    assert found.interrupted
    assert found.rows == ()


def test_progress_counts_up_to_its_total():
    told = []
    measure(subject(), repeats=2, progress=lambda *args: told.append(args))
    done, totals, _ = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[0] == 0
    assert set(totals) == {done[-1]}


@pytest.mark.parametrize(("amx", "avx512", "emulated"), [(0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_emulated_bfloat16_is_said(amx, avx512, emulated, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    said = []
    measure(subject(), dtypes=["bfloat16"], training=False, repeats=1, warn=said.append)
    assert len(said) == emulated
    assert all("bfloat16" in sentence for sentence in said)


def test_compiled_code_gets_rows_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = measure(subject(), compiled=True, batch_size=2, repeats=1).rows
    assert [one.mode for one in found] == 3 * ["eager"] + 3 * ["compiled"]
    assert all(one.error is None and one.median_ms > 0 for one in found)
    # The compiler's own memory would be part of it.
    assert [one.memory_bytes is None for one in found] == 3 * [False] + 3 * [True]


def test_a_missing_compiler_is_said_and_gets_no_row(monkeypatch):
    def fails(function):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match="nothing is measured compiled: No working C.. compiler"):
        found = measure(subject(), compiled=True, repeats=1)
    assert {one.mode for one in found.rows} == {"eager"}


def test_threads_are_set_and_set_back():
    before = torch.get_num_threads()
    assert measure(subject(), threads=before + 1, repeats=1).threads == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_runs_as_it_stands(name):
    found = measure(layer_subject(name), batch_size=2, repeats=1)
    assert [one.error for one in found.rows] == [None, None, None]


def test_a_layer_takes_arguments_and_judges_them_at_once():
    layer = layer_subject("AAConv2d", in_channels=24, kernel_size=5, padding=2)
    assert layer.input_size == (24, 32, 32)
    assert layer.make().kernel_size == (5, 5)
    with pytest.raises(ValueError, match="num_heads=0 is not a positive integer"):
        layer_subject("AAConv2d", num_heads=0)


def test_csv_has_a_column_a_field_and_leaves_empty_what_was_not_measured():
    text = costs(row(), row(step="training", **STARVED)).to_csv()
    first, second = csv.DictReader(text.splitlines())
    assert text.splitlines()[0] == (
        "name,device,height,width,dtype,mode,step,batch_size,parameters,macs,activations,"
        "median_ms,low_ms,high_ms,images_per_second,memory_bytes,error"
    )
    assert first["median_ms"] == "2.0"
    assert first["error"] == second["median_ms"] == ""
    assert second["error"] == OUT_OF_MEMORY


def test_table_tells_counts_once_and_every_row():
    large = row(height=64, macs=2_500_000_000, median_ms=1234.5, batch_size=8)
    lines = costs(row(parameters=25_557_032), large, row(**STARVED)).table().splitlines()
    assert lines[0] == "net on cpu, 1 thread, torch 2.11: 25.557 M parameters"
    assert lines[2] == "64x32: 2.500 G multiply-adds, 0.00 M activations"
    assert lines[4].split() == (
        ["size", "dtype", "code", "step", "batch", "ms", "quartiles", "images/s", "memory"]
    )
    assert lines[5].split("  ")[-1].strip() == "3.0 MiB"
    assert "1,234" in lines[6]
    assert lines[7].endswith(OUT_OF_MEMORY)
    assert len({line.index("eager") for line in lines[5:]}) == 1


@pytest.mark.parametrize("sizes", [[32], [32, 64]])
def test_an_image_is_drawn_with_and_without_gaps(sizes, tmp_path):
    rows = [
        row(height=size, width=size, step=step, dtype=dtype, mode=mode, **words)
        for size in sizes
        for step in ("inference", "training")
        for dtype, mode, words in (
            ("float32", "eager", {}),
            ("float32", "compiled", {"memory_bytes": None}),
            ("bfloat16", "eager", STARVED),
        )
    ]
    draw_costs(costs(*rows), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > image.height > 500
