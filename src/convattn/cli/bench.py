"""``convattn bench``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from convattn.cli.targets import (
    AttentionOptions,
    Target,
    check_free,
    find_target,
)
from convattn.cli.words import UsageError, fail, parse
from convattn.config import Scalar
from convattn.exceptions import INTERRUPTED
from convattn.text import say

if TYPE_CHECKING:
    from convattn.bench import Layer, Subject


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure what a network or a layer costs: multiply-adds, activations, time and memory."""

    sizes: tuple[int, ...] = ()
    """Heights and widths of images, or of a layer's map, in pixels; none: its own."""
    batch_size: int = 8
    """Images at once, for throughput and training."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Number formats; training in bfloat16 keeps float32 weights."""
    compile: bool = False
    """Measure with torch.compile as well."""
    training: bool = True
    """Measure a training step as well."""
    device: str | None = None
    """Where to compute, cpu or cuda; None takes the GPU if there is one."""
    repeats: int = 10
    """Times that are taken of each row, in turns with the other rows."""
    threads: int | None = None
    """Threads on the CPU; None takes PyTorch's number."""
    out: str | None = None
    """Folder to make; None makes runs/bench/NAME, or NAME-2 where that is taken."""


@dataclass(frozen=True, kw_only=True)
class BenchModelOptions(BenchOptions):
    """Measure what a network costs: multiply-adds, activations, time and memory."""

    num_classes: int | None = None
    """Number of classes; None keeps the model's own."""
    model_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the model, for example img_size 384."""
    augment: AttentionOptions = field(default_factory=AttentionOptions)


def command(arguments: list[str]) -> int:
    """Run ``convattn bench``."""
    from tqdm import tqdm

    from convattn.bench import LAYERS, draw_costs, measure
    from convattn.files import new_folder, replace_atomically

    prog = "convattn bench"
    _check_no_dense_model(arguments, prog)
    target = find_target(
        BenchModelOptions(),
        arguments,
        prog=prog,
        model=f"MODEL|{'|'.join(LAYERS)}",
        others=LAYERS,
    )
    subject, options = _subject(target, arguments[1:], prog=f"{prog} {target.name}")
    check_free(options.out)

    with tqdm(disable=None, leave=False) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        costs = measure(
            subject,
            sizes=options.sizes,
            batch_size=options.batch_size,
            dtypes=options.dtypes,
            compiled=options.compile,
            training=options.training,
            device=options.device,
            repeats=options.repeats,
            threads=options.threads,
            progress=progress,
            warn=lambda text: fail(text, 0),
        )
    if not costs.rows:
        return fail("interrupted before anything was measured", INTERRUPTED)
    if all(row.median_ms is None for row in costs.rows):
        return fail(f"nothing could be measured: {costs.rows[0].error}", 2)
    say(f"{costs.table()}\n")
    folder = new_folder(options.out, f"runs/bench/{subject.name}")
    replace_atomically(folder / "bench.csv", costs.to_csv().encode())
    replace_atomically(folder / "bench.json", costs.to_json().encode())
    drawing = folder / "bench.tmp.png"
    draw_costs(costs, drawing)
    drawing.replace(folder / "bench.png")
    say(str(folder))
    if costs.interrupted:
        return fail(f"interrupted; {folder} holds what was measured", INTERRUPTED)
    return 0


def _check_no_dense_model(arguments: Sequence[str], prog: str) -> None:
    from convattn.tasks import task_of

    task = task_of(arguments[0] if arguments else "")
    if task.models:
        raise UsageError(
            f"{prog} is for networks that classify images, and for layers; {arguments[0]} does "
            f"{task.name}: measure its backbone"
        )


def _subject(target: Target, words: list[str], *, prog: str) -> tuple[Subject, BenchOptions]:
    """What is to be measured, and how."""
    from convattn.bench import LAYERS, layer_subject, model_subject, run_subject
    from convattn.runs import augment_arguments

    if target.name in LAYERS:
        kind = _layer_options(target.name, LAYERS[target.name])
        options = parse(kind, kind(), words, prog=prog)
        return layer_subject(target.name, **dataclasses.asdict(cast(Any, options).args)), options
    if target.run is not None:
        options = parse(BenchOptions, BenchOptions(), words, prog=prog)
        return run_subject(target.run), options
    chosen = parse(BenchModelOptions, BenchModelOptions(), words, prog=prog)
    subject = model_subject(
        target.name,
        num_classes=chosen.num_classes,
        augment=augment_arguments(chosen.augment, None),
        **chosen.model_args,
    )
    return subject, chosen


def _layer_options(name: str, layer: Layer) -> type[BenchOptions]:
    """The options with the layer's own arguments as flags."""
    parameters = inspect.signature(layer.kind).parameters.values()
    fields = [
        (one.name, one.annotation, field(default=layer.arguments.get(one.name, one.default)))
        for one in parameters
        if one.name not in ("device", "dtype")
    ]
    own = dataclasses.make_dataclass(
        f"{name}Arguments",
        fields,
        frozen=True,
        kw_only=True,
        namespace={"__doc__": inspect.getdoc(layer.kind)},
    )
    return dataclasses.make_dataclass(
        "BenchLayerOptions",
        [("args", own, field(default_factory=own))],
        bases=(BenchOptions,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": f"Measure what {name} costs: multiply-adds, time and memory."},
    )
