import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import convattn.train.run
from convattn.config import AugmentConfig, ModelConfig, TrainConfig
from convattn.exceptions import Interrupted, NonFiniteError
from convattn.layers import AAConv2d
from convattn.runs import Run
from convattn.tasks import resume, train
from convattn.train.callbacks import read_metrics
from convattn.train.classification import ClassificationTask
from tests.train.conftest import TINY, digest, steady_columns, tiny

pytestmark = pytest.mark.usefixtures("no_images")


def at_step(monkeypatch, step, action):
    """Have ``action`` happen inside the training step that follows ``step`` optimiser steps."""
    real = ClassificationTask.training_step

    def training_step(self, batch, batch_idx):
        loss = real(self, batch, batch_idx)
        return action(loss) if self.global_step == step else loss

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def test_run_folder_holds_what_the_design_promises(finished):
    files = {path.name for path in finished.folder.iterdir()}
    assert files == {
        "README.md",
        "attention.png",
        "checkpoints",
        "config.json",
        "curves.png",
        "evaluation.json",
        "metrics.csv",
        "model.safetensors",
        "report.md",
        "tensorboard",
    }


def test_config_of_the_folder_rebuilds_the_run(finished, tmp_path):
    config = Run.open(finished.folder).config
    again = train(replace(config, out=str(tmp_path / "again")))
    assert again is not None
    assert digest(again.folder) == digest(finished.folder)
    assert steady_columns(again.folder) == steady_columns(finished.folder)


def test_another_seed_gives_other_weights(finished, tmp_path):
    other = train(tiny(tmp_path / "other", seed=1))
    assert other is not None
    assert digest(other.folder) != digest(finished.folder)


def test_metrics_hold_every_window_and_every_test(finished):
    rows = read_metrics(finished.folder / "metrics.csv")
    assert [row["step"] for row in rows if "train_loss" in row] == [
        3,
        6,
        8,
        9,
        12,
        15,
        16,
        18,
        21,
        24,
    ]
    assert [row["step"] for row in rows if "val_top1" in row] == [16]


def test_saved_weights_are_the_average(finished):
    content = torch.load(finished.folder / "checkpoints" / "last.ckpt", weights_only=True)
    saved = load_file(finished.folder / "model.safetensors")
    name = next(name for name, tensor in saved.items() if tensor.ndim == 4)
    assert torch.equal(saved[name], content["state_dict"][f"model.{name}"])
    assert not torch.equal(saved[name], content["current_model_state"][f"model.{name}"])


def test_report_names_the_result_and_the_commands(finished):
    report = (finished.folder / "report.md").read_text()
    assert f"{finished.result.top1:.2%}" in report
    assert f"convattn evaluate {finished.folder}" in report
    assert f"convattn train --resume {finished.folder}" in report


# An epoch takes a tenth of a second; from the second epoch's second step on a step takes one.
SLOWER = """
import time
from pathlib import Path
from convattn.config import TrainConfig
from convattn.tasks import train
from convattn.train.classification import ClassificationTask

real = ClassificationTask.training_step

def training_step(self, batch, batch_idx):
    if self.global_step > 9:
        time.sleep(1)
    return real(self, batch, batch_idx)

ClassificationTask.training_step = training_step
"""


@pytest.mark.long
def test_killed_run_resumes_to_the_same_weights_and_metrics(finished, start, tmp_path):
    folder = tmp_path / "killed"
    config = tmp_path / "config.json"
    config.write_text(tiny(folder).to_json())
    code = SLOWER + f"train(TrainConfig.from_json(Path({str(config)!r}).read_text()))"
    process = start("-c", code)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    # Rows of steps 9 and 12 are written inside the second epoch, after its first checkpoint.
    while not any(row["step"] > 9 for row in read_metrics(folder / "metrics.csv")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert step % 8 != 0
    assert step < 24
    resume(folder)
    assert digest(folder) == digest(finished.folder)
    assert steady_columns(folder) == steady_columns(finished.folder)


@pytest.mark.parametrize("step", [5, 8, 16, 23])
def test_crashed_run_resumes_from_any_checkpoint(step, finished, tmp_path, monkeypatch):
    def crash(loss):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, step, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "run"))
    resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(finished.folder)
    assert steady_columns(tmp_path / "run") == steady_columns(finished.folder)


def test_report_is_written_last(tmp_path, monkeypatch):
    def crash(*_, **__):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(convattn.train.run, "write_card", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "run", epochs=1))
    assert not (tmp_path / "run" / "report.md").exists()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "README.md").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_checkpoint_and_says_how_to_resume(
    number, finished, tmp_path, monkeypatch, capsys
):
    def interrupt(loss):
        signal.raise_signal(number)
        return loss

    handler = signal.getsignal(number)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 10, interrupt)
        with pytest.raises(Interrupted, match=f"convattn train --resume {folder}"):
            train(tiny(folder, checkpoint_every=0))
    assert signal.getsignal(number) is handler
    assert torch.load(folder / "checkpoints" / "last.ckpt")["global_step"] == 11
    resume(folder)
    assert digest(folder) == digest(finished.folder)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    value, tmp_path, monkeypatch
):
    at_step(monkeypatch, 10, lambda loss: loss * float(value))
    with pytest.raises(NonFiniteError, match=f"the loss is {value} at step 11; "):
        train(tiny(tmp_path / "run", checkpoint_every=4))
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in content["state_dict"].values())


@pytest.mark.long
def test_workers_parts_and_layout_do_not_change_a_resumed_run(tmp_path, monkeypatch):
    def crash(loss):
        raise RuntimeError("power cut")

    augmented = replace(TINY.data, num_workers=2, auto_augment="rand-m5-mstd0.5", num_train=50)
    changes = {"data": augmented, "accumulate": 2, "epochs": 2, "checkpoint_every": 1}
    changes["channels_last"] = True
    whole = train(tiny(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        at_step(patch, 2, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(tmp_path / "cut", **changes))
    cut = resume(tmp_path / "cut")
    assert whole is not None
    assert cut is not None
    assert digest(cut.folder) == digest(whole.folder)


def plain(out: Path, **changes: object) -> TrainConfig:
    """No BatchNorm and nothing random but the start and the order of the images."""
    data = replace(
        TINY.data, random_crop_padding=0, random_erasing=0.0, mixup=0.0, hflip=0.0, num_train=40
    )
    model = ModelConfig(name="test_convnext")
    optim = replace(TINY.optim, opt="sgd", lr=0.1)
    return tiny(out, data=data, model=model, optim=optim, epochs=2, ema_decay=None, **changes)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    run = train(plain(tmp_path_factory.mktemp("plain") / "one"))
    assert run is not None
    return load_file(run.folder / "model.safetensors")


def largest_difference(folder, reference):
    weights = load_file(folder / "model.safetensors")
    return max(float((weights[name] - reference[name]).abs().max()) for name in reference)


def test_accumulated_parts_agree_with_the_whole_batch(one_process, tmp_path):
    run = train(plain(tmp_path / "parts", accumulate=4))
    assert run is not None
    assert largest_difference(run.folder, one_process) < 1e-5


@pytest.mark.long
def test_two_processes_agree_with_one(one_process, train_apart, tmp_path):
    folder = tmp_path / "two"
    train_apart(plain(folder, devices=2, strategy="ddp"))
    assert largest_difference(folder, one_process) < 1e-5
    steps = [row["step"] for row in read_metrics(folder / "metrics.csv") if "train_loss" in row]
    assert steps == [2, 3, 4]


def test_existing_folder_is_never_overwritten(finished):
    before = digest(finished.folder)
    with pytest.raises(FileExistsError, match="give another --out"):
        train(tiny(finished.folder))
    assert digest(finished.folder) == before


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {"epochs": 1, "data": replace(TINY.data, num_train=16)}
    folders = [train(replace(TINY, **short)).folder for _ in range(2)]
    assert folders == [Path("runs/tiny"), Path("runs/tiny-2")]


def test_finished_run_is_not_resumed(finished):
    with pytest.raises(ValueError, match="has ended"):
        resume(finished.folder)


def test_checkpoint_of_another_model_names_the_tensors(finished, tmp_path):
    model = replace(TINY.model, checkpoint=str(finished.folder), model_args={"embed_dim": 32})
    with pytest.raises(ValueError, match=r"tensors differ: .* in the file, .* in the model"):
        train(tiny(tmp_path / "run", model=model))
    assert not (tmp_path / "run").exists()


def test_trained_weights_can_be_started_from(finished, tmp_path):
    model = replace(TINY.model, checkpoint=str(finished.folder / "model.safetensors"))
    optim = replace(TINY.optim, lr=1e-12, warmup_epochs=0)
    run = train(tiny(tmp_path / "run", model=model, optim=optim, epochs=1, ema_decay=None))
    ours, theirs = (load_file(f / "model.safetensors") for f in (run.folder, finished.folder))
    weights = [name for name in ours if "running" not in name and "tracked" not in name]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in weights)


def test_batch_larger_than_the_data_is_refused(tmp_path):
    data = replace(TINY.data, batch_size=256)
    with pytest.raises(ValueError, match="more than the 130 training images"):
        train(tiny(tmp_path / "run", data=data))


def test_wrong_number_of_classes_is_refused(tmp_path):
    model = replace(TINY.model, num_classes=7)
    with pytest.raises(ValueError, match="cluttered_digits has 10 classes"):
        train(tiny(tmp_path / "run", model=model))


def test_network_without_attention_gets_no_attention_image(tmp_path):
    run = train(plain(tmp_path / "run"))
    assert run.figures == (run.folder / "curves.png",)
    assert not (run.folder / "attention.png").exists()


def test_random_state_outside_is_left_deterministic_or_not(finished):
    assert not torch.are_deterministic_algorithms_enabled()


def test_evaluation_file_is_the_result(finished):
    values = json.loads((finished.folder / "evaluation.json").read_text())
    assert values["top1"] == finished.result.top1


def test_no_half_written_file_stays(finished):
    assert not [path for path in finished.folder.rglob("*.tmp*")]
    assert os.listdir(finished.folder / "checkpoints") == ["last.ckpt"]


def residual_network(out: Path, **changes: object) -> TrainConfig:
    """A tiny ResNet, trained in six steps."""
    small = {
        "data": replace(TINY.data, image_size=64, num_train=48, num_test=16),
        "model": ModelConfig(name="test_resnet"),
        "epochs": 2,
        "eval_every": 1,
    }
    return tiny(out, **{**small, **changes})


ATTENTION = AugmentConfig(pool="attention", conv=("layer2.0.conv2", "layer3.*"), num_heads=2)


@pytest.fixture(scope="module")
def without_attention(tmp_path_factory):
    run = train(residual_network(tmp_path_factory.mktemp("plain") / "run"))
    assert run is not None
    return run.folder


@pytest.fixture(scope="module")
def with_attention(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmented") / "run"
    run = train(residual_network(folder, augment=ATTENTION))
    assert run is not None
    return run.folder


@pytest.fixture
def starts(monkeypatch):
    """Hands out what a training would start from, instead of training."""

    def start(config):
        tasks = []
        with monkeypatch.context() as patch:
            patch.setattr(
                convattn.train.run, "_fit", lambda job, task, *_, **__: tasks.append(task)
            )
            train(config)
        return tasks[0].model.eval()

    return start


IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.long
@torch.no_grad()
def test_run_with_added_attention_reloads_by_itself(with_attention):
    model = Run.open(with_attention).load_model()
    file = with_attention / "checkpoints" / "last.ckpt"
    task = ClassificationTask.load_from_checkpoint(file, weights_only=True).eval()
    assert any(isinstance(module, AAConv2d) for module in model.modules())
    assert torch.equal(model(IMAGES), task(IMAGES))


def test_report_tells_which_attention_was_added(with_attention, without_attention):
    ours, theirs = (Run.open(folder).load_model() for folder in (with_attention, without_attention))
    replaced = sum(isinstance(module, AAConv2d) for module in ours.modules())
    convs = sum(isinstance(module, torch.nn.Conv2d) for module in theirs.modules())
    more = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in theirs.parameters())
    row = (
        f"| augmented | pool attention, conv layer2.0.conv2 layer3.*, {replaced} of {convs} "
        f"convolutions, +{more / 1e6:.2f} M parameters |"
    )
    assert row in (with_attention / "report.md").read_text()
    assert "| augmented | no |" in (without_attention / "report.md").read_text()


@torch.no_grad()
def test_attention_loses_nothing_of_what_was_learnt(without_attention, starts, tmp_path):
    model = ModelConfig(name="test_resnet", checkpoint=str(without_attention))
    config = residual_network(tmp_path / "run", model=model, augment=ATTENTION)
    expected = Run.open(without_attention).load_model()(IMAGES)
    torch.testing.assert_close(starts(config)(IMAGES), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_with_attention_can_be_started_from(with_attention, starts, tmp_path):
    model = ModelConfig(name="test_resnet", checkpoint=str(with_attention))
    config = residual_network(tmp_path / "run", model=model, augment=ATTENTION)
    assert torch.equal(starts(config)(IMAGES), Run.open(with_attention).load_model()(IMAGES))


def test_checkpoint_that_fits_neither_way_names_what_the_plain_network_lacks(finished, tmp_path):
    model = ModelConfig(name="test_resnet", checkpoint=str(finished.folder))
    message = (
        r"fits test_resnet neither without .* nor with it; without it \d+ tensors differ: conv1"
    )
    with pytest.raises(ValueError, match=message):
        train(residual_network(tmp_path / "run", model=model, augment=ATTENTION))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("freeze", [False, True])
def test_run_with_added_attention_resumes_without_what_it_started_from(
    freeze, without_attention, tmp_path, monkeypatch
):
    def crash(loss):
        raise RuntimeError("power cut")

    file = tmp_path / "start.safetensors"
    file.write_bytes((without_attention / "model.safetensors").read_bytes())
    model = ModelConfig(name="test_resnet", checkpoint=str(file))
    changes = {"model": model, "augment": replace(ATTENTION, lr_scale=5.0, freeze=freeze)}
    whole = train(residual_network(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(residual_network(tmp_path / "cut", **changes))
    file.unlink()
    resume(tmp_path / "cut")
    assert whole is not None
    assert digest(tmp_path / "cut") == digest(whole.folder)
    assert steady_columns(tmp_path / "cut") == steady_columns(whole.folder)


def test_new_layers_learn_faster_by_the_configured_factor(with_attention, tmp_path):
    run = train(residual_network(tmp_path / "run", augment=replace(ATTENTION, lr_scale=5.0)))
    assert run is not None
    found, before = (
        [row["lr"] for row in read_metrics(folder / "metrics.csv") if "lr" in row]
        for folder in (run.folder, with_attention)
    )
    assert found == pytest.approx([5 * rate for rate in before])
    assert "new layers' learning rate times 5" in (run.folder / "report.md").read_text()


def test_freezing_keeps_old_weights_and_statistics_to_the_bit(without_attention, tmp_path):
    model = ModelConfig(name="test_resnet", checkpoint=str(without_attention))
    frozen = replace(ATTENTION, freeze=True)
    run = train(residual_network(tmp_path / "run", model=model, augment=frozen))
    assert run is not None
    before, after = (
        load_file(folder / "model.safetensors") for folder in (without_attention, run.folder)
    )
    kept = {name.replace(".conv.weight", ".weight"): tensor for name, tensor in after.items()}
    changed = {name for name, tensor in before.items() if not torch.equal(kept[name], tensor)}
    assert changed == {"fc.weight", "fc.bias"}
    assert any(name.endswith("running_mean") for name in before)
    assert after["layer2.0.conv2.proj.weight"].any()
    assert after["global_pool.pool.pool.gate"].any()


def test_impossible_attention_is_one_sentence_and_no_folder(tmp_path):
    wrong = AugmentConfig(conv=("layer9.*",))
    with pytest.raises(ValueError, match="names no convolution of ResNet; the nearest are layer"):
        train(residual_network(tmp_path / "run", augment=wrong))
    assert not (tmp_path / "run").exists()
