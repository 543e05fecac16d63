"""What happens beside the training steps: metrics, checkpoints, averages, progress."""

from __future__ import annotations

import csv
import io
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from convattn.exceptions import Interrupted, NonFiniteError
from convattn.files import reading, replace_atomically, writing
from convattn.text import report, short_repr
from convattn.train.processes import requeue, slurm_job
from convattn.train.task import Curves


class MetricsFile(Logger):
    """``metrics.csv``: one row every few steps and one an epoch, at hand while the run goes on.

    Args:
        path: The file; rows that it holds already are kept up to the step that is resumed.
        columns: Its columns; other values are left out.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        super().__init__()
        self.path = path
        self.columns = columns

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """One file a run: always 0."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.json`` holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Args:
            metrics: Values by column; other names are left out.
            step: Optimiser steps taken so far.
        """
        values = {"step": step, **metrics}
        fresh = not self.path.exists()
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if fresh:
                writer.writerow(self.columns)
            writer.writerow([_cell(values.get(column)) for column in self.columns])

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``, which a resumed run will write again.

        Args:
            step: Optimiser steps that the checkpoint has seen.
        """
        rows = [row for row in read_metrics(self.path, self.columns) if row["step"] <= step]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(row.get(column)) for column in self.columns] for row in rows)
        replace_atomically(self.path, text.getvalue().encode())


def read_metrics(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``; an empty cell is left out, a torn last line as well.

    Args:
        path: The file; none means no rows.
        columns: That it must have; None takes any that tell step and epoch.

    Raises:
        ValueError: If it is no such file.
    """
    if not path.exists():
        return []
    with reading(path, "restore it, or move it away: the curves then begin with what follows"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        head, *rows = csv.reader(whole, strict=True) if whole else [list(columns or ())]
        if head != list(columns or head) or not {"step", "epoch"} <= {*head} or "" in head:
            expected = ", ".join(columns or ("step", "epoch", "and others"))
            raise ValueError(f"its columns are {short_repr(head)}, expected {expected}")
        return [_metrics_row(head, row, number) for number, row in enumerate(rows, start=2)]


def _metrics_row(head: Sequence[str], row: Sequence[str], number: int) -> dict[str, float]:
    if len(row) != len(head):
        raise ValueError(f"line {number} has {len(row)} cells, expected {len(head)}")
    found = {name: float(cell) for name, cell in zip(head, row, strict=True) if cell}
    if not math.isfinite(found.get("step", math.nan)) or "epoch" not in found:
        raise ValueError(f"line {number} tells no step and epoch")
    return found


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"


class TrainingMetrics(Callback):
    """Gathers the losses without waiting for the device, logs them, and stops at the first NaN.

    Args:
        log_every: Optimiser steps between two rows.
        batch_size: Images per optimiser step.
        steps_per_epoch: Optimiser steps an epoch.
        curves: What is measured between epochs.
    """

    def __init__(
        self, *, log_every: int, batch_size: int, steps_per_epoch: int, curves: Curves
    ) -> None:
        self.curves = curves
        self.log_every = log_every
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.last_loss: float | None = None
        self.last_test: tuple[int, float] | None = None
        self.images_per_second = 0.0
        self._losses: list[Tensor] = []
        self._since = 0.0
        self._step_then = 0

    @property
    def loss(self) -> float | None:
        """The mean of the last window, in the first that of the last batch."""
        if self.last_loss is None and self._losses:
            return float(self._losses[-1])
        return self.last_loss

    def state_dict(self) -> dict[str, Any]:
        """The losses since the last row."""
        return {"losses": [float(loss) for loss in self._losses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock: loading and testing between epochs do not count."""
        self._since, self._step_then = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss; at the end of a window or of the epoch, look at it."""
        self._losses.append(outputs["loss"].detach())
        last = batch_idx + 1 == trainer.num_training_batches
        if last or (stepped(trainer, batch_idx) and trainer.global_step % self.log_every == 0):
            self.flush(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the test that has just been made."""
        values = trainer.callback_metrics
        tested = {key: float(values[key]) for key in self.curves.columns if key in values}
        foremost = next(iter(self.curves.shares))
        self.last_test = (trainer.global_step, tested[foremost])
        log(trainer, tested, self.steps_per_epoch)

    def flush(self, trainer: L.Trainer) -> None:
        """Log the window's mean loss over all devices.

        Args:
            trainer: Which has just taken a step.

        Raises:
            NonFiniteError: If a loss is not a number any more.
        """
        window = torch.stack([loss.to(trainer.strategy.root_device) for loss in self._losses])
        losses = trainer.strategy.reduce(window.float(), reduce_op="mean").tolist()
        self._losses = []
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                behind = (len(losses) - 1 - index) // trainer.accumulate_grad_batches
                raise NonFiniteError(f"the loss is {loss} at step {trainer.global_step - behind}")
        self.last_loss = sum(losses) / len(losses)
        now, step = time.perf_counter(), trainer.global_step
        if step > self._step_then:
            rate = (step - self._step_then) * self.batch_size / (now - self._since)
            self.images_per_second = rate
        self._since, self._step_then = now, step
        log(
            trainer,
            {
                "train_loss": self.last_loss,
                "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
                "images_per_second": self.images_per_second,
            },
            self.steps_per_epoch,
        )


def log(trainer: L.Trainer, values: Mapping[str, float], steps_per_epoch: int) -> None:
    """Hand values to every logger, with the step and the epoch as a fraction.

    Args:
        trainer: Whose loggers get them.
        values: By column of ``metrics.csv``.
        steps_per_epoch: Optimiser steps an epoch.
    """
    step = trainer.global_step
    row = {**values, "epoch": step / steps_per_epoch}
    for logger in trainer.loggers:
        if trainer.is_global_zero:
            logger.log_metrics(row, step)


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser has taken a step with this batch.

    Args:
        trainer: In a training batch's end.
        batch_idx: The batch's number in its epoch.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Ema(WeightAveraging):
    """Exponential moving average of weights and buffers, which is tested and saved.

    The first steps count more, decay ``(1 + n) / (10 + n)`` after n of them, so that a short run
    forgets its random start.

    Args:
        decay: Of the average, a step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def _average(
        self, average: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int
    ) -> None:
        steps = int(num_averaged)
        decay = min(self.decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)(list(average), list(current), num_averaged)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged state dict of the task."""
        assert self._average_model is not None
        return dict(self._average_model.module.state_dict())


class BestEpoch(Callback):
    """Remembers the best epoch, its weights if they are wanted, and ends the training after it.

    All of it is in the checkpoint, so that a resumed run chooses as one that was never stopped.
    Lightning's own callbacks keep the best weights in a file beside it, which a kill between the
    two writes leaves at odds with it.

    Args:
        curves: The foremost share decides; among equal ones the loss, then the earlier epoch.
        keep: Whether the weights are remembered.
        patience: Epochs without a better one after which training stops; None: never.
        ema: Has the weights that are judged; None: the task has.
    """

    def __init__(
        self, curves: Curves, *, keep: bool, patience: int | None, ema: Ema | None
    ) -> None:
        self.curves = curves
        self.keep = keep
        self.patience = patience
        self.ema = ema
        self.epoch = 0
        self.weights: dict[str, Tensor] | None = None
        self._score: tuple[float, float] | None = None
        self._judged = 0

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, and the last that was judged."""
        return {
            "epoch": self.epoch,
            "score": self._score,
            "judged": self._judged,
            "weights": self.weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self.epoch, self._judged = state_dict["epoch"], state_dict["judged"]
        self._score, self.weights = state_dict["score"], state_dict["weights"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train no further if the run was killed after its last epoch."""
        trainer.should_stop = self._is_over()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the epoch."""
        values = trainer.callback_metrics
        foremost = next(iter(self.curves.shares))
        score = (float(values[foremost]), -float(values.get("val_loss", 0.0)))
        self._judged = trainer.current_epoch + 1
        if self._score is None or score > self._score:
            self._score, self.epoch = score, self._judged
            if self.keep:
                strategy = trainer.strategy
                own = self.ema
                weights = strategy.lightning_module_state_dict() if own is None else own.averaged()
                self.weights = {
                    name: tensor.detach().to("cpu", copy=True)
                    for name, tensor in weights.items()
                    if tensor is not None  # of another process than the first, by fsdp2
                }
        if self._is_over():
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell of an early end."""
        if self._is_over() and self._judged < (trainer.max_epochs or 0) and trainer.is_global_zero:
            report(f"stopped after epoch {self._judged}: {self.words} was of epoch {self.epoch}")

    @property
    def words(self) -> str:
        """What chose the epoch."""
        return f"the best {self.curves.part} {next(iter(self.curves.shares.values()))}"

    def _is_over(self) -> bool:
        return self.patience is not None and self._judged - self.epoch >= self.patience


def _stopping() -> list[signal.Signals]:
    """Signals that end a training: with SLURM the one that announces a job's end, too."""
    requeued = hasattr(signal, "SIGUSR1") and slurm_job() is not None
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if requeued else [])]


@contextmanager
def kept_signals() -> Iterator[None]:
    """Whatever is done with the signals that stop it, afterwards they are handled as before."""
    handlers = {number: signal.getsignal(number) for number in _stopping()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


class Checkpoints(Callback):
    """Writes ``last.ckpt``, never half, and turns Ctrl-C and SIGTERM into a clean stop.

    In a job of SLURM SIGUSR1 stops as well, and has the job requeued. Lightning's own handler would
    write wherever a step is, which processes that are at different steps wait for in vain.

    Whoever trains gives the signals back: see ``kept_signals``.

    Args:
        path: The checkpoint.
        every: Optimiser steps between two inside an epoch; 0 for none by number.
        minutes: Minutes between two inside an epoch.
        check_every: Optimiser steps between two looks at the clock and, with several processes,
            at what the others were told.
    """

    def __init__(self, path: Path, *, every: int, minutes: float, check_every: int) -> None:
        self.path = path
        self.every = every
        self.seconds = 60 * minutes
        self.check_every = check_every
        self.saved_step: int | None = None
        self._saved_at = 0.0
        self._stop = False
        self._requeue = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and listen for Ctrl-C and SIGTERM."""
        self.path.parent.mkdir(exist_ok=True)  # but not the run folder, if that has been removed
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in _stopping():
                signal.signal(number, self._asked_to_stop)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        requeue = number not in (signal.SIGINT, signal.SIGTERM)
        if self._stop and not requeue:
            raise Interrupted(self._left())
        self._stop, self._requeue = True, self._requeue or requeue
        if rank_zero_only.rank != 0:
            return
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def _left(self) -> str:
        if self.saved_step is None:
            return "stopped before the first checkpoint"
        return f"stopped; the last checkpoint is of step {self.saved_step}"

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time to, and stop if asked to."""
        # Lightning cannot resume from inside the last batch of an epoch: its end saves anyway.
        if not stepped(trainer, batch_idx) or batch_idx + 1 == trainer.num_training_batches:
            return
        step = trainer.global_step
        check = trainer.world_size == 1 or step % self.check_every == 0
        stop = check and trainer.strategy.reduce_boolean_decision(self._stop, all=False)
        due = check and trainer.strategy.broadcast(
            time.monotonic() - self._saved_at >= self.seconds
        )
        if stop or due or (self.every and step % self.every == 0):
            self.save(trainer)
        if stop:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and stop if asked to."""
        self.save(trainer)
        if trainer.strategy.reduce_boolean_decision(self._stop, all=False):
            self._end(trainer)

    def _end(self, trainer: L.Trainer) -> NoReturn:
        job = slurm_job()
        words = self._left()
        if trainer.strategy.reduce_boolean_decision(self._requeue, all=False):
            assert job is not None
            words = f"{words}; {requeue(job) if trainer.is_global_zero else ''}"
        raise Interrupted(words)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint, whole or not at all.

        Args:
            trainer: Which has just taken a step.

        Raises:
            NonFiniteError: If a weight is not a number any more; the last checkpoint stays.
        """
        assert trainer.lightning_module is not None
        weights = [_own_part(one.detach()) for one in trainer.lightning_module.parameters()]
        finite = bool(torch.stack(torch._foreach_norm(weights)).isfinite().all())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise NonFiniteError(f"weights are not finite after step {trainer.global_step}")
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step
        self._saved_at = time.monotonic()


def _own_part(weight: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


_SECONDS_ON_TERMINALS = 0.5
_SECONDS_IN_FILES = 10.0


class ProgressLine(Callback):
    """One line that shows epoch, step, loss, images a second and the time left.

    On a terminal the line is redrawn twice a second; elsewhere there is a line at the first step,
    then every ten seconds, and at the end of every epoch.

    Args:
        metrics: Where loss and speed are taken from.
        num_steps: Optimiser steps of the whole training.
        stream: Where to write.
    """

    def __init__(
        self, metrics: TrainingMetrics, *, num_steps: int, stream: TextIO | None = None
    ) -> None:
        self.metrics = metrics
        self.num_steps = num_steps
        self.stream = stream or sys.stderr
        self._start = 0.0
        self._first_step = 0
        self._drawn = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Redraw the line if it is old."""
        terminal = self.stream.isatty()
        seconds = _SECONDS_ON_TERMINALS if terminal else _SECONDS_IN_FILES
        if not self._drawn or time.monotonic() - self._drawn > seconds:
            self._draw(trainer, end="" if terminal else "\n")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave a line that stays."""
        self._draw(trainer, end="\n")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the line, so that the message stands below it."""
        if self.stream.isatty() and self._drawn:
            print(file=self.stream, flush=True)

    def _draw(self, trainer: L.Trainer, end: str) -> None:
        if not trainer.is_global_zero:
            return
        self._drawn = time.monotonic()
        step, metrics = trainer.global_step, self.metrics
        epochs = trainer.max_epochs or 1
        epoch = min(epochs, math.ceil(step / self.num_steps * epochs))
        parts = []
        if metrics.loss is not None:
            parts.append(f"loss {metrics.loss:.4f}")
        if metrics.images_per_second:
            parts.append(f"{metrics.images_per_second:,.0f} images/s")
        if metrics.last_test is not None and metrics.last_test[0] == step:
            name = next(iter(metrics.curves.shares.values()))
            parts.append(f"{metrics.curves.part} {name} {metrics.last_test[1]:.1%}")
        text = tqdm.format_meter(
            step,
            self.num_steps,
            self._drawn - self._start,
            initial=self._first_step,
            prefix=f"epoch {epoch}/{epochs}",
            postfix=", ".join(parts),
            bar_format="{l_bar}{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        if self.stream.isatty():
            columns = shutil.get_terminal_size().columns - 1
            text = "\r" + text[:columns].ljust(columns)
        print(text, end=end, file=self.stream, flush=True)
