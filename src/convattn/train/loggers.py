"""Lightning's loggers by name."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from convattn.config import LoggerName

_PROJECT = "convattn"
_NEEDED = ("wandb", "mlflow")
"""Loggers that need a package, and an extra, of their own name."""


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        ValueError: Names the first.
    """
    for name in names:
        if name in _NEEDED and find_spec(name) is None:
            raise ValueError(
                f"logger={name} (--logger) needs the package {name}: pip install "
                f"'convattn[{name}]', or leave it out",
            )


def make_loggers(names: Sequence[LoggerName], folder: Path) -> list[Logger]:
    """The loggers of a run; a name that is given twice counts once.

    Args:
        names: Of ``LoggerName``.
        folder: Of the run; tensorboard, csv and wandb keep their files in it, mlflow where
            ``MLFLOW_TRACKING_URI`` says, else in it.
    """
    return [_LOGGERS[name](folder) for name in dict.fromkeys(names)]


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Keep to itself what TensorBoard's writing thread says of a disk or a folder.

    The next row says so as well, and ends the training.
    """
    before = threading.excepthook

    def tell(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard"):
            before(arguments)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _tensorboard(folder: Path) -> Logger:
    return TensorBoardLogger(folder, name="", version="tensorboard")


def _csv(folder: Path) -> Logger:
    """A folder of its own a sitting: Lightning begins the file anew."""
    names = ("csv" if number == 1 else f"csv-{number}" for number in count(1))
    version = next(name for name in names if not (folder / name).exists())
    return CSVLogger(folder, name="", version=version)


def _wandb(folder: Path) -> Logger:
    """A run that is resumed goes on in the same one."""
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return WandbLogger(
        name=folder.name, save_dir=folder, project=_PROJECT, id=identity, resume="allow"
    )


def _mlflow(folder: Path) -> Logger:
    return MLFlowLogger(
        experiment_name=_PROJECT, run_name=folder.name, save_dir=str(folder / "mlruns")
    )


_LOGGERS: Mapping[LoggerName, Callable[[Path], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
