import csv
import errno
import os
import shutil

import pytest
import torch
from PIL import Image

from convattn.cli import main
from convattn.runs import Run

TINY = ["--model", "test_efficientnet", "--random", "--image-size", "64", "--epochs", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Red, green and blue squares, in folders of their classes."""
    top = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in (("red", 0), ("green", 1), ("blue", 2)):
            (top / split / name).mkdir(parents=True)
            for number in range(count):
                x = torch.randint(0, 120, (64, 64, 3), generator=generator, dtype=torch.uint8)
                x[16:48, 16:48, colour] += 120
                Image.fromarray(x.numpy()).save(top / split / name / f"{number}.png")
    return top


@pytest.fixture(scope="module")
def probed(images, tmp_path_factory):
    top = tmp_path_factory.mktemp("probe")
    words = [str(images), *TINY, "--pools", "ep", "attention", "--seeds", "2"]
    assert main(["probe", *words, "--cache", str(top / "maps"), "--out", str(top / "run")]) == 0
    return top / "run"


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: ")
    return line


def test_a_row_a_pool_and_seed(probed):
    with (probed / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = "pool,seed,lr,accuracy,balanced_accuracy,cross_entropy,ece,parameters,seconds"
    assert list(rows[0])[:9] == columns.split(",")
    found = {(row["pool"], row["seed"]) for row in rows}
    assert found == {(p, s) for p in ("knn", "avg", "ep", "attention") for s in "01"}
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)


def test_the_folder_opens_as_a_run(probed, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(probed)]) == 0
    assert "top-1" in capsys.readouterr().out
    image = str(images / "val" / "red" / "0.png")
    assert main(["explain", str(probed), image, "--out", str(tmp_path / "explained")]) == 0
    assert main(["predict", str(probed), str(images / "val")]) == 0
    assert "12/12" in capsys.readouterr().out


def test_the_network_tests_as_its_row_says(probed):
    run = Run.open(probed)
    pool = run.config.model.model_args["pool"]
    with (probed / "probe.csv").open() as file:
        (row,) = (r for r in csv.DictReader(file) if (r["pool"], r["seed"]) == (pool, "0"))
    assert main(["evaluate", str(probed)]) == 0
    import json

    found = json.loads((probed / "evaluation.json").read_text())
    assert found["top1"] == pytest.approx(float(row["accuracy"]), abs=1e-4)
    assert found["loss"] == pytest.approx(float(row["cross_entropy"]), abs=5e-3)


def test_what_does_not_fit_is_one_sentence(probed, images, tmp_path, capsys):
    assert "takes a folder or a table" in fails(capsys, "probe")
    assert "exists and is never overwritten" in fails(capsys, "probe", images, "--out", probed)
    out = ("--out", tmp_path / "new", "--cache", tmp_path / "maps")
    line = fails(capsys, "probe", images, *TINY, "--pools", "attenton", *out)
    assert "unknown pool 'attenton'; the nearest is 'attention'" in line
    own = fails(capsys, "probe", images, *TINY, "--data.val-share", "0.5", *out)
    assert "data.val_share=0.5 is not of the data but of a probe: give --val-share" in own
    model = ("--image-size", "64", *out)
    assert "unknown model 'resnt18'; the nearest is 'resnet18'" in fails(
        capsys, "probe", images, "--model", "resnt18", *model
    )
    assert "has no weights yet; give --weights FILE, or --pretrained" in fails(
        capsys, "probe", images, "--model", "resnet18", *model
    )
    two = fails(capsys, "probe", images, "--random", "--pretrained", *out)
    assert two.startswith("convattn: pretrained and random exclude each other")
    assert "has no meaning for a probe" in fails(
        capsys, "probe", images, *TINY, "--data.mixup", "0.2", *out
    )
    assert "leave the flag out" in fails(capsys, "probe", images, "--data.root", "there")
    assert "does not exist" in fails(capsys, "probe", tmp_path / "none", *TINY, *out)
    assert "has ended" in fails(capsys, "probe", "--resume", probed)
    assert "takes the folder of a probe" in fails(capsys, "probe", images, "--resume", probed)
    assert "is the folder of no probe" in fails(capsys, "probe", "--resume", tmp_path)
    assert not (tmp_path / "new").exists()


def draw(top, classes, seed=0):
    """Folders of the classes, ``(training, test)`` images each, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, counts in classes.items():
        for split, count in zip(("train", "val"), counts, strict=True):
            (top / split / name).mkdir(parents=True)
            for number in range(count):
                x = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(x.numpy()).save(top / split / name / f"{number}.png")


ENOUGH = {"ant": (5, 2), "bee": (5, 2)}


def copied(top):
    shutil.copy(top / "train" / "ant" / "3.png", top / "val" / "bee" / "9.png")


def damaged(top):
    (top / "train" / "ant" / "3.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("classes", "change", "message"),
    [
        (ENOUGH | {"Ant": (5, 2)}, None, "'Ant' and 'ant', which differ only in capitals"),
        ({"ant": (5, 2)}, None, "holds one class, 'ant'; expected at least 2"),
        (ENOUGH, copied, "val/bee/9.png is the training image"),
        (ENOUGH | {"bee": (4, 2)}, None, "class 'bee' has 4 training images, and 5 of each"),
        (ENOUGH, damaged, "train/ant/3.png cannot be read as an image"),
    ],
)
def test_images_that_cannot_be_probed(classes, change, message, tmp_path, capsys):
    draw(tmp_path / "images", classes)
    if change is not None:
        change(tmp_path / "images")
    words = ("probe", tmp_path / "images", *TINY, "--pools", "avg", "--seeds", "1")
    words += ("--cache", tmp_path / "maps", "--out", tmp_path / "run")
    assert main([str(word) for word in words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (["--model", "test_vit", "--image-size", "160"], "its tokens can be read as a map with"),
        (["--model", "vit_tiny_patch16_224", "--image-size", "64"], "take another image_size"),
        (["--model", "torchvision/vit_b_16"], "gives"),
    ],
)
def test_a_network_without_a_map_is_refused(network, message, tmp_path, capsys):
    draw(tmp_path / "images", ENOUGH)
    words = ("probe", tmp_path / "images", *network, "--random", "--out", tmp_path / "run")
    assert main([str(word) for word in words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_cache_of_another_network_is_not_read(tmp_path, capsys):
    draw(tmp_path / "images", ENOUGH)
    words = ["probe", tmp_path / "images", *TINY, "--pools", "avg", "--seeds", "1"]
    words += ["--cache", tmp_path / "maps", "--out"]
    assert main([str(word) for word in (*words, tmp_path / "first")]) == 0
    (told,) = (tmp_path / "maps").glob("*/cache.json")
    told.write_text(told.read_text().replace('"test_efficientnet"', '"another"'))
    capsys.readouterr()
    assert main([str(word) for word in (*words, tmp_path / "second")]) == 2
    assert "cache.json tells of other maps" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "second").exists()


def test_after_a_full_disk_the_probe_is_gone_on_with(tmp_path, capsys, monkeypatch):
    draw(tmp_path / "images", ENOUGH)
    words = ["probe", tmp_path / "images", *TINY, "--pools", "avg", "--seeds", "1"]
    words += ["--cache", tmp_path / "maps", "--out", tmp_path / "run"]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("convattn.probing.study.save_network", full)
        assert main([str(word) for word in words]) != 0
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["probe", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()
