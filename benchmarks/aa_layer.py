"""An attention-augmented convolution beside its peers, on the CPU.

    python benchmarks/aa_layer.py [--public CHECKOUT] [--repeats 15] [--out docs/aa_layer.md]

The layer is the paper's of AA-Wide-ResNet: 160 channels, 8 heads, 160 query and 16 value channels.
Its peers: the public layer of LegenDong/attention-augmented.pytorch (give a checkout of it; one
line of it that current PyTorch refuses is mended in memory), with the same weights and checked to
give the same numbers; timm's BottleneckAttn of the same width and heads; ours without positions;
and the plain convolution. Then the attention alone, beside PyTorch's fused attention without
positions, on the same queries, keys and values.

All take turns in one process, so that whatever else the machine does meets them alike: a ratio is
the median over neighbouring passes, with its quartiles. Peak memory is that of a process of its
own, less what it held before.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from convattn import AAConv2d
from convattn.kernels.attention import attention
from side_by_side import extra_peak, forward, forward_backward, side_by_side, table

CHANNELS, HEADS, QK, V = 160, 8, 160, 16
PLACES = ((8, 32), (1, 64))  # images, side of the map
SIDES = (16, 32, 64, 96, 128, 160, 192)
PUBLIC_UP_TO = 64  # beyond, the public layer takes more than 10 GB
OURS = "ours"


def ours(side: int, **words) -> AAConv2d:
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
    layer = module.AugmentedLayer(CHANNELS, CHANNELS, 3, 1, dk=QK, dv=V, Nh=HEADS, fh=side, fw=side)
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
    columns = []
    for pass_of in (forward, forward_backward):
        steps = {n: pass_of(m, image_for(m, batch, side)) for n, m in made.items()}
        columns.append(side_by_side(steps, repeats, OURS))
    rows = [(name, *(column[name] for column in columns)) for name in made]
    return table(("layer", "forward", "forward + backward"), rows)


def attention_table(batch: int, side: int, repeats: int) -> str:
    """The attention alone, beside PyTorch's without positions."""
    torch.manual_seed(0)
    shape = (batch, HEADS, side * side)
    q, k = (torch.randn(*shape, QK // HEADS) for _ in range(2))
    q = q * (QK // HEADS) ** -0.5
    v = torch.randn(*shape, V // HEADS)
    tables = [torch.randn(2 * side - 1, QK // HEADS) for _ in range(2)]
    padded = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    limit = "SDPA without positions"
    ways = {limit: (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))}
    inputs = {limit: (q, k, padded)}
    for backend in ("chunked", "sdpa", "plain"):
        ways[backend] = partial(attention, feat_size=(side, side), backend=backend)
        inputs[backend] = (q, k, v, *tables)
    ways["chunked without positions"] = lambda q, k, v: ways["chunked"](q, k, v, None, None)
    inputs["chunked without positions"] = (q, k, v)
    columns = []
    for pass_of in (forward, forward_backward):
        steps = {
            name: pass_of(way, *(t.detach().requires_grad_() for t in inputs[name]))
            for name, way in ways.items()
        }
        columns.append(side_by_side(steps, repeats, limit))
    rows = [(name, *(column[name] for column in columns)) for name in ways]
    return table(("attention", "forward", "forward + backward"), rows)


def print_peak(checkout: Path | None, name: str, batch: int, side: int, mode: str) -> None:
    """In a process of its own: the extra megabytes of one pass."""
    # Reads the libraries in; what they take is nobody's cost.
    small = layers(checkout, 8)[name]
    forward_backward(small, image_for(small, 1, 8))()
    layer = layers(checkout, side)[name]
    image = image_for(layer, batch, side)
    print(extra_peak((forward if mode == "forward" else forward_backward)(layer, image)))


def peak(checkout: Path | None, name: str, batch: int, side: int, mode: str) -> float:
    """Extra megabytes of one pass."""
    command = [sys.executable, __file__, "--peak", name, str(batch), str(side), mode]
    if checkout is not None:
        command += ["--public", str(checkout)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def memory_table(checkout: Path | None) -> str:
    """Of the places that are timed."""
    names = [OURS, "ours, plain backend", "timm BottleneckAttn", "plain convolution"]
    names += [] if checkout is None else ["public layer"]
    rows = [
        (
            name,
            *(
                f"{peak(checkout, name, batch, side, mode):.0f} MB"
                for batch, side in PLACES
                for mode in ("forward", "both")
            ),
        )
        for name in names
    ]
    head = (
        "layer",
        *(
            f"{batch} x {side} x {side}, {mode}"
            for batch, side in PLACES
            for mode in ("forward", "forward + backward")
        ),
    )
    return table(head, rows)


def growth(checkout: Path | None) -> dict[str, dict[int, float]]:
    """Extra megabytes of a forward and backward pass of one image, by the map's side."""
    found = {OURS: SIDES, "plain convolution": SIDES}
    if checkout is not None:
        found["public layer"] = tuple(side for side in SIDES if side <= PUBLIC_UP_TO)
    return {
        name: {side: peak(checkout, name, 1, side, "both") for side in sides}
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
    return table(("map", *found), rows)


def draw_growth(found: dict[str, dict[int, float]], out: Path) -> None:
    """Memory against the number of positions, logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, sizes in found.items():
        axes.plot([side**2 for side in sizes], sizes.values(), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="positions of the map", ylabel="extra memory, MB")
    axes.set_title("Forward and backward of one image")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/aa_layer.md"))
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        name, batch, side, mode = arguments.peak
        print_peak(arguments.public, name, int(batch), int(side), mode)
        return
    parts = [
        "# What an attention-augmented convolution costs on the CPU",
        f"`python benchmarks/aa_layer.py{' --public CHECKOUT' if arguments.public else ''} "
        f"--repeats {arguments.repeats}`, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}. "
        f"{CHANNELS} channels, {HEADS} heads, {QK} query and {V} value channels; seed 0. Each "
        "cell: the median time, and the median of its ratios to the row that has 1.00, with "
        "quartiles.",
    ]
    for batch, side in PLACES:
        parts += [
            f"## {batch} x {side} x {side}",
            layer_table(arguments.public, batch, side, arguments.repeats),
            "The attention alone, on the same queries, keys and values:",
            attention_table(batch, side, arguments.repeats),
        ]
        print("\n\n".join(parts[-4:]), flush=True)
    parts += ["## Extra peak memory", memory_table(arguments.public)]
    print(parts[-1], flush=True)
    found = growth(arguments.public)
    image = arguments.out.with_suffix(".png")
    draw_growth(found, image)
    parts += [
        "Forward and backward of one image; the second number is MB a thousand positions:",
        growth_table(found),
        f"![Memory against the size of the map]({image.name})",
    ]
    print(parts[-2], flush=True)
    arguments.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
