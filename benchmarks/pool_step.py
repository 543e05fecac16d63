"""Training steps of light pools, and of ``probe``, beside plain PyTorch of the same maths.

    python benchmarks/pool_step.py [--channels 512] [--repeats 15]
        [--out docs/results/pool_step.md | --check]

A step of a pool is forward, backward and AdamW of ``create_pool(name)`` and a linear layer on
features that are there, as a cache has them. Beside it stands the shortest code in plain PyTorch:
``PLAIN``, a function a pool, on a copy of the same parameters; logits and gradients are compared
before anything is timed. A step of ``probe`` is an epoch of ``probing.heads.Training`` over its
batches, three learning rates of a pool; beside it the loop that one would write by hand, whose
losses have to be the same. Both take turns in one process, on one thread, and are measured in
seconds of the CPU; a ratio is that of neighbouring passes.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pages
from convattn import create_pool
from convattn.bench import Comparison, Step, training_step
from convattn.bench.comparison import Timing, interleave
from convattn.probing.cache import MapCache
from convattn.probing.heads import Training, Trial, make_head
from convattn.text import markdown_table
from memory_maps import MemoryMaps

SIDES = (7, 14)
BATCH, NUM_CLASSES, STEPS = 64, 10, 4
RATES = (5e-4, 1.5e-3, 4.5e-3)
DECAY = 0.01
WARM_UP, MOST, SECONDS = 2, 300, 3.0
"""Short steps are measured so often, or for so long."""
PROBED = ("avg", "residual", "query", "ep", "class")


# ------------------------------------------------------------------------------ plain PyTorch


def _mean_by(logits: Tensor, rows: Tensor) -> Tensor:
    """(B, Q, N) and (B, N, C) -> (B, Q, C)."""
    return logits.softmax(-1) @ rows


def _query(p: Any, x: Tensor) -> Tensor:
    x = x.flatten(2)
    variance = x.var((0, 2), correction=0)
    p.running_var.lerp_(variance, p.momentum)
    query = p.query * (variance + 1e-6).rsqrt()
    return _mean_by(query[None] @ x, x.mT)[:, 0]


def _residual(p: Any, x: Tensor) -> Tensor:
    x = x.flatten(2)
    mean = x.mean(2)
    asked = _mean_by(p.query[None] @ x / x.shape[1] ** 0.5, x.mT)[:, 0]
    return mean + p.gate * (asked - mean)


def _ep(p: Any, x: Tensor) -> Tensor:
    x = x.flatten(2)
    weights = (p.queries @ x / x.shape[1] ** 0.5).softmax(-1)
    values = p.v(x.mT).unflatten(-1, (len(p.queries), -1))
    return torch.einsum("bqn,bnqd->bqd", weights, values).flatten(1)


def _simpool(p: Any, x: Tensor) -> Tensor:
    rows = p.norm(x.flatten(2).mT)
    logits = p.q(x.mean((2, 3)))[:, None] @ p.k(rows).mT
    return _mean_by(logits / x.shape[1] ** 0.5, rows)[:, 0]


def _abmil(p: Any, x: Tensor) -> Tensor:
    rows = x.flatten(2).mT
    logits = p.c(p.a(rows).tanh() * p.b(rows).sigmoid())
    return _mean_by(logits.mT, rows)[:, 0]


def _class(p: Any, x: Tensor) -> Tensor:
    x = x.flatten(2)
    asked = _mean_by(p.queries @ x / x.shape[1] ** 0.5, x.mT)
    return (asked * p.weight).sum(-1) + p.bias


PLAIN: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "avg": lambda p, x: x.mean((2, 3)),
    "max": lambda p, x: x.amax((2, 3)),
    "gem": lambda p, x: x.clamp(min=p.eps).pow(p.p).mean((2, 3)).pow(1 / p.p),
    "lse": lambda p, x: ((p.r * x).logsumexp((2, 3)) - math.log(x.shape[2] * x.shape[3])) / p.r,
    "query": _query,
    "residual": _residual,
    "ep": _ep,
    "simpool": _simpool,
    "abmil": _abmil,
    "class": _class,
}
"""Pool -> what it computes in training of (B, C, H, W), of our pool's parameters."""


class Plain(nn.Module):
    """Plain code on the parameters of a pool, which itself is not called.

    Args:
        name: One of ``PLAIN``.
        pool: The pool.
    """

    def __init__(self, name: str, pool: nn.Module) -> None:
        super().__init__()
        self.compute, self.pool = PLAIN[name], pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> what the pool gives."""
        return self.compute(self.pool, x)


# ----------------------------------------------------------------------------- steps of a pool


def make_networks(name: str, channels: int) -> dict[str, nn.Module]:
    """Pool and linear layer, ours and plain, of equal parameters.

    Args:
        name: One of ``PLAIN``.
        channels: Of the map.
    """
    torch.manual_seed(0)
    options = {"num_classes": NUM_CLASSES} if name == "class" else {}
    pool = create_pool(name, channels, **options)
    for parameter in pool.parameters():  # queries and gates of zero would compare nothing
        parameter.data += 0.1 * torch.randn_like(parameter)
    head = nn.Identity() if name == "class" else nn.Linear(channels, NUM_CLASSES)
    pair = (pool, Plain(name, copy.deepcopy(pool)))
    return {
        side: nn.Sequential(one, copy.deepcopy(head))
        for side, one in zip(("ours", "plain"), pair, strict=True)
    }


def features(channels: int, side: int, batch: int = BATCH) -> Tensor:
    """(B, C, side, side), channels last, as ``probe`` reads them; of a ReLU: half are zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator).relu()
    return x.contiguous(memory_format=torch.channels_last)


def check_equal(networks: Mapping[str, nn.Module], x: Tensor, labels: Tensor) -> None:
    """Logits and gradients of both.

    Args:
        networks: "ours" and "plain".
        x: (B, C, H, W).
        labels: (B,).

    Raises:
        AssertionError: If they differ.
    """
    found = {}
    for side, network in networks.items():
        logits = network.train()(x)
        parameters = tuple(network.parameters())
        found[side] = [logits, *torch.autograd.grad(F.cross_entropy(logits, labels), parameters)]
    torch.testing.assert_close(found["ours"], found["plain"], rtol=1e-3, atol=1e-5)


def compare_pool(name: str, channels: int, side: int, repeats: int) -> Comparison:
    """Training steps of a pool, ours beside plain.

    Args:
        name: One of ``PLAIN``.
        channels: Of the map.
        side: Of the map.
        repeats: Rounds, at least.
    """
    x = features(channels, side)
    labels = torch.arange(BATCH) % NUM_CLASSES
    networks = make_networks(name, channels)
    check_equal(networks, x, labels)
    steps = {
        side: training_step(network, x, adam(network), labels=labels)
        for side, network in networks.items()
    }
    took = cpu_seconds(steps["plain"]), cpu_seconds(steps["plain"])  # the first one warms up
    return compare_steps(steps, max(repeats, min(MOST, int(SECONDS / took[1]))))


def cpu_seconds(step: Step) -> float:
    """Of this thread alone: what else the machine does counts little."""
    started = time.thread_time()
    step()
    return time.thread_time() - started


def compare_steps(steps: Mapping[str, Step], repeats: int) -> Comparison:
    """Steps that take turns, in seconds of the CPU.

    Args:
        steps: "ours" and "plain".
        repeats: Rounds, behind two that warm up.

    Raises:
        Exception: What a step raises.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn, name, result in interleave(steps, repeats + WARM_UP, cpu_seconds):
        if isinstance(result, Exception):
            raise result
        if turn >= WARM_UP:
            taken[name].append(result)
    timings = {name: Timing(seconds=tuple(seconds)) for name, seconds in taken.items()}
    return Comparison(timings=timings, reference="plain")


def adam(network: nn.Module, lr: float = 1e-12) -> torch.optim.Optimizer:
    """AdamW in one kernel, at a rate that changes nothing unless another is given."""
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=DECAY, fused=True)


# ---------------------------------------------------------------------------- steps of a probe


def make_maps(channels: int, side: int) -> MemoryMaps:
    """Maps in half precision, and labels: the batches of an epoch."""
    maps = features(channels, side, STEPS * BATCH).half().contiguous()
    return MemoryMaps(maps, torch.arange(len(maps)) % NUM_CLASSES)


class PlainHead(nn.Module):
    """Pool, BatchNorm without factors, linear layer: a head of ``probe`` in plain PyTorch.

    Args:
        name: One of ``PLAIN``.
        head: The head of ``probe``, whose parameters it takes a copy of.
    """

    def __init__(self, name: str, head: Any) -> None:
        super().__init__()
        self.name, self.pool = name, copy.deepcopy(head.pool.pool)
        self.norm = nn.BatchNorm1d(self.pool.in_features, eps=1e-6, affine=False)
        linear = head.fc.fc if name == "class" else head.fc
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        if self.name != "class":
            return F.linear(self.norm(PLAIN[self.name](self.pool, x)), self.weight, self.bias)
        x = x.flatten(2)
        asked = _mean_by(self.pool.queries @ x / x.shape[1] ** 0.5, x.mT)
        normed = self.norm(asked.flatten(0, 1)).view_as(asked)
        return (normed * self.weight).sum(-1) + self.bias


class PlainLoop:
    """An epoch of several learning rates by hand, with the order and the schedule of ``Training``.

    Args:
        name: One of ``PROBED``.
        maps: The maps.
        epochs: Length of the schedule.
    """

    def __init__(self, name: str, maps: MemoryMaps, epochs: int) -> None:
        self.maps, self.epochs, self.epoch = maps, epochs, 0
        channels = maps.shape[0]
        made = [make_head(name, channels, NUM_CLASSES, seed=0) for _ in RATES]
        self.heads = [PlainHead(name, head) for head in made]
        self.optimizers = [adam(head, lr) for head, lr in zip(self.heads, RATES, strict=True)]
        self.schedules = [
            torch.optim.lr_scheduler.CosineAnnealingLR(one, epochs * STEPS)
            for one in self.optimizers
        ]
        self.losses: list[list[float]] = [[] for _ in RATES]

    def train_epoch(self) -> None:
        """One pass over the maps."""
        order = torch.randperm(
            len(self.maps.labels), generator=torch.Generator().manual_seed(self.epoch)
        )
        for batch in order.split(BATCH):
            x = self.maps.maps[batch].float().contiguous(memory_format=torch.channels_last)
            labels = self.maps.labels[batch]
            for number, head in enumerate(self.heads):
                loss = F.cross_entropy(head(x), labels)
                loss.backward()
                self.optimizers[number].step()
                self.optimizers[number].zero_grad()
                self.schedules[number].step()
                self.losses[number].append(loss.item())
        self.epoch += 1


def make_epochs(name: str, maps: MemoryMaps, epochs: int) -> tuple[Training, PlainLoop]:
    """The same training, ours and by hand.

    Args:
        name: One of ``PROBED``.
        maps: The maps.
        epochs: Length of the schedule.
    """
    trials = [Trial(name, lr, DECAY) for lr in RATES]
    images = torch.arange(len(maps.labels))
    ours = Training(
        trials,
        cast(MapCache, maps),
        images,
        None,
        num_classes=NUM_CLASSES,
        epochs=epochs,
        batch_size=BATCH,
    )
    return ours, PlainLoop(name, maps, epochs)


def compare_probe(name: str, channels: int, side: int, repeats: int) -> Comparison:
    """Epochs of a probe, ours beside a loop by hand.

    Args:
        name: One of ``PROBED``.
        channels: Of the map.
        side: Of the map.
        repeats: Rounds.

    Raises:
        AssertionError: If their losses differ.
    """
    ours, plain = make_epochs(name, make_maps(channels, side), repeats + WARM_UP)

    def step() -> None:
        ours._train_epoch(None)
        ours.epoch += 1

    found = compare_steps({"ours": step, "plain": plain.train_epoch}, repeats)
    check_losses(ours, plain)
    return found


def check_losses(ours: Training, plain: PlainLoop) -> None:
    """Whether both learned the same.

    Args:
        ours: Behind some epochs.
        plain: Behind as many.

    Raises:
        AssertionError: If the losses of the first epoch differ.
    """
    mine = [outcome.losses[:STEPS] for outcome in ours.outcomes.values()]
    theirs = [losses[:STEPS] for losses in plain.losses]
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- the page


def rows_of(
    names: Mapping[str, Any] | tuple[str, ...],
    measure: Callable[..., Comparison],
    given: argparse.Namespace,
) -> Iterator[tuple[str, ...]]:
    """A row a pool: milliseconds of plain code and how many times that ours takes, a size each."""
    for name in names:
        found = [measure(name, given.channels, side, given.repeats) for side in SIDES]
        cells = (
            (f"{one.milliseconds('plain').median:.1f} ms", f"{one.ratio('ours'):.2f}")
            for one in found
        )
        row = (name, *(cell for pair in cells for cell in pair))
        print(*row, sep="  ", flush=True)
        yield row


def main() -> None:
    """Measure and print."""
    pages.answer_check("pool_step")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = ("pool", *(f"{side} x {side}: {what}" for side in SIDES for what in ("plain", "ours")))
    parts = [
        "# Training steps of pools beside plain PyTorch",
        f"{given.channels} channels, batches of {BATCH}, {NUM_CLASSES} classes, channels last, "
        f"float32; milliseconds of the CPU that plain code takes on one thread, and how many times "
        "that ours takes in the same "
        f"round: median and quartiles of {given.repeats} rounds or more.",
        "## A pool and a linear layer, AdamW",
        markdown_table(head, list(rows_of(PLAIN, compare_pool, given))),
        f"## An epoch of probe: {STEPS} batches, {len(RATES)} learning rates",
        markdown_table(head, list(rows_of(PROBED, compare_probe, given))),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if given.out is not None:
        command = f"python benchmarks/pool_step.py --channels {given.channels}"
        command += f" --repeats {given.repeats} --out {given.out}"
        pages.publish(given.out, text, [pages.provenance(command)])


if __name__ == "__main__":
    main()
