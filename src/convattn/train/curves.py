"""The curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from convattn.text import figure_text
from convattn.train.callbacks import read_metrics
from convattn.train.task import Curves

_GREENS = ("#006d2c", "#74c476", "#41ab5d", "#a1d99b")


def draw_curves(metrics: Path, out: Path, *, curves: Curves, title: str) -> None:
    """Loss, what was measured between epochs, and learning rate over the epochs, side by side.

    Args:
        metrics: A ``metrics.csv``.
        out: The PNG to write.
        curves: What is measured between epochs, and on which images.
        title: Stands above.
    """
    rows = read_metrics(metrics)
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=13, fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs, losses = _column(rows, "train_loss")
    loss.plot(epochs, losses, color="#9ecae1", linewidth=1, label="training, each row")
    loss.plot(epochs, _smooth(losses), color="#08519c", linewidth=2, label="training, smoothed")
    if curves.loss is not None:
        loss.plot(
            *_column(rows, "val_loss"), "o-", color="#d94801", markersize=4, label=curves.part
        )
    loss.set(title="Loss", ylabel=curves.loss)
    # The foremost is drawn last, on top.
    for (column, label), colour in reversed(
        list(zip(curves.shares.items(), _GREENS, strict=False))
    ):
        epochs, shares = _column(rows, column)
        percent = [100 * share for share in shares]
        text = f"{label}, {percent[-1]:.1f} at the end" if percent else label
        accuracy.plot(epochs, percent, "o-", color=colour, markersize=4, label=text)
    accuracy.set(title=curves.title, ylabel="per cent", ylim=(0, 103))
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
