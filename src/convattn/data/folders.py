"""Folders of images as people have them: what lies below them, and what of that is not taken."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from convattn.data.reading import image_extensions
from convattn.data.shard_files import open_image, size_of

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What folders of a split are called, in any case."""

HIDDEN = "hidden"
LEFT_BY_SYSTEM = "left by a system"
NO_IMAGE = "no image by its name"
BROKEN_LINK = "broken link"
NO_FILE = "pipe or device"
CIRCLE = "link that leads back"

_OF_SYSTEMS = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information"),
    )
)
_SHOWN = 3  # names a reason
_TAIL = 4096  # bytes at a file's end, by which files of one size are told apart first
_TEST_SHARE = 0.2


class LeftOut:
    """What of a data set's files was not taken: how many by reason, and the first names.

    Attributes:
        counts: Reason -> how many files, or folders that were not entered.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Count one.

        Args:
            reason: Why it is not taken.
            name: What people know it by.
        """
        self.counts[reason] += 1
        if len(self._names[reason]) < _SHOWN:
            self._names[reason].append(name)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Reason -> the first names."""
        return {reason: tuple(names) for reason, names in self._names.items()}


_kept: ContextVar[dict[str, list[os.DirEntry[str]]] | None] = ContextVar("kept", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Within it every folder is listed once, however often it is gone through.

    What changes meanwhile is not seen.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name."""
    kept = _kept.get()
    if kept is not None and folder in kept:
        return kept[folder]
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    if kept is not None:
        kept[folder] = entries
    return entries


class _Scan:
    """Goes through folders once; no file is opened, and none looked at but for links."""

    def __init__(self, base: str, left_out: LeftOut) -> None:
        self.base = base
        self.left_out = left_out

    def leave_out(self, reason: str, path: str) -> None:
        self.left_out.add(reason, os.path.relpath(path, self.base))

    def entries(self, folder: str) -> Iterator[tuple[os.DirEntry[str], bool]]:
        """What is to be seen in a folder, by name, and whether it is a folder."""
        for entry in _entries(folder):
            if entry.name.casefold() in _OF_SYSTEMS or entry.name.startswith("._"):
                self.leave_out(LEFT_BY_SYSTEM, entry.path)
            elif entry.name.startswith("."):
                self.leave_out(HIDDEN, entry.path)
            elif entry.is_dir():
                yield entry, True
            elif entry.is_symlink() and not entry.is_file():
                self.leave_out(BROKEN_LINK, entry.path)
            elif not entry.is_file():
                self.leave_out(NO_FILE, entry.path)
            else:
                yield entry, False

    def files(
        self, folder: str, extensions: tuple[str, ...], reason: str
    ) -> Generator[tuple[str, list[str]]]:
        """Every folder from this one down, with the names of the files in it that are taken."""
        waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, (_identity(folder),))]
        with tqdm(unit=" files", desc=folder, disable=None, delay=1, leave=False) as progress:
            while waiting:
                inside, above = waiting.pop()
                names = []
                for entry, is_folder in self.entries(inside):
                    if not is_folder:
                        if entry.name.lower().endswith(extensions):
                            names.append(entry.name)
                        else:
                            self.leave_out(reason, entry.path)
                        continue
                    identity = _identity(entry.path)
                    if identity in above:
                        self.leave_out(CIRCLE, entry.path)
                    else:
                        waiting.append((entry.path, (*above, identity)))
                progress.update(len(names))
                if names:
                    yield inside, names


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def find_images(
    folder: str | Path,
    left_out: LeftOut,
    *,
    base: str | Path | None = None,
    extensions: tuple[str, ...] | None = None,
    reason: str = NO_IMAGE,
) -> list[str]:
    """Paths of the images in a folder and those below it, sorted by folder, then by name.

    Links are followed, but not in a circle. What is hidden, left by a system, or no image by its
    name is left out.

    Args:
        folder: Where to look.
        left_out: Counts what is not taken.
        base: What the names of that are relative to; None: ``folder``.
        extensions: Ends of names, in lower case; None takes all that are read as images.
        reason: What files of other names are counted under.
    """
    scan = _Scan(str(base or folder), left_out)
    found = list(scan.files(str(folder), extensions or image_extensions(), reason))
    return [os.path.join(inside, name) for inside, names in sorted(found) for name in names]


def holds_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below it, by its name."""
    found = _Scan(str(folder), LeftOut()).files(str(folder), image_extensions(), NO_IMAGE)
    with closing(found):
        return next(found, None) is not None


def subfolders(
    folder: Path, left_out: LeftOut | None = None, *, base: Path | None = None
) -> list[str]:
    """Names of the folders to be seen in a folder, sorted.

    Args:
        folder: Where to look.
        left_out: Counts hidden folders, and images that lie beside the folders.
        base: What the names of those are relative to; None: ``folder``.
    """
    scan = _Scan(str(base or folder), LeftOut() if left_out is None else left_out)
    names = []
    for entry, is_folder in scan.entries(str(folder)):
        if is_folder:
            names.append(entry.name)
        elif entry.name.lower().endswith(image_extensions()):
            scan.leave_out("outside the class folders", entry.path)
    return names


def find_splits(folder: Path) -> dict[str, Path]:
    """The folders of the splits: ``train``, ``val`` and ``test`` where they are there.

    Raises:
        ValueError: If two folders are of one split.
    """
    found: dict[str, Path] = {}
    names = subfolders(folder) if folder.is_dir() else []
    for split, spellings in SPLITS.items():
        for name in names:
            if name.lower() not in spellings:
                continue
            if split in found:
                raise ValueError(
                    f"{folder} holds {found[split].name} and {name}, which mean the same split; "
                    "merge the two, or rename one"
                )
            found[split] = folder / name
    return found


def held_out_of(splits: Mapping[str, Path]) -> Path | None:
    """The folder of the test images: val where there are val and test; None if there is neither."""
    return splits.get("val", splits.get("test"))


def held_out_split(splits: Iterable[str], wanted: str | None, where: object) -> str | None:
    """The split that is tested: val where there are val and test, unless another is asked for.

    Args:
        splits: Those that are there.
        wanted: The one that is asked for, as people call it.
        where: What an error calls the place.

    Returns:
        ``"val"`` or ``"test"``; None where there is neither.

    Raises:
        ValueError: If the one that is asked for is not there.

    Examples:
        >>> held_out_split(("train", "val", "test"), "testing", "shop")
        'test'
    """
    given = set(splits)
    there = [split for split in SPLITS if split in given]
    tested = [split for split in ("val", "test") if split in there]
    if wanted is None:
        return tested[0] if tested else None
    split = split_of(wanted)
    if "train" in there and split in tested:
        return split
    if "train" not in there or not tested:
        found = "nothing there parts training images from others; leave it out"
    else:
        found = f"it has {' and '.join(there)}; give --split {' or '.join(tested)}"
    raise ValueError(f"{where} has no split {wanted!r} to test on: {found}")


def part_files(
    root: Path, files: Sequence[Path], left_out: LeftOut, wanted: str | None = None
) -> dict[str | None, list[Path]]:
    """The files below the folders of the splits, as ``train`` and ``test``.

    Where no folders part them, all are under None.

    Args:
        root: The folder that holds those of the splits.
        files: Below it.
        left_out: Counts a third folder, of val or test.
        wanted: As for ``held_out_split``.

    Raises:
        ValueError: If the split that is asked for is not there.
    """
    splits = find_splits(root)
    held_out = held_out_split(splits, wanted, root)
    if "train" not in splits or held_out is None:
        return {None: list(files)}
    for split, folder in splits.items():
        if split not in ("train", held_out):
            left_out.add("folder beside the splits", folder.name)
    return {
        split: [file for file in files if file.is_relative_to(folder)]
        for split, folder in (("train", splits["train"]), ("test", splits[held_out]))
    }


def split_of(name: str) -> str | None:
    """The split that a folder's name means, None if it means none.

    Examples:
        >>> split_of("Training"), split_of("cats")
        ('train', None)
    """
    lower = name.lower()
    return next((split for split, names in SPLITS.items() if lower in names), None)


# --- what belongs together


def find_duplicates(paths: Sequence[str]) -> list[list[int]]:
    """Places of files with the same bytes, two or more each, in the order of the first.

    Only files of one size are opened, and of these only such with the same end are read whole.

    Args:
        paths: The files; one that cannot be read is like no other.
    """
    groups = [list(range(len(paths)))]
    keys: tuple[Callable[[str], Hashable], ...] = (size_of, _tail, _digest)
    for key in keys:
        groups = [part for group in groups for part in _part(group, paths, key)]
    return sorted(groups)


def _part(
    group: list[int], paths: Sequence[str], key: Callable[[str], Hashable]
) -> list[list[int]]:
    parts: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        try:
            parts[key(paths[index])].append(index)
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _tail(path: str) -> bytes:
    with open_image(path) as file:
        file.seek(max(0, size_of(path) - _TAIL))
        return file.read()


def _digest(path: str) -> bytes:
    with open_image(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def group_by_name(paths: Sequence[str], root: Path, pattern: str) -> list[list[int]]:
    """Places of files that are of one thing, by what a pattern finds in their paths.

    Args:
        paths: The files.
        root: What the pattern sees of a path begins below it.
        pattern: A regular expression, searched for. What its first group matches, or all of it
            where it has none, names the thing. A path without a match stands alone.

    Raises:
        ValueError: If it is no regular expression, or matches no path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"group={pattern!r} is no regular expression ({error}); expected for example "
            "'(patient[0-9]+)_', whose group names what images have in common"
        ) from None
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        match = expression.search(Path(os.path.relpath(path, root)).as_posix())
        if match is not None:
            groups[(match[1] if expression.groups else match[0]) or ""].append(index)
    if not groups:
        raise ValueError(
            f"group={pattern!r} is found in none of the {len(paths)} paths, for example "
            f"{os.path.relpath(paths[0], root)}; expected a regular expression that finds what "
            "images have in common"
        )
    return list(groups.values())


def group_images(
    paths: Sequence[str], root: Path, pattern: str | None, notes: list[str]
) -> list[list[int]]:
    """As ``group_by_name``, and a sentence about it; nothing without a pattern.

    Args:
        notes: Gets the sentence.
    """
    if pattern is None:
        return []
    groups = group_by_name(paths, root, pattern)
    alone = len(paths) - sum(map(len, groups))
    rest = f"; {alone:,} images are in none" if alone else ""
    notes.append(f"group {pattern!r}: {len(groups):,} groups{rest}")
    return groups


def note_copies(copies: Sequence[Sequence[int]], notes: list[str]) -> None:
    """Tell of images that stay in one part since they are the same.

    Args:
        copies: As ``find_duplicates`` gives them.
        notes: Gets the sentence.
    """
    if copies:
        extra = sum(map(len, copies)) - len(copies)
        notes.append(f"{extra:,} images are copies of others; copies stay in one part")


def refuse_group(group: str | None, root: Path) -> None:
    """A pattern given for a folder that is parted already.

    Raises:
        ValueError: If there is one.
    """
    if group is not None:
        raise ValueError(
            f"group={group!r} parts a folder without splits, and {root} has some; leave group out"
        )


def draw_held_out(
    labels: Tensor,
    class_names: Sequence[str],
    together: Iterable[Sequence[int]],
    seed: int,
    *,
    share: float = _TEST_SHARE,
    purpose: str = "test",
) -> Tensor:
    """Which images are held out of the training, (N,) bool: about a share of each class.

    At least one image of every class is held out, and at least one is not. Where images have
    several classes, the rarest class is drawn first.

    Args:
        labels: Class numbers (N,); or which classes an image has, (N, K) bool.
        class_names: Name of each class, for errors.
        together: Places of images that are all in one part.
        seed: Of the draw.
        share: Of each class.
        purpose: What they are held out for, for errors.

    Raises:
        ValueError: If a class has no two images that may be parted.
    """
    unit = number_units(len(labels), together)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(unit):
        members[number].append(index)
    generator = torch.Generator().manual_seed(seed)
    for_test = torch.zeros(len(labels), dtype=torch.bool)
    decided: set[int] = set()
    of_classes = _images_of_classes(labels)
    for label, own in of_classes.items():
        units = list(dict.fromkeys(unit[index] for index in own))
        if len(units) < 2:
            raise ValueError(
                f"all {len(own)} images of class {class_names[label]!r} belong together; expected "
                f"at least 2 groups, one to train and one to {purpose}"
            )
        sizes = Counter(unit[index] for index in own)
        wanted = max(1, round(share * len(own)))
        taken = int(for_test[own].sum())
        order = [units[place] for place in torch.randperm(len(units), generator=generator).tolist()]
        open_units = [one for one in order if one not in decided]
        # The last one stays for the training.
        spare = len(units) - len({one for one in units if for_test[members[one][0]]}) - 1
        chosen: list[int] = []
        for one in open_units:
            # Nearer to what is wanted with it than without.
            if len(chosen) < spare and sizes[one] < 2 * (wanted - taken):
                chosen.append(one)
                taken += sizes[one]
        if not taken and spare > 0 and open_units:
            chosen = [min(open_units, key=lambda one: (sizes[one], order.index(one)))]
        for one in chosen:
            for_test[members[one]] = True
        decided |= set(units)
    for label, own in of_classes.items():
        drawn = for_test[own]
        if drawn.all() or not drawn.any():
            raise ValueError(
                f"the images of class {class_names[label]!r} cannot be parted, since they belong "
                f"together with those of other classes; say yourself which images are to {purpose}"
            )
    return for_test


def _images_of_classes(labels: Tensor) -> dict[int, list[int]]:
    """Class -> the places of its images, in the order in which the classes are drawn."""
    if labels.ndim == 1:
        places = {one: (labels == one).nonzero()[:, 0] for one in labels.unique().tolist()}
    else:
        counts = labels.sum(0)
        order = [one for one in counts.argsort(stable=True).tolist() if counts[one]]
        places = {one: labels[:, one].nonzero()[:, 0] for one in order}
    return {one: found.tolist() for one, found in places.items()}


def draw_mixed_test(
    classes: Sequence[Iterable[int]],
    together: Iterable[Sequence[int]],
    seed: int,
    *,
    share: float = _TEST_SHARE,
    purpose: str = "test",
) -> Tensor:
    """Which images are held out where one may show several classes, (N,) bool: about a fifth.

    Images that belong together are drawn as one, among those whose rarest class is the same. Every
    class of a test image is one of a training image, too.

    Args:
        classes: Class numbers of each image.
        together: Places of images that are all in one part.
        seed: Of the draw.
        share: Of all.
        purpose: What they are held out for, for errors.

    Raises:
        ValueError: If no image can be spared.
    """
    shown = [frozenset(one) for one in classes]
    unit = number_units(len(shown), together)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(unit):
        members[number].append(index)
    counts = Counter(number for one in shown for number in one)
    of_unit = {
        number: min(
            (label for index in own for label in shown[index]),
            key=lambda label: (counts[label], label),
            default=-1,
        )
        for number, own in members.items()
    }
    strata = Counter(of_unit.values())
    labels = torch.tensor([of_unit[number] for number in unit])
    drawn = torch.tensor([strata[label] > 1 for label in labels.tolist()], dtype=torch.bool)
    for_test = torch.zeros(len(shown), dtype=torch.bool)
    if drawn.any():
        places = {index: place for place, index in enumerate(drawn.nonzero()[:, 0].tolist())}
        bound = [[places[i] for i in own] for own in members.values() if own[0] in places]
        _, strata_numbers = labels[drawn].unique(return_inverse=True)
        names = [str(number) for number in range(len(strata))]
        for_test[drawn] = draw_held_out(
            strata_numbers, names, bound, seed, share=share, purpose=purpose
        )
    for label in counts:
        showing = [index for index, one in enumerate(shown) if label in one]
        if for_test[showing].all():
            for index in showing:
                for_test[members[unit[index]]] = False
    if not for_test.any():
        raise ValueError(
            f"none of the {len(shown)} images can be spared to {purpose}, since each shows a "
            f"class that no other does, or belongs with the others; put images to {purpose} into a "
            "folder of their own"
        )
    return for_test


def find_equal(keys: Iterable[Hashable]) -> list[list[int]]:
    """Places that have the same key, two or more each.

    Args:
        keys: One a place.

    Examples:
        >>> find_equal("abca")
        [[0, 3]]
    """
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [found for found in places.values() if len(found) > 1]


def number_units(count: int, together: Iterable[Sequence[int]]) -> list[int]:
    """For each place the first of those that it belongs with.

    Args:
        count: Number of places.
        together: Those that belong together.

    Examples:
        >>> number_units(4, [[1, 3]])
        [0, 1, 2, 1]
    """
    first = list(range(count))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    for group in together:
        for index in group[1:]:
            one, other = sorted((root(group[0]), root(index)))
            first[other] = one
    return [root(index) for index in range(count)]
