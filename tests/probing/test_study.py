import csv
import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from convattn.config import DataConfig, ProbeConfig
from convattn.exceptions import Interrupted
from convattn.explanation import class_probabilities, evidence
from convattn.probing import seeds
from convattn.probing import study as module
from convattn.probing.seeds import Probe, train_seed
from convattn.probing.study import resume_probe, run_probe
from convattn.runs import Run
from tests.probing.maps import Counted, write

DATA = DataConfig(name="cluttered_digits", num_train=100, num_test=30, image_size=32)
DATA = dataclasses.replace(DATA, image_size=None)
TINY = ProbeConfig(
    data=DATA,
    model="test_efficientnet",
    random=True,
    image_size=64,
    pools=("ep", "class"),
    seeds=2,
    epochs=3,
)
KILLED = """
import os, random, signal, sys, threading, time
from pathlib import Path
from convattn.cli import main
from convattn.probing import cache, figures, heads, report, study

cache._CHUNK = 1
heads._CHECKPOINT_SECONDS, heads._BETWEEN = -1.0, 0.0
folder, words = Path(sys.argv[1]), sys.argv[2:]


def run(name, wait=None):
    child = os.fork()
    if not child:
        if wait is not None:
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        begun = (folder / name / "probe.json").exists()
        own = ["--cache", str(folder / f"maps-{name}"), "--out", str(folder / name)]
        os._exit(main(["probe", *(["--resume", str(folder / name)] if begun else words + own)]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


started = time.monotonic()
assert run("whole") == 0
longest, draws = (time.monotonic() - started) / 5, random.Random(0)
for _ in range(10):
    assert run("killed", draws.uniform(0, longest)) == -signal.SIGKILL
sys.exit(run("killed"))
"""


def tiny(folder, **more):
    more = {"cache": str(folder / "maps"), "out": str(folder / "run")} | more
    return dataclasses.replace(TINY, **more)


def rows_of(folder):
    with (folder / "probe.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    return run_probe(tiny(folder))


@pytest.mark.long
def test_the_network_in_the_folder_says_what_its_row_was_made_of(probed):
    config, model = Run.open(probed.folder).config, Run.open(probed.folder).load_model()
    assert config.model.model_args["pool"] == probed.best
    (row,) = (r for r in probed.rows if (r["pool"], r["seed"]) == (probed.best, 0))
    from convattn.classification.dataset import open_data, test_batches

    source = open_data(config.data)
    loader, _ = test_batches(config.data, source, model.pretrained_cfg)
    images, labels = next(iter(loader))
    with torch.no_grad():
        logits = model(images)
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(row["accuracy"])
    maps, bias = evidence(model, images)
    torch.testing.assert_close(maps.sum((2, 3)) + bias, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_a_second_probe_reads_the_maps(probed, tmp_path, monkeypatch):
    maps = probed.folder.parent / "maps"

    def refuse(*args, **kwargs):
        raise AssertionError("the backbone was run again")

    monkeypatch.setattr("convattn.probing.cache._write_shares", refuse)
    again = run_probe(tiny(tmp_path, cache=str(maps)))
    assert rows_of(again.folder) == rows_of(probed.folder)


@pytest.mark.long
def test_float16_and_float32_maps_give_the_same_accuracy(probed, tmp_path):
    exact = run_probe(tiny(tmp_path, cache_dtype="float32"))
    for one, other in zip(rows_of(exact.folder), rows_of(probed.folder), strict=True):
        assert float(one["cross_entropy"]) == pytest.approx(float(other["cross_entropy"]), rel=0.02)


@pytest.mark.long
def test_one_that_was_stopped_is_resumed_to_the_same_rows(probed, tmp_path, monkeypatch):
    real = seeds._refit

    def stop(probe, seed, *rest):
        if seed == 1:
            raise KeyboardInterrupt
        return real(probe, seed, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(seeds, "_refit", stop)
        with pytest.raises(Interrupted, match="go on with: convattn probe --resume"):
            run_probe(tiny(tmp_path))
    assert not (tmp_path / "run" / "report.md").exists()
    assert rows_of(resume_probe(tmp_path / "run").folder) == rows_of(probed.folder)


def test_several_classes_an_image(tmp_path):
    cache = write(tmp_path, network=Counted(8), several=True)
    config = dataclasses.replace(TINY, pools=("class",), epochs=8)
    probe = Probe(config=config, cache=cache, class_names=("a", "b", "c"))
    result = train_seed(probe, 0, tmp_path / "state")
    assert [row["pool"] for row in result.rows] == ["knn", "avg", "class"]
    assert all(0 < row["map"] <= 1 and 0 <= row["macro_f1"] <= 1 for row in result.rows)


def test_the_backbone_is_run_once_and_heads_many_times(probed):
    text = (probed.folder / "report.md").read_text()
    assert "The backbone was run on 130 images" in text
    (times,) = re.findall(r"it would have been run ([\d,]+) times as often", text)
    assert int(times.replace(",", "")) >= 20


def test_a_network_of_other_channels_is_refused(tmp_path):
    config = tiny(tmp_path, model="torchvision/resnet18")
    grey = dataclasses.replace(DATA, name="fashion_mnist", root=str(tmp_path), num_train=None)
    with pytest.raises(FileNotFoundError):
        run_probe(dataclasses.replace(config, data=grey))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_rows(tmp_path):
    words = ["cluttered_digits", "--data.num-train", "100", "--data.num-test", "30"]
    words += ["--model", "test_efficientnet", "--random", "--image-size", "64"]
    words += ["--pools", "ep", "class", "--seeds", "3", "--epochs", "6"]
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *words], check=True)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def test_the_network_of_images_of_several_classes_knows_that_it_is_one(tmp_path):
    lines = ["path,split,red,blue"]
    for number in range(16):
        red, blue = number % 2, number // 2 % 2
        Image.new("RGB", (64, 64), (250 * red, number, 250 * blue)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'test' if number > 11 else 'train'},{red},{blue}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = DataConfig(name="folder", root=str(tmp_path / "labels.csv"))
    found = run_probe(tiny(tmp_path, data=data, pools=("avg",), seeds=1))
    run = Run.open(found.folder)
    assert run.pretrained_cfg["multi_label"] is True
    logits = torch.tensor([[0.0, 3.0]])
    said = class_probabilities(run.load_model(), logits)
    torch.testing.assert_close(said, logits.sigmoid())


def paint(file, colour, number):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, number, 3 * number % 256)).save(file)


def of_folder(root, folder, **more):
    data = DataConfig(name="folder", root=str(root))
    return tiny(folder, data=data, pools=("class",), image_size=64, epochs=1, **more)


@pytest.mark.long
def test_own_validation_images_choose_for_every_seed_and_are_learnt_in_the_end(
    tmp_path, monkeypatch
):
    for part, count in (("train", 8), ("val", 3), ("test", 4)):
        for colour in (10, 200):
            for number in range(count):
                file = tmp_path / "images" / part / str(colour) / f"{number}.png"
                paint(file, colour, number + 20 * (["train", "val", "test"].index(part)))
    seen = []
    build = seeds.training_of

    def record(probe, trials, fit, valid, **more):
        seen.append((fit.tolist(), None if valid is None else valid.tolist()))
        return build(probe, trials, fit, valid, **more)

    monkeypatch.setattr(seeds, "training_of", record)
    found = run_probe(of_folder(tmp_path / "images", tmp_path))
    own = list(range(16, 22))  # behind the 16 of training
    chosen = [(fit, valid) for fit, valid in seen if valid is not None]
    assert chosen
    assert all(fit == list(range(16)) and valid == own for fit, valid in chosen)
    assert [fit for fit, valid in seen if valid is None] == [list(range(22))] * 2
    report = (found.folder / "report.md").read_text()
    assert "the data set's own 6 validation images" in report
    assert (found.folder / "README.md").is_file()


def test_weights_of_a_table_count_in_the_loss(tmp_path):
    rows = ["path,label,split,weight"]
    for part, count in (("train", 12), ("test", 2)):
        for colour in (10, 200):
            for number in range(count):
                file = tmp_path / "images" / part / str(colour) / f"{number}.png"
                paint(file, colour, number + 50 * (part == "test"))
                rows.append(f"{file},c{colour},{part},{1 if colour == 10 else 3}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    config = of_folder(table, tmp_path, val_share=0.25)
    images = module._open_images(config)
    cache = module.cache_maps(config, module.open_backbone(config), images.source)
    probe = Probe(
        config=config,
        cache=cache,
        class_names=images.source.class_names,
        weights=images.source.train.weights,
    )
    fit, valid = probe.split(0)
    training = seeds.training_of(probe, [seeds.Trial("avg", 1e-3, 0.0)], fit, valid, seed=0)
    labels = cache.labels[fit]
    expected = torch.where(labels == 0, 1.0, 3.0)
    torch.testing.assert_close(training.weights[fit], expected / expected.mean())
