"""Data sets in shards: those that ``convattn shard`` has written, and WebDataset's of others."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convattn.data.class_folders import find_together, set_aside, tell_all_tested
from convattn.data.drawing import number_units
from convattn.data.folders import SPLITS, split_of
from convattn.data.foreign_shards import ForeignImages, labels_of, read_foreign
from convattn.data.images import ImageFiles
from convattn.data.labelled import Source, file_source
from convattn.data.shard_files import (
    INDEX,
    SHARD_TASKS,
    Shard,
    import_litdata,
    index_of,
    is_url,
    read_index,
    read_shard,
)
from convattn.text import list_names, one_line

SHARDED: tuple[str, ...] = ("webdataset", "litdata")
"""Data sets in shards, by the format of those."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Written:
    """Shards that ``convattn shard`` has written into a folder."""

    folder: str
    """Its path or URL."""
    index: Mapping[str, Any]
    """What its ``index.json`` tells."""
    named: Sequence[str] = ()
    """Those that are read; none: all."""

    def files(self) -> dict[str, list[str]]:
        """Split -> its shards that are read: where some for training are named, all of the others.

        Raises:
            ValueError: If one that is named is none of the folder's.
        """
        splits = self.index["splits"]
        listed = {
            split: [f"{self.folder}/{shard['file']}" for shard in splits[split]["shards"]]
            for split in splits
        }
        if not self.named:
            return listed
        unknown = set(self.named).difference(*listed.values())
        if unknown:
            raise ValueError(
                f"{min(unknown)} is not among the shards that {self.folder}/{INDEX} lists; name "
                "those, or the folder"
            )
        chosen = {
            split: [file for file in files if file in self.named] for split, files in listed.items()
        }
        trained = bool(chosen.get("train"))
        return {
            split: files or (listed[split] if trained else []) for split, files in chosen.items()
        }


def load_shards(
    name: str,
    root: str | Path | None,
    seed: int,
    *,
    group: str | None = None,
    testing: bool = False,
    test_all: bool = False,
) -> Source:
    """A data set in shards; see ``load_source``.

    Args:
        name: One of ``SHARDED``.
        root: The folder of the shards, or tars: ``'OUT/train-{000000..000003}.tar'``.
        seed: Of the draw of a test part, where no shard is of one.
        group: Must be None: what belongs together is told when shards are written.
        testing: Whether a network's classes are known, so that no training image is needed.
        test_all: Whether all is for the test where nothing parts it.

    Raises:
        ValueError: If the shards are not what they should be, not of one data set, or at a kind of
            URL that needs another package.
        FileNotFoundError: If some are missing.
        ModuleNotFoundError: If litdata is not installed, and is the format.
    """
    place = place_of(name, root)
    if group is not None:
        raise ValueError(
            f"group={group!r} (--data.group) parts images of a folder, and {root} is shards; give "
            "it to `convattn shard`, with --data.val-share"
        )
    written, foreign = find_shards(name, place, ("classification",))
    if foreign:
        return _source_of_foreign(place, read_foreign(foreign), seed, testing, test_all)
    with told_if_damaged(written):
        return _source_of_written(name, written, testing=testing)


def place_of(name: str, root: str | Path | None) -> str:
    """Where shards are: a folder, a pattern of names, or the URL of either.

    Args:
        name: One of ``SHARDED``.
        root: As a person has given it.

    Raises:
        ValueError: If nothing was given.
        ModuleNotFoundError: If litdata is not installed, and is the format.
    """
    if root is None:
        raise ValueError(f"{name} needs root (--data.root), the folder or the tars of its shards")
    if name == "litdata":
        import_litdata(str(root))
    return str(root) if is_url(str(root)) else str(Path(root).expanduser())


def task_of_shards(name: str, root: str | Path | None) -> str:
    """What shards are for: "classification", "detection" or "segmentation".

    Args:
        name: One of ``SHARDED``.
        root: As for ``place_of``.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: As ``place_of`` and ``find_shards``.
    """
    written, _ = find_shards(name, place_of(name, root), tuple(SHARD_TASKS))
    return str(written[0].index["task"]) if written else "classification"


@contextmanager
def told_if_damaged(written: Sequence[Written]) -> Iterator[None]:
    """Errors of what reads an index as if it were whole are a sentence.

    Args:
        written: What is read in the block.

    Raises:
        ValueError: If the index is not what it should be.
    """
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{written[0].folder}/{INDEX}, or what lies beside a shard there, is damaged "
            f"({type(error).__name__}: {one_line(error)}); write the shards anew with `convattn "
            "shard`"
        ) from error


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for, as shells and WebDataset have them.

    Args:
        pattern: With ranges and choices in braces.

    Raises:
        ValueError: If braces hold neither.

    Example:
        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    numbers = _RANGE.fullmatch(found[1])
    if numbers is None and "," not in found[1]:
        raise ValueError(
            f"{pattern} has {found[0]}, neither a range as {{000000..000003}} nor a choice as "
            "{train,val}; write one of these"
        )
    if numbers is None:
        choices = found[1].split(",")
    else:
        first, last = numbers.groups()
        choices = [str(one).zfill(len(first)) for one in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    expanded = [one for choice in choices for one in expand_braces(f"{before}{choice}{after}")]
    return list(dict.fromkeys(expanded))


def folder_of(root: str) -> str:
    """The folder of the shards that a pattern of names stands for; any other place itself.

    Example:
        >>> folder_of("OUT/train-{000000..000003}.tar"), folder_of("OUT")
        ('OUT', 'OUT')
    """
    pattern = _BRACES.search(root) is not None and not os.path.exists(root)
    return os.path.dirname(root) if pattern else root


def _names_tars(place: str) -> bool:
    return place.endswith(".tar") or _BRACES.search(place) is not None


def find_shards(
    name: str, place: str, tasks: Sequence[str]
) -> tuple[list[Written], dict[str | None, list[str]]]:
    """Shards that ``convattn shard`` has written, or others by their split.

    Args:
        name: One of ``SHARDED``.
        place: As ``place_of`` gives it.
        tasks: What they may be for, those that ``convattn shard`` has written.

    Raises:
        ValueError: If they are not what they should be, or not of one kind.
        FileNotFoundError: If some are missing.
    """
    if not _names_tars(place):
        return _find_in(name, place.rstrip("/"), tasks)
    if name != "webdataset":
        raise ValueError(f"root={place} names tars, and {name} needs a folder; name its folder")
    files = expand_braces(place)
    if not all(file.endswith(".tar") for file in files):
        raise ValueError(f"root={place} names {files[0]}; expected files that end in .tar")
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(os.path.dirname(file), []).append(file)
    written = [
        Written(folder=folder, index=index, named=named)
        for folder, named in folders.items()
        if (index := read_index(folder or ".", name, tasks)) is not None
    ]
    if not written:
        return [], _by_split(files)
    if len(written) < len(folders):
        without = next(one for one in folders if one not in {set.folder for set in written})
        raise ValueError(
            f"{without} holds no {INDEX}, and {written[0].folder} does; read them one by one, or "
            "shard all of them with `convattn shard`"
        )
    return written, {}


def _find_in(
    name: str, folder: str, tasks: Sequence[str]
) -> tuple[list[Written], dict[str | None, list[str]]]:
    if not is_url(folder) and not os.path.exists(folder):
        raise FileNotFoundError(f"root={folder} does not exist; name a folder that does")
    index = read_index(folder, name, tasks)
    if index is not None:
        return [Written(folder=folder, index=index)], {}
    tars = sorted(glob.glob(f"{glob.escape(folder)}/*.tar")) if name == "webdataset" else []
    if not tars:
        raise FileNotFoundError(
            f"{folder} holds no {INDEX} of `convattn shard`"
            + (" and no tar" if name == "webdataset" else "")
            + "; name the folder that it has written, or write one from images"
        )
    return [], _by_split(tars)


def _by_split(files: Sequence[str]) -> dict[str | None, list[str]]:
    """Shards by the split that their name tells, None for none."""
    parts: dict[str | None, list[str]] = {}
    for file in files:
        words = re.split(r"[^A-Za-z]+", os.path.basename(file))
        split = next(filter(None, map(split_of, words)), None)
        parts.setdefault(split, []).append(file)
    return parts


# --- written by convattn shard


def _source_of_written(name: str, written: Sequence[Written], *, testing: bool) -> Source:
    first = require_alike(written, ("class_names", "multi_label", "in_chans"))
    files = [one.files() for one in written]
    named = [split for split in SPLITS if any(one.get(split) for one in files)]
    if not testing:
        require_train(written, named)

    def images(split: str) -> ImageFiles:
        names, several = first["class_names"], first["multi_label"]
        sets = [_read_set(one.get(split, []), len(names), several=several) for one in files]
        return _joined(sets, first["in_chans"])

    test = images("test" if "test" in named else named[-1])
    train = test.select(torch.arange(0)) if testing else images("train")
    val = images("val") if "val" in named and not testing else None
    source = file_source(name, tuple(first["class_names"]), train, test, val)
    return replace(
        source,
        multi_label=first["multi_label"],
        test_drawn=first["test_drawn"],
        image_size=None if first["image_size"] is None else tuple(first["image_size"]),
        in_chans=first["in_chans"],
        mean=tuple(first["mean"]),
        std=tuple(first["std"]),
    )


def require_alike(written: Sequence[Written], names: Sequence[str]) -> Mapping[str, Any]:
    """What the index of the first folder tells.

    Args:
        written: Folders that are read as one data set.
        names: What the others must tell alike.

    Raises:
        ValueError: If one tells otherwise.
    """
    first = written[0].index
    for one in written[1:]:
        for what in names:
            if one.index[what] != first[what]:
                raise ValueError(
                    f"the shards of {written[0].folder} and {one.folder} differ in {what}: "
                    f"{_shown(first[what])} and {_shown(one.index[what])}; read them one by one, "
                    "or shard both from one folder"
                )
    return first


def require_train(written: Sequence[Written], splits: Collection[str]) -> None:
    """Refuse shards that are all of other splits than that of training.

    Args:
        written: Folders that are read as one data set.
        splits: Of the shards that are read.

    Raises:
        ValueError: If none is to train on.
    """
    if "train" not in splits:
        place = written[0].named[0] if written[0].named else written[0].folder
        raise ValueError(f"{place} has no shards to train on; name some of train, or the folder")


class _Set(NamedTuple):
    """The images of one split of one folder."""

    paths: Sequence[str]
    labels: Tensor
    groups: Tensor | None
    weights: Tensor | None


def _read_set(files: Sequence[str], num_classes: int, *, several: bool) -> _Set:
    """In the order that the images had."""
    shards = [(file, require_shard(file)) for file in files]
    paths = [f"{file}/{name}" for file, shard in shards for name in shard.names]
    classes = [one for _, shard in shards for one in shard.classes or ()]
    numbers = [number for one in classes for number in (one if isinstance(one, list) else [one])]
    if not all(0 <= number < num_classes for number in numbers):
        raise ValueError(
            f"{index_of(files[0])} or one beside it has a class of a number that {INDEX} does not "
            f"name, which has {num_classes}; write the shards anew with `convattn shard`"
        )
    order = torch.tensor([place for _, shard in shards for place in shard.places]).argsort()
    columns = []
    for what in ("groups", "weights"):
        values = [getattr(shard, what) for _, shard in shards]
        known = bool(values) and None not in values
        columns.append(torch.tensor([x for one in values for x in one])[order] if known else None)
    return _Set(
        [paths[place] for place in order.tolist()],
        labels_of(classes, num_classes if several else None)[order],
        *columns,
    )


def require_shard(file: str) -> Shard:
    """What is in a shard that ``convattn shard`` has written.

    Args:
        file: Its path or URL.

    Raises:
        FileNotFoundError: If it, or what lies beside it, is not there.
        ValueError: If it is not the file that was written.
    """
    shard = read_shard(file)
    if shard is None:
        raise FileNotFoundError(
            f"{index_of(file)}, which tells what is in {file}, does not exist; copy it beside the "
            "shard"
        )
    return shard


def _joined(sets: Sequence[_Set], in_chans: int) -> ImageFiles:
    groups, weights = None, None
    if any(one.groups is not None for one in sets):
        groups, first = [], 0
        for one in sets:
            own = torch.arange(len(one.paths)) if one.groups is None else one.groups
            groups.append(own + first)
            first = int(groups[-1].max()) + 1 if len(own) else first
    if any(one.weights is not None for one in sets):
        weights = [
            torch.ones(len(one.paths)) if one.weights is None else one.weights for one in sets
        ]
    return ImageFiles(
        [path for one in sets for path in one.paths],
        torch.cat([one.labels for one in sets]),
        groups=None if groups is None else torch.cat(groups),
        weights=None if weights is None else torch.cat(weights),
        in_chans=in_chans,
    )


def _shown(value: Any) -> str:
    return list_names(value) if isinstance(value, list) else str(value)


# --- of others


def _source_of_foreign(
    place: str, found: ForeignImages, seed: int, testing: bool, test_all: bool
) -> Source:
    parts = dict(found.parts)
    held_out = next((split for split in ("test", "val") if split in parts), None)
    others = parts.pop(None, None)
    if others is not None and "train" in parts:
        raise ValueError(
            f"{place} names shards of train and others whose names tell no split; name them "
            "train-..., val-... and test-..."
        )
    notes: list[str] = []
    train = parts.get("train", others)
    empty = next(iter(found.parts.values())).select(torch.arange(0))
    if held_out is not None:
        if train is None and not testing:
            raise ValueError(f"{place} has no shards to train on; name some of train")
        val = parts.get("val") if held_out == "test" and not testing else None
        test, drawn = parts[held_out], False
        train = empty if testing or train is None else train
    elif test_all:
        assert train is not None
        train, val, test, drawn = empty, None, train, False
        notes.append(tell_all_tested(place, len(test)))
    else:
        assert train is not None
        together = find_together(notes, Path(place), train, found.class_names, None)
        train.groups = torch.tensor(number_units(len(train), together))
        (train, test), val, drawn = set_aside(train, found.class_names, together, seed), None, True
        notes.append(
            f"{place} has no shards of a test: {len(test):,} of the images, about a fifth of each "
            "class, are the test set; shards named test-... would all be"
        )
    source = file_source("webdataset", found.class_names, train, test, val)
    return replace(source, multi_label=found.several, test_drawn=drawn, notes=tuple(notes))
