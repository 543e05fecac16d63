"""What happens beside the training steps: metrics, checkpoints, averages, progress, pictures."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.transforms.functional import to_pil_image

from convattn.evaluate import replace_atomically
from convattn.explain import attention_maps
from convattn.explain.figures import overlay
from convattn.train.exceptions import InterruptedTraining, NonFiniteError

COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "lr",
    "images_per_second",
    "val_loss",
    "val_top1",
    "val_top5",
)


class MetricsFile(Logger):
    """``metrics.csv``: one row every few steps and one an epoch, at hand while the run goes on.

    Args:
        path: The file; rows that it holds already are kept up to the step that is resumed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

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
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if fresh:
                writer.writerow(COLUMNS)
            writer.writerow([_cell(values.get(column)) for column in COLUMNS])

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``, which a resumed run will write again.

        Args:
            step: Optimiser steps that the checkpoint has seen.
        """
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(row.get(column)) for column in COLUMNS] for row in rows)
        replace_atomically(self.path, text.getvalue().encode())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``; an empty cell is left out, a torn last line as well.

    Args:
        path: The file; none means no rows.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
            if row["val_top5"] is not None
        ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"


class TrainingMetrics(Callback):
    """Gathers the losses without waiting for the device, logs them, and stops at the first NaN.

    Args:
        log_every: Optimiser steps between two rows.
        batch_size: Pictures per optimiser step.
        steps_per_epoch: Optimiser steps an epoch.
    """

    def __init__(self, *, log_every: int, batch_size: int, steps_per_epoch: int) -> None:
        self.log_every = log_every
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.last_loss: float | None = None
        self.last_test: tuple[int, float] | None = None
        self.images_per_second = 0.0
        self._losses: list[Tensor] = []
        self._since = 0.0
        self._step_then = 0

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
        tested = {key: float(values[key]) for key in COLUMNS if key in values}
        self.last_test = (trainer.global_step, tested["val_top1"])
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


class Checkpoints(Callback):
    """Writes ``last.ckpt``, never half, and turns Ctrl-C and SIGTERM into a clean stop.

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
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and listen for Ctrl-C and SIGTERM."""
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._asked_to_stop)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop:
            raise InterruptedTraining(self._left())
        self._stop = True
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
            raise InterruptedTraining(self._left())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and stop if asked to."""
        self.save(trainer)
        if trainer.strategy.reduce_boolean_decision(self._stop, all=False):
            raise InterruptedTraining(self._left())

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint to a file beside it, then move it into place.

        Args:
            trainer: Which has just taken a step.

        Raises:
            NonFiniteError: If a weight is not a number any more; the last checkpoint stays.
        """
        assert trainer.lightning_module is not None
        norms = torch._foreach_norm([p.detach() for p in trainer.lightning_module.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise NonFiniteError(f"weights are not finite after step {trainer.global_step}")
        fresh = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(fresh)
        if trainer.is_global_zero:
            os.replace(fresh, self.path)
        self.saved_step = trainer.global_step
        self._saved_at = time.monotonic()


class ProgressLine(Callback):
    """One line that shows epoch, step, loss, pictures a second and the time left.

    On a terminal the line is redrawn twice a second; elsewhere there is a line an epoch.

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
        if self.stream.isatty() and time.monotonic() - self._drawn > 0.5:
            self._draw(trainer, end="")

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
        done = step / self.num_steps
        spent = self._drawn - self._start
        left = spent * (self.num_steps - step) / max(1, step - self._first_step)
        epochs = trainer.max_epochs or 1
        epoch = min(epochs, math.ceil(done * epochs))
        parts = [
            f"epoch {epoch:>{len(str(epochs))}}/{epochs}",
            f"step {step:>{len(str(self.num_steps))}}/{self.num_steps}",
        ]
        if metrics.last_loss is not None:
            parts += [
                f"loss {metrics.last_loss:.4f}",
                f"{metrics.images_per_second:,.0f} images/s",
            ]
        if metrics.last_test is not None and metrics.last_test[0] == step:
            parts.append(f"test top-1 {metrics.last_test[1]:.1%}")
        parts.append(f"{_clock(spent)} < {_clock(left)} left")
        text = f"{done:4.0%} " + _bar(done) + "  " + "  ".join(parts)
        if self.stream.isatty():
            columns = shutil.get_terminal_size().columns - 1
            text = "\r" + text[:columns].ljust(columns)
        print(text, end=end, file=self.stream, flush=True)


def _bar(done: float, width: int = 20) -> str:
    full = round(done * width)
    return "█" * full + "░" * (width - full)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def draw_curves(metrics: Path, out: Path, *, title: str) -> None:
    """Loss, accuracy and learning rate over the epochs, side by side.

    Args:
        metrics: A ``metrics.csv``.
        out: The PNG to write.
        title: Stands above.
    """
    rows = read_metrics(metrics)
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs, losses = _column(rows, "train_loss")
    loss.plot(epochs, losses, color="#9ecae1", linewidth=1, label="training, each row")
    loss.plot(epochs, _smooth(losses), color="#08519c", linewidth=2, label="training, smoothed")
    loss.plot(*_column(rows, "val_loss"), "o-", color="#d94801", markersize=4, label="test")
    loss.set(title="Loss", ylabel="cross-entropy (nats)")
    for column, label, colour in (
        ("val_top5", "top-5", "#74c476"),
        ("val_top1", "top-1", "#006d2c"),
    ):
        epochs, shares = _column(rows, column)
        percent = [100 * share for share in shares]
        told = f"{label}, {percent[-1]:.1f} at the end" if percent else label
        accuracy.plot(epochs, percent, "o-", color=colour, markersize=4, label=told)
    accuracy.set(title="Test accuracy", ylabel="per cent", ylim=(0, 103))
    rate.plot(*_column(rows, "lr"), color="#54278f", linewidth=2)
    rate.set(title="Learning rate", ylim=(0, None))
    for axes in (loss, accuracy, rate):
        axes.set(xlabel="epoch", xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=110)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have the column."""
    having = [row for row in rows if name in row]
    return [row["epoch"] for row in having], [row[name] for row in having]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a fortieth of the curve to either side."""
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw_attention(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int],
    out: Path,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    boxes: Tensor | None = None,
    title: str,
) -> None:
    """Test pictures beside themselves with the attention laid over.

    Args:
        model: The trained classifier, which has attention.
        images: (B, C, H, W), normalised; 12 fill the page.
        labels: The true class numbers.
        out: The PNG to write.
        class_names: Name of each class number.
        mean: Of the normalisation, per channel.
        std: Of the normalisation, per channel.
        boxes: (B, 4) in pixels, drawn where there are any.
        title: Stands above.

    Raises:
        ValueError: If the model has no attention.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits, maps, grid = attention_maps(model.eval(), images.to(device))
    predicted = logits.argmax(1).tolist()
    size = grid.image_size
    heats = grid.heat(maps).cpu().numpy()
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    pictures = [to_pil_image(picture) for picture in (images * scale + shift).clamp(0, 1)]
    # One axes for the whole page: matplotlib takes seconds to lay out dozens of them.
    num_pairs, gap, title_height = min(4, len(images)), 0.06, 0.2
    tall = size[0] / size[1]
    num_rows = math.ceil(len(images) / num_pairs)
    width, height = num_pairs * (2 + 3 * gap) - 2 * gap, num_rows * (tall + title_height)
    figure = Figure(figsize=(13, 13 * height / width + 0.55), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes = figure.subplots()
    axes.axis("off")
    for index, (picture, heat) in enumerate(zip(pictures, heats, strict=True)):
        picture = picture.convert("RGB")
        row, pair = divmod(index, num_pairs)
        top = row * (tall + title_height) + title_height
        left = pair * (2 + 3 * gap)
        right = left + 1 + gap
        guess, truth = predicted[index], labels[index]
        verdict, colour = ("✓", "#006d2c") if guess == truth else ("✗", "#cb181d")
        for shown, start, label, ink in (
            (picture, left, class_names[truth], "black"),
            (overlay(picture, heat), right, f"{verdict} {class_names[guess]}", colour),
        ):
            axes.imshow(shown, extent=(start, start + 1, top + tall, top))
            axes.text(start + 0.5, top - 0.04, label, ha="center", fontsize=10, color=ink)
        if boxes is not None:
            xmin, ymin, xmax, ymax = boxes[index].tolist()
            axes.add_patch(
                Rectangle(
                    (right + xmin / size[1], top + ymin / size[1]),
                    (xmax - xmin) / size[1],
                    (ymax - ymin) / size[1],
                    fill=False,
                    edgecolor="white",
                    linewidth=1.2,
                )
            )
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.savefig(out, dpi=110)
