"""Whether a classifier's maps can be believed, measured on its test images, and gone on with."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from convattn.classification.dataset import load_data, open_data
from convattn.classification.evaluation import check_num_classes
from convattn.classification.objects import boxed_objects, masked_objects
from convattn.classification.settings import transform_words, weights_sha256
from convattn.config import DataConfig
from convattn.data import ImageFiles, TensorImages, transform_of
from convattn.data.images import digest_of_list
from convattn.data.workers import end_with_reader
from convattn.exceptions import Interrupted
from convattn.explanation.figures import draw_truth
from convattn.explanation.truth import (
    NETWORK_METHODS,
    Protocol,
    TruthReport,
    check_enough,
    run_study,
    train_masks,
    trained_look,
)
from convattn.explanation.truth.methods import Look
from convattn.explanation.truth.trained_maps import ClassMasks
from convattn.files import new_folder, read_json, replace_atomically, written_whole
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.progress import Progress
from convattn.text import json_text, report, short_repr

_UNFINISHED, _SETTINGS, _END = "unfinished", "settings.json", "truth.json"
_BATCH_SIZE = 32
_ORDER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class TruthConfig:
    """What is measured, on what, and where the results go."""

    data: DataConfig
    """The test images."""
    out: str | None = None
    """Folder to make, or one that was stopped."""
    masks: str | None = None
    """Folder of the objects' masks."""
    num_images: int = 500
    """At most; drawn from the test images."""
    methods: tuple[str, ...] = NETWORK_METHODS
    """Of ``NETWORK_METHODS``."""
    protocol: Protocol = field(default_factory=Protocol)
    """What scores depend on."""
    device: str | None = None
    """Where to compute."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images={self.num_images}; expected at least 1")
        if self.protocol.trained_steps < 0:
            raise ValueError(
                f"trained_steps={self.protocol.trained_steps}; expected at least 0, which learns "
                "no maps"
            )


def check_truth_folder(out: str | None) -> None:
    """Refuse a taken place before the network is loaded.

    Args:
        out: Where the results shall go.

    Raises:
        FileExistsError: If there is something that is not to be gone on with.
    """
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not _is_unfinished(folder):
        raise FileExistsError(f"{folder} exists and is never overwritten; give another --out")


def _is_unfinished(folder: Path) -> bool:
    return (folder / _UNFINISHED / _SETTINGS).is_file() and not (folder / _END).exists()


def measure_maps(
    model: nn.Module,
    name: str,
    config: TruthConfig,
    others: Mapping[str, nn.Module] | None = None,
) -> tuple[TruthReport, Path]:
    """Measure a classifier's maps, or go on with what a stopped process has left.

    Args:
        model: The classifier.
        name: Of it, for the page.
        config: What is asked for.
        others: The same network of other seeds, by name.

    Returns:
        What was found, and the folder that holds ``truth.csv``, ``truth.json``, ``truth.md`` and
        ``truth.png``.

    Raises:
        ValueError: If network and data do not fit, there are too few images, or what was stopped
            was begun otherwise.
        FileExistsError: If ``out`` holds something else.
        Interrupted: If the user stopped it.
    """
    check_truth_folder(config.out)
    seeds = [] if others is None else list(others.values())
    for other_name, other in (others or {}).items():
        _check_alike(model, other, other_name)
    images, masks = _open(model, config)
    settings = _settings(model, config, images, masks, seeds)
    folder = Path(config.out) if config.out is not None else new_folder(None, "explained")
    folder.mkdir(parents=True, exist_ok=True)
    if config.out is None:
        report(f"writes {folder}; if it is stopped, the same command goes on with --out {folder}")
    with owned(folder):
        parts = _begin(folder, settings)
        try:
            found = _measure(model, images, masks, parts, config, seeds)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the same command with --out {folder} goes on"
            ) from None
        title = f"{name} on {config.data.name}: can its maps be believed?"
        _write(found, folder, title, {"network": name, **settings})
        shutil.rmtree(folder / _UNFINISHED)
    return found, folder


def _check_alike(model: nn.Module, other: nn.Module, name: str) -> None:
    """Refuse a network whose maps cannot agree with the other's.

    Raises:
        ValueError: If it has other classes, or wants other images.
    """
    one, two = cast(Any, model), cast(Any, other)
    if one.num_classes != two.num_classes or transform_words(one) != transform_words(two):
        raise ValueError(
            f"{name} has other classes or wants other images than the network; name runs of the "
            "same recipe by --others"
        )


def _open(model: nn.Module, config: TruthConfig) -> tuple[TensorImages | ImageFiles, Tensor | None]:
    """The images in the order that they are measured in, and their objects."""
    cfg = cast(Any, model).pretrained_cfg
    source = open_data(config.data, training=False, class_names=cfg.get("label_names"))
    if source.multi_label:
        raise ValueError(
            f"{config.data.root} gives images several classes, and maps are measured on the one "
            "class of each; name data of one class an image by --data"
        )
    check_num_classes(cast(Any, model).num_classes, len(source.class_names))
    generator = torch.Generator().manual_seed(_ORDER_SEED)
    order = torch.randperm(len(source.test), generator=generator)[: config.num_images]
    check_enough(len(order))
    images = source.test.select(order)
    if isinstance(images, TensorImages):
        if config.masks is not None:
            raise ValueError(
                f"--masks goes with images in a folder, and {config.data.name} has none; leave it "
                "out"
            )
        return images, boxed_objects(images, cfg)
    if config.masks is None:
        return images, None
    assert config.data.root is not None
    return images, masked_objects(images, cfg, Path(config.data.root), Path(config.masks))


def _settings(
    model: nn.Module,
    config: TruthConfig,
    images: TensorImages | ImageFiles,
    masks: Tensor | None,
    others: list[nn.Module],
) -> dict[str, Any]:
    """What the numbers depend on, in JSON's types."""
    objects = None if masks is None else hashlib.sha256(masks.numpy().tobytes()).hexdigest()
    return {
        "data": config.data.name,
        "images_sha256": digest_of_list(images),
        "objects_sha256": objects,
        "weights_sha256": weights_sha256(model),
        "others_sha256": [weights_sha256(other) for other in others],
        "transform": transform_words(model),
        "methods": list(config.methods),
        "protocol": config.protocol.to_dict(),
        "device": str(default_device(config.device)),
    }


def _begin(folder: Path, settings: dict[str, Any]) -> Path:
    """Where the batches' files go.

    Raises:
        ValueError: If others are there.
    """
    parts = folder / _UNFINISHED
    file = parts / _SETTINGS
    if not file.is_file():
        parts.mkdir(exist_ok=True)
        replace_atomically(file, (json_text(settings, indent=2) + "\n").encode())
        return parts
    before = read_json(file, f"delete {folder} to begin anew")
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} was begun with {name} {short_repr(before.get(name))}, which now is "
                f"{short_repr(value)}; bring that back, or give another --out"
            )
    return parts


def _measure(
    model: nn.Module,
    images: TensorImages | ImageFiles,
    masks: Tensor | None,
    parts: Path,
    config: TruthConfig,
    others: list[nn.Module],
) -> TruthReport:
    transform = transform_of(cast(Any, model).pretrained_cfg)
    loader = DataLoader(
        images.with_transform(transform),
        batch_size=_BATCH_SIZE,
        num_workers=config.data.num_workers,
        worker_init_fn=end_with_reader,
    )
    looks = _trained_looks([model, *others], parts, config) if config.protocol.trained_steps else {}
    with Progress(len(images)) as progress:
        study = run_study(
            model,
            loader,
            parts,
            masks=masks,
            methods=config.methods,
            looks=looks,
            others=others,
            protocol=config.protocol,
            device=config.device,
            progress=progress.update,
        )
    return TruthReport.of(study, config.protocol)


def _trained_looks(
    models: Sequence[nn.Module], parts: Path, config: TruthConfig
) -> dict[str, Look]:
    """Trained maps of every network: learned on the training images, or there since before."""
    device, steps = default_device(config.device), config.protocol.trained_steps
    cfg = cast(Any, models[0]).pretrained_cfg
    source = load_data(config.data, class_names=cfg.get("label_names"))
    if not len(source.train):
        raise ValueError(
            f"{config.data.root} has no training images, which --trained-steps learns maps from; "
            "name a data set with both, or leave --trained-steps out"
        )
    images = source.train.with_transform(transform_of(cfg))
    masks: dict[nn.Module, ClassMasks] = {}
    for number, model in enumerate(models):
        file = parts / f"trained_{number}.safetensors"
        if not file.exists():
            report(f"learns maps from {steps} batches of {_BATCH_SIZE} training images")
            learned = _learn_masks(model.to(device), images, config, device)
            with written_whole(file) as part:
                save_file(learned.state_dict(), part)
        masks[model] = ClassMasks.of(load_file(file)).to(device)
    return {"trained": trained_look(masks, images[0][0][None].to(device))}


def _learn_masks(
    model: nn.Module, images: TensorImages | ImageFiles, config: TruthConfig, device: torch.device
) -> ClassMasks:
    steps = config.protocol.trained_steps
    drawn = RandomSampler(
        images,
        replacement=True,
        num_samples=steps * _BATCH_SIZE,
        generator=torch.Generator().manual_seed(config.protocol.seed),
    )
    loader = DataLoader(
        images,
        batch_size=_BATCH_SIZE,
        sampler=drawn,
        num_workers=config.data.num_workers,
        worker_init_fn=end_with_reader,
    )
    with Progress(steps * _BATCH_SIZE) as progress:
        batches = (batch[0].to(device) for batch in loader)
        return train_masks(model, batches, steps, progress=progress.update)


def _write(found: TruthReport, folder: Path, title: str, about: dict[str, Any]) -> None:
    """The files, the one that tells the end last."""
    replace_atomically(folder / "truth.csv", found.csv().encode())
    with written_whole(folder / "truth.png") as drawing:
        draw_truth(found, drawing, title=title)
    replace_atomically(folder / "truth.md", found.markdown(title, "truth.png").encode())
    replace_atomically(folder / _END, found.to_json(about).encode())
