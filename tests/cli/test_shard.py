"""What commands make of shards: what they make of the folder."""

import csv

import pytest

from convattn.cli import main
from tests.classification.runs import make_run
from tests.cli.test_probe import TINY, images, probed  # noqa: F401

FORMATS = ["webdataset", "litdata"]
NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def sharded(images, tmp_path_factory):  # noqa: F811
    """Format -> folder of the shards."""
    top = tmp_path_factory.mktemp("sharded")
    pytest.importorskip("litdata")
    for name in FORMATS:
        words = ["shard", str(images), str(top / name), "--format", name, "--shard-size", "5"]
        assert main(words) == 0
    return {name: top / name for name in FORMATS}


def rows(file, *left_out):
    with file.open(newline="") as text:
        return [
            {name: value for name, value in row.items() if name not in left_out}
            for row in csv.DictReader(text)
        ]


def test_list_shows_both_formats(capsys):
    assert main(["list", "--data"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[0] in FORMATS] == [
        [name, "classification,", "detection,", "segmentation"] for name in FORMATS
    ]


@pytest.mark.parametrize(
    ("format", "name"),
    [("webdataset", ""), ("webdataset", "train-{000000..000004}.tar"), ("litdata", "")],
)
def test_evaluate_says_of_shards_what_it_says_of_the_folder(
    format,
    name,
    images,  # noqa: F811
    sharded,
    tmp_path,
):
    run = make_run(tmp_path / "run", NAMES)
    root = sharded[format] / name
    for name, place in (("folder", images), (format, root)):
        out = str(tmp_path / name)
        words = ["evaluate", str(run), "--data", name, "--data.root", str(place), "--out", out]
        assert main(words) == 0
    expected, found = (
        rows(tmp_path / name / "predictions.csv", "image", "path") for name in ("folder", format)
    )
    assert len(found) == 12
    assert found == expected


def test_names_of_images_in_shards_are_below_their_folder(sharded, tmp_path):
    run = make_run(tmp_path / "run", NAMES)
    for number, name in enumerate(("", "test-{000000..000002}.tar")):
        root, out = str(sharded["webdataset"] / name), tmp_path / str(number)
        words = ["--data", "webdataset", "--data.root", root, "--out", str(out)]
        assert main(["evaluate", str(run), *words]) == 0
        (first, *_) = rows(out / "predictions.csv")
        assert "test-000000.tar/000000000.png" in first.values()


@pytest.mark.long
def test_probe_of_shards_is_the_folders(probed, sharded, tmp_path):  # noqa: F811
    words = [str(sharded["webdataset"]), "--data", "webdataset", *TINY, "--seeds", "2"]
    words += ["--pools", "ep", "attention", "--cache", str(tmp_path / "maps")]
    assert main(["probe", *words, "--out", str(tmp_path / "run")]) == 0
    expected, found = (
        rows(folder / "probe.csv", "seconds") for folder in (probed, tmp_path / "run")
    )
    assert found == expected


def test_images_of_training_are_shown_where_a_page_shows_them(sharded):
    from convattn.data import load_source, read_image
    from convattn.data.reading import read_header, read_size

    for name, folder in sharded.items():
        path = load_source(name, root=folder).train.paths[0]
        assert read_image(path).size == (64, 64)
        assert read_size(path) == (64, 64)
        assert read_header(path).format == "PNG"
