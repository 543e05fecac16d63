import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import convattn.train.classification
import convattn.train.run
from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.tasks import train
from convattn.train.run import TrainedRun

TINY = TrainConfig(
    recipe="tiny",
    data=DataConfig(
        num_train=130,
        num_test=40,
        image_size=32,
        batch_size=16,
        random_crop_padding=2,
        random_erasing=0.3,
        mixup=0.5,
    ),
    model=ModelConfig(
        name="patchconvnet_nano",
        drop_rate=0.1,
        drop_path_rate=0.2,
        model_args={"embed_dim": 16, "depth": 2},
    ),
    optim=OptimConfig(opt="adamw", lr=3e-3, weight_decay=0.05, warmup_epochs=0.5),
    epochs=3,
    accelerator="cpu",
    devices=1,
    ema_decay=0.9,
    clip_grad=1.0,
    eval_every=2,
    log_every=3,
    checkpoint_every=2,
)
"""Eight steps an epoch of everything that draws random numbers, in about a second."""


def tiny(out: Path, **changes: object) -> TrainConfig:
    """The tiny run with another folder and other values."""
    return replace(TINY, out=str(out), **changes)


def digest(folder: Path) -> str:
    """What a run's saved weights are, in one number."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def steady_columns(folder: Path) -> list[list[str]]:
    """``metrics.csv`` without its speed, which no two runs share."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [row[:4] + row[5:] for row in rows]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The tiny run, trained without a stop; tests only read its folder."""
    run = train(tiny(tmp_path_factory.mktemp("runs") / "finished"))
    assert run is not None
    return run


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the images out of runs whose weights alone are looked at: they take longest."""
    monkeypatch.setattr(convattn.train.run, "draw_curves", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        convattn.train.classification, "draw_attention", lambda *args, **kwargs: None
    )


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts Python in a process of its own, with as many threads as this one."""

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    return run


@pytest.fixture
def train_apart(start, tmp_path) -> Callable[[TrainConfig], None]:
    """Trains in a process of its own, which starts the further ones that several devices take."""

    def run(config: TrainConfig) -> None:
        written, script = tmp_path / "config.json", tmp_path / "two.py"
        written.write_text(config.to_json())
        script.write_text(
            "from pathlib import Path\n"
            "from convattn.config import TrainConfig\n"
            "from convattn.tasks import train\n"
            f"train(TrainConfig.from_json(Path({str(written)!r}).read_text()))\n"
        )
        process = start(str(script))
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors

    return run
