"""Labels are flipped, and a network that knows the truth has to find exactly these."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from convattn.checks import Place, check_data
from convattn.runs import Run

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
CFG = {
    "architecture": "colours_for_tests",
    "first_conv": "fc",
    "classifier": "fc",
    "num_classes": 3,
    "input_size": (3, 8, 8),
    "crop_pct": 1.0,
    "interpolation": "nearest",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "label_names": ["blue", "red", "green"],
}


class Colours(nn.Module):
    """Takes an image for the colour that it has most of."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.pretrained_cfg = CFG
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


@timm.models.register_model
def colours_for_tests(pretrained=False, **arguments):
    return Colours()


@pytest.fixture
def data(tmp_path):
    """20 training and 20 test images a class, each of its colour; two test images are not."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name, (red, green, blue) in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(20):
                colour = (red + index, green + index, blue + (split == "val"))
                Image.new("RGB", (8, 8), colour).save(root / split / name / f"{index:02d}.png")
    for name, other in (("red", "blue"), ("green", "red")):
        Image.new("RGB", (8, 8), COLOURS[other]).save(root / "val" / name / "07.png")
    # The network has learnt this one: nobody asks it about that.
    Image.new("RGB", (8, 8), COLOURS["red"]).save(root / "train" / "blue" / "03.png")
    return root


def make_run(folder, root, names=("blue", "red", "green")):
    folder.mkdir()
    config = {"model": {"name": "colours_for_tests"}, "data": {"name": "folder", "root": str(root)}}
    (folder / "config.json").write_text(json.dumps(config))
    order = [{"blue": 2, "red": 0, "green": 1}.get(name, 0) for name in names]
    tensors = {"fc.weight": 20 * torch.eye(3)[order], "fc.bias": torch.zeros(3)}
    cfg = {**CFG, "label_names": list(names)}
    save_file(tensors, folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)})
    return Run.open(folder)


def test_the_flipped_labels_that_were_not_learnt_are_found(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    report = check_data(Place(root=str(data)), run=run).report
    found = {(one.image, one.given, one.suggested) for one in report.labels.doubts}
    assert found == {("val/red/07.png", "red", "blue"), ("val/green/07.png", "green", "red")}
    assert report.labels.num_images == 60
    assert "Only the 60 images that the run has not learnt" in report.labels.judged
    (finding,) = (one for one in report.findings if one.kind == "label_errors")
    assert finding.sentence.startswith("2 labels of 60 may be wrong")
    assert report.labels.judged in report.text()


def test_where_the_learnt_images_are_gone_the_test_part_alone_is_judged(data, tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "gone")
    labels = check_data(Place(root=str(data)), run=run).report.labels
    assert labels.num_images == 60
    assert "cannot be looked up" in labels.judged


def test_a_run_of_other_data_judges_all(data, tmp_path):
    other = tmp_path / "other"
    for split in ("train", "val"):
        for name in COLOURS:
            (other / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(other / split / name / "a.png")
    labels = check_data(Place(root=str(data)), run=make_run(tmp_path / "run", other)).report.labels
    assert labels.num_images == 120
    assert "train/blue/03.png" in {one.image for one in labels.doubts}


def test_a_run_of_other_classes_is_refused(data, tmp_path):
    run = make_run(tmp_path / "run", data, names=("blue", "red", "yellow"))
    with pytest.raises(ValueError, match="the class 'green', which the network does not know"):
        check_data(Place(root=str(data)), run=run)


def test_labels_of_several_classes_are_not_judged(data, tmp_path):
    rows = [f"val/{name}/{index:02d}.png,{name}|red" for name in COLOURS for index in range(20)]
    (data / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    place = Place(root=str(data / "labels.csv"))
    with pytest.raises(ValueError, match=r"labels\.csv have several; leave it out"):
        check_data(place, run=make_run(tmp_path / "run", data))


def test_an_unreadable_image_is_not_judged(data, tmp_path):
    (data / "val" / "red" / "00.png").write_bytes(b"no image")
    report = check_data(Place(root=str(data)), run=make_run(tmp_path / "run", data)).report
    assert report.labels.num_images == 59
    assert len(report.labels.doubts) == 2


def test_a_cross_validation_judges_what_the_network_has_learnt(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    order = {"blue": (1, 0, 0), "red": (0, 1, 0), "green": (0, 0, 1)}
    rows = ["path,label,fold,prediction,blue,red,green"]
    for name in COLOURS:
        for index in range(20):
            # all are sure of what the image shows, which for one is not its class
            shown = "red" if (name, index) == ("blue", 3) else name
            shares = ",".join(f"{0.02 + 0.94 * share:.6f}" for share in order[shown])
            rows.append(
                f"{data}/train/{name}/{index:02d}.png,{name},{index % 5 + 1},{shown},{shares}"
            )
    (run.folder / "out_of_fold.csv").write_text("\n".join(rows) + "\n")
    labels = check_data(Place(root=str(data)), run=run).report.labels
    assert labels.num_images == 120
    assert {(one.image, one.given, one.suggested) for one in labels.doubts} == {
        ("train/blue/03.png", "blue", "red"),
        ("val/red/07.png", "red", "blue"),
        ("val/green/07.png", "green", "red"),
    }
    assert "60 were judged by networks of the run's cross-validation" in labels.judged


def test_an_out_of_fold_table_of_other_classes_is_refused(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    (run.folder / "out_of_fold.csv").write_text("path,label,fold,prediction,cat,dog\n")
    with pytest.raises(ValueError, match=r"out_of_fold\.csv has other columns"):
        check_data(Place(root=str(data)), run=run)


def test_validation_images_are_judged_too(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    (data / "val").rename(data / "test")
    for name in COLOURS:
        (data / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), COLOURS[name]).save(data / "val" / name / "fine.png")
    Image.new("RGB", (8, 8), COLOURS["blue"]).save(data / "val" / "red" / "wrong.png")
    labels = check_data(Place(root=str(data)), run=run).report.labels
    assert labels.num_images == 60 + 4
    assert ("val/red/wrong.png", "red", "blue") in {
        (one.image, one.given, one.suggested) for one in labels.doubts
    }
