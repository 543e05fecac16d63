"""Folders of images as people have them: what lies below them, and what of that is not taken."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path

from tqdm import tqdm

from convattn.data.reading import image_extensions

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
