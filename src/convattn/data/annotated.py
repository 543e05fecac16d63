"""What detection and segmentation sets share: images with their truth, and faulty entries."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from convattn.config import BadAnnotations
from convattn.data.classes import match_classes
from convattn.data.drawing import draw_mixed_test, find_duplicates, group_images, note_copies
from convattn.data.folders import LeftOut

Truth = TypeVar("Truth")
Source = TypeVar("Source", bound="AnnotatedSource[Any]")


class AnnotatedImages(Dataset[tuple[Any, Truth]], Generic[Truth]):
    """Images with what is known of each, read when asked for.

    An item is ``(image, truth)``: ``image`` a ``tv_tensors.Image`` of bytes (3, H, W), and what
    ``transform`` makes of the two.

    Args:
        samples: What ``read`` needs to know of each image.
        read: Gives image and truth of a sample. It goes to the DataLoader's workers with the rest.
        names: What an error or a page calls each image.
        transform: Called with image and truth, gives both; None leaves them.
    """

    def __init__(
        self,
        samples: Sequence[Any],
        read: Callable[[Any], tuple[Any, Truth]],
        names: Sequence[str],
        *,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> None:
        assert len(samples) == len(names)
        self.samples = samples
        self.read = read
        self.names = names
        self.transform = transform

    def with_transform(
        self, transform: Callable[[Any, Any], tuple[Any, Any]] | None
    ) -> AnnotatedImages[Truth]:
        """The same images seen through another transform."""
        return AnnotatedImages(self.samples, self.read, self.names, transform=transform)

    def select(self, indices: Tensor) -> AnnotatedImages[Truth]:
        """The images at ``indices`` (M,), in that order."""
        chosen = indices.tolist()
        return AnnotatedImages(
            [self.samples[index] for index in chosen],
            self.read,
            [self.names[index] for index in chosen],
            transform=self.transform,
        )

    def spread(self, count: int) -> Iterator[tuple[Any, Truth]]:
        """``count`` items at equal steps through all; all, if there are no more than that.

        Neighbours in a set are often frames of one film, or of one class.
        """
        total = len(self)
        count = min(count, total)
        return (self[k * total // count] for k in range(count))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Truth]:
        image, truth = self.read(self.samples[index])
        return (image, truth) if self.transform is None else self.transform(image, truth)


@dataclass(frozen=True, kw_only=True)
class AnnotatedSource(Generic[Truth]):
    """What data sets for detection and for segmentation have in common."""

    name: str
    """Its name among those of the task's data sets."""
    train: AnnotatedImages[Truth]
    """Training images, without a transform: give them one by ``with_transform``."""
    test: AnnotatedImages[Truth]
    """Test images, alike."""
    mean: tuple[float, ...]
    """Mean of each channel, in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in 0..1."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None when the images vary."""
    skipped: dict[str, int]
    """How many entries were left out, by reason; see ``describe_skipped``."""
    skipped_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The first names of those, by reason, where they are known."""
    notes: tuple[str, ...] = ()
    """What whoever trains or tests on it has to know, a sentence each."""
    val: AnnotatedImages[Truth] | None = None
    """Images set aside from training to choose by, alike; None: none."""


class EntryFault(Exception):
    """One entry of a data set cannot be used.

    Args:
        reason: What it is counted under.
        sentence: Which entry, what it holds and what was expected.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Faults:
    """Notes faulty entries, to stop at the first or to tell how many were left out.

    Attributes:
        counts: How many entries are faulty, by reason.
        left_out: Files that are no part of the set, which is no fault.
    """

    def __init__(self, choice: BadAnnotations) -> None:
        if choice not in ("error", "skip"):
            raise ValueError(f"bad_annotations={choice!r}; expected 'error' or 'skip'")
        self.choice = choice
        self.counts: Counter[str] = Counter()
        self.left_out = LeftOut()
        self._first = ""

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return {**self.counts, **self.left_out.counts}

    @contextmanager
    def noted(self, file: Path) -> Iterator[None]:
        """Note an ``EntryFault`` of ``file`` raised within, which ends there."""
        try:
            yield
        except EntryFault as fault:
            self.counts[fault.reason] += 1
            self._first = self._first or f"{file}: {fault}"

    def settle(self) -> None:
        """Raise ValueError for the first fault unless they are to be skipped."""
        if self.choice == "error" and self.counts:
            total = self.counts.total()
            others = f" (and {total - 1} more fault{'s' if total > 2 else ''})" if total > 1 else ""
            raise ValueError(
                f"{self._first}{others}; mend it, or leave such entries out with "
                "bad_annotations='skip'"
            )


def describe_skipped(
    skipped: Mapping[str, int], names: Mapping[str, Sequence[str]] | None = None
) -> str:
    """What was left out of a data set, in one sentence; nothing if nothing was.

    Args:
        skipped: Reason -> how often.
        names: Reason -> the first names, where they are known.

    Examples:
        >>> describe_skipped({"bad box": 3, "hidden": 2}, {"hidden": [".git", ".DS_Store"]})
        'left out: 3 x bad box, 2 x hidden (.git, .DS_Store)'
    """
    parts = []
    for reason, count in skipped.items():
        known = (names or {}).get(reason, ())
        more = ", ..." if count > len(known) else ""
        listed = f" ({', '.join(known)}{more})" if known else ""
        parts.append(f"{count:,} x {reason}{listed}")
    return f"left out: {', '.join(parts)}" if parts else ""


def require_same_classes(theirs: Sequence[str], known: Sequence[str] | None, where: str) -> None:
    """Refuse a network of other classes than those of generated images.

    Args:
        theirs: Classes of the images.
        known: The network's; None stands for any.
        where: What an error calls the images.

    Raises:
        ValueError: If they are not the same in the same order.
    """
    if known is not None and tuple(known) != tuple(theirs):
        match_classes(theirs, known, False, where)
        raise ValueError(
            f"the network knows {len(known)} classes, and {where} has {len(theirs)} of them; name "
            "data with the same classes in the same order"
        )


def refuse_shared(train: Iterable[str], test: Iterable[str]) -> None:
    """Refuse an image that is to be learnt and tested.

    Args:
        train: Paths of the training images.
        test: Of the test images.

    Raises:
        ValueError: If an image is among both; names the first.
    """
    learnt = {os.path.realpath(path): path for path in train}
    shared = [path for path in test if os.path.realpath(path) in learnt]
    if shared:
        raise ValueError(
            f"{shared[0]} is among the training and the test images"
            + (f", as are {len(shared) - 1:,} more" if len(shared) > 1 else "")
            + "; expected every image in one of them: take it out of the other"
        )


def set_aside_images(
    source: Source, share: float, *, root: str | None, group: str | None, seed: int
) -> Source:
    """The source with a validation part out of its training images.

    Copies, and images of one group, are in one part; every class that the part shows stays in
    training, too.

    Args:
        source: A data set for detection or segmentation.
        share: Of the training images, above 0 and below 1.
        root: Its folder; None for generated images.
        group: As for ``part_images``.
        seed: Of the draw.

    Raises:
        ValueError: If no image can be spared, or ``group`` finds nothing.
    """
    train = source.train
    notes: list[str] = []
    together: list[list[int]] = []
    if root is not None:
        together = find_duplicates(train.names)
        note_copies(together, notes)
        together += group_images(train.names, Path(root).expanduser(), group, notes)
    labels = (getattr(one, "labels", ()) for one in train.samples)
    classes = [[int(label) for label in one] for one in labels]
    held_out = draw_mixed_test(classes, together, seed, share=share, purpose="validate")
    notes.append(
        f"{int(held_out.sum()):,} of {len(train):,} training images are set aside to validate on"
    )
    return replace(
        source,
        train=train.select((~held_out).nonzero()[:, 0]),
        val=train.select(held_out.nonzero()[:, 0]),
        notes=(*source.notes, *notes),
    )


def part_images(
    paths: Sequence[str],
    classes: Sequence[Iterable[int]],
    root: Path,
    group: str | None,
    seed: int,
    notes: list[str],
) -> tuple[Tensor, Tensor]:
    """Places of the training and of the test images, where a folder does not part them.

    Args:
        paths: Of the images; those of the same bytes stay together.
        classes: What each shows.
        root: The folder.
        group: A regular expression: images in whose paths below ``root`` its group, or the whole of
            it, finds the same stay together.
        seed: Of the draw.
        notes: Gets a sentence about what was done.

    Raises:
        ValueError: If no image can be spared for the test, or ``group`` finds nothing.
    """
    together = find_duplicates(paths)
    note_copies(together, notes)
    together += group_images(paths, root, group, notes)
    for_test = draw_mixed_test(classes, together, seed)
    notes.append(
        f"{root} has no splits: {int(for_test.sum()):,} of its {len(paths):,} images, about a "
        "fifth of those that have their rarest class in common, are the test set"
    )
    return (~for_test).nonzero()[:, 0], for_test.nonzero()[:, 0]
