"""One call for a GPU: whether everything is right there, and what it costs; a page and a JSON file.

    python benchmarks/gpu.py [--cpu] [--parts correctness tests layer memory s60 finetune]
        [--authors patchconvnet_models.py] [--public CHECKOUT] [--out runs/gpu]

``--authors`` is the file of github.com/facebookresearch/deit, for the part ``s60``; ``--public`` a
checkout of LegenDong/attention-augmented.pytorch, for ``layer``. Without them the rows of ours
stand alone. Nothing is downloaded.

A part that fails is written as failed, with its error and the rows that it had, and the rest go on;
the exit status is 1 then. ``gpu.md`` and ``gpu.json`` are written after every part. ``--cpu`` takes
small sizes and, from Triton 3.9 on, Triton's interpreter: it tries this program, and its times say
nothing of a GPU.

    python benchmarks/gpu.py --adopt runs/gpu/gpu.json

makes what such a file says of the part ``layer`` the default of attention on that device: for every
dtype, forward (inference) and forward and backward (training), the fastest of our backends whose
numbers the part ``correctness`` found right. It goes into ``src/convattn/kernels/measured.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

import aa_layer
import convattn
import patchconvnet
from convattn.bench import Comparison, Step, compare, describe_error, training_step
from convattn.kernels import measured
from convattn.kernels.attention import Backend, attention
from convattn.kernels.attention.biases import relative_biases
from convattn.text import markdown_table

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
INTERPRETER = (3, 9)  # older ones fail with current NumPy
PEERS = ("authors", "public layer")
KERNEL_TESTS = "tests/kernels/*/test_experimental_triton.py"
FEW_TESTS = "without_biases or images_and_heads or scale_linear_residual_equals"


@dataclass(frozen=True)
class Row:
    """A number that a part found."""

    name: str
    value: float | None
    """None where it could not be had."""
    unit: str
    spread: tuple[float, float] | None = None
    """First and third quartile."""
    note: str = ""


@dataclass
class Part:
    """What came of one."""

    name: str
    error: str | None = None
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def status(self) -> str:
        """One word."""
        return "done" if self.error is None else "failed"


Parts = Mapping[str, Callable[[], Iterator[Row]]]


def run(parts: Parts, about: Mapping[str, Any], out: Path) -> int:
    """Run all parts, whatever one of them does; gives the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    found: list[Part] = []
    for name, rows in parts.items():
        part, started = Part(name), time.monotonic()
        try:
            for row in rows():
                part.rows.append(row)
                print(f"{name} | {row.name} | {cell(row)} {row.unit} {row.note}", flush=True)
        except (Exception, SystemExit) as error:  # the others shall have their turn
            wrapped = error if isinstance(error, Exception) else RuntimeError(str(error))
            part.error = describe_error(wrapped)
        part.seconds = time.monotonic() - started
        print(f"{name}: {part.status} {part.error or ''}", flush=True)
        found.append(part)
        write(found, about, out)
    return int(any(part.error is not None for part in found))


def write(found: list[Part], about: Mapping[str, Any], out: Path) -> None:
    """The page and the JSON file."""
    parts = [{**asdict(part), "status": part.status} for part in found]
    (out / "gpu.json").write_text(json.dumps({**about, "parts": parts}, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    page = ["# What a GPU gives", f"{about['device']}; {versions}; {about['date']}; seed 0."]
    if about["cpu"]:
        page.append(
            "**A run on the CPU**, with small sizes and interpreted kernels: it tries the program, "
            "and its times say nothing of a GPU."
        )
    page.append("Times are medians of steps that take turns, with their quartiles.")
    summary = [(p.name, p.status, f"{p.seconds:.0f}", p.error or "") for p in found]
    page.append(markdown_table(("part", "status", "seconds", "error"), escaped(summary)))
    for part in found:
        page.append(f"## {part.name.capitalize()}")
        rows = [(row.name, cell(row), row.unit, row.note) for row in part.rows]
        page.append(markdown_table(("what", "value", "unit", "note"), escaped(rows)))
    (out / "gpu.md").write_text("\n\n".join(page) + "\n")


def escaped(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Cells without the mark that ends one."""
    return [tuple(text.replace("|", "/") for text in row) for row in rows]


def cell(row: Row) -> str:
    """A value with its quartiles."""
    if row.value is None:
        return ""
    spread = "" if row.spread is None else " ({:.4g} to {:.4g})".format(*row.spread)
    return f"{row.value:.4g}{spread}"


def timed(title: str, ways: Mapping[str, Callable[[], Step]], **words: Any) -> Iterator[Row]:
    """Time, ratio to the first way, and peak memory if asked for, of ways that take turns.

    Raises:
        RuntimeError: After all rows, if one of ours could not be measured.
    """
    reference = next(iter(ways))
    found = compare(ways, reference=reference, makes=True, tolerant=True, **words)
    yield from comparison_rows(title, found, reference)
    failed = [name for name in ways if name not in found.names and not name.startswith(PEERS)]
    if failed:
        raise RuntimeError(f"{title}: could not be measured: {', '.join(failed)}")


def comparison_rows(title: str, found: Comparison, reference: str) -> Iterator[Row]:
    """Of every way."""
    for name, timing in found.timings.items():
        what = f"{title}: {name}"
        if timing.error is not None:
            yield Row(what, None, "ms", note=timing.error)
            continue
        low, middle, high = found.milliseconds(name)
        yield Row(what, middle, "ms", (low, high))
        if name != reference and reference in found.names:
            low, middle, high = found.ratio(name)
            yield Row(what, middle, "times", (low, high), note=f"of the time of {reference}")
        if timing.peak_bytes is not None:
            yield Row(what, timing.peak_bytes / 1e6, "MB", note="peak")


def backends(device: str) -> tuple[Backend, ...]:
    """Those whose numbers are checked."""
    usual: tuple[Backend, ...] = ("chunked",) if device == "cpu" else ()
    return (*usual, "sdpa", "experimental_flex", "experimental_triton")


def attention_errors(backend: Backend, device: str) -> Iterator[Row]:
    """Relative errors to the definition in float64, forward and backward."""
    cases = ((1, 2, 3, 5, 8, 3), (2, 3, 9, 7, 20, 2)) if device == "cpu" else aa_layer.CHECKED
    interpreted = device == "cpu" and backend == "experimental_triton"
    for case, dtype in itertools.product(cases, TOLERANCE):
        if interpreted and dtype == torch.bfloat16:
            continue  # the interpreter keeps it as bits
        inputs = aa_layer.make_inputs(case, dtype, device)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        size = case[2:4]
        call: Callable[..., Tensor] = partial(attention, feat_size=size, backend=backend)
        if backend == "experimental_triton":  # asked directly, so that nothing takes its place
            call = triton_call(size)
        forward_alone = device == "cpu" and backend == "experimental_flex"
        with torch.set_grad_enabled(not forward_alone):
            out = call(*inputs)
        expected = attention(*exact, feat_size=size, backend="plain")
        got, right = [out], [expected]
        if not forward_alone:
            weight = torch.randn_like(out)
            got += torch.autograd.grad(out, inputs, weight)
            right += torch.autograd.grad(expected, exact, weight.double())
        worst = max(relative_error(a, b) for a, b in zip(got, right, strict=True))
        name = f"{backend}, {str(dtype).removeprefix('torch.')}, {size[0]} x {size[1]}"
        yield error_row(name, worst, TOLERANCE[dtype])


def triton_call(size: tuple[int, int]) -> Callable[..., Tensor]:
    """The kernel of attention."""
    from convattn.kernels.attention.experimental_triton import triton_attention

    def call(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        return triton_attention(q, k, v, *relative_biases(q, rel_h, rel_w, size))

    return call


def block_errors(device: str) -> Iterator[Row]:
    """Of the kernels of PatchConvNet's folded block."""
    from convattn.kernels.patchconv_block import experimental_triton as block

    batch, dim, side = (2, 20, 5) if device == "cpu" else (8, 384, 14)
    for dtype in (torch.float32,) if device == "cpu" else tuple(TOLERANCE):
        torch.manual_seed(0)

        def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, device=device).to(dtype)

        matrix, bias, flat = draw(dim, dim) * dim**-0.5, draw(dim), draw(batch, side**2, dim)
        a_map = draw(batch, side, side, dim)
        calls: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
            "norm_linear_gelu": (
                partial(block.norm_linear_gelu, eps=patchconvnet.EPS),
                patchconvnet.plain_norm_linear_gelu,
                (a_map, matrix, bias),
            ),
            "depthwise_gelu_sums": (
                block.depthwise_gelu_sums,
                patchconvnet.plain_depthwise_gelu_sums,
                (a_map, draw(dim, 1, 3, 3), bias),
            ),
            "scale_linear_residual": (
                block.scale_linear_residual,
                patchconvnet.plain_scale_linear_residual,
                (flat, draw(batch, dim), matrix, bias, draw(*flat.shape)),
            ),
        }
        for name, (kernel, plain, inputs) in calls.items():
            got = patchconvnet.first(kernel(*inputs))
            right = patchconvnet.first(plain(*(t.double() for t in inputs)))
            text = f"{name}, {str(dtype).removeprefix('torch.')}"
            yield error_row(text, relative_error(got, right), TOLERANCE[dtype])


def relative_error(got: Tensor, right: Tensor) -> float:
    """In the norm of all numbers."""
    return float((got.double() - right).norm() / right.norm())


def error_row(name: str, error: float, allowed: float) -> Row:
    """An error, and whether it is one."""
    value = error if math.isfinite(error) else None
    note = f"at most {allowed:g}" if error <= allowed else f"WRONG: {error:g} over {allowed:g}"
    return Row(name, value, "relative error", note=note)


CHECKED = ("chunked", "sdpa", "experimental_flex", "experimental_triton", "block")


def check(name: str, device: str) -> Iterator[Row]:
    """What a process of its own is asked for."""
    return (
        block_errors(device) if name == "block" else attention_errors(cast(Backend, name), device)
    )


def interpreter_is_there() -> bool:
    """Whether this Triton interprets kernels on the CPU."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= INTERPRETER


def environment(device: str) -> dict[str, str]:
    """Of processes that run kernels."""
    cpu = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return os.environ | cpu


def correctness(device: str) -> Iterator[Row]:
    """Every backend and kernel beside the plain path, each in a process of its own."""
    troubles = []
    for name in (*backends(device), "block"):
        interpreted = device == "cpu" and name in ("experimental_triton", "block")
        if interpreted and not interpreter_is_there():
            yield Row(name, None, "relative error", note="no Triton of 3.9 or later here")
            continue
        command = [sys.executable, __file__, "--check", name]
        command += ["--cpu"] if device == "cpu" else []
        try:
            done = subprocess.run(
                command, env=environment(device), capture_output=True, text=True, timeout=120
            )
        except subprocess.TimeoutExpired:
            troubles.append(f"{name}: no answer in two minutes")
            continue
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Row(name, None, "relative error", note=last[:160])
            troubles.append(name)
            continue
        rows = [Row(**one) for one in json.loads(done.stdout.splitlines()[-1])]
        yield from rows
        troubles += [row.name for row in rows if row.note.startswith("WRONG")]
    if troubles:
        raise RuntimeError(f"wrong or not to be had: {'; '.join(troubles)}")


def gpu_tests(device: str) -> Iterator[Row]:
    """The tests that carry the marker; on the CPU a few of the interpreted ones."""
    if device == "cpu" and not interpreter_is_there():
        yield Row("tests", None, "tests", note="no Triton of 3.9 or later here")
        return
    files = sorted(str(p) for p in ROOT.glob(KERNEL_TESTS))
    choice = ["-m", "gpu and not slow", "-k", FEW_TESTS]
    if device != "cpu":
        tests = (ROOT / "tests").rglob("test_*.py")
        files = sorted(str(path) for path in tests if "mark.gpu" in path.read_text())
        choice = ["-m", "gpu"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *choice, f"--junitxml={report}", *files]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(device), capture_output=True, text=True, timeout=240
        )
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-150:]}")
        suite = next(ElementTree.parse(report).iter("testsuite")).attrib
    counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    for name, count in counts.items():
        yield Row(name, count, "tests")
    if done.returncode or counts["tests"] == counts["skipped"]:
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError(f"pytest ended with {done.returncode}: {'; '.join(lines)[:150]}")


def layer(device: str, checkout: Path | None) -> Iterator[Row]:
    """AA layer beside position-free attention and the public layer."""
    batch, side = (1, 8) if device == "cpu" else aa_layer.PLACES[0]
    for dtype in (torch.float32,) if device == "cpu" else tuple(TOLERANCE):
        makers: dict[str, Callable[[], nn.Module]] = {
            "ours without positions": partial(aa_layer.ours, side, position="none")
        }
        own = ("chunked", "sdpa", "plain")
        for backend in own if device == "cpu" else ("sdpa", "plain", "experimental_triton"):
            makers[f"ours, {backend}"] = partial(aa_layer.ours, side, attn_backend=backend)
        makers["plain convolution"] = partial(nn.Conv2d, 160, 160, 3, padding=1)
        if checkout is not None:
            makers["public layer"] = partial(aa_layer.public, checkout, side)
        torch.manual_seed(1)
        shape = (batch, aa_layer.CHANNELS, side, side)
        image = torch.randn(shape, device=device).to(dtype).requires_grad_()
        for name, pass_of in aa_layer.STEPS.items():
            ways = {
                way: partial(placed, make, pass_of, image, device) for way, make in makers.items()
            }
            title = f"{' x '.join(map(str, shape))}, {str(dtype)[6:]}, {name}"
            yield from timed(title, ways, repeats=9, device=device, memory=device != "cpu")


def placed(
    make: Callable[[], nn.Module], pass_of: Callable[..., Step], image: Tensor, device: str
) -> Step:
    """A pass of a new layer."""
    return pass_of(make().to(device, image.dtype), image)


def network(name: str, batch: int, side: int, device: str) -> Step:
    """A training step; in bfloat16 autocast on a GPU."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, side, side, device=device)
    images = images.to(memory_format=torch.channels_last)
    return training_step(model, images, autocast=device != "cpu")


def memory(device: str) -> Iterator[Row]:
    """AA-WRN-28-10 beside its plain twin, batch 128."""
    batch, side = (1, 16) if device == "cpu" else (128, 32)
    ways = {
        name: partial(network, name, batch, side, device)
        for name in ("wide_resnet28_10", "aa_wide_resnet28_10")
    }
    title = f"training step, {batch} x 3 x {side} x {side}"
    yield from timed(title, ways, repeats=5, warm_up=1, device=device, memory=True)


def s60(device: str, authors: Path | None) -> Iterator[Row]:
    """PatchConvNet-S60, beside the authors' if their file is given."""
    on_gpu = device != "cpu"
    batch, side = (128, 224) if on_gpu else (1, 64)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    networks: dict[str, Any] = {}
    if authors is not None:
        module = patchconvnet.load_authors(authors)
        networks["authors"], networks["ours"] = patchconvnet.make_twins(module, patchconvnet.S60)
    else:
        networks["ours"] = timm.create_model(patchconvnet.S60).eval()
        patchconvnet.draw_weights(networks["ours"])
    networks = {name: model.to(device) for name, model in networks.items()}
    images = patchconvnet.make_images(batch, side).to(device)
    low = images.to(dtype)
    ways: dict[str, Callable[[], Step]] = {
        name: partial(patchconvnet.way, model, low, dtype=dtype) for name, model in networks.items()
    }
    ours = networks["ours"]
    ways["ours, optimised"] = partial(patchconvnet.optimised, ours, low, dtype=dtype)
    if on_gpu:
        ways["ours, optimised, Triton"] = partial(
            patchconvnet.optimised, ours, low, dtype=dtype, kernels="experimental_triton"
        )
    title, repeats = f"{batch} x 3 x {side} x {side}", 9 if on_gpu else 3
    with torch.no_grad():
        expected = networks["authors" if authors else "ours"](images)
    agreeing: dict[str, Callable[[], Step]] = {
        name: partial(patchconvnet.agreeing, make, expected) for name, make in ways.items()
    }
    words = {"repeats": repeats, "warm_up": 1, "device": device, "memory": on_gpu}
    yield from timed(f"inference, {title}", agreeing, **words)
    steps: dict[str, Callable[[], Step]] = {
        name: partial(patchconvnet.lamb_step, model, images, autocast=on_gpu)
        for name, model in networks.items()
    }
    yield from timed(f"training step, {title}", steps, **words)


def finetune(device: str) -> Iterator[Row]:
    """The end-to-end stage's step: a ResNet-50 with our pool, batch 32, AdamW."""
    batch, side = (2, 64) if device == "cpu" else (32, 224)
    title = f"training step, {batch} x 3 x {side} x {side}"
    ways: dict[str, Callable[[], Step]] = {
        "resnet50": partial(finetune_step, False, batch, side, device),
        "resnet50, attention pool": partial(finetune_step, True, batch, side, device),
    }
    for row in timed(title, ways, repeats=5, warm_up=1, device=device):
        yield row
        if row.unit == "ms" and row.value is not None and row.spread is not None:
            low, high = (1e3 * batch / ms for ms in reversed(row.spread))
            yield Row(row.name, 1e3 * batch / row.value, "images/s", (low, high))


def finetune_step(pool: bool, batch: int, side: int, device: str) -> Step:
    """As ``finetune`` trains the whole network."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet50", num_classes=10)
    if pool:
        model = convattn.augment(model, pool="attention", input_size=side)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, side, side, device=device)
    images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.05)
    return training_step(model, images, optimizer, autocast=device != "cpu")


def fastest_backends(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Dtype -> "inference" or "training" -> backend, out of what a run on a GPU has written.

    Args:
        found: A ``gpu.json``.

    Raises:
        ValueError: If it is of a run on the CPU, or has no times of a backend that is right.
    """
    if found["cpu"]:
        raise ValueError("it is of a run on the CPU, which says nothing of a GPU")
    rows = {part["name"]: part["rows"] for part in found["parts"]}
    right: dict[str, bool] = {}
    for row in rows.get("correctness", []):
        name, dtype = [*row["name"].split(", "), "", ""][:2]
        right[f"{name}, {dtype}"] = right.get(f"{name}, {dtype}", True) and row["note"].startswith(
            "at most"
        )
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows.get("layer", []):
        title, _, way = row["name"].partition(": ours, ")
        if row["unit"] != "ms" or row["value"] is None or not way:
            continue
        _, dtype, step = title.split(", ")
        if right.get(f"{way}, {dtype}"):
            times.setdefault((dtype, step), {})[way] = row["value"]
    if not times:
        raise ValueError("it has no time of a backend that was found right: run all its parts")
    chosen: dict[str, dict[str, str]] = {}
    for (dtype, step), of_ways in times.items():
        kind = "inference" if step == "forward" else "training"
        chosen.setdefault(dtype, {})[kind] = min(of_ways, key=of_ways.__getitem__)
    return chosen


def adopt(file: Path, table: Path = measured.FILE) -> None:
    """Write what a run found into the table of defaults; other devices' entries stay.

    Args:
        file: A ``gpu.json``.
        table: The table.
    """
    found = json.loads(file.read_text())
    defaults = json.loads(table.read_text())
    defaults[found["device"]] = fastest_backends(found)
    table.write_text(json.dumps(defaults, indent=1, sort_keys=True) + "\n")
    print(f"{table}: {found['device']}: {defaults[found['device']]}")


NAMES = ("correctness", "tests", "layer", "memory", "s60", "finetune")


def describe(device: str) -> dict[str, Any]:
    """Where and with what."""
    packages = ("convattn", "torch", "timm", "triton", "numpy")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    cpu = device == "cpu"
    name = f"CPU, {torch.get_num_threads()} threads" if cpu else torch.cuda.get_device_name()
    date = time.strftime("%Y-%m-%d")
    return {"device": name, "versions": versions, "date": date, "cpu": cpu}


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="small sizes, interpreted kernels")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--authors", type=Path, help="deit's patchconvnet_models.py")
    parser.add_argument("--public", type=Path, help="checkout of the public layer")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the page")
    parser.add_argument("--check", choices=CHECKED, help=argparse.SUPPRESS)
    parser.add_argument("--adopt", type=Path, metavar="JSON", help="make its findings the defaults")
    given = parser.parse_args()
    if given.adopt is not None:
        try:
            adopt(given.adopt)
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"--adopt {given.adopt}: {describe_error(error)}")
        return 0
    device = "cpu" if given.cpu else "cuda"
    if not given.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device here: give --cpu to try all parts with small sizes")
    if given.check:
        print(json.dumps([asdict(row) for row in check(given.check, device)]))
        return 0
    if (given.out / "gpu.json").exists():
        parser.error(f"{given.out} has the results of another run: name a new folder by --out")
    for flag, part in (("authors", "s60"), ("public", "layer")):
        if getattr(given, flag) is not None and part not in given.parts:
            parser.error(f"--{flag} is for the part {part}, which --parts leaves out: add it")
    parts: Parts = {
        "correctness": partial(correctness, device),
        "tests": partial(gpu_tests, device),
        "layer": partial(layer, device, given.public),
        "memory": partial(memory, device),
        "s60": partial(s60, device, given.authors),
        "finetune": partial(finetune, device),
    }
    chosen = {name: parts[name] for name in NAMES if name in given.parts}
    return run(chosen, describe(device), given.out)


if __name__ == "__main__":
    sys.exit(main())
