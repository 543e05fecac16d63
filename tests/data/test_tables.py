import csv
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packaging.version import Version
from PIL import Image

from convattn.config import DataConfig, TrainConfig
from convattn.data import load_source
from convattn.data.folders import SPLITS
from convattn.data.table_files import TableFiles, single_table
from convattn.data.tables import classes_of, read_tables

FORMATS = ("csv", "tsv", "jsonl", "parquet")


def pictures(folder, *names):
    """Images of a colour of their own."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, len(name), 7)).save(file)


def write(file, rows):
    """Rows as dictionaries to a table of the format that the name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with file.open("w", newline="", encoding="utf-8") as text:
            delimiter = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.fixture
def twenty(tmp_path):
    """Twenty images, ten of each of two classes, and rows of them."""
    rows = [
        {"filename": f"{name}_{number}.png", "label": name}
        for name in ("cat", "dog")
        for number in range(10)
    ]
    pictures(tmp_path, *(row["filename"] for row in rows))
    return rows


def labelled(source):
    """Path, class name and part of every image."""
    return [
        (path, source.class_names[label], part)
        for part in ("train", "test")
        for path, label in zip(
            getattr(source, part).paths, getattr(source, part).labels.tolist(), strict=True
        )
    ]


def classes(file, **options):
    """The classes of each row, read alone."""
    return [row.classes for row in read_tables(single_table(file), **options).rows]


def table(folder, text, name="labels.csv", encoding="utf-8"):
    """A table as it is written, and the images a.png to d.png beside it."""
    pictures(folder, "a.png", "b.png", "c.png", "d.png")
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


# --- the same data in every form


@pytest.mark.data
@pytest.mark.parametrize("form", FORMATS)
def test_hymenoptera_is_the_same_by_folders_and_by_tables(form, tmp_path, data_dir):
    root = data_dir / "hymenoptera"
    folders = load_source("folder", root=root)
    rows = [
        {"path": path, "label": name, "split": "val" if part == "test" else part}
        for path, name, part in labelled(folders)
    ]
    source = load_source("folder", root=write(tmp_path / f"all.{form}", rows))
    assert source.class_names == folders.class_names
    assert labelled(source) == labelled(folders)
    assert len(rows) == 397


@pytest.mark.data
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", [0, 5])
def test_hymenoptera_is_split_alike_by_folders_and_by_tables(form, seed, tmp_path, data_dir):
    root = data_dir / "hymenoptera" / "train"
    folders = load_source("folder", root=root, seed=seed)
    rows = [{"path": path, "label": name} for path, name, _ in sorted(labelled(folders))]
    source = load_source("folder", root=write(tmp_path / f"all.{form}", rows), seed=seed)
    assert labelled(source) == labelled(folders)


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_gives_the_same(form, tmp_path, twenty):
    write(tmp_path / f"labels.{form}", twenty)
    source = load_source("folder", root=tmp_path)
    assert sorted([*source.train.paths, *source.test.paths]) == sorted(
        str(tmp_path / row["filename"]) for row in twenty
    )
    assert source.test.labels.bincount().tolist() == [2, 2]
    for path, name, _ in labelled(source):
        assert Path(path).name.startswith(name)
    assert source.train[0][0].size == (4, 3)


# --- which tables there are


def test_metadata_of_split_folders(tmp_path, twenty):
    for split, rows in (("train", twenty[:8] + twenty[12:]), ("Validation", twenty[8:12])):
        pictures(tmp_path / split, *(f"deep/{row['filename']}" for row in rows))
        for row in rows:
            row["file_name"] = f"deep/{row.pop('filename')}"
        write(tmp_path / split / "metadata.jsonl", rows)
    source = load_source("folder", root=tmp_path)
    assert [Path(path).parts[-3:] for path in source.test.paths] == [
        ("Validation", "deep", f"{name}.png") for name in ("cat_8", "cat_9", "dog_0", "dog_1")
    ]
    assert "Validation/metadata.jsonl" in source.notes[0]


def test_labelled_metadata_goes_before_class_folders(tmp_path):
    pictures(tmp_path, *(f"{kind}/{n}.png" for kind in "xy" for n in range(4)))
    rows = [{"file_name": f"{kind}/{n}.png", "label": n % 2} for kind in "xy" for n in range(4)]
    write(tmp_path / "metadata.csv", rows)
    assert load_source("folder", root=tmp_path).class_names == ("0", "1")
    assert load_source("folder", root=tmp_path, format="folder").class_names == ("x", "y")
    write(tmp_path / "metadata.csv", [{"file_name": "x/0.png", "caption": "an x"}])
    found = load_source("folder", root=tmp_path)
    assert found.class_names == ("x", "y")
    assert any("metadata.csv; --data.format table would" in note for note in found.notes)


def test_class_folders_go_before_other_tables(tmp_path):
    pictures(tmp_path, *(f"{kind}/{n}.png" for kind in "xy" for n in range(4)))
    rows = [{"file": f"{kind}/{n}.png", "label": n % 2} for kind in "xy" for n in range(4)]
    write(tmp_path / "labels.csv", rows)
    assert load_source("folder", root=tmp_path).class_names == ("x", "y")
    assert load_source("folder", root=tmp_path, format="table").class_names == ("0", "1")
    assert load_source("folder", root=tmp_path, labels_column="label").class_names == ("0", "1")
    (tmp_path / "empty").mkdir()
    assert load_source("folder", root=tmp_path).class_names == ("0", "1")


@pytest.mark.parametrize("name", SPLITS["val"] + SPLITS["test"])
def test_a_table_a_split(name, tmp_path, twenty):
    write(tmp_path / "Train.csv", twenty[:5] + twenty[10:15])
    write(tmp_path / f"{name}.csv", twenty[5:7] + twenty[15:17])
    write(tmp_path / "more.csv", twenty[7:9])
    source = load_source("folder", root=tmp_path)
    assert (len(source.train), len(source.test)) == (10, 4)
    assert f"{name}.csv" in source.notes[0]
    assert "not read: more.csv" in source.notes[0]


def test_kaggle_folders_beside_their_tables(tmp_path, twenty):
    write(tmp_path / "train.csv", twenty)
    for row in twenty:
        file = tmp_path / row["filename"]
        (tmp_path / "train").mkdir(exist_ok=True)
        file.rename(tmp_path / "train" / file.name)
    assert len(load_source("folder", root=tmp_path).train) == 16


def test_a_column_of_splits_parts_training_validation_and_test(tmp_path, twenty):
    for row, split in zip(
        twenty, ["train", "dev", "train", "testing", "Training"] * 4, strict=True
    ):
        row["Split"] = split
    source = load_source("folder", root=write(tmp_path / "x.csv", twenty))
    assert (len(source.train), len(source.val), len(source.test)) == (12, 4, 4)
    assert not source.skipped


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train.csv", "training.csv"),
            "2 tables for the split train, 'train.csv', 'training.csv'",
        ),
        (("metadata.csv", "metadata.jsonl"), "2 tables for all images, 'metadata.csv'"),
        (("train/metadata.csv", "Training/metadata.csv"), "2 tables for the split train"),
        (("one.csv", "two.parquet"), "2 tables for all images, 'one.csv', 'two.parquet'"),
    ],
)
def test_two_tables_for_the_same_are_refused(names, message, tmp_path, twenty):
    for name in names:
        write(tmp_path / name, twenty)
    with pytest.raises(ValueError, match=message):
        load_source("folder", root=tmp_path)


def test_no_table_where_one_is_asked_for(tmp_path):
    pictures(tmp_path, "x/a.png", "y/b.png")
    with pytest.raises(FileNotFoundError, match="holds no table"):
        load_source("folder", root=tmp_path, format="table")
    with pytest.raises(NotADirectoryError, match="or a table"):
        load_source("folder", root=tmp_path / "x" / "a.png")


# --- which column is what


@pytest.mark.parametrize(
    "head", ["File Name,Class", "IMAGE-PATH,labels", "image,target", "path,category", "img,y"]
)
def test_usual_names_of_columns(head, tmp_path):
    file = table(tmp_path, f"n,{head},note\n1,a.png,x,hm\n2,b.png,y,hm\n")
    rows = read_tables(single_table(file))
    assert [row.classes for row in rows.rows] == [("x",), ("y",)]
    paths, labels = head.split(",")
    assert f"paths from '{paths}', labels from '{labels}'" in rows.note
    assert "columns not used: 'n', 'note'" in rows.note


def test_named_columns(tmp_path):
    file = table(tmp_path, "where,what,label\na.png,x,1\nb.png,y,2\n")
    assert classes(file, path_column="where", labels_column="what") == [("x",), ("y",)]
    for option, message in (
        ({"path_column": "wher"}, "no column path_column='wher' .*nearest being 'where'; its col"),
        ({"path_column": "where", "labels_column": "where"}, "is the column of the paths"),
        ({}, "no column whose name says that it holds the images' paths .* 'where', 'what'"),
    ):
        with pytest.raises(ValueError, match=message):
            classes(file, **option)


def test_columns_are_refused_where_no_table_is_read(tmp_path):
    pictures(tmp_path, *(f"{kind}/{n}.png" for kind in "xy" for n in range(4)))
    for option in ({"path_column": "x"}, {"labels_column": "y"}, {"bad_annotations": "skip"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* not read as one"):
            load_source("folder", root=tmp_path, format="folder", **option)
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* not read as one"):
            load_source("cluttered_digits", num_train=2, num_test=2, **option)
    config = TrainConfig(data=DataConfig(path_column="x"))
    config.check_task("classification")
    for task in ("detection", "segmentation"):
        with pytest.raises(ValueError, match=r"data\.path_column='x' has no meaning"):
            config.check_task(task)


@pytest.mark.parametrize("form", FORMATS)
def test_columns_of_zero_and_one_are_classes(form, tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(4)))
    rows = [
        {"image_id": f"{n}.png", "rust": n % 2, "blight": n // 2, "age": n + 3} for n in range(4)
    ]
    found = read_tables(single_table(write(tmp_path / f"x.{form}", rows)))
    assert [row.classes for row in found.rows] == [(), ("rust",), ("blight",), ("rust", "blight")]
    assert found.several
    assert "a column of 0 and 1 a class: 'rust', 'blight'; columns not used: 'age'" in found.note


def test_a_fold_is_no_split(tmp_path):
    file = table(tmp_path, "file,label,fold\na.png,x,0\nb.png,y,1\n")
    found = read_tables(single_table(file))
    assert found.splits == {None}
    assert "not used: 'fold'" in found.note
    file = table(tmp_path, "file,label,split\na.png,x,train\nb.png,y,holdout\n")
    with pytest.raises(ValueError, match=r"line 3 of .*'holdout' in the column 'split'"):
        read_tables(single_table(file))


@pytest.mark.parametrize("form", FORMATS)
def test_groups_stay_together(form, tmp_path, twenty):
    for number, row in enumerate(twenty):
        row["patient_id"] = number // 2
    source = load_source("folder", root=write(tmp_path / f"x.{form}", twenty))
    assert len(source.test) == 4
    patients = {row["filename"]: row["patient_id"] for row in twenty}
    tested = {patients[Path(path).name] for path in source.test.paths}
    assert not tested & {patients[Path(path).name] for path in source.train.paths}


def test_groups_across_given_splits_are_told(tmp_path, twenty):
    for number, row in enumerate(twenty):
        row |= {"group": number // 2, "split": "test" if number % 5 == 0 else "train"}
    source = load_source("folder", root=write(tmp_path / "x.csv", twenty))
    assert any(note.startswith("4 groups, as '0', have images in") for note in source.notes)
    with pytest.raises(ValueError, match="group='c' parts images without splits"):
        load_source("folder", root=tmp_path / "x.csv", group="c")


def test_a_pattern_keeps_images_of_a_table_together(tmp_path, twenty):
    file = write(tmp_path / "x.csv", twenty)
    source = load_source("folder", root=file, group=r"_(\d)")
    numbers = [{path[-5] for path in part.paths} for part in (source.train, source.test)]
    assert not numbers[0] & numbers[1]


def test_copies_stay_on_one_side(tmp_path, twenty):
    for number in range(1, 10):
        (tmp_path / f"cat_{number}.png").write_bytes((tmp_path / "cat_0.png").read_bytes())
    with pytest.raises(ValueError, match="class 'cat' belong together"):
        load_source("folder", root=write(tmp_path / "x.csv", twenty))


def test_weights(tmp_path, twenty):
    for number, row in enumerate(twenty):
        row |= {"weight": number / 4, "split": "test" if number % 5 == 0 else "train"}
    source = load_source("folder", root=write(tmp_path / "x.csv", twenty))
    assert source.train.weights.tolist() == [n / 4 for n in range(20) if n % 5]
    assert source.train[3][2] == 1.0
    assert len(source.test[0]) == 2
    chosen = source.train.select(torch.tensor([5, 2])).with_transform(None)
    assert chosen.weights.tolist() == [7 / 4, 3 / 4]


@pytest.mark.parametrize("weight", ["-1", "nan", "", "inf", "much"])
def test_bad_weights_are_refused(weight, tmp_path):
    file = table(tmp_path, f"file,label,weight\na.png,x,1\nb.png,y,{weight}\n")
    with pytest.raises(ValueError, match=r"labels.csv: line 3 has the weight .* number from 0"):
        classes(file)
    assert classes(file, bad_annotations="skip") == [("x",)]


# --- paths


@pytest.mark.parametrize(
    "spelling",
    ["./a.png", "sub/../a.png", "{folder}/a.png", "deep\\er\\a.png", "b.png", " a.png ", "ä ö.png"],
)
def test_paths_as_people_write_them(spelling, tmp_path):
    (tmp_path / "sub").mkdir()
    pictures(tmp_path, "a.png", "deep/er/a.png", "images/b.png", "ä ö.png", "z.png")
    path = spelling.format(folder=tmp_path)
    file = write(tmp_path / "x.csv", [{"path": path, "label": 1}, {"path": "z.png", "label": 2}])
    found = read_tables(single_table(file)).rows
    images = {"b.png": "images/b.png", "deep\\er\\a.png": "deep/er/a.png", "ä ö.png": "ä ö.png"}
    assert found[0].path == str(tmp_path / images.get(spelling, "a.png"))


@pytest.mark.parametrize("form", FORMATS)
def test_missing_images_are_counted_and_the_first_is_named(form, tmp_path, twenty):
    for number in (3, 4, 17):
        (tmp_path / twenty[number]["filename"]).unlink()
    file = write(tmp_path / f"x.{form}", twenty)
    place = {"csv": "line 5", "tsv": "line 5", "jsonl": "line 4", "parquet": r"row 3 \(from 0\)"}
    message = f"x.{form}: {place[form]} names the image 'cat_3.png', .*2 more faults"
    with pytest.raises(ValueError, match=message):
        load_source("folder", root=file)
    source = load_source("folder", root=file, bad_annotations="skip")
    assert source.skipped == {"row whose image is missing": 3}
    assert len(source.train) + len(source.test) == 17


def test_an_image_twice(tmp_path):
    file = table(tmp_path, "file,label\na.png,x\nb.png,y\n./a.png,x\n")
    found = read_tables(single_table(file))
    assert [row.classes for row in found.rows] == [("x",), ("y",)]
    assert found.skipped == {"row of an image that an earlier row has alike": 1}
    file = table(tmp_path, "file,label\na.png,x\nb.png,y\n./a.png,y\n")
    with pytest.raises(ValueError, match=r"line 4 of .* has the image of line 2 .*another class"):
        read_tables(single_table(file), bad_annotations="skip")


def test_an_image_in_two_splits_is_refused(tmp_path, twenty):
    write(tmp_path / "train.csv", twenty)
    write(tmp_path / "val.csv", twenty[4:5])
    with pytest.raises(ValueError, match=r"line 2 of .*val.csv has the image of line 6 of .*split"):
        load_source("folder", root=tmp_path)


# --- labels


def test_numbers_are_names_by_value(tmp_path):
    file = table(tmp_path, "file,label\na.png,1\nb.png,10\nc.png,1.0\nd.png,9\n")
    rows = read_tables(single_table(file)).rows
    assert classes_of(rows) == ("1", "9", "10")
    assert rows[0].classes == rows[2].classes
    for values in ([1, 10, 1, 9], [1.0, 10.0, 1.0, 9.0], ["1", "10", "1.0", "9"]):
        names = [f"{name}.png" for name in "abcd"]
        pairs = zip(names, values, strict=True)
        for form in ("jsonl", "parquet"):
            written = [{"file": name, "label": value} for name, value in pairs]
            if written:
                again = read_tables(single_table(write(tmp_path / f"y.{form}", written))).rows
                assert [row.classes for row in again] == [row.classes for row in rows]


def test_leading_zeros_and_odd_names_stay(tmp_path):
    text = 'file,label\na.png,001\nb.png,=1+1\nc.png,<b>\nd.png,"a, b"\n'
    assert classes(table(tmp_path, text)) == [("001",), ("=1+1",), ("<b>",), ("a, b",)]


def test_one_letter_is_one_class_however_it_is_written(tmp_path):
    assert classes(table(tmp_path, "file,label\na.png,e\u0301\nb.png,\u00e9\n")) == [("é",)] * 2


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("label", ["", "  ", "NaN", float("nan"), None])
def test_no_label_is_refused(form, label, tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    rows = [{"file": f"{name}.png", "label": name} for name in "abc"]
    if isinstance(label, float):
        rows = [row | {"label": float(number)} for number, row in enumerate(rows)]
    rows[1]["label"] = label
    file = write(tmp_path / f"x.{form}", rows)
    with pytest.raises(
        ValueError, match=r"x\.\w+: (line|row) \d .*has the label .*name of a class"
    ):
        classes(file)
    found = read_tables(single_table(file), bad_annotations="skip")
    assert len(found.rows) == 2
    assert found.skipped == {"row without a label": 1}


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        ("csv", "x|y"),
        ("tsv", "y; x"),
        ("csv", '["x", "y"]'),
        ("csv", "['x', 'y']"),
        ("jsonl", ["y", "x"]),
        ("parquet", ["x", "y", "x"]),
    ],
)
def test_several_classes_an_image(form, cell, tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(10)))
    other = ["z"] if isinstance(cell, list) else "z"
    rows = [{"file": f"{n}.png", "labels": (cell, other)[n % 2]} for n in range(10)]
    source = load_source("folder", root=write(tmp_path / f"t.{form}", rows))
    assert source.multi_label
    assert source.class_names == ("x", "y", "z")
    assert source.test.labels.int().tolist() in ([[1, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 1, 0]])
    for place, path in enumerate(source.train.paths):
        _, target = source.train[place]
        assert target.dtype == torch.float32
        assert target.tolist() == ([1, 1, 0] if int(Path(path).stem) % 2 == 0 else [0, 0, 1])
    assert "several classes an image" in source.notes[0]


def test_an_image_of_no_class_is_one(tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(12)))
    rows = [{"file": f"{n}.png", "tags": [[], ["x"], ["x", "y"]][n % 3]} for n in range(12)]
    source = load_source("folder", root=write(tmp_path / "t.jsonl", rows))
    assert source.train.labels.sum(0).tolist() == [6, 3]
    assert (~source.test.labels.any(1)).sum() == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("xxxxxx", "all other rows are of one class, 'x'"),
        ("xxXyyy", "line 4 .*'x'.*differ only in capitals|'X'.*differ only in capitals"),
        ("xxxyyz", "only image of its class 'z'"),
    ],
)
def test_classes_that_cannot_be_learnt(labels, message, tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(6)))
    rows = [{"file": f"{n}.png", "label": label} for n, label in enumerate(labels)]
    with pytest.raises(ValueError, match=message):
        load_source("folder", root=write(tmp_path / "x.csv", rows))


def test_a_class_of_the_test_alone_is_named(tmp_path, twenty):
    for number, row in enumerate(twenty):
        row["split"] = "val" if number % 5 == 0 else "train"
    twenty[5]["label"] = "owl"
    with pytest.raises(ValueError, match=r"line 7 of .*class 'owl', which no training image has"):
        load_source("folder", root=write(tmp_path / "x.csv", twenty))


# --- a network's classes


def test_a_test_finds_classes_by_name(tmp_path, twenty):
    file = write(tmp_path / "test.csv", twenty)
    for root in (file, tmp_path):
        source = load_source("folder", root=root, class_names=["owl", "dog", "cat"])
        assert source.test.labels.tolist() == [2] * 10 + [1] * 10
        assert not len(source.train)
    with pytest.raises(ValueError, match="class 'dog', which the network does not know"):
        load_source("folder", root=file, class_names=["owl", "cat"])
    source = load_source("folder", root=file, class_names=["owl", "cat"], ignore_unknown=True)
    assert source.test.labels.tolist() == [1] * 10
    assert source.skipped == {"image of an unknown class": 10}
    with pytest.raises(ValueError, match="none of train"):
        load_source("folder", root=tmp_path)


def test_a_test_of_several_classes_finds_them_by_name(tmp_path):
    text = "file,labels\na.png,x|y\nb.png,y\nc.png,x|z\nd.png,[]\n"
    table(tmp_path, text, "test.csv")
    options = {"root": tmp_path, "class_names": ["y", "w", "x"], "ignore_unknown": True}
    source = load_source("folder", **options)
    assert source.test.labels.int().tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert source.skipped == {"image of an unknown class": 1}


# --- text as programs write it


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_text_of_every_program(encoding, newline, delimiter, tmp_path):
    lines = ["file,label,x", 'a.png,"Käse, alt",1', "", "b.png,'c',2", ",,", "c.png,ü ,3", ""]
    text = newline.join(lines).replace(",", delimiter)
    quoted = "Käse, alt".replace(",", delimiter)
    if delimiter == ";":
        text, quoted = text.replace(quoted, "Käse"), "Käse"
    found = read_tables(single_table(table(tmp_path, text, encoding=encoding))).rows
    assert [row.classes for row in found] == [(quoted.strip(),), ("'c'",), ("ü",)]
    assert [row.found_at().split(" of ")[0] for row in found] == ["line 2", "line 4", "line 6"]


def test_a_cell_of_two_lines_is_found_at_the_first(tmp_path):
    text = 'file,label,note\na.png,x,"one\ntwo"\nb.png,,\nc.png,y,\n'
    with pytest.raises(ValueError, match="line 4 has the label ''"):
        classes(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("file,label\n", "holds no rows"),
        ("file,label\na.png,x,y\n", "line 2 of .*holds 3 cells; expected 2"),
        ('file,label\na.png,"x\n', "line 2 of .* is no row"),
        ("file,label,label\na.png,x,y\n", "2 columns called 'label'"),
        ("file,label\nb.png,\xff\n", "not a text in UTF-8"),
    ],
)
def test_damaged_text_is_refused(text, message, tmp_path):
    file = table(tmp_path, text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        classes(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "a.png"', "line 2 of .* is no JSON"),
        ("[1, 2]", r"line 2 of .* no JSON object but \[1, 2\]"),
        ('{"file": ["a.png"], "label": "x"}', "line 2 has the path"),
        ('{"file": "a.png", "label": {"x": 1}}', "line 2 has the label"),
        ('{"file": "a.png", "label": [["x"]]}', "line 2 has the label"),
        ('{"file": "a.png", "label": "\\ud800"}', "line 2 has the label"),
        ('{"file": "\\ud800", "label": "x"}', "line 2 names the image"),
        ('{"file": "a\\u0000", "label": "x"}', "line 2 names the image"),
        ("[" * 100_000, "line 2 of .* is no JSON"),
    ],
)
def test_damaged_json_lines_are_refused(line, message, tmp_path):
    file = table(tmp_path, f'{{"file": "b.png", "label": "y"}}\n{line}\n', "labels.jsonl")
    with pytest.raises(ValueError, match=message):
        classes(file)


def test_columns_of_images_are_not_read(tmp_path, twenty):
    rows = [row | {"image": {"bytes": b"png" * 100, "path": "x"}} for row in twenty]
    assert len(classes(write(tmp_path / "x.parquet", rows))) == 20
    for row in rows:
        del row["filename"]
    with pytest.raises(ValueError, match="holds the images themselves, in its column 'image'; exp"):
        classes(write(tmp_path / "x.parquet", rows))


# --- damage


ROW_OF = {
    "csv": r"\bline \d+\b",
    "tsv": r"\bline \d+\b",
    "jsonl": r"\bline \d+\b",
    "parquet": r"\brow \d+\b",
}


def mutated(content, generator):
    """A table's bytes with a few of them other, cut, doubled, or with cells swapped."""
    content = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(content))
        kind = generator.randrange(5)
        if kind == 0:
            content[place] = generator.randrange(256)
        elif kind == 1:
            del content[place : place + generator.randint(1, 40)]
        elif kind == 2:
            content = content[: max(1, place)]
        elif kind == 3:
            other = generator.randrange(len(content))
            size = generator.randint(1, 12)
            one, two = content[place : place + size], content[other : other + size]
            content[place : place + size], content[other : other + size] = two, one
        else:
            content[place:place] = content[place : place + 30]
        content = content or bytearray(b"x")
    return bytes(content)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_one_sentence_that_names_the_file(form, tmp_path, twenty):
    for number, row in enumerate(twenty):
        row |= {"split": ("train", "val")[number % 5 == 0], "weight": 1.5, "group": f"g{number}"}
    file = write(tmp_path / f"labels.{form}", twenty)
    content = file.read_bytes()
    said = []
    for seed in range(200):
        file.write_bytes(mutated(content, random.Random(seed)))
        try:
            load_source("folder", root=file)
        except (ValueError, FileNotFoundError) as error:
            said.append(str(error))
    assert len(said) > 60
    rows = sum(re.search(ROW_OF[form], one) is not None for one in said)
    if form != "parquet":
        assert rows > len(said) / 3, said
    elif Version(pa.__version__).major > 18:  # whose files hardly ever leave rows to be read
        assert rows > 0, said
    assert [one for one in said if f"labels.{form}" not in one or "\n" in one] == []


def test_a_table_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv does not exist"):
        read_tables(TableFiles(folder=tmp_path, files={None: tmp_path / "gone.csv"}))
