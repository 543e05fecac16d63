"""An attention-augmented convolution beside its peers, on the CPU.

    python benchmarks/aa_layer.py [--public CHECKOUT] [--repeats 15] [--check]
        [--out docs/results/aa_layer.md]

The layer is the paper's of AA-Wide-ResNet: 160 channels, 8 heads, 160 query and 16 value channels.
Its peers: the public layer of LegenDong/attention-augmented.pytorch (give a checkout of it; one
line of it that current PyTorch refuses is mended in memory), with the same weights and checked to
give the same numbers; timm's BottleneckAttn of the same width and heads; ours without positions;
and the plain convolution. Then the attention alone, beside PyTorch's fused attention without
positions, on the same queries, keys and values.

All take turns in one process, so that whatever else the machine does meets them alike: a ratio is
the median over neighbouring passes, with its quartiles. Peak memory is that of a process of its
own, less what it held before. On a GPU: gpu.py.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

import pages
from convattn import AAConv2d
from convattn.bench import Step, compare, forward, forward_backward, peak_memory
from convattn.kernels.attention import attention
from convattn.text import markdown_table

CHANNELS, HEADS, QK, V = 160, 8, 160, 16
PLACES = ((8, 32), (1, 64))  # images, side of the map
SIDES = (16, 32, 64, 96, 128, 160, 192)
PUBLIC_UP_TO = 64  # beyond, the public layer takes more than 10 GB
OURS = "ours"
STEPS = {"forward": forward, "forward + backward": forward_backward}
# Images, heads, height, width, channels of a head's keys and values: what gpu.py compares.
CHECKED = ((2, 3, 9, 33, 20, 2), (2, 2, 14, 14, 40, 5))


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


def make_inputs(case: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
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
        f"{CHANNELS} channels, {HEADS} heads, {QK} query and {V} value channels. Each cell: the "
        "median time, and the median of its ratios to the row that has 1.00, with quartiles.",
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
    given = " --public CHECKOUT" if checkout else ""
    command = f"python benchmarks/aa_layer.py{given} --repeats {repeats}"
    pages.publish(out, "\n\n".join(parts) + "\n", [pages.provenance(command)])


def main() -> None:
    """Measure and write."""
    pages.answer_check("aa_layer")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/results/aa_layer.md"))
    arguments = parser.parse_args()
    measure_on_cpu(arguments.public, arguments.repeats, arguments.out)


if __name__ == "__main__":
    main()
