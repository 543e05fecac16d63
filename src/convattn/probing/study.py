"""A probe from a configuration to a run folder."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convattn.classification.evaluation import predictions_of, summarize
from convattn.config import ProbeConfig
from convattn.data import ImageFiles, Source, TensorImages, train_transform, transform_of
from convattn.data.images import Transform
from convattn.exceptions import Interrupted
from convattn.files import new_run_folder, replace_atomically, unfinished
from convattn.layers import POOLS
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.probing.backbone import Frozen, check_channels, open_backbone
from convattn.probing.cache import (
    CacheOptions,
    MapCache,
    SeededImages,
    digest_of_images,
    write_maps,
)
from convattn.probing.heads import draw_validation
from convattn.probing.images import check_apart, find_groups, merge_validation, open_source
from convattn.probing.network import join_tensors, network_cfg, run_config, save_network
from convattn.probing.scores import is_multi_label
from convattn.probing.seeds import KNN, Probe, SeedResult, train_seed
from convattn.runs.card import write_card
from convattn.text import nearest
from convattn.world import World, shared_work

COLUMNS = (
    *("pool", "seed", "lr", "accuracy", "balanced_accuracy", "cross_entropy", "ece"),
    *("parameters", "seconds"),
)
"""Of ``probe.csv``; what else a row has follows."""
_MORE_COLUMNS = ("weight_decay", "drop_rate", "epoch", "validation_accuracy", "validation_loss")
_OF_SEVERAL = ("map", "macro_f1")
_CROP = (0.5, 1.0)  # share of the image that a further view keeps
_CONFIG, _STATE = "probe.json", "seeds"


@dataclass(frozen=True, kw_only=True)
class ProbedRun:
    """A finished probe."""

    folder: Path
    """The run folder."""
    rows: Sequence[Mapping[str, Any]]
    """Of ``probe.csv``."""
    best: str
    """The pool of the network in the folder."""
    table: str
    """What was found, for people."""


def run_probe(config: ProbeConfig) -> ProbedRun | None:
    """Probe a network and leave a run folder.

    Processes that torchrun or srun has started share the images of the maps; then the first trains,
    and the others return None.

    Args:
        config: What is asked for.

    Raises:
        ValueError: If it does not fit the data or the network.
        FileExistsError: If ``config.out`` exists.
        Interrupted: If the user stopped it.
    """
    with shared_work() as world:
        return _run_probe(config, world)


def _run_probe(config: ProbeConfig, world: World) -> ProbedRun | None:
    _check_pools(config.pools)
    default_device(config.device)  # refused before anything is read
    frozen, images = open_backbone(config), _open_images(config)
    source = images.source
    check_channels(frozen, source)
    check_apart(source, config.data)
    if images.own_valid is None:
        for seed in range(config.seeds):  # what cannot be drawn is told before all else
            draw_validation(
                source.train.labels,
                config.val_share,
                seed=seed,
                names=source.class_names,
                groups=images.groups,
            )
    folder = Path(
        world.first_says(
            lambda: str(new_run_folder(config.out, "runs/probe", "convattn probe --resume"))
        )
    )
    if not world.is_first:
        return _go_on(config, folder, frozen, images, world)
    try:
        with owned(folder):
            replace_atomically(folder / _CONFIG, config.to_json().encode())
            return _go_on(config, folder, frozen, images, world)
    except ValueError:
        if not (folder / _STATE).exists():  # nothing was trained that could be gone on with
            shutil.rmtree(folder)
        raise


def resume_probe(folder: Path) -> ProbedRun | None:
    """Go on with a probe that was stopped or killed; it ends as if it never had been.

    Several processes go on as ``run_probe`` has them.

    Args:
        folder: Its folder.

    Raises:
        FileNotFoundError: If it is the folder of no probe.
        ValueError: If the probe has ended.
    """
    file = unfinished(
        folder, config=_CONFIG, end="report.md", what="probe", command="convattn probe"
    )
    with shared_work() as world, owned(folder) if world.is_first else nullcontext():
        config = ProbeConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        return _go_on(config, folder, open_backbone(config), _open_images(config), world)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The data of a probe, and what of them belongs together or is kept for choosing."""

    source: Source
    groups: Tensor
    own_valid: Tensor | None


def _open_images(config: ProbeConfig) -> _Images:
    source, own_valid = merge_validation(open_source(config.data))
    groups = find_groups(source.train, config.data)
    return _Images(source=source, groups=groups, own_valid=own_valid)


def _go_on(
    config: ProbeConfig, folder: Path, frozen: Frozen, images: _Images, world: World
) -> ProbedRun | None:
    started, source = time.monotonic(), images.source
    again = f"go on with: convattn probe --resume {shlex.quote(str(folder))}"
    world.advice = again
    try:
        cache = cache_maps(config, frozen, source, world)
        world.leave()
        if not world.is_first:
            return None
        cached = time.monotonic()
        probe = Probe(
            config=config,
            cache=cache,
            class_names=source.class_names,
            groups=images.groups,
            own_valid=images.own_valid,
            weights=getattr(source.train, "weights", None),
        )
        results = [train_seed(probe, seed, folder / _STATE) for seed in range(config.seeds)]
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {again}") from None
    times = {"maps": cached - started, "heads": time.monotonic() - cached}
    return _finish(probe, folder, frozen, source, results, times)


def _check_pools(pools: Sequence[str]) -> None:
    known = (KNN, "attention", *POOLS)
    for name in pools:
        if name not in known:
            raise ValueError(
                f"unknown pool {name!r}; the nearest is {nearest(name, known)!r} of "
                f"{', '.join(known)}"
            )
        if pools.count(name) > 1:
            raise ValueError(f"the pool {name!r} is named twice; once is enough")


def cache_folder() -> Path:
    """Where maps are cached unless told otherwise."""
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "convattn" / "maps"


def cache_maps(
    config: ProbeConfig, frozen: Frozen, source: Source, world: World | None = None
) -> MapCache:
    """The maps of a data set, out of the cache where they are there.

    Args:
        config: Views, number format, place and limit.
        frozen: The network.
        source: The images.
        world: The processes that share them; None: this one alone.

    Raises:
        ValueError: As ``write_maps``.
    """
    cfg, transform = frozen.cfg, transform_of(frozen.cfg)
    train: list[Any] = [_seen(source.train, transform)]
    for view in range(1, config.views):
        varied = train_transform(
            tuple(cfg["input_size"][1:]),
            scale=_CROP,
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
        )
        train.append(SeededImages(_seen(source.train, varied), view))
    device = default_device(config.device)
    about = {
        "network": frozen.name,
        "layer": frozen.backbone.layer,
        "transform": {name: _plain(value) for name, value in cfg.items()},
        "train": digest_of_images(source.train),
        "test": digest_of_images(source.test),
    }
    shape = frozen.shape
    backbone = frozen.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return write_maps(
        backbone,
        train,
        _seen(source.test, transform),
        labels=torch.cat([source.train.labels, source.test.labels]),
        shape=shape,
        about=about,
        options=CacheOptions(
            root=Path(config.cache) if config.cache else cache_folder(),
            name="-".join(
                (_data_name(source, config), frozen.name.replace("/", "-"), frozen.backbone.layer)
            ),
            dtype=config.cache_dtype,
            limit=config.cache_limit,
            num_workers=config.data.num_workers,
            device=device,
        ),
        world=world or World(),
    )


def _seen(images: TensorImages | ImageFiles, transform: Transform) -> TensorImages | ImageFiles:
    """Images and labels alone, weights aside."""
    seen = images.with_transform(transform)
    if isinstance(seen, ImageFiles):
        seen.weights = None
    return seen


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ----------------------------------------------------------------------------------- the folder


def _finish(
    probe: Probe,
    folder: Path,
    frozen: Frozen,
    source: Source,
    results: Sequence[SeedResult],
    times: Mapping[str, float],
) -> ProbedRun:
    from convattn.probing import figures
    from convattn.probing.report import Findings, to_csv, write_report

    rows = [row for result in results for row in result.rows]
    several = is_multi_label(probe.cache.labels)
    columns = (*COLUMNS, *(_OF_SEVERAL if several else ()), *_MORE_COLUMNS)
    replace_atomically(folder / "probe.csv", to_csv(rows, columns).encode())
    findings = Findings(
        rows=rows,
        labels=probe.cache.labels[probe.test],
        logits=[result.logits for result in results],
        images=sum(result.images for result in results),
        cached=len(probe.cache),
        times=times,
        num_valid=None if probe.own_valid is None else len(probe.own_valid),
    )
    best = findings.best
    head = safetensors.torch.load_file(folder / _STATE / f"{best}.safetensors")
    of_run = run_config(
        "probe",
        probe.config.data,
        frozen,
        best,
        len(source.class_names),
        norm=probe.config.norm,
        epochs=probe.config.epochs,
    )
    save_network(folder, join_tensors(frozen, head), network_cfg(frozen, source), of_run)
    result = summarize(
        predictions_of(results[0].logits[best].double(), findings.labels),
        class_names=source.class_names,
        images_per_second=0.0,
    )
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    write_card(folder)
    figures.draw_accuracies(
        findings, folder / "accuracy.png", title=_title(frozen, source, probe.config)
    )
    figures.draw_evidence(
        folder,
        source.test,
        results[0].logits[best],
        source.class_names,
        title=f"pool {best}, seed 0",
    )
    for file in (folder / _STATE).glob("*"):
        if file.stem not in map(str, range(len(results))):
            file.unlink()
    text = write_report(
        findings, probe.config, folder, network=frozen, source=source, grids=results[0].grids
    )
    replace_atomically(folder / "report.md", text.encode())
    return ProbedRun(folder=folder, rows=rows, best=best, table=findings.table())


def _title(frozen: Frozen, source: Source, config: ProbeConfig) -> str:
    return (
        f"{_data_name(source, config)} on the {frozen.backbone.layer} map of {frozen.name}, frozen"
    )


def _data_name(source: Source, config: ProbeConfig) -> str:
    """What people call the data: a folder by its own name."""
    return source.name if config.data.root is None else Path(config.data.root).resolve().name
