"""From a configuration to a run folder."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils import deterministic

from convattn.config import FSDP2, ModelConfig, TrainConfig
from convattn.exceptions import Interrupted, LostProcess, NonFiniteError
from convattn.files import new_run_folder, replace_atomically, writing
from convattn.ownership import owned
from convattn.results import Results
from convattn.runs import Run
from convattn.runs.card import write_card
from convattn.runs.folder import CONFIG
from convattn.text import json_text, markdown_table, report, short_repr
from convattn.train.callbacks import (
    BestEpoch,
    Checkpoints,
    Ema,
    MetricsFile,
    ProgressLine,
    TrainingMetrics,
    kept_signals,
)
from convattn.train.checkpoints import WholeFiles, check_checkpoint
from convattn.train.curves import draw_curves
from convattn.train.fsdp import FullySharded, SharedBuffers, check_fsdp2, part_when_configured
from convattn.train.layer_sync import SyncBatchNorm
from convattn.train.loggers import check_loggers, make_loggers, quiet_writers
from convattn.train.processes import Heartbeat, check_processes, meet_by_srun, processes_of
from convattn.train.task import Job, TrainingTask, described_failure
from convattn.weights import write_weights


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished training."""

    folder: Path
    """The run folder."""
    result: Results
    """Of the saved weights on the test images."""
    figures: tuple[Path, ...]
    """``curves.png`` and what the task shows besides."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training leaves before it is tested."""

    weights: Mapping[str, Tensor]
    """By the model's names."""
    kept: str
    """Which weights these are, in words."""
    epoch: int
    """The epoch after which they were so, counted from 1."""
    seconds: float
    """Of the last sitting."""


def train(
    config: TrainConfig, open_job: Callable[[TrainConfig], Job], *, anew: bool = False
) -> TrainedRun | None:
    """Train a network and leave a run folder.

    Args:
        config: The whole run; ``num_classes`` None is taken from the data.
        open_job: Opens the data and says what is trained on them: a task's ``job``.
        anew: Whether ``config.out`` is there, of a run that was killed before it kept anything.

    Returns:
        The finished run; None in the processes that only help.

    Raises:
        ValueError: If the configuration, the data or the weights to start from do not fit.
        FileExistsError: If ``config.out`` exists.
        NonFiniteError: If the loss or a weight is no number any more.
        Interrupted: If the user stopped it.
    """
    check_loggers(config.logger)
    check_processes(config)
    config = _with_precision(config)
    with _deterministic(config.deterministic):
        job = open_job(config)
        _check_choice(job)
        checkpoint = config.model.checkpoint
        task = job.make_task(None if checkpoint is None else Path(checkpoint))
        folder = Path(str(config.out)) if anew else _new_folder(config)
        with _owned_by_first(folder):
            if rank_zero_only.rank == 0:
                (folder / "metrics.csv").unlink(missing_ok=True)
                replace_atomically(folder / "config.json", job.config.to_json().encode())
                report(_start_line(job, folder))
            return _finish(job, task, folder, checkpoint=None)


def _owned_by_first(folder: Path) -> AbstractContextManager[None]:
    """The run folder is the first process's alone; the others of the same training only help."""
    return owned(folder) if rank_zero_only.rank == 0 else nullcontext()


def _with_precision(config: TrainConfig) -> TrainConfig:
    gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    bfloat16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.with_precision(gpu=gpu, bfloat16=bfloat16)


def _start_line(job: Job, folder: Path) -> str:
    """What is trained, on what, from where, and into which folder."""
    config, data, model = job.config, job.data, job.config.model
    judging = "to validate on" if job.curves.part == "validation" else "to test on in between"
    start = model.checkpoint or ("released weights" if model.pretrained else "random weights")
    if model.backbone_weights is not None:
        start = f"the backbone of {model.backbone_weights}"
    cfg = data.cfg
    _, height, width = cfg["input_size"]
    seen = [f"{height} x {width} pixels"]
    if "crop_pct" in cfg:
        seen += [cfg["interpolation"], f"crop {cfg['crop_pct']:.4g}"]
    for name, word in (("mean", "mean"), ("std", "deviation")):
        seen.append(f"{word} {' '.join(f'{value:.3g}' for value in cfg[name])}")
    return (
        f"{model.title} from {start}, {cfg['num_classes']:,} classes of {config.data.name}: "
        f"{data.num_images:,} images to train on, {data.num_judging:,} {judging}; "
        f"seen as {', '.join(seen)}; into {folder}"
    )


def resume(run: Run, open_job: Callable[[TrainConfig], Job]) -> TrainedRun | None:
    """Go on with a run that was stopped or killed; it ends as if it never had been.

    Args:
        open_job: Opens the data and says what is trained on them: a task's ``job``.

    Returns:
        The finished run; None in the processes that only help.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        ValueError: If the run has ended, or its files do not fit each other.
    """
    with _owned_by_first(run.folder):
        return _resume(run, open_job)


def _resume(run: Run, open_job: Callable[[TrainConfig], Job]) -> TrainedRun | None:
    path, config = run.folder, run.config
    if run.has_ended:
        raise ValueError(
            f"{path} has ended: nothing is left to resume; to train its weights further start a "
            f"new run with --model.checkpoint {path}"
        )
    file = run.checkpoint
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no checkpoint yet; train anew with `convattn train {config.recipe}`"
        )
    with _deterministic(config.deterministic):
        job = open_job(_with_own_start(config, file))
        return _finish(job, _rewound(job, path, file), path, checkpoint=file)


def train_or_resume(
    config: TrainConfig, open_job: Callable[[TrainConfig], Job]
) -> TrainedRun | None:
    """Train, or go on with the same training where it was killed: a command that may be repeated.

    Args:
        config: The whole run, with ``out``.
        open_job: Opens the data and says what is trained on them: a task's ``job``.

    Returns:
        The finished run; None in the processes that only help, and if it had ended before.

    Raises:
        ValueError: If ``config.out`` holds another training.
    """
    folder = Path(str(config.out))
    if not (folder / CONFIG).is_file():
        return train(config, open_job)
    run = Run.open(folder)
    differing = _differing(json.loads(config.to_json()), json.loads(run.config.to_json()))
    if differing is not None:
        name, asked, there = differing
        raise ValueError(
            f"{folder} holds a training with {name}={short_repr(there)}, and this one has "
            f"{short_repr(asked)}; give the flags that it was begun with, or another --out"
        )
    if run.has_ended:
        report(f"{folder} has ended: there is nothing left to do")
        return None
    if run.checkpoint.is_file():
        return resume(run, open_job)
    return train(config, open_job, anew=True)


def _differing(
    asked: Mapping[str, Any], there: Mapping[str, Any], within: str = ""
) -> tuple[str, Any, Any] | None:
    """The first value that is another than was asked for: name and both; what is left open fits."""
    for name, value in asked.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            found = _differing(value, other, f"{within}{name}.")
            if found is not None:
                return found
        elif value not in (None, "auto", {}) and value != other:
            return f"{within}{name}", value, other
    return None


def fit(config: TrainConfig, open_job: Callable[[TrainConfig], Job], folder: Path) -> Fitted | None:
    """Train in a folder that is there, or go on from the checkpoint in it; nothing is tested.

    Args:
        config: The whole run; its ``out`` is not heeded.
        open_job: Opens the data and says what is trained on them.
        folder: Where ``metrics.csv`` and the checkpoint are kept.

    Returns:
        What was trained; None in the processes that only help.

    Raises:
        ValueError: As ``train``.
        NonFiniteError: If the loss or a weight is no number any more.
        Interrupted: If the user stopped it.
    """
    config = _with_precision(config)
    file = folder / "checkpoints" / "last.ckpt"
    start = config.model.checkpoint
    with _deterministic(config.deterministic):
        job = open_job(config)
        _check_choice(job)
        if file.is_file():
            return _fit(job, _rewound(job, folder, file), folder, checkpoint=file)
        (folder / "metrics.csv").unlink(missing_ok=True)  # of a training killed before it kept any
        task = job.make_task(None if start is None else Path(start))
        return _fit(job, task, folder, checkpoint=None)


def _rewound(job: Job, folder: Path, checkpoint: Path) -> TrainingTask:
    """The task of a training that goes on; rows after the checkpoint are taken back."""
    task = job.make_task(None)
    step = check_checkpoint(checkpoint, task, job.data)
    if rank_zero_only.rank == 0:
        MetricsFile(folder / "metrics.csv", job.curves.columns).rewind(step)
    return task


def _with_own_start(config: TrainConfig, checkpoint: Path) -> TrainConfig:
    """The run as if it started from its own checkpoint, if it did from a file, now perhaps gone."""
    if config.model.checkpoint is None and config.model.backbone_weights is None:
        return config
    own = replace(config.model, checkpoint=str(checkpoint), backbone_weights=None)
    return replace(config, model=own)


def _finish(
    job: Job, task: TrainingTask, folder: Path, *, checkpoint: Path | None
) -> TrainedRun | None:
    """Train to the end, save the weights, test them and show them."""
    try:
        fitted = _fit(job, task, folder, checkpoint=checkpoint)
    except (Interrupted, NonFiniteError) as error:
        raise type(error)(f"{error}; {_advice(error, folder)}") from None
    if fitted is None:
        return None
    _save_weights(folder / "model.safetensors", fitted.weights, job.data.cfg)
    with _quiet():
        return _show(job, folder, fitted)


def _fit(job: Job, task: TrainingTask, folder: Path, *, checkpoint: Path | None) -> Fitted | None:
    config, data = job.config, job.data
    metrics = TrainingMetrics(
        log_every=config.log_every,
        batch_size=config.data.batch_size,
        steps_per_epoch=data.steps_per_epoch,
        curves=job.curves,
    )
    checkpoints = Checkpoints(
        folder / "checkpoints" / "last.ckpt",
        every=config.checkpoint_every,
        minutes=config.checkpoint_minutes,
        check_every=config.log_every,
    )
    ema = None if config.ema_decay is None else Ema(config.ema_decay)
    best = BestEpoch(job.curves, keep=config.keep == "best", patience=config.patience, ema=ema)
    heartbeat = Heartbeat(lambda: _advice(LostProcess(), folder))
    fully_sharded = config.strategy == FSDP2
    check_fsdp2(config)
    if config.grad_checkpointing:
        task.model.set_grad_checkpointing()  # type: ignore[operator]
    if fully_sharded:
        part_when_configured(task)
    progress = ProgressLine(metrics, num_steps=config.epochs * data.steps_per_epoch)
    callbacks: list[Callback] = [
        metrics,
        *([] if ema is None else [ema]),
        *([best] if config.chooses else []),
        *([SharedBuffers()] if fully_sharded else []),
        progress,
        checkpoints,
        heartbeat,
    ]
    with _quiet():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            **processes_of(config),
            strategy=FullySharded() if fully_sharded else config.strategy,
            precision=config.precision,
            plugins=[WholeFiles(), *([SyncBatchNorm()] if config.sync_batchnorm else [])],
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_grad,
            check_val_every_n_epoch=config.eval_every,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            logger=[
                MetricsFile(folder / "metrics.csv", job.curves.columns),
                *make_loggers(config.logger, folder),
            ],
            callbacks=callbacks,
        )
        if config.compile:
            task.model.compile()
        # Lightning's processes wait half an hour for each other, in the same store.
        met = meet_by_srun(_advice(LostProcess(), folder))
        started = time.monotonic()
        with (
            kept_signals(),
            writing(folder / "metrics.csv"),
            quiet_writers(),
            described_failure(lambda: heartbeat.told),
        ):
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        del met
        seconds = time.monotonic() - started
        last = trainer.strategy.lightning_module_state_dict() if ema is None else ema.averaged()
        if not trainer.is_global_zero:
            return None
        # Lightning leaves the averaged weights in place only if it has trained a step.
        weights = best.weights or last
        return Fitted(
            weights=_of_model(weights),
            kept=f"of epoch {best.epoch}, {best.words}" if best.weights else "of the last epoch",
            epoch=best.epoch if best.weights else trainer.current_epoch,
            seconds=seconds,
        )


def _of_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a task that are its model's, by the model's names, on the CPU."""
    prefix = "model."
    return {
        name.removeprefix(prefix): tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def _check_choice(job: Job) -> None:
    """Refuse to choose by the test images."""
    config = job.config
    if config.chooses and job.curves.part != "validation":
        flag = f"keep={config.keep}" if config.keep == "best" else f"patience={config.patience}"
        raise ValueError(
            f"{flag} chooses by validation images, and {config.data.name} has none beside its test "
            "images; set some aside with --val-share 0.2, or leave it out"
        )


def _advice(error: Exception, folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return "there is nothing to resume"
    if isinstance(error, NonFiniteError):
        return (
            f"{last} holds the last good weights; train anew from them with --model.checkpoint "
            f"{last} and a smaller --optim.lr, or with --clip-grad 1"
        )
    return f"resume with: convattn train --resume {shlex.quote(str(folder))}"


def _new_folder(config: TrainConfig) -> Path:
    """The run folder: made by the first process, only named by the others."""
    usual = f"runs/{config.recipe}"
    if rank_zero_only.rank != 0:
        return Path(config.out or usual)
    return new_run_folder(config.out, usual, "convattn train --resume")


def _save_weights(file: Path, weights: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> None:
    """What inference needs: the model's tensors, and as metadata what its images need."""
    write_weights(file, weights, {"pretrained_cfg": json_text(cfg)})


def _show(job: Job, folder: Path, fitted: Fitted) -> TrainedRun:
    """Test what was saved, as anyone would load it, and draw the figures and write the report."""
    config = job.config
    model = Run.open(folder).load_model()
    title = f"{config.recipe}: {config.model.title} on {config.data.name}"
    curves = folder / "curves.png"
    draw_curves(folder / "metrics.csv", curves, curves=job.curves, title=title)
    result, figures = job.show(model, folder, title=title)
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    write_card(folder)
    run = TrainedRun(folder=folder, result=result, figures=(curves, *figures))
    text = _report(config, run, fitted, augmented=job.augmented)
    replace_atomically(folder / "report.md", text.encode())  # the last: it says that all is there
    return run


def _report(config: TrainConfig, run: TrainedRun, fitted: Fitted, *, augmented: str) -> str:
    """``report.md``."""
    result, folder = run.result, shlex.quote(str(run.folder))
    optim, data = config.optim, config.data
    summary = [
        ("recipe", config.recipe),
        ("model", " ".join([config.model.title, *_arguments(config.model)])),
        ("augmented", augmented),
        ("data", data.name),
        ("epochs", f"{config.epochs} of batches of {data.batch_size}"),
        ("optimiser", f"{optim.opt}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}"),
        ("schedule", f"{optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up"),
        ("weights", fitted.kept),
        ("averaged weights", "no" if config.ema_decay is None else f"decay {config.ema_decay}"),
        ("precision", config.precision),
        ("seed", str(config.seed)),
        ("training time of the last sitting", f"{fitted.seconds / 60:.1f} minutes"),
    ]
    figures = "\n".join(f"![{file.stem}]({file.name})\n" for file in run.figures)
    return (
        f"# {config.recipe}\n\n"
        f"On {result.num_images:,} test images of {data.name}:\n\n"
        f"{result.markdown()}\n\n"
        f"{figures}\n"
        f"## What was trained\n\n{markdown_table(('setting', 'value'), summary)}\n\n"
        "`config.json` holds every setting, `metrics.csv` every row of the curves.\n\n"
        "## Again\n\n"
        "```sh\n"
        f"convattn evaluate {folder}          # test model.safetensors again\n"
        f"convattn train --resume {folder}    # had it been stopped: go on\n"
        "```\n"
    )


def _arguments(model: ModelConfig) -> list[str]:
    arguments = {**model.backbone_args, **model.model_args}
    return [f"{name}={value}" for name, value in arguments.items()]


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms inside the block only."""
    before = torch.are_deterministic_algorithms_enabled()
    settings = cast(Any, deterministic)
    fill = settings.fill_uninitialized_memory
    if wanted:
        # cuBLAS reads this when it starts; without it its sums are in no fixed order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory guards against reading it unset; here it would only cost time.
        settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


_HINTS = (
    r"The '\w+' does not have many workers",
    # The datamodule restores the place in the epoch itself.
    r"You're resuming from a checkpoint that ended before the epoch ended",
    r"Checkpoint directory .* exists and is not empty",
    r"Experiment logs directory .* exists and is not empty",
    # DDP's remark on the layout of depthwise kernels' gradients, which costs nothing noticeable.
    r"Grad strides do not match bucket view strides",
    # Which is what augment.freeze does to the frozen BatchNorms.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
)
"""Beginnings of Lightning's hints that tell a user of the recipes nothing."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints and its report of the hardware to itself."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for hint in _HINTS:
            warnings.filterwarnings("ignore", message=hint)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
