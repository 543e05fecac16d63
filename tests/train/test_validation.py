from dataclasses import replace

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

import convattn.train.run
from convattn.tasks import resume, train
from convattn.train.callbacks import BestEpoch, TrainingMetrics, read_metrics
from convattn.train.classification import ClassificationJob, ClassificationTask
from tests.train.conftest import TINY, digest, tiny

pytestmark = pytest.mark.usefixtures("no_images")

PARTED = replace(TINY.data, val_share=0.2)


def test_epochs_are_validated_on_the_share_and_the_end_is_tested():
    job = ClassificationJob(replace(TINY, data=PARTED))
    whole = ClassificationJob(TINY)
    assert (len(whole.data.train_images), len(whole.data.val_images)) == (130, 40)
    assert len(job.data.train_images) + len(job.data.val_images) == 130
    assert 15 <= len(job.data.val_images) <= 40
    assert len(job.source.test) == 40
    assert job.curves.title == "Validation accuracy"
    assert whole.curves.title == "Test accuracy"


def test_lines_and_the_result_tell_validation_from_test(tmp_path, capsys):
    run = train(tiny(tmp_path / "run", data=PARTED, epochs=2))
    told = capsys.readouterr().err
    assert "validation top-1" in told
    assert "test top-1" not in told
    assert run.result.num_images == 40
    assert len([row for row in read_metrics(run.folder / "metrics.csv") if "val_top1" in row]) == 1


def test_the_seed_draws_the_validation_part():
    labels = [
        ClassificationJob(replace(TINY, data=PARTED, seed=seed)).source.val.images.sum().item()
        for seed in (0, 0, 1)
    ]
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(
        ValueError, match=r"data.val_share=.* must lie between 0 and 1, as 0.2 does"
    ):
        replace(TINY.data, val_share=share)


def scores_of(monkeypatch, tops, losses=None):
    """Have the epochs' validations find these shares and losses, and note the weights then."""
    seen = []
    real = BestEpoch.on_validation_end

    def on_validation_end(self, trainer, task):
        epoch = trainer.current_epoch
        trainer.callback_metrics["val_top1"] = torch.tensor(tops[epoch])
        trainer.callback_metrics["val_loss"] = torch.tensor((losses or [1.0] * len(tops))[epoch])
        weights = task.state_dict() if self.ema is None else self.ema.averaged()
        seen.append({name: tensor.clone() for name, tensor in weights.items()})
        real(self, trainer, task)

    monkeypatch.setattr(BestEpoch, "on_validation_end", on_validation_end)
    # Lightning builds callback_metrics anew each time it is asked.
    held = {}
    monkeypatch.setattr(L.Trainer, "callback_metrics", property(lambda trainer: held))
    monkeypatch.setattr(TrainingMetrics, "on_validation_end", lambda *arguments: None)
    return seen


def chosen(out, **changes):
    return tiny(out, data=PARTED, **{"keep": "best", "epochs": 4, "eval_every": 1, **changes})


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(
    ("tops", "losses", "best"),
    [
        ([0.1, 0.4, 0.3, 0.2], None, 2),
        ([0.4, 0.4, 0.4, 0.1], None, 1),
        ([0.4, 0.4, 0.4, 0.1], [2.0, 1.0, 1.0, 0.1], 2),
    ],
)
def test_weights_of_the_best_epoch_are_saved(tmp_path, monkeypatch, ema_decay, tops, losses, best):
    seen = scores_of(monkeypatch, tops, losses)
    run = train(chosen(tmp_path / "run", ema_decay=ema_decay))
    saved = load_file(run.folder / "model.safetensors")
    assert len(seen) == 4
    assert all(torch.equal(saved[name], seen[best - 1][f"model.{name}"]) for name in saved)
    report = (run.folder / "report.md").read_text()
    assert f"| weights | of epoch {best}, the best validation top-1 |" in report


def test_training_stops_when_patience_ends(tmp_path, monkeypatch, capsys):
    seen = scores_of(monkeypatch, [0.1, 0.4, 0.3, 0.2, 0.9])
    run = train(chosen(tmp_path / "run", epochs=5, patience=2))
    assert len(seen) == 4
    assert (
        "stopped after epoch 4: the best validation top-1 was of epoch 2" in capsys.readouterr().err
    )
    saved = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(saved[name], seen[1][f"model.{name}"]) for name in saved)


def test_patience_alone_keeps_the_last_epoch(tmp_path, monkeypatch):
    seen = scores_of(monkeypatch, [0.4, 0.3, 0.5, 0.6])
    run = train(chosen(tmp_path / "run", keep="last", patience=1))
    saved = load_file(run.folder / "model.safetensors")
    assert len(seen) == 2
    assert all(torch.equal(saved[name], seen[1][f"model.{name}"]) for name in saved)


@pytest.mark.long
@pytest.mark.parametrize("place", ["epoch 2", "epoch 3", "after the last"])
def test_killed_run_chooses_as_one_that_was_not(tmp_path, monkeypatch, place):
    tops = [0.1, 0.4, 0.3, 0.2, 0.9]
    scores_of(monkeypatch, tops)
    whole = train(chosen(tmp_path / "whole", epochs=5, patience=2))
    with monkeypatch.context() as patch:
        if place == "after the last":
            patch.setattr(convattn.train.run, "_save_weights", power_cut)
        else:
            epoch, real = int(place[-1]) - 1, ClassificationTask.training_step

            def training_step(self, batch, batch_idx):
                return (
                    power_cut()
                    if (self.current_epoch, batch_idx) == (epoch, 3)
                    else real(self, batch, batch_idx)
                )

            patch.setattr(ClassificationTask, "training_step", training_step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(chosen(tmp_path / "cut", epochs=5, patience=2))
    cut = resume(tmp_path / "cut")
    assert digest(cut.folder) == digest(whole.folder)


def power_cut(*arguments):
    raise RuntimeError("power cut")


@pytest.mark.parametrize("choice", [{"keep": "best"}, {"patience": 3}])
def test_choosing_by_the_test_images_is_refused(tmp_path, choice):
    with pytest.raises(ValueError, match=r"by validation images, and cluttered_digits has none"):
        train(tiny(tmp_path / "run", **{"eval_every": 1, **choice}))
    assert not (tmp_path / "run").exists()


def test_choosing_without_looking_is_refused():
    with pytest.raises(ValueError, match="eval_every=5 looks at no epoch of 3"):
        replace(TINY, data=PARTED, eval_every=5, keep="best")
