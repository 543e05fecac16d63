"""A table that keeps what looks alike together."""

import csv
import os

import pytest
from PIL import ImageEnhance

from convattn.checks import Place, check_data
from convattn.checks.grouping import grouped_table
from convattn.data import load_source
from tests.checks.faults import good_classes, photograph, save


@pytest.fixture
def tiles(tmp_path):
    """Twelve things of each class, three photographs each under other light."""
    for number, name in enumerate(("cat", "dog")):
        for thing in range(12):
            picture = photograph(100 * number + thing)
            for light in (0.9, 1.0, 1.1):
                lit = ImageEnhance.Brightness(picture).enhance(light)
                save(lit, tmp_path / "tiles" / name, f"{thing:02d}-{light}.png")
    return tmp_path / "tiles"


def test_what_looks_alike_is_in_one_part(tiles, tmp_path):
    checked = check_data(Place(root=str(tiles)))
    table = grouped_table(checked.source, checked.copies)
    rows = list(csv.DictReader(table.splitlines()))
    assert set(rows[0]) == {"path", "label", "group"}  # the test part was drawn
    thing = {row["path"]: (row["label"], os.path.basename(row["path"])[:2]) for row in rows}
    assert len({(row["group"], thing[row["path"]]) for row in rows}) == 24
    (tmp_path / "groups.csv").write_text(table)
    source = load_source("folder", root=tmp_path / "groups.csv")
    sides = [{thing[path] for path in part.paths} for part in (source.train, source.test)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 24
    assert {(path, source.class_names[label]) for path, label in _labelled(source)} == {
        (row["path"], row["label"]) for row in rows
    }


def test_splits_of_the_data_stay(tmp_path):
    root = good_classes(tmp_path / "own", 4, 2)
    save(photograph(1), root / "val" / "cat", "again.png")
    checked = check_data(Place(root=str(root)))
    rows = list(csv.DictReader(grouped_table(checked.source, checked.copies).splitlines()))
    splits = {row["path"]: row["split"] for row in rows}
    assert splits[str(root / "val" / "cat" / "again.png")] == "test"
    assert list(splits.values()).count("train") == 8
    groups = {row["path"]: row["group"] for row in rows}
    same = str(root / "train" / "cat" / "00.png"), str(root / "val" / "cat" / "again.png")
    assert groups[same[0]] == groups[same[1]]
    assert len(set(groups.values())) == len(rows) - 1


def test_without_copies_there_is_nothing_to_group(tmp_path):
    checked = check_data(Place(root=str(good_classes(tmp_path, 4, 2))))
    assert grouped_table(checked.source, checked.copies) is None


def _labelled(source):
    for part in (source.train, source.test):
        yield from zip(part.paths, part.labels.tolist(), strict=True)


def test_copies_in_a_validation_part_get_their_group(tmp_path):
    root = good_classes(tmp_path / "own", 4, 2)
    for name, seed in (("cat", 70), ("dog", 71)):
        save(photograph(seed), root / "test" / name, "00.png")
    (root / "val" / "dog" / "same.png").write_bytes((root / "test/dog/00.png").read_bytes())
    checked = check_data(Place(root=str(root)))
    rows = list(csv.DictReader(grouped_table(checked.source, checked.copies).splitlines()))
    groups = {row["path"]: (row["group"], row["split"]) for row in rows}
    same, split = groups[str(root / "val" / "dog" / "same.png")]
    assert (same, "test") == groups[str(root / "test" / "dog" / "00.png")]
    assert split == "val"
    assert len({group for group, _ in groups.values()}) == len(rows) - 1
