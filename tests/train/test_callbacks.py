import pytest
import torch

from convattn.train.callbacks import Ema, MetricsFile, read_metrics
from convattn.train.classification import classification_curves

COLUMNS = classification_curves(10).columns


def test_metrics_come_back_as_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    file.log_metrics({"epoch": 0, "train_loss": 0.5, "unknown": 3.0}, 1)
    file.log_metrics({"epoch": 1, "val_top1": 0.25}, 2)
    assert file.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert read_metrics(file.path) == [
        {"step": 1, "epoch": 0, "train_loss": 0.5},
        {"step": 2, "epoch": 1, "val_top1": 0.25},
    ]


def test_rewinding_drops_later_rows_and_a_torn_one(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    for step in (1, 2, 3):
        file.log_metrics({"epoch": 0, "train_loss": step}, step)
    with file.path.open("a") as stream:
        stream.write("4,1,0.")
    file.rewind(2)
    assert [row["step"] for row in read_metrics(file.path)] == [1, 2]


def test_rewinding_nothing_leaves_an_empty_table(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", COLUMNS)
    file.rewind(5)
    assert read_metrics(file.path) == []


def test_average_is_the_slow_loop():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    expected = values[0]
    for number, value in enumerate(values[1:], start=1):
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    model = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(0.3)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema._average)
    for value in values:
        torch.nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
    assert averaged.module.weight.item() == pytest.approx(expected)
