import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from convattn.classification.dataset import load_data, pretrained_cfg
from convattn.config import DataConfig, ModelConfig, TrainConfig
from convattn.detection import dataset as detection
from convattn.runs import Run, create_dense_model, create_model, starting_cfg
from convattn.segmentation import dataset as segmentation
from convattn.tasks import resume, train
from convattn.train.classification import ClassificationJob, ClassificationTask

pytestmark = pytest.mark.usefixtures("no_images")

HALF = (0.5, 0.5, 0.5)
LITE = "tf_efficientnet_lite0"


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(("ants", "bees")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(4):
                image = Image.effect_noise((50 + index, 40), 60).convert("RGB")
                image.putpixel((0, 0), (90 * number, index, len(part)))
                image.save(tmp_path / "data" / part / name / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path):
    """A file of the network's own tensors and nothing else."""
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_convnext", num_classes=7).state_dict(), file)
    return file


def config(folder, checkpoint, **changes):
    data = DataConfig(name="folder", root=str(folder), batch_size=4, **changes)
    return TrainConfig(
        data=data,
        model=ModelConfig(name="test_convnext", checkpoint=checkpoint and str(checkpoint)),
        epochs=2,
        accelerator="cpu",
        devices=1,
    )


def test_test_images_are_seen_as_the_weights_want_them(folder, weights):
    job = ClassificationJob(config(folder, weights))
    known = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("test_convnext").to_dict())
    assert known["mean"] == HALF
    oracle = create_transform(**known)
    path = job.source.test.paths[3]
    with Image.open(path) as image:
        expected = oracle(image.convert("RGB"))
    torch.testing.assert_close(job.data.val_images[3][0], expected)


def test_training_images_are_normalised_alike(folder, weights):
    plain = {"hflip": 0.0, "image_size": 40}
    ours = ClassificationJob(config(folder, weights, **plain)).data.train_images[0][0]
    theirs = ClassificationJob(config(folder, None, **plain)).data.train_images[0][0]
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.testing.assert_close(ours, (theirs * std + mean - 0.5) / 0.5)


def test_what_is_said_goes_before_what_the_weights_want(folder, weights):
    said = {"image_size": 96, "interpolation": "bilinear", "crop_pct": 0.5}
    cfg = ClassificationJob(config(folder, weights, **said)).data.cfg
    assert cfg["input_size"] == (3, 96, 96)
    assert (cfg["interpolation"], cfg["crop_pct"], cfg["mean"]) == ("bilinear", 0.5, HALF)


def test_random_weights_leave_it_to_the_data(folder):
    cfg = ClassificationJob(config(folder, None)).data.cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert (cfg["interpolation"], cfg["crop_pct"]) == ("bicubic", 0.875)
    assert cfg["mean"] != HALF


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_crop_mode_of_the_weights_is_kept(folder, crop_mode):
    source = load_data(DataConfig(name="folder", root=str(folder)))
    found = pretrained_cfg(DataConfig(), source, {"crop_mode": crop_mode})
    assert found["crop_mode"] == crop_mode


def test_grey_images_keep_their_own_mean(folder):
    source = load_data(DataConfig(name="folder", root=str(folder), in_chans=1))
    found = pretrained_cfg(DataConfig(), source, {"mean": HALF, "std": HALF})
    assert found["mean"] == source.mean


def test_images_of_the_networks_size_are_not_cropped():
    source = load_data(DataConfig(num_train=10, num_test=10, image_size=64))
    weights = {"input_size": (3, 64, 64), "crop_pct": 0.8}
    assert pretrained_cfg(DataConfig(), source, weights)["crop_pct"] == 1


def test_the_run_and_whoever_starts_from_it_see_alike(folder, weights, tmp_path):
    run = train(
        replace(config(folder, weights, image_size=32), epochs=1, out=str(tmp_path / "run"))
    )
    cfg = Run.open(run.folder).load_model().pretrained_cfg
    assert tuple(cfg["mean"]) == HALF
    file = run.folder / "checkpoints" / "last.ckpt"
    for start in (run.folder, run.folder / "model.safetensors", file):
        found = starting_cfg(ModelConfig(name="test_convnext", checkpoint=str(start)))
        assert tuple(found["mean"]) == HALF
        assert tuple(found["input_size"]) == (3, 32, 32)


def test_resumed_run_sees_as_before_without_the_file_it_started_from(folder, tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 32, 32]}
    tensors = timm.create_model("test_convnext", num_classes=7).state_dict()
    save_file(tensors, file, {"pretrained_cfg": json.dumps(cfg)})
    whole = train(replace(config(folder, file), out=str(tmp_path / "whole")))
    real = ClassificationTask.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("power cut")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", training_step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(replace(config(folder, file), out=str(tmp_path / "cut")))
    file.unlink()
    cut = resume(tmp_path / "cut")
    ours, theirs = (load_file(run.folder / "model.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert Run.open(cut.folder).pretrained_cfg["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("room", [detection, segmentation])
def test_dense_networks_take_mean_and_deviation_of_their_backbone(room):
    arguments = {"masks": False} if room is detection else {}
    source = room.open_data(DataConfig(num_train=2, num_test=2), **arguments)
    spec = ModelConfig(name="retinanet", backbone="test_convnext", pretrained=True)
    found = room.pretrained_cfg(DataConfig(), source, starting_cfg(spec))
    assert (found["mean"], found["std"]) == (HALF, HALF)
    assert room.pretrained_cfg(DataConfig(), source)["mean"] == tuple(source.mean)


# --- names of tensors


def lite_names(model):
    """An EfficientNet-Lite's tensors as its PyTorch port calls them, without counts."""
    found, number = {}, 0
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        word = "_conv_stem.weight" if not found else f"_blocks.{number}.weight"
        found[name.replace("classifier", "_fc") if "classifier" in name else word] = tensor
        number += 1
    return found


@pytest.mark.parametrize("kind", ["timm", "without counts", "lite", "wrapped"])
def test_names_that_files_have_are_known(kind, tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model(LITE, num_classes=7)
    tensors = dict(theirs.state_dict())
    if kind == "without counts":
        tensors = {name: x for name, x in tensors.items() if "num_batches" not in name}
    elif kind == "lite":
        tensors = lite_names(theirs)
    elif kind == "wrapped":
        tensors = {"state_dict": {f"module.{name}": x for name, x in tensors.items()}}
    torch.save(tensors, tmp_path / "x.pth")
    ours = create_model(LITE, checkpoint=tmp_path / "x.pth", own_classifier=True, num_classes=3)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found["classifier.weight"].shape == (3, 1280)
    assert all(torch.equal(found[n], x) for n, x in expected.items() if "classifier" not in n)


def test_names_of_torchvision_are_known(tmp_path):
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = create_model(
        "resnet18", checkpoint=tmp_path / "x.pth", own_classifier=True, num_classes=3
    )
    expected = {n: x for n, x in theirs.state_dict().items() if not n.startswith("fc.")}
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in expected.items())


def test_another_networks_weights_are_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds another model"):
        create_model(LITE, checkpoint=tmp_path / "x.pth", own_classifier=True, num_classes=3)


def test_backbone_of_a_segmenter_starts_from_such_a_file(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model(LITE, num_classes=7)
    torch.save(lite_names(theirs), tmp_path / "x.pth")
    cfg = {"num_classes": 3, "input_size": (3, 64, 64)}
    ours = create_dense_model("upernet", cfg=cfg, backbone=LITE, checkpoint=tmp_path / "x.pth")
    own = {
        name: tensor for name, tensor in ours.state_dict().items() if ".conv_stem.weight" in name
    }
    assert len(own) == 1
    assert torch.equal(*own.values(), theirs.conv_stem.weight)
