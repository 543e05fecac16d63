import json
from dataclasses import replace

import pytest
import timm
from PIL import Image

import convattn.models  # noqa: F401
from convattn.classification import truth
from convattn.classification.truth import TruthConfig, check_truth_folder, measure_maps
from convattn.config import DataConfig
from convattn.explanation.truth import Protocol
from convattn.runs import create_model

PROTOCOL = Protocol(num_steps=2, percentiles=(50,), num_samples=1, num_stages=1, num_dear=20)
DATA = DataConfig(num_test=24)


@pytest.fixture(scope="module")
def model():
    return create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()


def config_of(out, **changed):
    return TruthConfig(
        **{
            "data": DATA,
            "out": str(out),
            "methods": ("attention",),
            "protocol": PROTOCOL,
            "device": "cpu",
            **changed,
        }
    )


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(truth, "_BATCH_SIZE", 8)


@pytest.mark.long
def test_a_folder_holds_what_was_found(model, tmp_path):
    out = tmp_path / "out"
    found, folder = measure_maps(model, "nano", config_of(out))
    assert folder == out
    assert {file.name for file in out.iterdir()} == {
        "truth.csv",
        "truth.json",
        "truth.md",
        "truth.png",
    }
    assert (out / "truth.csv").read_text() == found.csv()
    told = json.loads((out / "truth.json").read_text())
    assert told["methods"]["attention"]["verdict"] == "doubt"  # it is the same for every class
    assert told["network"] == "nano"
    assert 0.05 < told["object_share"] < 0.15
    with Image.open(out / "truth.png") as plot:
        assert plot.width > 400
    with pytest.raises(FileExistsError, match="exists and is never overwritten"):
        check_truth_folder(str(out))
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="exists and is never overwritten"):
        check_truth_folder(str(tmp_path / "other"))


@pytest.mark.long
def test_what_was_stopped_goes_on_to_the_same_table(model, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    measure_maps(model, "nano", config_of(whole))
    stop_after(2, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        measure_maps(model, "nano", config_of(stopped))
    monkeypatch.undo()
    monkeypatch.setattr(truth, "_BATCH_SIZE", 8)
    check_truth_folder(str(stopped))
    kept = sorted((stopped / "unfinished").glob("*.safetensors"))
    assert len(kept) == 2
    with pytest.raises(ValueError, match="was begun with methods"):
        measure_maps(model, "nano", config_of(stopped, methods=("gradcam",)))
    measure_maps(model, "nano", config_of(stopped))
    for name in ("truth.csv", "truth.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def stop_after(number, monkeypatch):
    """As a kill after some batches, whose files are whole."""
    done = []

    class Killed(truth.Progress):
        def update(self, count):
            done.append(count)
            if len(done) == number:
                raise RuntimeError("killed")

    monkeypatch.setattr(truth, "Progress", Killed)


@pytest.mark.long
def test_networks_of_other_seeds_are_compared(model, tmp_path):
    other = timm.create_model("patchconvnet_nano", num_classes=10).eval()
    other.pretrained_cfg = model.pretrained_cfg
    found, _ = measure_maps(model, "nano", config_of(tmp_path / "out"), {"other": other})
    assert abs(found.cells["attention"]["agreement"].value) < 0.9
    few = timm.create_model("patchconvnet_nano", num_classes=5).eval()
    with pytest.raises(ValueError, match="few has other classes or wants other images"):
        measure_maps(model, "nano", config_of(tmp_path / "few"), {"few": few})


def test_bad_input_is_told(model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="there are 12 images, and an interval needs at least 20"):
        measure_maps(model, "nano", config_of(out, data=DataConfig(num_test=12)))
    with pytest.raises(ValueError, match="--masks goes with images in a folder"):
        measure_maps(model, "nano", config_of(out, masks=str(tmp_path)))
    with pytest.raises(ValueError, match="num_images=0"):
        config_of(out, num_images=0)
    assert not out.exists()


@pytest.mark.long
def test_trained_maps_are_learned_once_and_go_on(model, tmp_path, monkeypatch):
    protocol = replace(PROTOCOL, trained_steps=3)
    data = replace(DATA, num_train=32)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    found, _ = measure_maps(model, "nano", config_of(whole, protocol=protocol, data=data))
    assert list(found.verdicts) == ["attention", "trained", "random", "centre"]
    stop_after(5, monkeypatch)  # three batches are learned from, then maps are measured
    with pytest.raises(RuntimeError, match="killed"):
        measure_maps(model, "nano", config_of(stopped, protocol=protocol, data=data))
    monkeypatch.undo()
    monkeypatch.setattr(truth, "_BATCH_SIZE", 8)
    monkeypatch.setattr(truth, "train_masks", lambda *_, **__: pytest.fail("learned twice"))
    measure_maps(model, "nano", config_of(stopped, protocol=protocol, data=data))
    assert (stopped / "truth.csv").read_bytes() == (whole / "truth.csv").read_bytes()


def test_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trained_steps=-1; expected at least 0"):
        config_of(tmp_path / "out", protocol=replace(PROTOCOL, trained_steps=-1))


@pytest.mark.long
def test_trained_maps_need_training_images(tmp_path, model):
    folder = tmp_path / "val"
    for number in range(24):
        file = folder / str(number % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number * 9, 80, 80)).save(file)
    data = DataConfig(name="folder", root=str(tmp_path))
    protocol = replace(PROTOCOL, trained_steps=1)
    with pytest.raises(ValueError, match="training images"):
        measure_maps(model, "nano", config_of(tmp_path / "out", protocol=protocol, data=data))
