"""The images of a finetuning: all of them numbered, what belongs together, who is judged when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from convattn.config import FinetuneConfig
from convattn.data import ImageFiles, Source, TensorImages
from convattn.data.drawing import find_duplicates, number_units
from convattn.probing.heads import draw_validation
from convattn.probing.images import find_groups, join_images, merge_validation, open_source

Split = tuple[Tensor, Tensor]
"""Numbers of images to learn, and of those to choose by."""

ENOUGH = 150
"""Images that are enough to choose by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """A data set with its images numbered: those of training first, then those of the test."""

    source: Source
    """As it was opened, its own validation images among those of training."""
    all: TensorImages | ImageFiles
    """Every image."""
    groups: Tensor
    """(N,) numbers: what no split may part has the same."""
    own_valid: Tensor | None = None
    """Numbers of the data set's own validation images, which are among those of training."""

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.source.train)

    @property
    def train(self) -> Tensor:
        """Numbers of the training images."""
        return torch.arange(self.num_train)

    @property
    def test(self) -> Tensor:
        """Numbers of the test images."""
        return torch.arange(self.num_train, len(self.all))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers."""
        return self.source.class_names

    @property
    def labels(self) -> Tensor:
        """(N,) class numbers, or (N, K) of 0 and 1."""
        return self.all.labels

    @property
    def weights(self) -> Tensor | None:
        """(N,) how much each counts in the loss; None: all alike."""
        return None if isinstance(self.all, TensorImages) else self.all.weights

    def name(self, number: int) -> str:
        """What people know an image by: its path, or its number."""
        paths = getattr(self.all, "paths", None)
        return f"image {number}" if paths is None else str(paths[number])

    def splits(self, images: Tensor, share: float, seed: int) -> list[Split]:
        """Ways to part images into those to learn and those to choose by.

        There is one way where enough can be set aside to choose by: then a share is drawn, or it is
        the data set's own validation images, if there are some and all training images are split.
        Of fewer images each is set aside once.

        Args:
            images: Numbers of images.
            share: Of those to choose by.
            seed: Of the draw.

        Raises:
            ValueError: If a class has too few images.
        """
        if self.own_valid is not None and len(images) == self.num_train:
            return [(images[~torch.isin(images, self.own_valid)], self.own_valid)]
        labels, groups = self.labels[images], self.groups[images]
        chosen = draw_validation(labels, share, seed=seed, names=self.class_names, groups=groups)
        drawn = images[~chosen], images[chosen]
        if chosen.sum() >= ENOUGH:
            return [drawn]
        try:
            folds = self.folds(images, round(1 / share), seed)
        except ValueError:  # a class has too few groups
            return [drawn]
        return [(images[folds != fold], images[folds == fold]) for fold in folds.unique().tolist()]

    def folds(self, images: Tensor, number: int, seed: int) -> Tensor:
        """(N,) numbers of folds: each has about as many images of every class.

        Args:
            images: Numbers of images.
            number: Of folds.
            seed: Of the draw.

        Raises:
            ValueError: If a class belongs to fewer groups than there are folds.
        """
        return draw_folds(
            self.labels[images],
            self.groups[images],
            number,
            seed=seed,
            names=self.class_names,
        )


def open_images(config: FinetuneConfig) -> Images:
    """Open the data of a finetuning.

    Args:
        config: Where they are; whether images may have several classes.

    Raises:
        ValueError: If they are not what they should be.
        FileNotFoundError: If they are missing.
    """
    source = open_source(config.data)
    if config.multi_label and not source.multi_label:
        source = dataclasses.replace(
            source,
            train=_of_several(source.train, len(source.class_names)),
            test=_of_several(source.test, len(source.class_names)),
            val=(None if source.val is None else _of_several(source.val, len(source.class_names))),
            multi_label=True,
        )
    source, valid = merge_validation(source)
    everything = join_images(source.train, source.test)
    groups = find_groups(everything, config.data)
    return Images(source=source, all=everything, groups=groups, own_valid=valid)


def _of_several(images: TensorImages | ImageFiles, num_classes: int) -> ImageFiles:
    """Each picture once, with the classes of all folders that it lies in."""
    if isinstance(images, TensorImages):
        raise ValueError(
            "these images have one class each and no files; leave multi-label out, or give folders"
        )
    labels = one_hot(images.labels, num_classes).bool()
    units = number_units(len(images), find_duplicates(images.paths))
    first: dict[int, int] = {}
    for place, unit in enumerate(units):
        first.setdefault(unit, place)
        labels[first[unit]] |= labels[place]
    kept = torch.tensor(list(first.values()))
    merged = images.select(kept)
    merged.labels = labels[kept]
    return merged


def draw_folds(
    labels: Tensor, groups: Tensor, number: int, *, seed: int, names: Sequence[str]
) -> Tensor:
    """Parts with about as many images of every class, no group in two: (N,) numbers from 0.

    The rarest class is dealt out first, a group at a time to the fold that has the fewest of it.

    Args:
        labels: (N,) class numbers, or (N, K) of 0 and 1.
        groups: (N,) numbers.
        number: Of folds.
        seed: Of the order of the groups.
        names: Of the classes.

    Raises:
        ValueError: If a class belongs to fewer groups than there are folds.
    """
    several = labels if labels.ndim == 2 else one_hot(labels, len(names))
    units = groups.unique(return_inverse=True)[1]
    amounts = torch.zeros(int(units.max()) + 1, len(names), dtype=torch.long)
    amounts.index_add_(0, units, several.long())
    having = (amounts > 0).sum(0)
    few = int(having.masked_fill(having == 0, len(labels) + 1).argmin())
    if having[few] < number:
        raise ValueError(
            f"the images of class {names[few]!r} belong to {int(having[few])} groups, and "
            f"{number} folds need one each; take fewer folds, or add images"
        )
    order = torch.randperm(len(amounts), generator=torch.Generator().manual_seed(seed))
    fold_of = torch.full((len(amounts),), -1)
    dealt = torch.zeros(number, len(names), dtype=torch.long)
    for label in several.sum(0).argsort(stable=True).tolist():
        for unit in order[amounts[order, label] > 0].tolist():
            if fold_of[unit] < 0:
                totals = dealt.sum(1)
                fold = min(range(number), key=lambda k: (int(dealt[k, label]), int(totals[k])))
                fold_of[unit] = fold
                dealt[fold] += amounts[unit]
    without = (fold_of < 0).nonzero()[:, 0].tolist()  # of no class at all
    for place, unit in enumerate(without):
        fold_of[unit] = place % number
    return fold_of[units]
