import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from convattn.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.runs import Run, create_model
from convattn.tasks import resume, train
from convattn.train.callbacks import read_metrics
from convattn.train.segmentation import SegmentationJob, SegmentationTask
from tests.train.conftest import digest, steady_columns

TINY = TrainConfig(
    recipe="tiny",
    data=DataConfig(
        num_train=20,
        num_test=6,
        image_size=48,
        batch_size=4,
        crop_size=(40, 48),
        scale_jitter=(0.8, 1.2),
        color_jitter=0.2,
    ),
    model=ModelConfig(
        name="upernet",
        backbone="patchconvnet_nano",
        backbone_args={"embed_dim": 16, "depth": 4},
        model_args={"channels": 16, "aux_channels": 8},
    ),
    optim=OptimConfig(opt="adamw", lr=1e-3),
    epochs=2,
    accelerator="cpu",
    devices=1,
    log_every=2,
    checkpoint_every=2,
)
"""Five steps an epoch."""


def tiny(folder, **changes):
    return replace(TINY, out=str(folder), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tiny(tmp_path_factory.mktemp("segmentation") / "run"))


def test_run_folder_shows_predictions_and_overlap(finished):
    folder = finished.folder
    names = ("curves", "predictions", "confusion")
    assert finished.figures == tuple(folder / f"{name}.png" for name in names)
    with Image.open(folder / "predictions.png") as sheet:
        assert sheet.width > 1000
    last = read_metrics(folder / "metrics.csv")[-1]
    assert {"val_loss", "val_miou", "val_mean_accuracy", "val_pixel_accuracy"} <= last.keys()
    assert "| mIoU |" in (folder / "report.md").read_text()


def test_loaded_run_keeps_what_its_images_need(finished):
    model = Run.open(finished.folder).load_model()
    cfg = model.pretrained_cfg
    assert cfg["label_names"][:2] == ["background", "0"]
    assert cfg["image_size"] is None
    assert cfg["input_size"] == [3, 40, 48]
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 33, 50)).shape == (1, 11, 33, 50)


@pytest.mark.long
def test_crashed_run_resumes_to_the_same_weights(finished, tmp_path, monkeypatch):
    whole = SegmentationTask.training_step

    def crash(task, batch, batch_idx):
        if task.global_step == 7:
            raise RuntimeError("power cut")
        return whole(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "run"))
    resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(finished.folder)
    assert steady_columns(tmp_path / "run") == steady_columns(finished.folder)


def test_test_during_training_is_the_one_after_it(finished):
    last = read_metrics(finished.folder / "metrics.csv")[-1]
    assert last["val_miou"] == pytest.approx(finished.result.miou, abs=1e-5)
    assert last["val_loss"] == pytest.approx(finished.result.loss, abs=1e-4)


@pytest.mark.slow
def test_two_processes_test_together_and_the_first_alone_at_the_end(train_apart, tmp_path):
    folder = tmp_path / "two"
    train_apart(tiny(folder, devices=2, strategy="ddp", epochs=1))
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["num_images"] == 6
    assert read_metrics(folder / "metrics.csv")[-1]["val_miou"] == pytest.approx(found["miou"])


def test_backbone_is_augmented(tmp_path):
    model = replace(TINY.model, backbone="resnet_nano", backbone_args={})
    augment = AugmentConfig(conv=("layer4.0.conv1",), num_heads=4)
    run = train(tiny(tmp_path / "run", model=model, augment=augment, epochs=1))
    assert "conv layer4.0.conv1" in (run.folder / "report.md").read_text()


@pytest.mark.parametrize(("field", "value"), [("max_size", 100), ("cutmix", 1.0)])
def test_what_segmenters_do_not_know_is_refused(field, value):
    data = replace(TINY.data, **{field: value})
    with pytest.raises(ValueError, match=rf"data\.{field}=.* has no meaning for segmentation"):
        SegmentationJob(replace(TINY, data=data))


def test_images_of_several_sizes_need_a_crop():
    data = replace(TINY.data, crop_size=None)
    with pytest.raises(ValueError, match=r"give data\.crop_size"):
        SegmentationJob(replace(TINY, data=data))


def test_resumed_run_does_not_need_the_weights_it_started_from(tmp_path, monkeypatch):
    file = tmp_path / "x.pth"
    torch.save(create_model("resnet_nano", num_classes=7).state_dict(), file)
    model = replace(
        TINY.model, backbone="resnet_nano", backbone_args={}, backbone_weights=str(file)
    )
    whole = SegmentationTask.training_step

    def crash(task, batch, batch_idx):
        if task.global_step == 2:
            raise RuntimeError("power cut")
        return whole(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "run", model=model, epochs=1, checkpoint_every=1))
    file.unlink()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_best_epoch_by_a_validation_part_is_kept_and_training_stops_early(tmp_path, capsys):
    data = replace(TINY.data, val_share=0.3)
    values = iter([0.5, 0.9, 0.1, 0.2, 0.3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SegmentationTask,
            "on_validation_epoch_end",
            lambda task: [
                task.log(column, next(values) if column == "val_miou" else 0.0, logger=False)
                for column in ("val_loss", *SegmentationTask.curves.shares)
            ],
        )
        run = train(tiny(tmp_path / "run", data=data, epochs=5, keep="best", patience=2))
    told = capsys.readouterr().err
    assert "6 of 20 training images are set aside to validate on" in told
    assert "stopped after epoch 4: the best validation mIoU was of epoch 2" in told
    assert "of epoch 2, the best validation mIoU" in (run.folder / "report.md").read_text()
    assert run.result.num_images == 6


def test_choosing_by_the_test_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=best chooses by validation images"):
        train(tiny(tmp_path / "run", keep="best"))


def test_classes_that_no_mask_shows_are_told_after_the_first_epoch(tmp_path, capsys):
    few = replace(TINY.data, num_train=4, crop_size=None, scale_jitter=None)
    source = SegmentationJob(tiny(tmp_path / "x", data=few)).source
    pixels = sum(mask.flatten().bincount(minlength=11)[:11] for _, mask in source.train)
    absent = [repr(source.class_names[k]) for k in range(11) if not pixels[k]]
    assert absent
    capsys.readouterr()
    train(tiny(tmp_path / "run", data=few))
    told = [line for line in capsys.readouterr().err.splitlines() if "pixels of" in line]
    assert told == [
        f"convattn: {len(absent)} of 11 classes have none of the {int(pixels.sum()):,} pixels of "
        f"the first epoch: {', '.join(absent)}; add some, or leave the classes out"
    ]
