"""The files of a data set's folder, found by what annotations call them."""

from __future__ import annotations

import mmap
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from convattn.data.annotated import EntryFault
from convattn.data.folders import LeftOut, find_images, split_of
from convattn.data.reading import image_extensions


class Listing:
    """All files to be seen in a folder and those below it, listed once, when first asked for.

    Args:
        root: The folder.
        left_out: Counts what is hidden or left by a system.

    Attributes:
        left_out: As given.
    """

    def __init__(self, root: Path, left_out: LeftOut) -> None:
        self.root = root
        self.left_out = left_out

    @cached_property
    def files(self) -> list[str]:
        """Paths, sorted by folder, then by name."""
        return find_images(self.root, self.left_out, extensions=("",))

    @cached_property
    def images(self) -> list[str]:
        """Those of the files that are images by their names."""
        return self.ending(*image_extensions())

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped(self.images, os.path.basename)

    @cached_property
    def _by_name_in_any_case(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda path: os.path.basename(path).casefold())

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda path: Path(path).stem)

    @cached_property
    def _by_stem_in_any_case(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda path: Path(path).stem.casefold())

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.files)

    def __contains__(self, path: str) -> bool:
        return path in self._known

    def ending(self, *extensions: str) -> list[str]:
        """The files whose names end so, in any case.

        Args:
            extensions: In lower case.
        """
        return [path for path in self.files if path.lower().endswith(extensions)]

    def relative(self, path: str | Path) -> str:
        """A path below the folder, with slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def split_of(self, path: str) -> str | None:
        """The split that a folder above a file means, the nearest first; None if none does."""
        above = reversed(Path(self.relative(path)).parts[:-1])
        return next((split for split in map(split_of, above) if split is not None), None)

    def find(
        self, name: str, tiers: Sequence[Sequence[Path]], apart: Sequence[Path] = ()
    ) -> str | None:
        """The image of that name; backslashes are taken for slashes where need be.

        Where no path is spelt so, capital and small letters are taken for the same.

        Args:
            name: A path that ends as the image's does.
            tiers: Folders that the path may begin in, those of the first tier before those of the
                second. Behind them comes any folder.
            apart: But these, and what is below them.

        Raises:
            EntryFault: If two images may be meant.
        """
        for spelt in dict.fromkeys((name, name.replace("\\", "/"))):
            for folders in tiers:
                paths = {os.path.normpath(folder / spelt) for folder in folders}
                if found := self._only(name, sorted(paths & self._known)):
                    return found
            tail = "/" + re.sub(r"^(\.{0,2}/)+", "", spelt)
            same = self._by_name.get(os.path.basename(spelt), ())
            same = [path for path in same if path.endswith(tail) and not _is_below(path, apart)]
            if found := self._only(name, same):
                return found
        return self._find_in_any_case(name, apart)

    def _find_in_any_case(self, name: str, apart: Sequence[Path]) -> str | None:
        spelt = name.replace("\\", "/").casefold()
        tail = "/" + re.sub(r"^(\.{0,2}/)+", "", spelt)
        same = self._by_name_in_any_case.get(os.path.basename(spelt), ())
        ends = [path for path in same if path.casefold().endswith(tail)]
        return self._only(name, [path for path in ends if not _is_below(path, apart)])

    def find_by_name(self, name: str, apart: Sequence[Path] = ()) -> str | None:
        """The one image of that name, in whatever folder.

        Args:
            name: A path whose folders need not be there.
            apart: Folders that it is not in.

        Raises:
            EntryFault: If two images may be meant.
        """
        last = name.replace("\\", "/").rsplit("/", 1)[-1]
        same = self._by_name.get(last, ())
        return self._only(name, [path for path in same if not _is_below(path, apart)])

    def find_by_stem(self, file: str, within: Path, known: Callable[[Path], Sequence[Path]]) -> str:
        """The image that is called as a file is, but for the extension; as ``find`` for its case.

        Args:
            file: The file.
            within: The folder that the image is in, or below.
            known: Gives the folders to look into first, for that of the file.

        Raises:
            EntryFault: If there is none, or two may be meant.
        """
        stem = Path(file).stem
        called = self._by_stem.get(stem, []) or self._by_stem_in_any_case.get(stem.casefold(), [])
        same = [path for path in called if Path(path).is_relative_to(within)]
        for folder in known(Path(file).parent):
            if found := self._only(stem, [path for path in same if Path(path).parent == folder]):
                return found
        found = self._only(stem, same)
        if found is None:
            raise EntryFault("missing image", f"has no image: none in {within} is called {stem}")
        return found

    def _only(self, name: str, paths: Sequence[str]) -> str | None:
        if len(paths) > 1:
            raise EntryFault(
                "ambiguous image",
                f"{name!r} may be {self.relative(paths[0])} or {self.relative(paths[1])}; name the "
                "folder, too, or remove one of them",
            )
        return paths[0] if paths else None


def _grouped(paths: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return dict(found)


def _is_below(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def holds(path: str, *words: bytes) -> bool:
    """Whether all of these stand in a file, which is not kept in memory."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(text.find(word) >= 0 for word in words)
    except (OSError, ValueError):  # the latter for an empty file
        return False
