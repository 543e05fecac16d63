"""PatchConvNet beside its authors' implementation and its peers, on the CPU.

    python benchmarks/patchconvnet.py --authors patchconvnet_models.py [--repeats 11]
        [--only inference,training,aggregation,multi,peers,limits] [--sizes 224 384 512]
        [--batch-size 8] [--training-batch-size 16] [--no-compile] [--compile-all] [--check]
        [--out docs/results/patchconvnet_speed.md]

``--authors`` is the file ``patchconvnet_models.py`` of github.com/facebookresearch/deit. Both
implementations get the same weights, and every variant must give the logits of the authors'
float32 network, or the run ends. Weights are drawn so that the logits feel every part: at
initialisation layer scale is 1e-4, which would hide the trunk.

What is compared takes turns in one process, so that whatever else the machine does meets all
alike. "Times as fast" is the median over neighbouring passes, with its quartiles, against the
authors' variant with the smallest median. Peak memory is that of a process of its own.

The page is written after every section. ``--only`` replaces its sections and keeps the others. On
a GPU: gpu.py.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import re
import shlex
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import timm.layers
import timm.models._efficientnet_blocks
import torch
import torch._inductor.config
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import convattn
import pages
from convattn.bench import (
    Comparison,
    Step,
    compare,
    count,
    describe_error,
    forward,
    forward_backward,
    peak_memory,
    training_step,
)
from convattn.functional import aggregate
from convattn.inference.processor import emulates
from convattn.layers import LearnedAggregation2d
from convattn.text import markdown_table
from convattn.weights import patchconvnet_from_released

Ways = dict[str, Callable[[], Step]]
"""What makes each step, and compiles what is compiled."""

S60, MULTI = "patchconvnet_s60", "patchconvnet_s60_multi"
AUTHORS_NAMES = {S60: "S60", MULTI: "S60_multi"}
AUTHORS, OURS, OPTIMISED = "authors", "ours", "ours, optimised"
# Shares of the logits' standard deviation, by words in the names of the ways. Sixty blocks in
# bfloat16 leave about 3e-2, the authors' as well as ours.
TOLERANCES = {"int8": 5e-2, "bfloat16": 5e-2, "": 1e-4}
EMULATED_REPEATS = 3
FREEZING = {"options": {"freezing": True}}
"""Weights become constants of the compiled code."""
COMPILED_SIZE = 224
AGGREGATION_BATCHES = (1, 8, 64)
SIDE = 14  # of S60's map at 224

LOW = torch.bfloat16
# A product of bfloat16 maps rounds each of them; sixty blocks of it are 3e-2.
NETWORK_TOLERANCE = 5e-2
EPS = 1e-6

# Top-1 on ImageNet at 224 after training on ImageNet-1k alone, in per cent.
TOP1 = {
    # The papers' own figures: "ResNet strikes back" (A1), ConvNeXt, DeiT.
    "resnet50": 80.4,
    "convnext_tiny": 82.1,
    "deit_small_patch16_224": 79.9,
    # About: the figure of the DeiT paper, trained with its procedure; the RegNet paper has 79.4.
    "regnety_040": 80.0,
    # The PatchConvNet paper.
    "S60, authors": 82.1,
    "S60, ours": 82.1,
    "S60 multi, ours": 81.1,
}


def note(text: str) -> None:
    """Tells whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def load_authors(path: Path) -> types.ModuleType:
    """Their module; it asks timm for modules under the names that they had in 2022."""
    old = {
        "timm.models.efficientnet_blocks": timm.models._efficientnet_blocks,
        "timm.models.layers": timm.layers,
        # Their names stay out of timm's registry.
        "timm.models.registry": types.SimpleNamespace(register_model=lambda function: function),
    }
    spec = importlib.util.spec_from_file_location("authors_patchconvnet", path)
    if spec is None or spec.loader is None or not path.is_file():  # a folder has none
        raise SystemExit(f"--authors {path} is no Python file; give deit's patchconvnet_models.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, old):
        spec.loader.exec_module(module)
    return module


def draw_weights(model: nn.Module) -> None:
    """Weights that let the logits feel the image, whatever its way through the network."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            else:
                parameter.uniform_(0.1, 0.5)


def make_images(batch: int, size: int) -> Tensor:
    """Smooth noise: images that a network with random weights can tell apart."""
    torch.manual_seed(1)
    return 2 * F.interpolate(torch.randn(batch, 3, 5, 5), size=size, mode="bicubic")


def make_twins(authors: types.ModuleType, name: str, **words: Any) -> tuple[Any, Any]:
    """Their network and ours with the same weights, found to agree."""
    torch.manual_seed(0)
    theirs = getattr(authors, AUTHORS_NAMES[name])(**words).eval()
    draw_weights(theirs)
    ours = timm.create_model(name, **words).eval()
    ours.load_state_dict(patchconvnet_from_released(theirs.state_dict()))
    images = make_images(2, 64)
    with torch.no_grad():
        require_agreement(name, ours(images), theirs(images))
    return theirs, ours


def difference(out: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the expected numbers' standard deviation."""
    return float((out.float() - expected).abs().max() / expected.std())


def require_agreement(name: str, out: Tensor, expected: Tensor) -> float:
    """The difference; the run ends when it is too large."""
    found = difference(out, expected)
    allowed = next(share for word, share in TOLERANCES.items() if word in name)
    if not found <= allowed:
        raise SystemExit(
            f"{name}: logits differ from the authors' by {found:.1e} of their standard deviation, "
            f"at most {allowed:.0e} is rounding; nothing was measured"
        )
    return found


def passes(run: Callable[[Tensor], Tensor], images: Tensor, autocast: bool = False) -> Step:
    """Inference, which gives the logits."""

    def step() -> Tensor:
        device = images.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            return run(images)

    return step


def way(
    model: nn.Module,
    images: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    autocast: bool = False,
    compiled: dict[str, Any] | None = None,
) -> Step:
    """A copy of a network, run as a user of plain PyTorch would.

    ``compiled`` are the words for ``torch.compile``; None stays eager.
    """
    layout = torch.channels_last if last else torch.contiguous_format
    model = copy.deepcopy(model).to(dtype).to(memory_format=layout)
    images = images.to(dtype=dtype, memory_format=layout)
    run = model if compiled is None else torch.compile(model, **compiled)
    step = passes(run, images, autocast)
    # The tracer reads the setting, not the option; without the option it would take what it had
    # compiled for another network of this class.
    with torch._inductor.config.patch((compiled or {}).get("options", {})):
        step()  # compiles
    return step


def optimised(model: nn.Module, images: Tensor, **words: Any) -> Step:
    """Our network as a user would deploy it."""
    return passes(convattn.optimize_for_inference(model, **words), images)


def inference_ways(
    theirs: nn.Module, ours: nn.Module, images: Tensor, dtype: torch.dtype, compiled: bool
) -> Ways:
    """All of them; in float32 int8 as well, which has float32 between its products."""
    low = dtype != torch.float32
    their, our = partial(way, theirs, images, dtype=dtype), partial(way, ours, images, dtype=dtype)
    deployed = partial(optimised, ours, images, **({"dtype": dtype} if low else {}))
    a, b = (f"{name}, bfloat16" if low else name for name in (AUTHORS, OURS))
    best = f"{OPTIMISED}, bfloat16" if low else OPTIMISED
    ways: Ways = {}
    if low:
        ways[f"{a} autocast"] = partial(way, theirs, images, autocast=True)
    ways[a if low else f"{a}, eager"] = their
    ways[f"{a}, channels_last"] = partial(their, last=True)
    ways[b if low else f"{b}, as is"] = our
    ways[best] = deployed
    if not low:
        ways[f"{best}, int8"] = partial(optimised, ours, images, dtype=torch.int8)
    if compiled:
        ways[f"{a}, compiled"] = partial(their, compiled={})
        ways[f"{a}, compiled, freezing"] = partial(their, compiled=FREEZING)
        ways[f"{best}, compiled"] = partial(deployed, compile=True)
    return ways


def race(steps: dict[str, Step], repeats: int) -> Comparison:
    """All steps, which take turns; the first round only warms up."""
    return compare(steps, repeats=repeats, warm_up=1, title="rounds")


def milliseconds(times: Comparison, name: str) -> str:
    """The median."""
    return f"{times.milliseconds(name).median:.4g} ms"


def images_per_second(times: Comparison, name: str, batch: int) -> float:
    """At the median."""
    return batch / times.seconds(name).median


def make_steps(
    ways: Ways, expected: Tensor | None = None
) -> tuple[dict[str, Step], dict[str, str], dict[str, str]]:
    """The steps, how far their logits are from those expected, and why others could not be made."""
    torch.compiler.reset()  # else a second size would be compiled for all sizes
    steps: dict[str, Step] = {}
    errors, troubles = dict[str, str](), dict[str, str]()
    for name, make in ways.items():
        note(f"making {name}")
        try:
            step = make()
            out = step()
        except Exception as error:  # no compiler, no memory, no such instructions: a row says so
            troubles[name] = describe_error(error)[:120].replace("|", "/")
            note(f"{name} left out: {troubles[name]}")
            continue
        steps[name] = step
        if expected is not None:
            errors[name] = f"{require_agreement(name, out, expected):.1e}"
            if "bfloat16" in name and "autocast" not in name and out.dtype == torch.float32:
                errors[name] += ", stayed in float32"
    return steps, errors, troubles


def race_table(ways: Ways, expected: Tensor, repeats: int) -> str:
    """A row a way, beside the authors' best."""
    steps, errors, troubles = make_steps(ways, expected)
    note(f"racing {len(steps)} ways, {repeats} rounds")
    times = race(steps, repeats)
    best = times.fastest(AUTHORS)
    rows = [
        (
            f"**{name}**" if name == best else name,
            milliseconds(times, name),
            f"{images_per_second(times, name, len(expected)):.3g}",
            f"{times.ratio(best, to=name):.3g}",
            errors[name],
        )
        for name in steps
    ]
    rows += [(name, trouble, "", "", "") for name, trouble in troubles.items()]
    head = ("way", "median", "images/s", "times as fast as the authors' best", "logits' error")
    return markdown_table(head, rows)


def compiles(arguments: argparse.Namespace, size: int) -> bool:
    """Whether this size is also compiled, which takes a minute a variant."""
    return arguments.compile and (size == COMPILED_SIZE or arguments.compile_all)


def inference_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """S60 at every size, one image and many, float32 and bfloat16."""
    theirs, ours = make_twins(authors, S60)
    emulated = emulates(torch.bfloat16, torch.device("cpu"))
    parts = [
        "S60, same weights. The authors' best is bold. The error is the largest difference to the "
        "authors' float32 logits, as a share of their standard deviation."
    ]
    if emulated:
        parts.append(
            "This processor has no bfloat16 instructions and emulates them: its bfloat16 figures, "
            f"of {min(EMULATED_REPEATS, arguments.repeats)} rounds, say nothing of processors "
            "that have."
        )
    kinds = {"float32": torch.float32, "bfloat16": LOW}
    places = itertools.product(arguments.sizes, dict.fromkeys((1, arguments.batch_size)), kinds)
    for size, batch, kind in places:
        note(f"inference, {size} x {size}, batch {batch}, {kind}")
        images = make_images(batch, size)
        with torch.no_grad():
            expected = theirs(images)
        ways = inference_ways(theirs, ours, images, kinds[kind], compiles(arguments, size))
        repeats = arguments.repeats
        if kind == "bfloat16" and emulated:
            repeats = min(EMULATED_REPEATS, repeats)
        parts += [
            f"### {size} x {size}, batch {batch}, {kind}",
            race_table(ways, expected, repeats),
        ]
    return parts


TRAINED: dict[str, Callable[[Any], object]] = {
    f"{AUTHORS}, eager": lambda model: model,
    f"{AUTHORS}, channels_last": lambda model: model.to(memory_format=torch.channels_last),
    OURS: lambda model: model,
    f"{OURS}, pointwise recomputation": lambda model: model.set_pointwise_recomputation(),
    f"{OURS}, gradient checkpointing": lambda model: model.set_grad_checkpointing(),
}
"""What is done to a network before it is trained."""


def lamb_step(model: nn.Module, images: Tensor, **words: bool) -> Step:
    """A training step with LAMB at a rate that changes nothing."""
    optimizer = create_optimizer_v2(model, opt="lamb", lr=1e-12, weight_decay=0.05)
    labels = torch.arange(len(images), device=images.device)
    return training_step(model, images, optimizer, labels=labels, **words)


def require_same_loss(steps: dict[str, Step]) -> None:
    """Of all ways to train; else the run ends."""
    losses = {name: float(step()) for name, step in steps.items()}
    if not max(losses.values()) - min(losses.values()) <= 1e-4 * min(losses.values()):
        raise SystemExit(f"the losses of one training step differ: {losses}")


def new_training(path: Path, name: str, batch: int, size: int, drop_path: float) -> Step:
    """Making a network and training it."""
    authors = load_authors(path)
    # Reads the libraries in; what they take is nobody's cost.
    lamb_step(timm.create_model("patchconvnet_nano"), torch.randn(2, 3, 32, 32))()
    images = make_images(batch, size)
    make = authors.S60 if name.startswith(AUTHORS) else partial(timm.create_model, S60)

    def train() -> None:
        model = make(drop_path_rate=drop_path)
        TRAINED[name](model)
        step = lamb_step(model, images)
        for _ in range(2):  # from the second on the moments are there all the while
            step()

    return train


def training_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """Time and peak memory of a step, without and with stochastic depth."""
    batch, size = arguments.training_batch_size, arguments.training_size
    images = make_images(batch, size)
    parts = [
        f"S60, {size} x {size}, batch {batch}, float32: forward, cross entropy, backward and "
        "timm's LAMB. Peak memory is that of a process of its own after it has read the "
        "libraries in: weights, gradients, both moments, activations; its ratio is to the "
        "authors' eager step."
    ]
    for drop_path in (0.0, 0.1):
        note(f"training, drop path {drop_path}")
        twins = make_twins(authors, S60, drop_path_rate=drop_path)
        steps = {}
        for name, change in TRAINED.items():
            model = copy.deepcopy(twins[name.startswith(OURS)])
            change(model)
            steps[name] = lamb_step(model, images)
        if not drop_path:
            require_same_loss(steps)
        times = race(steps, arguments.repeats)
        del steps
        peaks = {}
        for name in TRAINED:
            note(f"peak memory of {name}")
            make = partial(new_training, arguments.authors, name, batch, size, drop_path)
            peaks[name] = peak_memory(make) / 1e6
        best, heaviest = times.fastest(AUTHORS), peaks[f"{AUTHORS}, eager"]
        rows = [
            (
                f"**{name}**" if name == best else name,
                milliseconds(times, name),
                f"{times.ratio(best, to=name):.3g}",
                f"{peaks[name]:.0f} MB",
                f"{peaks[name] / heaviest:.2f}",
            )
            for name in TRAINED
        ]
        head = ("way", "median", "times as fast as the authors' best", "peak memory", "ratio")
        parts += [f"### Drop path {drop_path}", markdown_table(head, rows)]
    return parts


class AuthorsPool(nn.Module):
    """Their token block and the last LayerNorm, of the token alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.block, self.norm = network.blocks_token_only[0], network.norm
        self.token = network.cls_token

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1, C)."""
        return self.norm(self.block(x, self.token.expand(len(x), -1, -1)))


class OurPool(nn.Module):
    """Our head without its classifier."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head: LearnedAggregation2d = copy.deepcopy(head)
        self.head.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, C)."""
        return self.head.pool(x)


class OurAttention(nn.Module):
    """Our attention on normalised patches and token."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.attn: Any = copy.deepcopy(head.attn)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """(B, N, C), (1, C) -> (B, 1, C)."""
        q, k, v = self.attn.q, self.attn.k, self.attn.v
        weights = k.weight, v.weight, k.bias, v.bias
        return self.attn.proj(aggregate(x, q(token), *weights, token=token))


def optimised_attention(head: Any) -> Callable[[Tensor], Tensor]:
    """Our folded attention, without the token and its layer scale: (B, N, C) -> (B, 1, C)."""
    head = copy.deepcopy(head)
    with torch.no_grad():
        head.gamma1.fill_(1)
        folded: Any = convattn.optimize_for_inference(head)
        folded.base -= head.token
    return folded.gather


def authors_head(network: nn.Module) -> nn.Module:
    """Their network without stem and trunk: (B, N, C) -> (B, classes)."""
    head = copy.deepcopy(network)
    head.patch_embed, head.blocks = nn.Identity(), nn.ModuleList()
    return head


def as_map(x: Tensor) -> Tensor:
    """(B, N, C) as the (B, C, H, W) map that our trunk hands over, channels last in memory."""
    return x.detach().transpose(1, 2).unflatten(2, (SIDE, SIDE)).requires_grad_()


def patches(batch: int, dim: int) -> Tensor:
    """Noise, (B, N, C)."""
    torch.manual_seed(2)
    return torch.randn(batch, SIDE * SIDE, dim, requires_grad=True)


Called = tuple[Any, ...]
"""A module with its inputs."""


def trio_row(
    what: str, batch: int, theirs: Called, ours: Called, optimised: Called, repeats: int
) -> tuple[str, ...]:
    """Forward, and forward and backward, of modules that agree; the optimised only forward."""
    with torch.no_grad():
        expected = theirs[0](*theirs[1:])
        for one in (ours, optimised):
            require_agreement(f"{what}, batch {batch}", one[0](*one[1:]), expected)
    ways = {AUTHORS: theirs, OURS: ours, OPTIMISED: optimised}
    times = race({name: forward(*way) for name, way in ways.items()}, repeats)
    cells = [what, str(batch), milliseconds(times, AUTHORS)]
    for name in (OURS, OPTIMISED):
        cells += [milliseconds(times, name), f"{times.ratio(name, to=AUTHORS):.3g}"]
    times = race({name: forward_backward(*ways[name]) for name in (AUTHORS, OURS)}, repeats)
    share = f"{times.ratio(OURS, to=AUTHORS):.3g}"
    return (*cells, milliseconds(times, AUTHORS), milliseconds(times, OURS), share)


TRIO_HEAD = (
    "what",
    "batch",
    "authors, forward",
    "ours",
    "share of their time",
    "ours, optimised",
    "share of their time",
    "authors, forward + backward",
    "ours",
    "share of their time",
)


def aggregation_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """The aggregation of S60 on a map, in three extents."""
    theirs, ours = make_twins(authors, S60)
    dim = ours.num_features
    rows = []
    for batch in AGGREGATION_BATCHES:
        note(f"aggregation, batch {batch}")
        x = patches(batch, dim)
        with torch.no_grad():
            normed, token = ours.head.norm1(x), ours.head.norm1(ours.head.token)
            both = torch.cat([token.expand(batch, 1, dim), normed], dim=1)
        normed, token, both = (t.requires_grad_() for t in (normed, token, both))
        attention = theirs.blocks_token_only[0].attn
        head = convattn.optimize_for_inference(ours.head)
        plain = F.layer_norm(x.detach(), (dim,), eps=ours.head.norm1.eps)
        folded = optimised_attention(ours.head)
        trios: dict[str, tuple[Called, Called, Called]] = {
            "attention alone": (
                (attention, both),
                (OurAttention(ours.head), normed, token),
                (folded, plain),
            ),
            "token block": (
                (AuthorsPool(theirs), x),
                (OurPool(ours.head), as_map(x)),
                (OurPool(head), as_map(x)),
            ),
            "whole head": ((authors_head(theirs), x), (ours.head, as_map(x)), (head, as_map(x))),
        }
        repeats = 3 * arguments.repeats  # milliseconds each
        rows += [trio_row(what, batch, *trio, repeats) for what, trio in trios.items()]
    return [
        f"S60's aggregation of a (B, {dim}, {SIDE}, {SIDE}) map. Alone: their "
        "`Learned_Aggregation_Layer` on the normalised token and patches. Token block: "
        "concatenation, LayerNorm, attention, MLP, and the last LayerNorm of the token alone. "
        "Whole head: as the networks run it; theirs concatenates a second time and normalises "
        "every patch before the classifier.",
        markdown_table(TRIO_HEAD, rows),
    ]


def multi_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """S60 with a token a class: the head, and the whole network."""
    theirs, ours = make_twins(authors, MULTI)
    rows = []
    for batch in dict.fromkeys((1, arguments.batch_size)):
        note(f"multi, head, batch {batch}")
        x = patches(batch, ours.num_features)
        head = convattn.optimize_for_inference(ours.head)
        trio = (authors_head(theirs), x), (ours.head, as_map(x)), (head, as_map(x))
        rows.append(trio_row("head", batch, *trio, arguments.repeats))
    parts = [
        f"S60 with {ours.num_classes} class tokens. The head on a {SIDE} x {SIDE} map:",
        markdown_table(TRIO_HEAD, rows),
    ]
    size = arguments.sizes[0]
    for batch in dict.fromkeys((1, arguments.batch_size)):
        note(f"multi, whole network, batch {batch}")
        images = make_images(batch, size)
        with torch.no_grad():
            expected = theirs(images)
        ways = inference_ways(theirs, ours, images, torch.float32, compiles(arguments, size))
        if not arguments.compile_all:  # a thousand classifiers, one by one
            ways = {n: w for n, w in ways.items() if not n.startswith(f"{AUTHORS}, compiled")}
        parts += [
            f"### The whole network, {size} x {size}, batch {batch}",
            race_table(ways, expected, arguments.repeats),
        ]
    return parts


def make_networks(authors: types.ModuleType, size: int) -> dict[str, nn.Module]:
    """PatchConvNets and what a user would pick instead, by their names in ``TOP1``."""
    words = {"deit_small_patch16_224": {"img_size": size}}
    peers = [name for name in TOP1 if timm.is_model(name)]
    found = {name: timm.create_model(name, **words.get(name, {})).eval() for name in peers}
    found["S60, authors"], found["S60, ours"] = make_twins(authors, S60)
    found["S60 multi, ours"] = timm.create_model(MULTI).eval()
    return found


AS_IS, PREPARED = "as is", "prepared"


def network_ways(name: str, model: nn.Module, images: Tensor, compiled: bool) -> Ways:
    """As it is in both layouts, and prepared by what its user has at hand."""
    ways: Ways = {
        f"{name}: {AS_IS}": partial(way, model, images),
        f"{name}: {AS_IS}, channels_last": partial(way, model, images, last=True),
    }
    if name.endswith(OURS):
        ways[f"{name}: {PREPARED}"] = partial(optimised, model, images)
    if name.endswith(OURS) and compiled:
        ways[f"{name}: {PREPARED}, compiled"] = partial(optimised, model, images, compile=True)
    elif compiled:
        make = partial(way, model, images, compiled=FREEZING)
        ways[f"{name}: {PREPARED}, compiled"] = make
    return ways


Speeds = dict[tuple[str, str], float]
"""Images a second, by network and kind."""


def peer_speeds(
    models: dict[str, nn.Module], images: Tensor, compiled: bool, repeats: int
) -> Speeds:
    """The best of each network, as is and prepared, all in one race."""
    ways: Ways = {}
    for name, model in models.items():
        ways |= network_ways(name, model, images, compiled)
    steps, _, _ = make_steps(ways)
    note(f"racing {len(steps)} ways, {repeats} rounds")
    times = race(steps, repeats)
    speeds: Speeds = {}
    for name, kind in itertools.product(models, (AS_IS, PREPARED)):
        if any(made.startswith(f"{name}: {kind}") for made in steps):
            best = times.fastest(f"{name}: {kind}")
            speeds[name, kind] = images_per_second(times, best, len(images))
    return speeds


def peers_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """Images a second beside what a user would pick instead, as a table a size and a plot."""
    parts = [
        "float32, random weights. As is: eager, the faster of both memory layouts. Prepared: "
        "`optimize_for_inference` for ours, the faster of eager and compiled; for the others "
        "`torch.compile` with Inductor's `freezing`, where this size was compiled. Top-1: "
        "published, at 224, after training on ImageNet-1k alone; the peers' is quoted from memory."
    ]
    batches = tuple(dict.fromkeys((1, arguments.batch_size)))
    for size in arguments.sizes:
        models = make_networks(authors, size)
        found = {}
        for batch in batches:
            note(f"peers, {size} x {size}, batch {batch}")
            images = make_images(batch, size)
            compiled = compiles(arguments, size)
            found[batch] = peer_speeds(models, images, compiled, arguments.repeats)
        rows = []
        for name, model in models.items():
            counts = count(model, (3, size, size))
            row: list[str] = [
                name,
                f"{counts.parameters / 1e6:.1f} M",
                f"{counts.macs / 1e9:.2f} G",
            ]
            row.append(f"{TOP1[name]:.1f}" if size == COMPILED_SIZE else "")
            for batch, kind in itertools.product(batches, (AS_IS, PREPARED)):
                speed = found[batch].get((name, kind))
                row.append("" if speed is None else f"{speed:.3g}")
            rows.append(tuple(row))
        head: tuple[str, ...] = ("network", "parameters", "multiply-adds", "top-1")
        head += tuple(
            f"images/s, batch {batch}, {kind}"
            for batch, kind in itertools.product(batches, (AS_IS, PREPARED))
        )
        parts += [f"### {size} x {size}", markdown_table(head, rows)]
        if size == COMPILED_SIZE:
            image = arguments.out.with_suffix(".png")
            draw_peers(found, image)
            parts.append(f"![Throughput against published accuracy]({image.name})")
    return parts


def draw_peers(found: dict[int, Speeds], out: Path) -> None:
    """A panel a batch size, a colour a network, hollow where it was prepared."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    colours = {name: f"C{number}" for number, name in enumerate(TOP1)}
    figure, panels = plt.subplots(
        1, len(found), figsize=(1.8 + 4.2 * len(found), 4.2), sharey=True, squeeze=False
    )
    for axes, (batch, speeds) in zip(panels[0], found.items(), strict=True):
        for name in dict.fromkeys(name for name, _ in speeds):
            kinds = [kind for kind in (AS_IS, PREPARED) if (name, kind) in speeds]
            places = [speeds[name, kind] for kind in kinds]
            colour, height = colours[name], TOP1[name]
            axes.plot(places, [height] * len(places), color=colour, alpha=0.4, zorder=1)
            for place, kind in zip(places, kinds, strict=True):
                face = colour if kind == AS_IS else "white"
                axes.plot(
                    place, height, "o", color=colour, markerfacecolor=face, markersize=9, mew=2
                )
        axes.set(xscale="log", xlabel="images/s", title=f"batch {batch}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.12)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("published top-1 on ImageNet, %")
    marks: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 9, "mew": 2}
    entries = [Line2D([], [], color=colours[name], label=name, **marks) for name in TOP1]
    entries += [
        Line2D([], [], color="grey", label=AS_IS, **marks),
        Line2D([], [], color="grey", markerfacecolor="white", label=PREPARED, **marks),
    ]
    figure.suptitle(f"{COMPILED_SIZE} x {COMPILED_SIZE}, float32, CPU")
    figure.legend(handles=entries, loc="outside right center", frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    figure.savefig(out, dpi=120)
    plt.close(figure)


KINDS = {
    "matrix products": r"addmm|::mm|bmm|linear|matmul",
    "convolutions": r"conv(?!attn)",
    "GELU": r"gelu",
    "LayerNorm": r"layer_norm",
    "elementwise and sums": r"::(add|mul|sigmoid|relu|clamp|mean|sum|div|copy|silu)",
}
"""Patterns of operators' names; the first that is found counts."""


def kind_of(operator: str) -> str:
    """What the profile calls an operator."""
    kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, operator))
    return next(kinds, "rest")


def product_rates(dim: int, pixels: int) -> dict[str, float]:
    """Operations a second of float32 products, by their shapes."""
    shapes = (pixels, dim, dim), (8 * pixels, dim, dim), (2048, 2048, 2048)
    steps: dict[str, Step] = {}
    operations: dict[str, int] = {}
    for rows, inner, columns in shapes:
        name = f"({rows} x {inner}) ({inner} x {columns})"
        steps[name] = partial(torch.mm, torch.randn(rows, inner), torch.randn(inner, columns))
        operations[name] = 2 * rows * inner * columns
    times = compare(steps, repeats=20, warm_up=5)
    return {name: operations[name] / times.seconds(name).median for name in steps}


def limits_section(authors: types.ModuleType, arguments: argparse.Namespace) -> list[str]:
    """How near to this machine's matrix products, and where the rest goes."""
    size, batch = arguments.sizes[0], arguments.batch_size
    theirs, ours = make_twins(authors, S60)
    images = make_images(batch, size)
    note("limits: matrix products")
    rates = product_rates(ours.num_features, batch * (size // 16) ** 2)
    steps = {
        f"{AUTHORS}, eager": way(theirs, images),
        f"{OURS}, as is": way(ours, images),
        f"{OURS}, optimised": optimised(ours, images),
    }
    note("limits: passes")
    times = race(steps, arguments.repeats)
    operations = 2 * batch * count(ours, (3, size, size)).macs
    least = operations / max(rates.values())
    shares = [
        (name, milliseconds(times, name), f"{least / times.seconds(name).median:.0%}")
        for name in steps
    ]
    best = times.fastest(OURS)
    note(f"limits: profile of {best}")
    return [
        "The rates of float32 matrix products here:",
        markdown_table(
            ("product", "GFLOP/s"), [(n, f"{rate / 1e9:.0f}") for n, rate in rates.items()]
        ),
        f"S60, {size} x {size}, batch {batch}: {operations / 1e9:.1f} GFLOP, which at the best of "
        f"these rates take {1e3 * least:.0f} ms. That is of a pass:",
        markdown_table(("way", "median", "share"), shares),
        f'Where the time of "{best}" goes, by the profiler\'s own CPU time of each operator:',
        profile_table(steps[best]),
    ]


def profile_table(step: Step) -> str:
    """Kinds of operators, the longest first, with those that they are made of."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    taken: dict[str, dict[str, float]] = {}
    for event in profile.key_averages():
        operators = taken.setdefault(kind_of(event.key), {})
        operators[event.key] = operators.get(event.key, 0) + event.self_cpu_time_total
    total = sum(sum(operators.values()) for operators in taken.values())
    rows = []
    for kind, operators in sorted(taken.items(), key=lambda item: -sum(item[1].values())):
        longest = sorted(operators, key=operators.__getitem__, reverse=True)[:4]
        names = ", ".join(f"`{name}`" for name in longest)
        rows.append((kind, f"{sum(operators.values()) / total:.1%}", names))
    return markdown_table(("kind", "share", "mostly"), rows)


SECTIONS = {
    "inference": ("Inference", inference_section),
    "training": ("Training step", training_section),
    "aggregation": ("Learned aggregation", aggregation_section),
    "multi": ("A token a class", multi_section),
    "peers": ("Beside its peers", peers_section),
    "limits": ("Limits", limits_section),
}


def measure_on_cpu(authors: types.ModuleType, arguments: argparse.Namespace) -> None:
    """Section by section."""
    command = shlex.join(["python", "benchmarks/patchconvnet.py", *sys.argv[1:]])
    command = command.replace(shlex.quote(str(arguments.authors)), "patchconvnet_models.py")
    for name in arguments.only:
        title, section = SECTIONS[name]
        parts = section(authors, arguments)
        body = "\n\n".join(parts)
        print(f"## {title}\n\n{body}\n", flush=True)
        page = f"# What PatchConvNet costs on the CPU\n\n## {title}\n\n{body}\n"
        pages.publish(arguments.out, page, [pages.provenance(command, title)])
        note(f"wrote {title} to {arguments.out}")


def agreeing(make: Callable[[], Step], expected: Tensor) -> Step:
    """A step that gives the expected logits."""
    step = make()
    found = difference(step(), expected)
    if not found <= NETWORK_TOLERANCE:
        raise ValueError(f"logits differ by {found:.1e} of their standard deviation")
    return step


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


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The map."""
    return out[0] if isinstance(out, tuple) else out


def main() -> None:
    """Measure and write."""
    pages.answer_check("patchconvnet_speed")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--authors", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SECTIONS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--training-batch-size", type=int, default=16)
    parser.add_argument("--training-size", type=int, default=224)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--compile-all", action="store_true", help="at every size, not at 224 only")
    parser.add_argument("--out", type=Path, default=pages.RESULTS / "patchconvnet_speed.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(SECTIONS):
        parser.error(f"--only {','.join(sorted(unknown))} is not among {','.join(SECTIONS)}")
    if arguments.repeats < 2:
        parser.error(f"--repeats {arguments.repeats} gives no quartiles; at least 2")
    if arguments.compile_all and not arguments.compile:
        parser.error("--compile-all and --no-compile exclude each other")
    measure_on_cpu(load_authors(arguments.authors), arguments)


if __name__ == "__main__":
    main()
