import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from convattn.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.runs import Run
from convattn.runs.build import create_model
from convattn.surgery import new_parameters
from convattn.tasks import resume, train
from convattn.train.callbacks import read_metrics
from convattn.train.detection import DetectionJob, DetectionTask
from tests.train.conftest import digest, steady_columns

TINY = TrainConfig(
    recipe="tiny",
    data=DataConfig(num_train=20, num_test=6, image_size=48, batch_size=4, scale_jitter=(0.8, 1.2)),
    model=ModelConfig(
        name="retinanet",
        backbone="resnet_nano",
        model_args={"channels": 16, "head_convs": 1, "max_level": 5, "anchor_scale": 2.0},
    ),
    optim=OptimConfig(opt="adamw", lr=1e-3),
    epochs=2,
    accelerator="cpu",
    devices=1,
    ema_decay=0.9,
    log_every=2,
    checkpoint_every=2,
)
"""Five steps an epoch."""

MASKS = ModelConfig(
    name="mask_rcnn",
    backbone="patchconvnet_nano",
    drop_path_rate=0.1,
    backbone_args={"embed_dim": 16, "depth": 4},
    model_args={"channels": 16, "box_channels": 16, "mask_channels": 8},
)


def tiny(folder, **changes):
    return replace(TINY, out=str(folder), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tiny(tmp_path_factory.mktemp("detection") / "run"))


def test_run_folder_shows_predictions_and_average_precision(finished):
    folder = finished.folder
    assert finished.figures == tuple(
        folder / f"{name}.png"
        for name in ("curves", "predictions", "precision_recall", "confusion")
    )
    with Image.open(folder / "predictions.png") as sheet:
        assert sheet.width > 1000
    last = read_metrics(folder / "metrics.csv")[-1]
    assert {"step", "epoch", "val_map50", "val_map"} <= last.keys()
    assert json.loads((folder / "evaluation.json").read_text())["num_images"] == 6
    assert "| mAP at IoU 0.50 |" in (folder / "report.md").read_text()


def test_loaded_run_finds_what_was_evaluated(finished):
    run = Run.open(finished.folder)
    model, config = run.load_model(), run.config
    assert config.model.backbone == "resnet_nano"
    assert model.pretrained_cfg["label_names"] == list("0123456789")
    assert model.pretrained_cfg["category_ids"] == list(range(1, 11))
    assert model.transform.min_size == (48,)
    saved = load_file(finished.folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_task_reloads_from_a_checkpoint_alone(finished):
    file = finished.folder / "checkpoints" / "last.ckpt"
    task = DetectionTask.load_from_checkpoint(file, weights_only=True)
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert task.state_dict().keys() == saved.keys()


@pytest.mark.long
def test_crashed_run_resumes_to_the_same_weights(finished, tmp_path, monkeypatch):
    whole = DetectionTask.training_step

    def crash(task, batch, batch_idx):
        if task.global_step == 7:
            raise RuntimeError("power cut")
        return whole(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionTask, "training_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "run"))
    resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(finished.folder)
    assert steady_columns(tmp_path / "run") == steady_columns(finished.folder)


@pytest.mark.long
def test_mask_rcnn_is_tested_by_its_masks_too(tmp_path):
    run = train(tiny(tmp_path / "run", model=MASKS, epochs=1))
    assert run.result.segm_map is not None
    assert "val_segm_map50" in read_metrics(run.folder / "metrics.csv")[-1]


def test_backbone_starts_from_a_classifiers_weights(tmp_path):
    classifier = create_model("resnet_nano", num_classes=7)
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    task = DetectionJob(TINY).make_task(tmp_path / "weights.safetensors")
    body = task.model.backbone.levels.body.model
    trained = classifier.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in body.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"fits neither the whole model .* nor its backbone"):
        DetectionJob(TINY).make_task(tmp_path / "weights.safetensors")


def test_detector_goes_on_from_a_runs_weights(finished):
    task = DetectionJob(TINY).make_task(finished.folder)
    saved = load_file(finished.folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in task.model.state_dict().items())


def test_frozen_backbone_learns_by_its_attention_alone():
    augment = AugmentConfig(conv=("layer4.0.conv1",), num_heads=4, freeze=True)
    task = DetectionJob(replace(TINY, augment=augment)).make_task(None)
    model = task.model
    learning = {name for name, one in model.named_parameters() if one.requires_grad}
    inside = {name for name in learning if name.startswith("backbone.levels.body.")}
    outside = {
        name for name, _ in model.named_parameters() if not name.startswith("backbone.levels.body.")
    }
    assert inside == new_parameters(model)
    assert inside
    assert outside < learning


@pytest.mark.long
def test_augmented_backbone_comes_back_from_its_run(tmp_path):
    augment = AugmentConfig(conv=("layer4.0.conv1",), num_heads=4)
    run = train(tiny(tmp_path / "run", augment=augment, epochs=1))
    model = Run.open(run.folder).load_model()
    assert new_parameters(model)
    assert "conv layer4.0.conv1" in (run.folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("data", "mixup", 0.5),
        ("data", "random_crop_padding", 4),
        ("optim", "loss", "bce"),
        ("augment", "pool", "attention"),
    ],
)
def test_what_only_classifiers_know_is_refused(part, field, value):
    changed = replace(getattr(TINY, part), **{field: value})
    with pytest.raises(ValueError, match=rf"{part}\.{field}=.* has no meaning for detection"):
        DetectionJob(replace(TINY, **{part: changed}))


def one_thing(folder):
    """A set of one class in COCO's json, without masks."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "bbox": [1, 2, 10, 9],
                "area": 90,
                "iscrowd": 0,
            }
        ],
    }
    for split in ("train", "valid"):
        (folder / split).mkdir()
        Image.new("RGB", (40, 30)).save(folder / split / "a.jpg")
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return DataConfig(name="coco", root=str(folder), batch_size=1)


def test_detector_of_other_classes_gives_all_but_its_predictions(finished, tmp_path):
    job = DetectionJob(replace(TINY, data=one_thing(tmp_path)))
    fresh = job.make_task(None).model.state_dict()
    model = job.make_task(finished.folder).model
    saved = load_file(finished.folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        source = fresh if "cls_logits" in name else saved
        assert torch.equal(tensor, source[name]), name
    assert model.head.classification_head.num_classes == 2


def test_masks_that_the_data_lack_are_asked_for(tmp_path):
    data = one_thing(tmp_path)
    with pytest.raises(ValueError, match="coco has boxes and no masks"):
        DetectionJob(replace(TINY, data=data, model=MASKS))
    job = DetectionJob(replace(TINY, data=data))
    assert job.data.cfg["image_size"] == 800
    assert job.data.cfg["max_size"] == 1333
    assert job.data.cfg["category_ids"] == (3,)
