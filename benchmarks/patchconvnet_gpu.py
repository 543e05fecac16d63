"""PatchConvNet on a CUDA device, beside its authors' implementation.

    python benchmarks/patchconvnet_gpu.py [--authors patchconvnet_models.py] [--minutes 9]
        [--out docs]

One call measures everything and writes ``patchconvnet_gpu.md`` and, beside it, a CSV file:

- S60 in bfloat16, 256 images and one: theirs eager, channels_last, autocast and compiled, ours
  as it is, optimised, and optimised and compiled, all with the same weights and found to agree;
- a training step of 128 images in bfloat16 autocast with LAMB;
- the Triton kernels of the folded block beside the same in PyTorch, eager and compiled.

What is compared takes turns. Times are CUDA events', medians with quartiles; memory is what a step
allocates at most, with the weights in the case of networks. The share of the limit is the time
that the machine's own rates allow, measured by a large product and a large copy, over the time
taken. What fails is a row that says why, and the rest goes on. What cannot begin to compile in
time for ``--minutes`` is a row that says so.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_gpu import (
    HEAD,
    LAST_COMPILATION_MINUTES,
    Deadline,
    Row,
    measure,
    rates,
    trouble,
    write,
)
from convattn.bench import count
from patchconvnet import (
    AUTHORS,
    OURS,
    S60,
    TRAINED,
    difference,
    draw_weights,
    load_authors,
    make_images,
    make_twins,
    optimised,
    training_step,
    way,
)
from side_by_side import Step, forward, table

DEVICE = "cuda"
LOW = torch.bfloat16
SIZE = 224
BATCHES = (256, 1)
TRAINING_BATCH = 128
TRAINING_REPEATS = 7
# A product of bfloat16 maps rounds each of them; sixty blocks of it are 3e-2.
NETWORK_TOLERANCE, KERNEL_TOLERANCE = 5e-2, 2e-2
EPS = 1e-6
# A block reads and writes a map in each of its three steps, and reads it once more to add to it.
MAPS_A_BLOCK = 7

COMPILED = "PyTorch, compiled"

Makers = dict[str, Callable[[], Step]]


@dataclass(frozen=True)
class Session:
    """What every part needs."""

    theirs: nn.Module | None
    ours: nn.Module
    rate: dict[str, float]
    deadline: Deadline
    repeats: int

    @property
    def reference(self) -> nn.Module:
        """Whose logits count."""
        return self.ours if self.theirs is None else self.theirs


def agreeing(make: Callable[[], Step], expected: Tensor) -> Step:
    """A step that gives the expected logits."""
    step = make()
    found = difference(step(), expected)
    if not found <= NETWORK_TOLERANCE:
        raise ValueError(f"logits differ by {found:.1e} of their standard deviation")
    return step


def compiling(deadline: Deadline, make: Callable[[], Step]) -> Step:
    """A step that is compiled, if there is time."""
    deadline.check()
    return make()


def least_ms(operations: float, moved: float, rate: dict[str, float]) -> float:
    """What the work takes at the machine's rates."""
    return 1e3 * max(operations / rate["bfloat16"], moved / rate["bytes"])


def with_shares(rows: list[Row], least: float) -> list[Row]:
    """The rows, with their share of the limit."""
    return [row if row.ms is None else replace(row, limit_share=least / row.ms) for row in rows]


def network_least(model: nn.Module, batch: int, rate: dict[str, float]) -> float:
    """Of a pass: all products, the weights once, and the maps of the blocks' three steps."""
    counts = count(model, (3, SIZE, SIZE))
    a_map = batch * (SIZE // 16) ** 2 * model.num_features
    numbers = counts.parameters + MAPS_A_BLOCK * len(model.blocks) * a_map
    return least_ms(2 * counts.macs * batch, LOW.itemsize * numbers, rate)


def inference_rows(session: Session, batch: int) -> list[Row]:
    """One pass in bfloat16."""
    torch.compiler.reset()  # else a second batch size would be compiled for all sizes
    images = make_images(batch, SIZE).to(DEVICE)
    with torch.no_grad():
        expected = session.reference(images)
    ours, low = session.ours, images.to(LOW)
    ways: Makers = {
        f"{OURS}, as is": partial(way, ours, low, dtype=LOW),
        f"{OURS}, optimised": partial(optimised, ours, low, dtype=LOW),
    }
    deployed = partial(optimised, ours, low, dtype=LOW, compile=True)
    compiled: Makers = {f"{OURS}, optimised, compiled": deployed}
    if session.theirs is not None:
        run = partial(way, session.theirs)
        graphs = {} if batch > 1 else {"mode": "reduce-overhead"}
        name = "compiled" if batch > 1 else "compiled, CUDA graphs"
        ways |= {
            f"{AUTHORS}, eager": partial(run, low, dtype=LOW),
            f"{AUTHORS}, eager, channels_last": partial(run, low, dtype=LOW, last=True),
            f"{AUTHORS}, eager, autocast": partial(run, images, autocast=True),
        }
        compiled[f"{AUTHORS}, {name}"] = partial(run, low, dtype=LOW, compiled=graphs)
    ways |= {name: partial(compiling, session.deadline, make) for name, make in compiled.items()}
    ways = {name: partial(agreeing, make, expected) for name, make in ways.items()}
    row = Row(inference_title(batch), "bfloat16", "inference", "")
    reference = f"{OURS}, as is" if session.theirs is None else f"{AUTHORS}, eager"
    rows = measure(ways, row, reference, session.repeats)
    return with_shares(rows, network_least(ours, batch, session.rate))


def inference_title(batch: int) -> str:
    """What the tables call it."""
    return f"S60, inference, {batch} x 3 x {SIZE} x {SIZE}"


def trained(session: Session, name: str, images: Tensor, compiled: bool) -> Step:
    """A network's training step."""
    if compiled:
        session.deadline.check()
    model = copy.deepcopy(session.theirs if name.startswith(AUTHORS) else session.ours)
    assert model is not None
    TRAINED[name](model)
    return training_step(model, images, autocast=True, compiled=compiled)


def training_rows(session: Session, compiled: bool) -> list[Row]:
    """A step in bfloat16 autocast; compiled, only the plain networks."""
    torch.compiler.reset()
    images = make_images(TRAINING_BATCH, SIZE).to(DEVICE)
    names = {name: name for name in TRAINED}
    if compiled:
        names = {f"{AUTHORS}, compiled": f"{AUTHORS}, eager", f"{OURS}, compiled": OURS}
    if session.theirs is None:
        names = {w: name for w, name in names.items() if name.startswith(OURS)}
    ways = {w: partial(trained, session, name, images, compiled) for w, name in names.items()}
    reference = next(iter(ways))
    row = Row(training_title(compiled), "bfloat16", "training", "")
    return measure(ways, row, reference, TRAINING_REPEATS)


def training_title(compiled: bool = False) -> str:
    """What the tables call it."""
    how = ", compiled" if compiled else ""
    return f"S60, training step{how}, {TRAINING_BATCH} x 3 x {SIZE} x {SIZE}"


def plain_norm_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As the kernel, in PyTorch."""
    return F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], eps=EPS), weight, bias))


def plain_depthwise_gelu_sums(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As the kernel, in PyTorch."""
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    out = F.gelu(maps).permute(0, 2, 3, 1)
    return out, out.sum((1, 2), dtype=torch.float32)


def plain_scale_linear_residual(
    x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    """As the kernel, in PyTorch."""
    return residual + F.linear(x * gate[:, None], weight, bias)


def kernel_rows(session: Session) -> list[Row]:
    """The three steps of a folded block of S60, 256 images."""
    from convattn.kernels.patchconv_block import experimental_triton as triton_block

    torch.compiler.reset()
    batch, dim, side = BATCHES[0], session.ours.num_features, SIZE // 16
    torch.manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(LOW)

    matrix, bias = numbers(dim, dim) * dim**-0.5, numbers(dim)
    a_map, flat = numbers(batch, side, side, dim), numbers(batch, side * side, dim)
    positions = a_map.numel()
    kernels: dict[str, tuple[Callable, Callable, tuple[Tensor, ...], float]] = {
        "norm_linear_gelu": (
            partial(triton_block.norm_linear_gelu, eps=EPS),
            plain_norm_linear_gelu,
            (a_map, matrix, bias),
            2 * positions * dim,
        ),
        "depthwise_gelu_sums": (
            triton_block.depthwise_gelu_sums,
            plain_depthwise_gelu_sums,
            (a_map, numbers(dim, 1, 3, 3), bias),
            2 * positions * 9,
        ),
        "scale_linear_residual": (
            triton_block.scale_linear_residual,
            plain_scale_linear_residual,
            (flat, numbers(batch, dim), matrix, bias, numbers(*flat.shape)),
            2 * positions * dim,
        ),
    }
    rows = []
    for name, (kernel, plain, inputs, operations) in kernels.items():
        ways: Makers = {
            "Triton": partial(checked_kernel, kernel, plain, inputs),
            "PyTorch, eager": partial(forward, plain, *inputs),
            COMPILED: partial(
                compiling, session.deadline, partial(compiled_forward, plain, inputs)
            ),
        }
        found = measure(
            ways, Row(kernel_title(name), "bfloat16", "forward", ""), COMPILED, session.repeats
        )
        moved = sum(t.nbytes for t in inputs) + a_map.nbytes
        rows += with_shares(found, least_ms(operations, moved, session.rate))
    return rows


def kernel_title(name: str) -> str:
    """What the tables call it."""
    return f"{name}, {BATCHES[0]} maps of {SIZE // 16} x {SIZE // 16}"


def checked_kernel(kernel: Callable, plain: Callable, inputs: tuple[Tensor, ...]) -> Step:
    """A pass of a kernel that gives what PyTorch gives in float32."""
    got, right = first(kernel(*inputs)).float(), first(plain(*(t.float() for t in inputs)))
    found = float((got - right).norm() / right.norm())
    if not found <= KERNEL_TOLERANCE:
        raise ValueError(f"wrong by {found:.1e} of the numbers' norm")
    return forward(kernel, *inputs)


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The map."""
    return out[0] if isinstance(out, tuple) else out


def compiled_forward(function: Callable, inputs: tuple[Tensor, ...]) -> Step:
    """A compiled pass."""
    return forward(torch.compile(function), *inputs)


def fastest(rows: list[Row], case: str, start: str, step: str) -> Row | None:
    """The fastest of a case's ways whose names start so."""
    found = [
        row
        for row in rows
        if row.ms is not None and (row.case, row.step) == (case, step) and row.way.startswith(start)
    ]
    return min(found, key=lambda row: row.ms, default=None)


def targets(rows: list[Row]) -> str:
    """What the project wants to reach on a GPU, and what it reached."""
    inference, training = inference_title(BATCHES[0]), training_title()
    wanted = (
        ("inference, times as fast as their eager", 3.0, inference, "inference", "eager"),
        ("inference, times as fast as their compiled", 1.4, inference, "inference", "compiled"),
        ("training step, times as fast as their eager", 2.0, training, "training", "eager"),
    )
    cells = []
    for sentence, least, case, step, theirs in wanted:
        mine = fastest(rows, case, OURS, step)
        other = fastest(rows, case, f"{AUTHORS}, {theirs}", step)
        if mine is None or other is None:
            cells.append((sentence, f"{least}", "not measured", "?"))
            continue
        reached = other.ms / mine.ms
        text = f"{reached:.2f} ({mine.way} against {other.way})"
        cells.append((sentence, f"{least}", text, "yes" if reached >= least else "no"))
    return table(("target", "at least", "reached", "met"), cells)


def page(rows: list[Row], rate: dict[str, float], command: str) -> str:
    """In Markdown."""
    device = torch.cuda.get_device_properties(DEVICE)
    parts = [
        "# What PatchConvNet costs on a GPU",
        f"`{command}`, {device.name}, torch {torch.__version__}, {time.strftime('%-d %B %Y')}, "
        f"seed 0. A large bfloat16 product reaches {rate['bfloat16'] / 1e12:.0f} TFLOP/s, a large "
        f"copy {rate['bytes'] / 1e12:.2f} TB/s. Medians with quartiles; ratios of time are medians "
        "over neighbouring passes, to the authors' eager code or, for kernels, to compiled "
        "PyTorch. The limit of a network counts its products, its weights once, and "
        f"{MAPS_A_BLOCK} maps read or written a block; that of a kernel its tensors once.",
        "## Targets",
        targets(rows),
    ]
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        parts += [f"## {case}", table(HEAD, [row.cells() for row in group])]
    return "\n\n".join(parts) + "\n"


def make_session(arguments: argparse.Namespace) -> Session:
    """Networks on the device, its rates, and the time that is left."""
    theirs = None
    if arguments.authors is not None:
        theirs, ours = make_twins(load_authors(arguments.authors), S60)
        theirs = theirs.to(DEVICE)
    else:
        ours = timm.create_model(S60).eval()
        draw_weights(ours)
    deadline = Deadline(arguments.minutes - LAST_COMPILATION_MINUTES)
    return Session(theirs, ours.to(DEVICE), rates(), deadline, arguments.repeats)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: this benchmark measures nothing else", file=sys.stderr)
        sys.exit(2)
    session = make_session(arguments)
    given = " --authors patchconvnet_models.py" if session.theirs is not None else ""
    command = f"python benchmarks/patchconvnet_gpu.py{given}"
    out = arguments.out / "patchconvnet_gpu.md"
    rows: list[Row] = []
    parts = [  # the dearest to compile last
        partial(kernel_rows, session),
        partial(training_rows, session, compiled=False),
        *(partial(inference_rows, session, batch) for batch in BATCHES),
        partial(training_rows, session, compiled=True),
    ]
    for part in parts:
        try:
            rows += part()
        except Exception as error:  # one part that fails leaves the others their turn
            name = part.func.__name__
            rows.append(Row("What stopped a part", "", "", name, trouble=trouble(error)))
        torch.cuda.empty_cache()
        # After every part: what was measured is kept, whatever happens later.
        write(rows, out.with_suffix(".csv"))
        out.write_text(page(rows, session.rate, command))
    print(targets(rows))
    print(f"wrote {out} and {out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
