"""Classes told by folders: training and test images in folders of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from convattn.data.classes import find_alike, normal_name
from convattn.data.drawing import (
    draw_held_out,
    find_duplicates,
    group_images,
    note_copies,
    number_units,
    refuse_group,
)
from convattn.data.folders import (
    LeftOut,
    find_images,
    find_splits,
    held_out_of,
    holds_images,
    split_of,
    subfolders,
)
from convattn.data.imagenet import imagenet_names
from convattn.data.images import ImageFiles
from convattn.data.labelled import Source, file_source, has_class, with_left_out
from convattn.data.names import Names
from convattn.data.reading import image_extensions

MOST_COMPARED = 100_000  # images that are looked through for copies


def load_folder(
    root: Path, group: str | None, seed: int, extensions: tuple[str, ...], *, parts_train: bool
) -> Source:
    """Class folders, in folders of the splits or not; see ``load_source``.

    Args:
        root: The folder.
        group: A pattern; images in whose paths it finds the same are in one part.
        seed: Of the draw of a test part.
        extensions: Ends of the names of images, in lower case.
        parts_train: Whether the training images are going to be parted further.

    Raises:
        ValueError: If the class folders are not what they should be.
        FileNotFoundError: If some are missing.
    """
    left_out = LeftOut()
    notes: list[str] = []
    val = None
    if is_split(root):
        class_names, train, val, test = _read_split_folders(root, left_out, extensions)
        if parts_train:
            train.groups = _groups_in(notes, root, train, group)
        else:
            refuse_group(group, root)
        note_crossing(notes, root, train, test)
    else:
        class_names, images = _read_class_folders(root, left_out, extensions)
        together = find_together(notes, root, images, class_names, group)
        images.groups = torch.tensor(number_units(len(images), together))
        train, test = set_aside(images, class_names, together, seed)
        notes.append(
            f"{root} has no splits: {len(test):,} of its {len(images):,} images, about a fifth of "
            "each class, are the test set; class folders in a folder test would all be"
        )
    source = file_source("folder", class_names, train, test, val)
    source = replace(source, test_drawn=not is_split(root))
    return with_left_out(source, left_out, notes)


def _groups_in(
    notes: list[str], root: Path, images: ImageFiles, group: str | None
) -> Tensor | None:
    """Number of the group of each image by a pattern; None without one."""
    if group is None:
        return None
    return torch.tensor(number_units(len(images), group_images(images.paths, root, group, notes)))


def has_class_folders(root: Path) -> bool:
    """Whether the folders are classes, by what is in them: at least two, with images in each.

    One that is called ``images`` only keeps images together.

    Args:
        root: The folder of the classes, or of the splits.
    """
    splits = [root / name for name in subfolders(root) if split_of(name) is not None]
    for folder in splits if is_split(root) else [root]:
        names = subfolders(folder)
        if len(names) < 2 or "images" in (name.lower() for name in names):
            return False
        if not all(holds_images(folder / name) for name in names):
            return False
    return True


def load_test_folder(root: Path, extensions: tuple[str, ...]) -> Source:
    """The images to test alone: those of a split, or all where there is none.

    Args:
        root: The folder.
        extensions: Ends of the names of images, in lower case.
    """
    left_out = LeftOut()
    parted = is_split(root)
    folder = _held_out(root) if parted else root
    class_names, test = _read_class_folders(folder, left_out, extensions, base=root, least=1)
    source = file_source("folder", class_names, test.select(torch.arange(0)), test)
    return with_left_out(
        source, left_out, () if parted else [tell_all_tested(str(root), len(test))]
    )


def tell_all_tested(where: str, count: int) -> str:
    """What is told where no part is held out of a test.

    Args:
        where: The data set.
        count: Its images.
    """
    return (
        f"{where} has no splits: all its {count:,} images are tested; the test flatters a network "
        "that has learnt some of them"
    )


def load_imagenet(root: Path) -> Source:
    """Class folders that WordNet ids name, in train and val; see ``load_source``."""
    left_out = LeftOut()
    class_names, train, val, test = _read_split_folders(root, left_out, image_extensions())
    source = file_source("imagenet", imagenet_names(class_names), train, test, val)
    return with_left_out(source, left_out, ())


def is_split(root: Path) -> bool:
    """Whether ``root`` holds train and val or test, and not classes of these names.

    Args:
        root: A folder.
    """
    named = [name for name in subfolders(root) if split_of(name) is not None]
    return len({split_of(name) for name in named}) > 1 or any(
        subfolders(root / name) for name in named
    )


def _held_out(root: Path) -> Path:
    """The folder of the test images."""
    splits = find_splits(root)
    held_out = splits["test"] if _has_validation(splits) else held_out_of(splits)
    if held_out is None:
        raise FileNotFoundError(
            f"{root} has {splits['train'].name} but neither val nor test; add one, or give "
            f"{splits['train']} as root to have a fifth of its images set aside"
        )
    return held_out


def _has_validation(splits: Mapping[str, Path]) -> bool:
    """Whether val is there beside a test whose images lie in folders of the same classes."""
    if "val" not in splits or "test" not in splits:
        return False
    return not set(subfolders(splits["val"])).isdisjoint(subfolders(splits["test"]))


def _read_split_folders(
    root: Path, left_out: LeftOut, extensions: tuple[str, ...]
) -> tuple[tuple[str, ...], ImageFiles, ImageFiles | None, ImageFiles]:
    """Classes, and the images to train, to validate if there are such, and to test."""
    splits = find_splits(root)
    if "train" not in splits:
        raise FileNotFoundError(
            f"{root} has no folder train; expected {root}/train/CLASS/image.jpg and the same "
            "classes in val or test"
        )
    held_out = [_held_out(root), *([splits["val"]] if _has_validation(splits) else [])]
    for name in subfolders(root, left_out):
        if root / name not in (splits["train"], *held_out):
            left_out.add("folder beside the splits", name)
    class_names, train = _read_class_folders(splits["train"], left_out, extensions, base=root)
    parts = []
    for folder in held_out:
        names, images = _read_class_folders(folder, left_out, extensions, base=root)
        _check_same_classes(splits["train"], class_names, folder, names)
        parts.append(images)
    return class_names, train, parts[1] if len(parts) > 1 else None, parts[0]


def _check_same_classes(
    train: Path, class_names: Sequence[str], held_out: Path, names: Sequence[str]
) -> None:
    if class_names == names:
        return
    only = [
        f"only in {folder}: {', '.join(sorted(found)[:10])}"
        for folder, found in (
            (train, set(class_names) - set(names)),
            (held_out, set(names) - set(class_names)),
        )
        if found
    ]
    raise ValueError(
        f"the class folders of {train} and {held_out} differ ({'; '.join(only)}); both must have "
        "the same ones"
    )


def _read_class_folders(
    folder: Path,
    left_out: LeftOut,
    extensions: tuple[str, ...],
    *,
    base: Path | None = None,
    least: int = 2,
) -> tuple[tuple[str, ...], ImageFiles]:
    base = base or folder
    folders = subfolders(folder, left_out, base=base)
    if not folders:
        raise FileNotFoundError(
            f"{folder} holds no class folders; expected {folder}/CLASS/image.jpg, one folder a "
            "class"
        )
    if len(folders) < least:
        inside = folder / folders[0]
        deeper = f"; its folders are in {inside}: give that as root" if subfolders(inside) else ""
        raise ValueError(
            f"{folder} holds one class, {folders[0]!r}; expected at least 2 class folders{deeper}"
        )
    alike = find_alike(folders)
    if alike is not None:
        raise ValueError(
            f"{folder} holds the class folders {alike[0]!r} and {alike[1]!r}, which differ only in "
            "capitals or in how a letter is written; merge the two, or rename one"
        )
    counts = []

    def paths() -> Iterator[str]:
        for name in folders:
            found = find_images(folder / name, left_out, base=base, extensions=extensions)
            counts.append(len(found))
            yield from found

    names = Names(paths())
    empty = [name for name, count in zip(folders, counts, strict=True) if not count]
    if empty:
        raise FileNotFoundError(
            f"no images ({', '.join(extensions)}) in "
            f"{', '.join(str(folder / name) for name in empty[:5])}; add some or remove the folder"
        )
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor(counts))
    return tuple(normal_name(name) for name in folders), ImageFiles(names, labels)


def find_together(
    notes: list[str], root: Path, images: ImageFiles, class_names: Sequence[str], group: str | None
) -> list[list[int]]:
    """Places of images that must not be parted: of one group, or of the same bytes.

    Args:
        notes: Gets what is found, a sentence each.
        root: What the pattern sees of a path begins below it.
        images: All there are.
        class_names: In the order of their numbers.
        group: The pattern; None: there is none.
    """
    together = group_images(images.paths, root, group, notes)
    copies = find_duplicates(images.paths)
    for places in copies:
        labels = images.labels[places]
        other = next((one for one in places if (images.labels[one] != labels[0]).any()), None)
        if other is not None:
            notes.append(
                f"{images.paths[places[0]]} and {images.paths[other]} are the same file in two "
                "classes"
            )
            break
    note_copies(copies, notes)
    return together + copies


def note_crossing(notes: list[str], root: Path, train: ImageFiles, test: ImageFiles) -> None:
    """Tell of test images that are training images, too.

    Args:
        notes: Gets the sentence.
        root: The data set's folder.
        train: Training images.
        test: Test images.
    """
    if len(train) + len(test) > MOST_COMPARED:
        return
    paths = [*train.paths, *test.paths]
    crossing = [places for places in find_duplicates(paths) if places[0] < len(train) <= places[-1]]
    if crossing:
        count = sum(place >= len(train) for places in crossing for place in places)
        one, other = paths[crossing[0][0]], paths[crossing[0][-1]]
        notes.append(
            f"{count:,} test images are training images, too, byte for byte, as {other} is {one}: "
            "the test flatters"
        )


def set_aside(
    images: ImageFiles, class_names: Sequence[str], together: Sequence[Sequence[int]], seed: int
) -> tuple[ImageFiles, ImageFiles]:
    """Training and test part: of each class a fifth, rounded, for the test, and both get some.

    Args:
        images: All there are.
        class_names: In the order of their numbers.
        together: Places of images that are all in one part.
        seed: Of the draw.

    Raises:
        ValueError: If a class has no two images that may be parted.
    """
    labels = images.labels
    counts = labels.bincount() if labels.ndim == 1 else labels.sum(0)
    for label, count in enumerate(counts.tolist()):
        if count < 2:
            path = images.paths[int(has_class(labels, label).nonzero()[0])]
            raise ValueError(
                f"{path} is the only image of its class {class_names[label]!r}; expected at least "
                "2, one to train and one to test"
            )
    for_test = draw_held_out(*with_classless(labels, class_names), together, seed)
    return images.select((~for_test).nonzero()[:, 0]), images.select(for_test.nonzero()[:, 0])


def with_classless(labels: Tensor, class_names: Sequence[str]) -> tuple[Tensor, Sequence[str]]:
    """Labels and names of classes for ``draw_held_out``, to which no class is one of several.

    Args:
        labels: Class numbers (N,), or (N, K) bool.
        class_names: Of the K classes.
    """
    if labels.ndim == 1:
        return labels, class_names
    none = ~labels.any(1, keepdim=True)
    if none.sum() < 2:
        return labels, class_names
    return torch.cat([labels, none], dim=1), [*class_names, "none"]
