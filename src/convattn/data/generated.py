"""Labelled data sets that are generated: their names, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convattn.data.choosing import TEST_SEED
from convattn.data.cluttered_digits import generate_cluttered_digits
from convattn.data.images import TensorImages
from convattn.data.labelled import Source
from convattn.data.long_range import generate_count, generate_same_different
from convattn.data.pathfinder import generate_pathfinder


@dataclass(frozen=True, kw_only=True)
class _Generated:
    generate: Callable[..., TensorImages]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_GENERATED: Mapping[str, _Generated] = {
    "cluttered_digits": _Generated(
        generate=generate_cluttered_digits,
        class_names=tuple("0123456789"),
        mean=(0.404, 0.415, 0.386),
        std=(0.253, 0.204, 0.210),
    ),
    "same_different": _Generated(
        generate=generate_same_different,
        class_names=("different", "same"),
        mean=(0.172,),
        std=(0.107,),
    ),
    "count": _Generated(
        generate=generate_count, class_names=("unequal", "equal"), mean=(0.161,), std=(0.069,)
    ),
    "pathfinder": _Generated(
        generate=generate_pathfinder, class_names=("apart", "joined"), mean=(0.175,), std=(0.111,)
    ),
}

GENERATED: tuple[str, ...] = tuple(_GENERATED)
"""Names of the data sets."""


def load_generated(
    name: str, image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> Source:
    """Generated images; see ``load_source`` for the arguments.

    Args:
        name: One of ``GENERATED``.
        image_size: Side in pixels; None: 64.
        num_train: None: 20,000.
        num_test: None: 1,000.
        seed: Of the training images.
    """
    made = _GENERATED[name]
    size = 64 if image_size is None else image_size
    train = made.generate(20_000 if num_train is None else num_train, image_size=size, seed=seed)
    test = made.generate(
        1_000 if num_test is None else num_test, split="test", image_size=size, seed=TEST_SEED
    )
    return Source(
        name=name,
        class_names=made.class_names,
        train=train,
        test=test,
        image_size=(size, size),
        in_chans=len(made.mean),
        mean=made.mean,
        std=made.std,
    )
