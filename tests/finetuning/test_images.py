"""How the images of a finetuning are numbered and parted."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from convattn.config import DataConfig, FinetuneConfig
from convattn.finetuning.images import draw_folds, open_images

NAMES = ("ant", "bee", "fly")


def _write(folder: Path, colours: dict[str, list[int]]) -> Path:
    for name, own in colours.items():
        (folder / name).mkdir(parents=True)
        for number, colour in enumerate(own):
            Image.new("RGB", (8, 8), (colour, colour // 2, 0)).save(folder / name / f"{number}.png")
    return folder


def test_folds_have_as_many_of_each_class_and_part_no_group() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10)
    groups = torch.arange(90) // 2
    folds = draw_folds(labels, groups, 5, seed=0, names=NAMES)
    for number, count in enumerate((12, 4, 2)):
        counts = torch.bincount(folds[labels == number], minlength=5)
        assert counts.tolist() == [count] * 5
    assert all(len(folds[groups == one].unique()) == 1 for one in groups.unique())
    other = draw_folds(labels, groups, 5, seed=1, names=NAMES)
    assert not torch.equal(folds, other)
    several = torch.rand(50, 3, generator=generator) < 0.3
    folds = draw_folds(several, torch.arange(50), 3, seed=0, names=NAMES)
    for number in range(3):
        counts = torch.bincount(folds[several[:, number]], minlength=3)
        assert int(counts.max() - counts.min()) <= 3
    assert sorted(folds.unique().tolist()) == [0, 1, 2]


def test_too_few_groups_for_the_folds_are_told() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4)
    groups = torch.tensor([*range(10), 10, 10, 11, 11])
    with pytest.raises(ValueError, match="class 'bee' belong to 2 groups, and 3 folds"):
        draw_folds(labels, groups, 3, seed=0, names=("ant", "bee"))


def test_the_same_picture_in_several_class_folders_has_several_classes(tmp_path: Path) -> None:
    root = _write(tmp_path / "train", {"ant": [10, 20, 30], "bee": [20, 40], "fly": [50, 60]})
    _write(tmp_path / "val", {"ant": [11], "bee": [12], "fly": [12]})
    config = FinetuneConfig(data=DataConfig(name="folder", root=str(tmp_path)), multi_label=True)
    images = open_images(config)
    assert images.source.multi_label
    assert images.num_train == 6
    found = {
        (Path(images.name(number)).parent.name, Path(images.name(number)).stem): label.tolist()
        for number, label in enumerate(images.labels[:6])
    }
    assert found[("ant", "1")] == [True, True, False]
    assert found[("bee", "1")] == [False, True, False]
    assert images.labels[6:].tolist() == [[True, False, False], [False, True, True]]
    assert root.exists()


def test_a_validation_part_is_drawn_from_each_class_and_parts_no_copies(tmp_path: Path) -> None:
    colours = {"ant": [1, 2, 3, 4, 5, 5, 5, 5], "bee": [11, 12, 13, 14, 15, 16]}
    _write(tmp_path / "train", colours)
    _write(tmp_path / "test", {"ant": [200], "bee": [201]})
    config = FinetuneConfig(data=DataConfig(name="folder", root=str(tmp_path)))
    images = open_images(config)
    copies = {4, 5, 6, 7}
    for seed in range(5):
        splits = images.splits(images.train, 0.3, seed)
        assert len(splits) == 3
        judged = [number for _, valid in splits for number in valid.tolist()]
        assert sorted(judged) == list(range(14))  # so few images are each set aside once
        for fit, valid in splits:
            assert sorted([*fit.tolist(), *valid.tolist()]) == list(range(14))
            assert copies <= set(fit.tolist()) or copies <= set(valid.tolist())


def test_many_images_are_split_once() -> None:
    config = FinetuneConfig(data=DataConfig(name="cluttered_digits", num_train=800, num_test=20))
    images = open_images(config)
    ((fit, valid),) = images.splits(images.train, 0.2, seed=0)
    assert len(valid) == pytest.approx(160, abs=10)
    assert sorted([*fit.tolist(), *valid.tolist()]) == list(range(800))
    assert len(images.splits(images.train[:500], 0.2, seed=0)) == 5


def test_own_validation_images_choose_and_are_learnt_at_the_end(tmp_path: Path) -> None:
    for part, colours in (("train", range(0, 90, 10)), ("val", [110, 120]), ("test", [140])):
        _write(tmp_path / part, {"ant": [*colours], "bee": [one + 5 for one in colours]})
    images = open_images(FinetuneConfig(data=DataConfig(name="folder", root=str(tmp_path))))
    ((fit, valid),) = images.splits(images.train, 0.2, seed=0)
    for numbers, part, count in ((fit, "train", 18), (valid, "val", 4), (images.test, "test", 2)):
        parts = [Path(images.name(one)).parent.parent.name for one in numbers.tolist()]
        assert parts == [part] * count
    assert images.num_train == 22
    assert "own 4 validation images" in images.source.notes[-1]
    some = images.train[::2]  # of a fold: drawn anew
    for fit, valid in images.splits(some, 0.5, seed=0):
        assert sorted([*fit.tolist(), *valid.tolist()]) == some.tolist()


def test_weights_of_a_table_are_kept(tmp_path: Path) -> None:
    _write(tmp_path, {"ant": [10, 20, 30], "bee": [40, 50, 60]})
    rows = [
        f"{name}/{number}.png,{name},{'test' if number == 2 else 'train'},{number + 0.5}"
        for name in ("ant", "bee")
        for number in range(3)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,split,weight", *rows]))
    images = open_images(FinetuneConfig(data=DataConfig(name="folder", root=str(table))))
    assert images.weights is not None
    assert images.weights[images.train].tolist() == [0.5, 1.5, 0.5, 1.5]


def test_groups_of_a_table_are_parted_by_no_fold_and_no_validation(tmp_path: Path) -> None:
    root = _write(tmp_path / "all", {"ant": list(range(10, 34)), "bee": list(range(40, 64))})
    files = sorted(root.rglob("*.png"), key=lambda file: (file.parent.name, int(file.stem)))
    tile = {str(file): f"tile{place // 3}" for place, file in enumerate(files)}
    rows = [f"{file},{file.parent.name},{tile[str(file)]}" for file in files]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,group", *rows]) + "\n")
    images = open_images(FinetuneConfig(data=DataConfig(name="folder", root=str(table))))

    def tiles(numbers: torch.Tensor) -> set[str]:
        return {tile[images.name(number)] for number in numbers.tolist()}

    folds = images.folds(images.train, 4, seed=0)
    parts = [tiles(images.train[folds == fold]) for fold in range(4)]
    assert sum(map(len, parts)) == len(tiles(images.train))
    assert not tiles(images.train) & tiles(images.test)
    for fit, valid in images.splits(images.train, 0.25, seed=0):
        assert not tiles(fit) & tiles(valid)
