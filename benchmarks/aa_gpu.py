"""2D relative attention on a CUDA device: kernels, layers and networks beside their peers.

    python benchmarks/aa_gpu.py [--public CHECKOUT] [--minutes 8] [--out docs/aa_gpu.md]

One call measures everything and writes a page and, beside it, a CSV file. First every backend must
give the numbers of the definition, each in a process of its own: one that fails is reported and
left out, and cannot take the others with it. Then, in bfloat16 and float32:

- the attention alone, beside PyTorch's fused attention without positions on the same queries, keys
  and values (padded to the width of the keys), which is the limit;
- the layer, beside the public one of LegenDong/attention-augmented.pytorch (give a checkout);
- networks beside their plain twins, in bfloat16 autocast, eager and compiled.

What is compared takes turns. Times are CUDA events', medians with quartiles; a ratio is the median
over neighbouring passes. Memory is what a step allocates at most, with the weights in the case of
networks. What fails is a row that says why. Compiling comes last, and what it cannot begin in
time for ``--minutes`` is a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aa_layer import CHANNELS, ours, public
from convattn import AAConv2d
from convattn.bench import take_turns
from convattn.kernels.attention import attention
from side_by_side import Step, forward, forward_backward, table

DEVICE = "cuda"
BACKENDS = ("experimental_triton", "sdpa", "experimental_flex", "plain")
LIMIT = "no positions"
PUBLIC = "public layer"
FLASH = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Images, heads, height, width, channels of a head's keys and values.
CASES = (
    (8, 8, 32, 32, 20, 2),
    (32, 8, 32, 32, 20, 2),
    (1, 8, 64, 64, 20, 2),
    (64, 8, 14, 14, 40, 5),
    (128, 8, 14, 14, 20, 3),
    (1, 8, 128, 128, 20, 2),
)
FLEX_CASES = (CASES[0], CASES[2])  # the others would take minutes to compile
LAYERS = ((8, 32), (1, 64))  # images, side of the map
CHECKED = ((2, 3, 9, 33, 20, 2), (2, 2, 14, 14, 40, 5))
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}
STEPS = {"forward": forward, "forward + backward": forward_backward}
BATCH = 128
NETWORK_REPEATS = 7
LAST_COMPILATION_MINUTES = 1.5  # what one begun just in time still takes


@dataclass(frozen=True)
class Row:
    """What one way of doing a thing cost."""

    case: str
    dtype: str
    step: str
    way: str
    ms: float | None = None
    low: float | None = None
    """First quartile of the milliseconds."""
    high: float | None = None
    """Third quartile of the milliseconds."""
    ratio: float | None = None
    """Of the time, to the case's reference."""
    peak_mb: float | None = None
    limit_share: float | None = None
    """The least time that the machine's rates allow, over the time taken."""
    trouble: str = ""

    def cells(self) -> tuple[str, ...]:
        """For the page."""
        if self.ms is None:
            return (self.dtype, self.step, self.way, self.trouble or "right", "", "", "")
        share = "" if self.limit_share is None else f"{self.limit_share:.1%}"
        return (
            self.dtype,
            self.step,
            self.way,
            f"{self.ms:.3f} ({self.low:.3f} to {self.high:.3f})",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.peak_mb:.0f}",
            share,
        )


HEAD = ("dtype", "step", "way", "ms", "ratio", "peak MB", "share of the limit")


class Deadline:
    """How long compiling may still begin."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.end = time.monotonic() + 60 * minutes

    def check(self) -> None:
        """An error when the time is up."""
        if time.monotonic() > self.end:
            raise TimeoutError(f"left out, --minutes {self.minutes:g} were over")


def seconds(step: Step) -> float:
    """One pass by the device's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def trouble(error: Exception) -> str:
    """Why something failed, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160].replace("|", "/")


def measure(
    ways: dict[str, Callable[[], Step]], row: Row, reference: str, repeats: int
) -> list[Row]:
    """Make the steps of all ways, warm them up, then let them take turns."""
    steps, rows = {}, {name: replace(row, way=name) for name in ways}
    for name, make in ways.items():
        try:
            before = torch.cuda.memory_allocated()
            step = make()
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / 1e6
            steps[name], rows[name] = step, replace(rows[name], peak_mb=peak)
        except Exception as error:
            rows[name] = replace(rows[name], trouble=trouble(error))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _, name, taken in take_turns(steps, repeats, seconds):
        if isinstance(taken, Exception):
            rows[name] = replace(rows[name], trouble=trouble(taken))
        else:
            times[name].append(1e3 * taken)
    for name, taken in times.items():
        if rows[name].trouble:
            continue
        low, middle, high = statistics.quantiles(taken, n=4)
        ratio = None
        if len(times.get(reference, ())) == len(taken):
            pairs = zip(taken, times[reference], strict=True)
            ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        rows[name] = replace(rows[name], ms=middle, low=low, high=high, ratio=ratio)
    for made in rows.values():
        print(" | ".join((made.case, *made.cells())), flush=True)
    return list(rows.values())


def rates() -> dict[str, float]:
    """Operations a second of a large matrix product in each format, and bytes of a large copy."""
    found = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=dtype) for _ in range(2))
        found[name] = 2 * len(a) ** 3 / best(partial(torch.mm, a, b))
    source = torch.empty(2**28, device=DEVICE)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.nbytes / best(partial(target.copy_, source))
    return found


def best(step: Step) -> float:
    """The median of some passes, after some others."""
    return statistics.median([seconds(step) for _ in range(13)][3:])


def make_inputs(case: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Scaled queries, keys, values and the tables of rows and columns."""
    batch, heads, height, width, dim, v_dim = case
    torch.manual_seed(0)
    shape = (batch, heads, height * width)
    made = [torch.randn(*shape, n, device=DEVICE) for n in (dim, dim, v_dim)]
    made += [torch.randn(2 * side - 1, dim, device=DEVICE) for side in (height, width)]
    made[0] *= dim**-0.5
    return [t.to(dtype).requires_grad_() for t in made]


def without_positions(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's fused attention; never the path that holds all pairs."""
    with sdpa_kernel(list(FLASH)):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def least_ms(case: tuple[int, ...], dtype: str, training: bool, rate: dict[str, float]) -> float:
    """What the work takes at the machine's rates: real channels, every number moved once."""
    batch, heads, height, width, dim, v_dim = case
    count = batch * heads * height * width
    operations = 2 * count * height * width * (dim + v_dim) * (3.5 if training else 1)
    numbers = count * (2 * dim + 2 * v_dim + height + width) * (3 if training else 1)
    moved = numbers * DTYPES[dtype].itemsize
    return 1e3 * max(operations / rate[dtype], moved / rate["bytes"])


def attention_rows(backends: tuple[str, ...], rate: dict[str, float], repeats: int) -> list[Row]:
    """The attention alone."""
    rows = []
    for case, dtype in itertools.product(CASES, DTYPES):
        q, k, v, *tables = make_inputs(case, DTYPES[dtype])
        wide = F.pad(v.detach(), (0, q.shape[-1] - v.shape[-1])).requires_grad_()
        calls = {LIMIT: (without_positions, (q, k, wide))}
        for backend in backends:
            if backend != "experimental_flex" or case in FLEX_CASES:
                call = partial(attention, feat_size=case[2:4], backend=backend)
                calls[backend] = (call, (q, k, v, *tables))
        for name, pass_of in STEPS.items():
            ways = {
                way: partial(pass_of, function, *inputs)
                for way, (function, inputs) in calls.items()
            }
            title = title_of(case)
            least = least_ms(case, dtype, pass_of is forward_backward, rate)
            rows += [
                row if row.ms is None else replace(row, limit_share=least / row.ms)
                for row in measure(ways, Row(title, dtype, name, ""), LIMIT, repeats)
            ]
    return rows


def layer_step(
    make: Callable[[], nn.Module], pass_of: Callable[..., Step], image: torch.Tensor
) -> Step:
    """A pass of a new layer."""
    return pass_of(make().to(DEVICE, image.dtype), image)


def layer_rows(backends: tuple[str, ...], checkout: Path | None, repeats: int) -> list[Row]:
    """The layer beside the public one, with the same weights."""
    rows = []
    for (batch, side), dtype in itertools.product(LAYERS, DTYPES):
        torch.manual_seed(1)
        image = torch.randn(batch, CHANNELS, side, side, device=DEVICE).to(DTYPES[dtype])
        image.requires_grad_()
        makers = {
            f"ours, {b}": partial(ours, side, attn_backend=b)
            for b in backends
            if b != "experimental_flex"
        }
        if checkout is not None:
            makers[PUBLIC] = partial(public, checkout, side)
        makers["plain convolution"] = partial(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1)
        for name, pass_of in STEPS.items():
            ways = {way: partial(layer_step, make, pass_of, image) for way, make in makers.items()}
            title = layer_title(batch, side)
            rows += measure(ways, Row(title, dtype, name, ""), PUBLIC, repeats)
    return rows


def network_step(
    name: str,
    images: torch.Tensor,
    training: bool,
    *,
    backend: str | None = None,
    compiling: Deadline | None = None,
    **words,
) -> Step:
    """A training step with SGD, or inference, in bfloat16 autocast."""
    if compiling is not None:
        compiling.check()
    torch.manual_seed(0)
    model = timm.create_model(name, **words).to(DEVICE, memory_format=torch.channels_last)
    model.train(training)
    for layer in model.modules():
        if isinstance(layer, AAConv2d):
            layer.attn_backend = backend
    run = model if compiling is None else torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.int64, device=DEVICE)

    def step() -> None:
        with torch.set_grad_enabled(training), torch.autocast(DEVICE, torch.bfloat16):
            out = run(images)
        if training:
            optimizer.zero_grad()
            F.cross_entropy(out.float(), labels).backward()
            optimizer.step()

    return step


def network_rows(backends: tuple[str, ...], compiling: Deadline | None, repeats: int) -> list[Row]:
    """Augmented networks beside their plain twins, 128 images a batch."""
    rows = []
    for plain, side, modes in (
        ("wide_resnet28_10", 32, (True,)),
        ("resnet50", 224, (True, False)),
    ):
        augmented = f"aa_{plain}"
        shape = (BATCH, 3, side, side)
        images = torch.randn(shape, device=DEVICE).to(memory_format=torch.channels_last)
        for training in modes:
            make = partial(network_step, images=images, training=training, compiling=compiling)
            ways = {plain: partial(make, plain)}
            for backend in backends:
                if backend in ("experimental_triton", "sdpa"):
                    ways[f"{augmented}, {backend}"] = partial(make, augmented, backend=backend)
                    if side == 32 and compiling is None:
                        whole = f"attention on 32 x 32: {augmented}, {backend}"
                        ways[whole] = partial(make, augmented, backend=backend, attn_downsample=1)
            step = ("training" if training else "inference") + (
                "" if compiling is None else ", compiled"
            )
            title = network_title(plain, side)
            rows += measure(ways, Row(title, "bfloat16", step, ""), plain, repeats)
            torch.cuda.empty_cache()
    return rows


def title_of(case: tuple[int, ...]) -> str:
    """What the tables call a case."""
    return "attention, {} x {} heads, {} x {}, d {}, d_v {}".format(*case)


@dataclass(frozen=True)
class Target:
    """The least of a number, over some rows, that has to be within a bound."""

    sentence: str
    bound: float
    number: str
    where: dict[str, str]
    ways: tuple[str, ...]
    """How the names of the rows' ways begin."""

    def verdict(self, rows: list[Row]) -> tuple[str, ...]:
        """Cells of a table."""
        reached = {
            f"{row.way}, {row.dtype}": getattr(row, self.number)
            for row in rows
            if getattr(row, self.number) is not None
            and not row.trouble
            and row.way.startswith(self.ways)
            and all(getattr(row, field) == value for field, value in self.where.items())
        }
        if not reached:
            return self.sentence, f"{self.bound:.3g}", "not measured", "?"
        way = min(reached, key=reached.__getitem__)
        met = "yes" if reached[way] <= self.bound else "no"
        return self.sentence, f"{self.bound:.3g}", f"{reached[way]:.3g} ({way})", met


def targets() -> list[Target]:
    """What the project wants to reach on a GPU."""
    found = []
    for case, step in itertools.product((CASES[0], CASES[2]), STEPS):
        title = title_of(case)
        sentence = f"{title}, {step}: times the one without positions"
        where = {"case": title, "dtype": "bfloat16", "step": step}
        found.append(
            Target(
                sentence, 1.5, "ratio", where, ("experimental_triton", "sdpa", "experimental_flex")
            )
        )
    for dtype, step in itertools.product(DTYPES, STEPS):
        title = layer_title(*LAYERS[0])
        sentence = f"{title}, {dtype}, {step}: share of the public layer's time"
        where = {"case": title, "dtype": dtype, "step": step}
        found.append(
            Target(sentence, 0.1, "ratio", where, ("ours, experimental_triton", "ours, sdpa"))
        )
    wide = "wide_resnet28_10"
    where = {"case": network_title(wide, 32), "step": "training"}
    augmented = (f"aa_{wide}",)
    found.append(Target("AA-WRN-28-10, batch 128, training: MB", 16e3, "peak_mb", where, augmented))
    sentence = "AA-WRN-28-10, training: times the plain network's time"
    found.append(Target(sentence, 1 / 0.6, "ratio", where, augmented))
    return found


def layer_title(batch: int, side: int) -> str:
    """What the tables call a layer."""
    return f"layer, {batch} x {CHANNELS} x {side} x {side}"


def network_title(name: str, side: int) -> str:
    """What the tables call a network."""
    return f"{name}, {BATCH} x 3 x {side} x {side}"


def errors(backend: str) -> dict[str, float]:
    """Relative errors of a backend, forward and backward, to the definition in float64."""
    found = {}
    for case, (name, dtype) in itertools.product(CHECKED, DTYPES.items()):
        inputs = make_inputs(case, dtype)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        size = case[2:4]
        out = attention(*inputs, feat_size=size, backend=backend)
        expected = attention(*exact, feat_size=size, backend="plain")
        weight = torch.randn_like(out)
        pairs = zip(
            (out, *torch.autograd.grad(out, inputs, weight)),
            (expected, *torch.autograd.grad(expected, exact, weight.double())),
            strict=True,
        )
        found[f"{name}, {case[2]} x {case[3]}"] = max(
            float((got - right).norm() / right.norm()) for got, right in pairs
        )
    return found


def check(backend: str) -> Row:
    """Whether a backend gives the right numbers, asked in a process of its own."""
    row = Row("correctness", "", "forward + backward", backend)
    command = [sys.executable, __file__, "--check", backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return replace(row, trouble="no answer in two minutes")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return replace(row, trouble=last[:160].replace("|", "/"))
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = {what: e for what, e in found.items() if not e <= TOLERANCE[what.split(",")[0]]}
    return replace(row, trouble=f"wrong: {wrong}" if wrong else "")


def page(rows: list[Row], rate: dict[str, float], command: str) -> str:
    """In Markdown."""
    device = torch.cuda.get_device_properties(DEVICE)
    speeds = ", ".join(f"{rate[name] / 1e12:.0f} TFLOP/s in {name}" for name in DTYPES)
    parts = [
        "# What 2D relative attention costs on a GPU",
        f"`{command}`, {device.name}, torch {torch.__version__}, {time.strftime('%-d %B %Y')}, "
        f"seed 0. A large matrix product reaches {speeds}, a large copy "
        f"{rate['bytes'] / 1e12:.2f} TB/s. Medians with quartiles; ratios are medians over "
        "neighbouring passes. The limit counts the products of real channels and every number "
        "moved once; it leaves out the exponentials, which are N x N a head for any kernel.",
        "## Targets",
        table(("target", "at most", "reached", "met"), [t.verdict(rows) for t in targets()]),
    ]
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        parts += [f"## {case[0].upper()}{case[1:]}", table(HEAD, [row.cells() for row in group])]
    return "\n\n".join(parts) + "\n"


def write(rows: list[Row], out: Path) -> None:
    """All rows as CSV."""
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/aa_gpu.md"))
    parser.add_argument("--check", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: this benchmark measures nothing else", file=sys.stderr)
        sys.exit(2)
    if arguments.check:
        print(json.dumps(errors(arguments.check)))
        return
    # A kernel of FlexAttention for every size counts as a recompilation.
    torch._dynamo.config.recompile_limit = 64
    deadline = Deadline(arguments.minutes - LAST_COMPILATION_MINUTES)
    rows = [check(backend) for backend in BACKENDS]
    backends = tuple(row.way for row in rows if not row.trouble)
    for row in rows:
        print(f"{row.way}: {row.trouble or 'right'}", flush=True)
    rate = rates()
    parts = [
        partial(attention_rows, backends, rate, arguments.repeats),
        partial(layer_rows, backends, arguments.public, arguments.repeats),
        partial(network_rows, backends, None, NETWORK_REPEATS),
        partial(network_rows, backends, deadline, NETWORK_REPEATS),
    ]
    command = f"python benchmarks/aa_gpu.py{' --public CHECKOUT' if arguments.public else ''}"
    for part in parts:
        try:
            rows += part()
        except Exception as error:  # the device itself failed, and will fail what follows
            rows.append(
                Row("what stopped a part", "", "", part.func.__name__, trouble=trouble(error))
            )
        # After every part: what was measured is kept, whatever happens later.
        write(rows, arguments.out.with_suffix(".csv"))
        arguments.out.write_text(page(rows, rate, command))
    for target in targets():
        print(" | ".join(target.verdict(rows)))
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
