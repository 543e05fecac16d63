"""Labels that a trained network does not believe, by cleanlab's confident learning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from convattn.checks.report import LabelCheck, LabelDoubt
from convattn.classification.dataset import load_data
from convattn.classification.out_of_fold import OUT_OF_FOLD, read_out_of_fold
from convattn.config import DataConfig
from convattn.data import ImageFiles, Source, transform_of
from convattn.data.classes import match_classes
from convattn.data.counts import parts_of
from convattn.explanation import class_probabilities
from convattn.modes import default_device, eval_mode
from convattn.runs import Run
from convattn.text import csv_cell, one_line

_BATCH = 64


def check_labels(
    run: Run,
    source: Source,
    root: str,
    readable: Sequence[bool],
    names: Sequence[str],
) -> LabelCheck:
    """Have a run judge the labels of images, each by a network that did not learn from it.

    Those are the networks of the run's cross-validation, if it has one, for the images in its
    ``out_of_fold.csv``, and its own network for what is neither there nor learnt.

    Args:
        run: Of a classifier.
        source: The data; its classes are found by name among those of the network.
        root: Where the data lie, for errors.
        readable: Which of the images can be read, part after part.
        names: What they are called.

    Raises:
        ValueError: If the network does not know one of the classes, or has learnt all images, or
            images have several classes.
        ModuleNotFoundError: If cleanlab, of the extra ``check``, is not installed.
    """
    from cleanlab.filter import find_label_issues

    for what, several in ((root, source.multi_label), (run.folder, _finds_several(run))):
        if several:
            raise ValueError(
                f"--run judges labels where images have one class, and those of {what} have "
                "several; leave it out"
            )
    known: Sequence[str] = run.pretrained_cfg["label_names"]
    numbers = torch.tensor(match_classes(source.class_names, known, False, root))
    parts = parts_of(source)
    unseen, judged = _unseen(run.config.data, parts)
    unseen &= torch.tensor(readable)
    found = _said_out_of_fold(run, parts, known)
    unseen &= torch.tensor([place not in found for place in range(len(unseen))])
    if found:
        judged = (
            f"Of {len(unseen):,} images {len(found):,} were judged by networks of the run's "
            f"cross-validation ({OUT_OF_FOLD}) and {int(unseen.sum()):,} by its own, none by one "
            "that has learnt it."
        )
    elif not unseen.any():
        raise ValueError(
            f"{run.folder} has learnt every image of {root} that can be read; judge them by a run "
            "that has not, or by one of convattn finetune with --folds 5"
        )
    found |= _said_of(run, parts, unseen)
    places = sorted(found)
    probabilities = np.array([found[place] for place in places])
    labels = numbers[torch.cat([images.labels for images in parts.values()])][places].numpy()
    order = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    doubts = tuple(
        LabelDoubt(
            image=names[places[index]],
            given=known[labels[index]],
            suggested=known[probabilities[index].argmax()],
            confidence=float(probabilities[index, labels[index]]),
        )
        for index in order.tolist()
    )
    return LabelCheck(run=str(run.folder), judged=judged, num_images=len(labels), doubts=doubts)


def _finds_several(run: Run) -> bool:
    return bool(run.pretrained_cfg.get("multi_label"))


def _unseen(config: DataConfig, parts: Mapping[str, Any]) -> tuple[Tensor, str]:
    """Which images a run did not learn from, (N,) bool, and that in a sentence."""
    in_test = torch.cat(
        [torch.full((len(images),), part == "test") for part, images in parts.items()]
    )
    try:
        learnt = _files_learnt(config)
    except (ValueError, OSError) as error:
        return in_test, (
            "Only the test part was judged: which images the run has learnt cannot be looked up "
            f"({one_line(error)}). If it has learnt some of these, they are judged too kindly."
        )
    files = _files_of(parts)
    if learnt is None or files is None:
        return in_test, (
            "Only the test part was judged; the run has learnt from data that are not in files."
        )
    unseen = torch.tensor([os.path.realpath(file) not in learnt for file in files])
    return unseen, (
        f"Only the {int(unseen.sum()):,} images that the run has not learnt from were judged, of "
        f"{len(files):,}: a network believes what it was taught."
    )


def _files_learnt(config: DataConfig) -> frozenset[str] | None:
    if config.root is None:
        return None
    files = _files_of({"train": load_data(replace(config, download=False)).train})
    return None if files is None else frozenset(map(os.path.realpath, files))


def _files_of(parts: Mapping[str, Any]) -> list[str] | None:
    """Of all images, part after part; None if some are in no files."""
    if not all(isinstance(images, ImageFiles) for images in parts.values()):
        return None
    return [path for images in parts.values() for path in images.paths]


def _said_out_of_fold(
    run: Run, parts: Mapping[str, Any], class_names: Sequence[str]
) -> dict[int, list[float]]:
    """Place of an image -> its probabilities, of those that the run's cross-validation judged."""
    file = run.folder / OUT_OF_FOLD
    paths = _files_of(parts)
    if not file.is_file() or paths is None:
        return {}
    said = {
        os.path.realpath(path): shares
        for path, shares in read_out_of_fold(file, class_names).items()
    }
    files = [csv_cell(os.path.realpath(path)) for path in paths]
    return {place: said[path] for place, path in enumerate(files) if path in said}


def _said_of(run: Run, parts: Mapping[str, Any], chosen: Tensor) -> dict[int, list[float]]:
    """Place of an image -> its probabilities by the run's own network."""
    own = chosen.split([len(images) for images in parts.values()])
    judged: list[Any] = [
        images.select(some.nonzero()[:, 0])
        for images, some in zip(parts.values(), own, strict=True)
        if some.any()
    ]
    if not judged:
        return {}
    model = run.load_model()
    rows = np.concatenate([_probabilities(model, images) for images in judged])
    return dict(zip(chosen.nonzero()[:, 0].tolist(), rows.tolist(), strict=True))


def _probabilities(model: nn.Module, images: Any) -> NDArray[np.float64]:
    """(N, K): of every class of the network."""
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    loader = DataLoader(images.with_transform(transform_of(cfg)), batch_size=_BATCH)
    device = default_device(None)
    model.to(device)
    found = []
    with eval_mode(model), torch.inference_mode():
        for batch, _ in tqdm(loader, desc="judging labels", disable=None, leave=False):
            found.append(class_probabilities(model, model(batch.to(device))).double().cpu())
    return torch.cat(found).numpy()
