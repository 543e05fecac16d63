"""An attention-augmented convolution beside its peers, on the CPU or on a CUDA device.

    python benchmarks/aa_layer.py [--public CHECKOUT] [--repeats 15]
        [--out docs/results/aa_layer.md]
    python benchmarks/aa_layer.py --device cuda [--public CHECKOUT] [--minutes 8]
        [--out docs/results/aa_gpu.md]

The layer is the paper's of AA-Wide-ResNet: 160 channels, 8 heads, 160 query and 16 value channels.
Its peers: the public layer of LegenDong/attention-augmented.pytorch (give a checkout of it; one
line of it that current PyTorch refuses is mended in memory), with the same weights and checked to
give the same numbers; timm's BottleneckAttn of the same width and heads; ours without positions;
and the plain convolution. Then the attention alone, beside PyTorch's fused attention without
positions, on the same queries, keys and values.

All take turns in one process, so that whatever else the machine does meets them alike: a ratio is
the median over neighbouring passes, with its quartiles. Peak memory is that of a process of its
own, less what it held before.

On a CUDA device every backend must first give the numbers of the definition, each in a process of
its own: one that fails is reported and left out, and cannot take the others with it. Then, in
bfloat16 and float32, the attention alone and the layer; and networks beside their plain twins in
bfloat16 autocast, eager and compiled. Compiling comes last, and what it cannot begin in time for
``--minutes`` is a row that says so. Beside the page a CSV file is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn import AAConv2d
from convattn.bench import Step, compare, forward, forward_backward, peak_memory, training_step
from convattn.kernels.attention import attention
from convattn.text import markdown_table
from gpu_rows import (
    DEVICE,
    DTYPES,
    Deadline,
    Rates,
    Row,
    least_ms,
    measure,
    measure_rates,
    provenance,
    require_cuda,
    run_parts,
)

CHANNELS, HEADS, QK, V = 160, 8, 160, 16
PLACES = ((8, 32), (1, 64))  # images, side of the map
SIDES = (16, 32, 64, 96, 128, 160, 192)
PUBLIC_UP_TO = 64  # beyond, the public layer takes more than 10 GB
OURS = "ours"
STEPS = {"forward": forward, "forward + backward": forward_backward}
BACKENDS = ("experimental_triton", "sdpa", "experimental_flex", "plain")
LIMIT = "no positions"
PUBLIC = "public layer"
FLASH = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
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
CHECKED = ((2, 3, 9, 33, 20, 2), (2, 2, 14, 14, 40, 5))
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}
BATCH = 128
NETWORK_REPEATS = 7


def ours(side: int, **words: Any) -> AAConv2d:
    """The layer, for a map of this side."""
    torch.manual_seed(0)
    return AAConv2d(
        CHANNELS,
        CHANNELS,
        3,
        padding=1,
        num_heads=HEADS,
        qk_ratio=QK / CHANNELS,
        v_ratio=V / CHANNELS,
        feat_size=side,
        **words,
    )


def public(checkout: Path, side: int) -> nn.Module:
    """Their layer with our weights."""
    source = (checkout / "models" / "augmented_layer.py").read_text()
    module = types.ModuleType("augmented_layer")
    # It writes into a view of a split, which autograd has refused since PyTorch 1.5.
    exec(source.replace("q *= dkh ** -0.5", "q = q * dkh ** -0.5"), module.__dict__)
    make: Callable[..., nn.Module] = module.AugmentedLayer
    layer = make(CHANNELS, CHANNELS, 3, 1, dk=QK, dv=V, Nh=HEADS, fh=side, fw=side)
    names = {
        "conv": "conv_layer",
        "qkv": "qkv_layer",
        "proj": "attn_layer",
        "rel_pos.width": "key_rel_w",
        "rel_pos.height": "key_rel_h",
    }
    state = ours(side).state_dict()
    for mine, theirs in names.items():
        state = {re.sub(f"^{re.escape(mine)}", theirs, name): t for name, t in state.items()}
    layer.load_state_dict(state)
    return layer


def layers(checkout: Path | None, side: int) -> dict[str, nn.Module]:
    """By what the table calls them."""
    found: dict[str, nn.Module] = {
        OURS: ours(side),
        "ours, bfloat16": ours(side).bfloat16(),
        "ours, plain backend": ours(side, attn_backend="plain"),
        "ours, sdpa backend": ours(side, attn_backend="sdpa"),
        "ours without positions": ours(side, position="none"),
        "timm BottleneckAttn": BottleneckAttn(
            CHANNELS, CHANNELS, feat_size=(side, side), num_heads=HEADS, dim_head=QK // HEADS
        ),
        "plain convolution": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    }
    if checkout is not None:
        found["public layer"] = public(checkout, side)
    return found


def image_for(layer: nn.Module, batch: int, side: int) -> Tensor:
    """Noise in the layer's number format."""
    torch.manual_seed(1)
    dtype = next(layer.parameters()).dtype
    return torch.randn(batch, CHANNELS, side, side).to(dtype).requires_grad_()


def layer_table(checkout: Path | None, batch: int, side: int, repeats: int) -> str:
    """Every layer, forward, and forward and backward."""
    made = layers(checkout, side)
    if checkout is not None:
        image = image_for(made[OURS], 2, side)
        torch.testing.assert_close(made["public layer"](image), made[OURS](image))
    inputs = {name: (image_for(layer, batch, side),) for name, layer in made.items()}
    return passes_table("layer", made, inputs, OURS, repeats)


def passes_table(
    what: str,
    ways: Mapping[str, Callable[..., Tensor]],
    inputs: Mapping[str, tuple[Tensor, ...]],
    reference: str,
    repeats: int,
) -> str:
    """A row a way, a column a kind of pass."""
    columns = []
    for name, pass_of in STEPS.items():
        steps = {way: pass_of(function, *inputs[way]) for way, function in ways.items()}
        columns.append(compare(steps, reference=reference, repeats=repeats, title=name))
    rows = [(way, *(column.cell(way) for column in columns)) for way in ways]
    return markdown_table((what, *STEPS), rows)


def make_inputs(case: tuple[int, ...], dtype: torch.dtype, device: str = DEVICE) -> list[Tensor]:
    """Scaled queries, keys, values and the tables of rows and columns."""
    batch, heads, height, width, dim, v_dim = case
    torch.manual_seed(0)
    shape = (batch, heads, height * width)
    made = [torch.randn(*shape, n, device=device) for n in (dim, dim, v_dim)]
    made += [torch.randn(2 * side - 1, dim, device=device) for side in (height, width)]
    made[0] *= dim**-0.5
    return [t.to(dtype).requires_grad_() for t in made]


def widened(q: Tensor, v: Tensor) -> Tensor:
    """Values padded to the width of the queries, as fused attention wants them."""
    return F.pad(v.detach(), (0, q.shape[-1] - v.shape[-1])).requires_grad_()


def without_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention; never the path that holds all pairs."""
    with sdpa_kernel(list(FLASH)):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def attention_table(batch: int, side: int, repeats: int) -> str:
    """The attention alone, beside PyTorch's without positions."""
    case = (batch, HEADS, side, side, QK // HEADS, V // HEADS)
    q, k, v, *tables = make_inputs(case, torch.float32, "cpu")
    limit = "SDPA without positions"
    ways: dict[str, Callable[..., Tensor]] = {
        limit: partial(F.scaled_dot_product_attention, scale=1.0)
    }
    inputs: dict[str, tuple[Tensor, ...]] = {limit: (q, k, widened(q, v))}
    for backend in ("chunked", "sdpa", "plain"):
        ways[backend] = partial(attention, feat_size=(side, side), backend=backend)
        inputs[backend] = (q, k, v, *tables)
    ways["chunked without positions"] = lambda q, k, v: ways["chunked"](q, k, v, None, None)
    inputs["chunked without positions"] = (q, k, v)
    return passes_table("attention", ways, inputs, limit, repeats)


def single_pass(checkout: Path | None, name: str, batch: int, side: int, step: str) -> Step:
    """One pass of a new layer."""
    # Reads the libraries in; what they take is nobody's cost.
    small = layers(checkout, 8)[name]
    forward_backward(small, image_for(small, 1, 8))()
    layer = layers(checkout, side)[name]
    return STEPS[step](layer, image_for(layer, batch, side))


def peak(checkout: Path | None, name: str, batch: int, side: int, step: str) -> float:
    """Extra megabytes of one pass."""
    return peak_memory(partial(single_pass, checkout, name, batch, side, step)) / 1e6


def memory_table(checkout: Path | None) -> str:
    """Of the places that are timed."""
    names = [OURS, "ours, plain backend", "timm BottleneckAttn", "plain convolution"]
    names += [] if checkout is None else ["public layer"]
    places = [(batch, side, step) for batch, side in PLACES for step in STEPS]
    rows = [
        (name, *(f"{peak(checkout, name, *place):.0f} MB" for place in places)) for name in names
    ]
    heads = (f"{batch} x {side} x {side}, {step}" for batch, side, step in places)
    return markdown_table(("layer", *heads), rows)


def growth(checkout: Path | None) -> dict[str, dict[int, float]]:
    """Extra megabytes of a forward and backward pass of one image, by the map's side."""
    found: dict[str, tuple[int, ...]] = {OURS: SIDES, "plain convolution": SIDES}
    if checkout is not None:
        found["public layer"] = tuple(side for side in SIDES if side <= PUBLIC_UP_TO)
    return {
        name: {side: peak(checkout, name, 1, side, "forward + backward") for side in sides}
        for name, sides in found.items()
    }


def growth_table(found: dict[str, dict[int, float]]) -> str:
    """A row a side, with megabytes a thousand positions."""
    rows = [
        (
            f"{side} x {side}",
            *(
                f"{sizes[side]:.0f} MB, {1e3 * sizes[side] / side**2:.1f}" if side in sizes else ""
                for sizes in found.values()
            ),
        )
        for side in SIDES
    ]
    return markdown_table(("map", *found), rows)


def draw_growth(found: dict[str, dict[int, float]], out: Path) -> None:
    """Memory against the number of positions, logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, sizes in found.items():
        axes.plot([side**2 for side in sizes], list(sizes.values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="positions of the map", ylabel="extra memory, MB")
    axes.set_title("Forward and backward of one image")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)


def measure_on_cpu(checkout: Path | None, repeats: int, out: Path) -> None:
    """Measure and write."""
    parts = [
        "# What an attention-augmented convolution costs on the CPU",
        f"`python benchmarks/aa_layer.py{' --public CHECKOUT' if checkout else ''} "
        f"--repeats {repeats}`, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}. "
        f"{CHANNELS} channels, {HEADS} heads, {QK} query and {V} value channels; seed 0. Each "
        "cell: the median time, and the median of its ratios to the row that has 1.00, with "
        "quartiles.",
    ]
    for batch, side in PLACES:
        parts += [
            f"## {batch} x {side} x {side}",
            layer_table(checkout, batch, side, repeats),
            "The attention alone, on the same queries, keys and values:",
            attention_table(batch, side, repeats),
        ]
        print("\n\n".join(parts[-4:]), flush=True)
    parts += ["## Extra peak memory", memory_table(checkout)]
    print(parts[-1], flush=True)
    found = growth(checkout)
    image = out.with_suffix(".png")
    draw_growth(found, image)
    parts += [
        "Forward and backward of one image; the second number is MB a thousand positions:",
        growth_table(found),
        f"![Memory against the size of the map]({image.name})",
    ]
    print(parts[-2], flush=True)
    out.write_text("\n\n".join(parts) + "\n")


def attention_least_ms(case: tuple[int, ...], dtype: str, training: bool, rates: Rates) -> float:
    """What the work takes at the machine's rates: real channels, every number moved once."""
    batch, heads, height, width, dim, v_dim = case
    count = batch * heads * height * width
    operations = 2 * count * height * width * (dim + v_dim) * (3.5 if training else 1)
    numbers = count * (2 * dim + 2 * v_dim + height + width) * (3 if training else 1)
    moved = numbers * DTYPES[dtype].itemsize
    return least_ms(operations, moved, rates, dtype)


def attention_rows(backends: tuple[Any, ...], rates: Rates, repeats: int) -> list[Row]:
    """The attention alone."""
    rows: list[Row] = []
    for case, dtype in itertools.product(CASES, DTYPES):
        q, k, v, *tables = make_inputs(case, DTYPES[dtype])
        calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
            LIMIT: (without_positions, (q, k, widened(q, v)))
        }
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
            least = attention_least_ms(case, dtype, pass_of is forward_backward, rates)
            rows += measure(ways, Row(title, dtype, name, ""), LIMIT, repeats, least)
    return rows


def layer_step(make: Callable[[], nn.Module], pass_of: Callable[..., Step], image: Tensor) -> Step:
    """A pass of a new layer."""
    return pass_of(make().to(DEVICE, image.dtype), image)


def layer_rows(backends: tuple[str, ...], checkout: Path | None, repeats: int) -> list[Row]:
    """The layer beside the public one, with the same weights."""
    rows: list[Row] = []
    for (batch, side), dtype in itertools.product(PLACES, DTYPES):
        torch.manual_seed(1)
        image = torch.randn(batch, CHANNELS, side, side, device=DEVICE).to(DTYPES[dtype])
        image.requires_grad_()
        makers: dict[str, Callable[[], nn.Module]] = {
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
    images: Tensor,
    training: bool,
    *,
    backend: Any = None,
    compiling: Deadline | None = None,
    **words: Any,
) -> Step:
    """A training step with SGD, or inference, in bfloat16 autocast."""
    if compiling is not None:
        compiling.check()
    torch.manual_seed(0)
    model = timm.create_model(name, **words).to(DEVICE, memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, AAConv2d):
            layer.attn_backend = backend
    if training:
        return training_step(model, images, autocast=True, compiled=compiling is not None)
    run = model.eval() if compiling is None else torch.compile(model.eval())
    return torch.autocast(DEVICE, torch.bfloat16)(forward(run, images))


def network_rows(backends: tuple[str, ...], compiling: Deadline | None, repeats: int) -> list[Row]:
    """Augmented networks beside their plain twins, 128 images a batch."""
    rows: list[Row] = []
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
        title = layer_title(*PLACES[0])
        sentence = f"{title}, {dtype}, {step}: share of the public layer's time"
        where = {"case": title, "dtype": dtype, "step": step}
        found.append(Target(sentence, 0.1, "ratio", where, ("ours, triton", "ours, sdpa")))
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


def errors(backend: Any) -> dict[str, float]:
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
    command = [sys.executable, __file__, "--device", DEVICE, "--check", backend]
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


def gpu_head(rows: list[Row], rates: Rates, command: str) -> list[str]:
    """The page above its tables."""
    speeds = ", ".join(f"{rates[name] / 1e12:.0f} TFLOP/s in {name}" for name in DTYPES)
    return [
        "# What 2D relative attention costs on a GPU",
        f"{provenance(command)} A large matrix product reaches {speeds}, a large copy "
        f"{rates['bytes'] / 1e12:.2f} TB/s. Medians with quartiles; ratios are medians over "
        "neighbouring passes. The limit counts the products of real channels and every number "
        "moved once; it leaves out the exponentials, which are N x N a head for any kernel.",
        "## Targets",
        markdown_table(
            ("target", "at most", "reached", "met"), [t.verdict(rows) for t in targets()]
        ),
    ]


def measure_on_gpu(checkout: Path | None, minutes: float, repeats: int, out: Path) -> None:
    """Check every backend, then measure and write."""
    # A kernel of FlexAttention for every size counts as a recompilation.
    torch._dynamo.config.recompile_limit = 64
    deadline = Deadline(minutes)
    rows = [check(backend) for backend in BACKENDS]
    backends = tuple(row.way for row in rows if not row.trouble)
    for row in rows:
        print(f"{row.way}: {row.trouble or 'right'}", flush=True)
    rates = measure_rates()
    parts = [
        partial(attention_rows, backends, rates, repeats),
        partial(layer_rows, backends, checkout, repeats),
        partial(network_rows, backends, None, NETWORK_REPEATS),
        partial(network_rows, backends, deadline, NETWORK_REPEATS),
    ]
    command = "python benchmarks/aa_layer.py --device cuda"
    command += " --public CHECKOUT" if checkout else ""
    run_parts(parts, rows, lambda rows: gpu_head(rows, rates, command), out)
    for target in targets():
        print(" | ".join(target.verdict(rows)))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="until compiling ends, on cuda")
    parser.add_argument("--out", type=Path, help="docs/results/aa_layer.md or aa_gpu.md")
    parser.add_argument("--check", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        out = arguments.out or Path("docs/results/aa_layer.md")
        measure_on_cpu(arguments.public, arguments.repeats, out)
        return
    require_cuda()
    if arguments.check:
        print(json.dumps(errors(arguments.check)))
        return
    out = arguments.out or Path("docs/results/aa_gpu.md")
    measure_on_gpu(arguments.public, arguments.minutes, arguments.repeats, out)


if __name__ == "__main__":
    main()
