"""What a run tells while it goes on, and to whom."""

import signal
from dataclasses import replace

import pytest

import convattn.train.callbacks
import convattn.train.run
from convattn.config import ModelConfig, TrainConfig
from convattn.tasks import train
from convattn.train.callbacks import read_metrics
from convattn.train.loggers import make_loggers
from tests.train.conftest import TINY, tiny

pytestmark = pytest.mark.usefixtures("no_images")


def lines_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "epoch " in line]


def test_log_file_has_a_line_at_the_first_step_and_one_an_epoch(tmp_path, capsys):
    train(tiny(tmp_path / "run", epochs=2))
    first, *others = lines_of(capsys)
    assert "step 1/16" in first
    assert "loss " in first
    assert len(others) == 2


def test_log_file_has_a_line_every_ten_seconds(tmp_path, capsys, monkeypatch):
    now = iter(range(0, 100_000, 4))
    monkeypatch.setattr(convattn.train.callbacks.time, "monotonic", lambda: float(next(now)))
    train(tiny(tmp_path / "run", epochs=1, checkpoint_every=0, checkpoint_minutes=1e9))
    steps = [line.split("step ")[1].split("/")[0] for line in lines_of(capsys)]
    assert steps[0] == "1"
    assert 3 <= len(steps) <= 8


def test_start_line_says_what_is_trained_on_what_and_where(tmp_path, capsys):
    data = replace(TINY.data, val_share=0.2)
    run = train(tiny(tmp_path / "run", data=data, epochs=2))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "into " in line)
    assert "patchconvnet_nano from random weights, 10 classes of cluttered_digits" in line
    assert "images to train on" in line
    assert "to validate on" in line
    assert "32 x 32 pixels, bicubic, crop 1, mean 0.404 0.415 0.386" in line
    assert line.endswith(f"into {run.folder}")


# --- loggers


def test_csv_logger_has_the_same_rows_and_none_is_no_logger(tmp_path):
    run = train(tiny(tmp_path / "run", epochs=1, eval_every=1, logger=("csv", "csv")))
    assert not (run.folder / "tensorboard").exists()
    rows, own = (read_metrics(run.folder / place) for place in ("csv/metrics.csv", "metrics.csv"))
    assert [row["val_top1"] for row in rows if "val_top1" in row] == pytest.approx(
        [row["val_top1"] for row in own if "val_top1" in row]
    )
    none = train(tiny(tmp_path / "none", epochs=1, logger=()))
    assert not [
        path for path in none.folder.iterdir() if path.is_dir() and path.name != "checkpoints"
    ]


def test_second_sitting_of_csv_has_a_folder_of_its_own(tmp_path):
    for _ in range(2):
        (logger,) = make_loggers(["csv"], tmp_path)
        logger.log_metrics({"x": 1.0}, 1)
        logger.save()
    assert {path.name for path in tmp_path.iterdir()} == {"csv", "csv-2"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_one_sentence_and_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr("convattn.train.loggers.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=rf"needs the package {name}: pip install 'convattn\[{name}\]'"
    ):
        train(tiny(tmp_path / "run", logger=("csv", name)))
    assert not (tmp_path / "run").exists()


# --- number format


@pytest.mark.parametrize(
    ("model", "gpu", "bfloat16", "expected"),
    [
        ({}, True, True, "32-true"),
        ({"pretrained": True}, True, True, "bf16-mixed"),
        ({"checkpoint": "x"}, True, False, "16-mixed"),
        ({"pretrained": True}, False, False, "32-true"),
    ],
)
def test_automatic_precision(model, gpu, bfloat16, expected):
    config = TrainConfig(model=ModelConfig(name="resnet18", **model))
    found = config.with_precision(gpu=gpu, bfloat16=bfloat16)
    assert found.precision == expected
    assert (
        replace(config, precision="64-true").with_precision(gpu=gpu, bfloat16=bfloat16).precision
        == "64-true"
    )


def test_folder_tells_the_precision_that_was_taken(finished):
    assert '"precision": "32-true"' in (finished.folder / "config.json").read_text()


# --- signals


def test_signals_after_training_are_handled_as_before(tmp_path, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    during = {}

    def show(job, folder, fitted):
        during.update({number: signal.getsignal(number) for number in before})

    monkeypatch.setattr(convattn.train.run, "_show", show)
    train(tiny(tmp_path / "run", epochs=1))
    assert during == before
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.long
def test_sigterm_ends_testing(start, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(tiny(tmp_path / "run", epochs=1).to_json())
    script = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "import convattn.train.run as run\n"
        "from convattn.config import TrainConfig\n"
        "from convattn.tasks import train\n"
        "def show(*args, **kwargs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(30)\n"
        "run._show = show\n"
        f"train(TrainConfig.from_json(Path({str(config)!r}).read_text()))\n"
    )
    process = start("-c", script)
    assert process.wait(timeout=120) == -signal.SIGTERM
    process.communicate()
