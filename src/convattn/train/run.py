"""From a configuration to a run folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils import deterministic

from convattn.evaluate import (
    Result,
    augment_arguments,
    evaluate,
    load_run,
    make_numbered_folder,
    plan_model,
    replace_atomically,
    tensor_differences,
)
from convattn.explain import attention_layers
from convattn.train.callbacks import (
    Checkpoints,
    Ema,
    MetricsFile,
    ProgressLine,
    TrainingMetrics,
    draw_attention,
    draw_curves,
)
from convattn.train.classification import ClassificationTask
from convattn.train.config import TrainConfig
from convattn.train.datamodule import ClassificationData
from convattn.train.exceptions import InterruptedTraining, NonFiniteError
from convattn.train.inputs import pretrained_cfg, test_batches
from convattn.train.seeding import seed_all

_NUM_PICTURES = 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training."""

    folder: Path
    """The run folder."""
    result: Result
    """Of the saved weights on the test pictures."""
    attention: Path | None
    """``attention.png``, or None for a network without attention."""


def train(config: TrainConfig) -> Run | None:
    """Train a network and leave a run folder.

    Args:
        config: The whole run; ``num_classes`` None is taken from the data.

    Returns:
        The finished run; None in the processes that only help.

    Raises:
        ValueError: If the configuration, the data or the weights to start from do not fit.
        FileExistsError: If ``config.out`` exists.
        NonFiniteError: If the loss or a weight is no number any more.
        InterruptedTraining: If the user stopped it.
    """
    with _deterministic(config.deterministic):
        data = ClassificationData(config.data, seed=config.seed, accumulate=config.accumulate)
        config = _with_classes(config, len(data.source.class_names))
        checkpoint = config.model.checkpoint
        task = _task(config, data, checkpoint=None if checkpoint is None else Path(checkpoint))
        folder = _new_folder(config)
        if rank_zero_only.rank == 0:
            replace_atomically(folder / "config.json", config.to_json().encode())
        return _fit(config, data, task, folder, checkpoint=None)


def resume(folder: str | os.PathLike[str]) -> Run | None:
    """Go on with a run that was stopped or killed; it ends as if it never had been.

    Args:
        folder: The run folder.

    Returns:
        The finished run; None in the processes that only help.

    Raises:
        FileNotFoundError: If the folder is no run or has no checkpoint.
        ValueError: If the run has ended, or its files do not fit each other.
    """
    path = Path(folder)
    config = TrainConfig.load(path / "config.json")
    if (path / "report.md").exists():
        raise ValueError(
            f"{path} has ended: nothing is left to resume; to train its weights further start a "
            f"new run with --model.checkpoint {path}"
        )
    file = path / "checkpoints" / "last.ckpt"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no checkpoint yet; train anew with `convattn train {config.recipe}`"
        )
    with _deterministic(config.deterministic):
        data = ClassificationData(config.data, seed=config.seed, accumulate=config.accumulate)
        config = _with_classes(config, len(data.source.class_names))
        task = _task(config, data, checkpoint=None)
        step = _check_checkpoint(file, task)
        if rank_zero_only.rank == 0:
            MetricsFile(path / "metrics.csv").rewind(step)
        return _fit(config, data, task, path, checkpoint=file)


def _fit(
    config: TrainConfig,
    data: ClassificationData,
    task: ClassificationTask,
    folder: Path,
    *,
    checkpoint: Path | None,
) -> Run | None:
    metrics = TrainingMetrics(
        log_every=config.log_every,
        batch_size=config.data.batch_size,
        steps_per_epoch=data.steps_per_epoch,
    )
    checkpoints = Checkpoints(
        folder / "checkpoints" / "last.ckpt",
        every=config.checkpoint_every,
        minutes=config.checkpoint_minutes,
        check_every=config.log_every,
    )
    ema = None if config.ema_decay is None else Ema(config.ema_decay)
    progress = ProgressLine(metrics, num_steps=config.epochs * data.steps_per_epoch)
    callbacks: list[Callback] = [metrics, *([] if ema is None else [ema]), progress, checkpoints]
    with _quiet():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            num_nodes=config.num_nodes,
            precision=config.precision,
            sync_batchnorm=config.sync_batchnorm,
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
                MetricsFile(folder / "metrics.csv"),
                TensorBoardLogger(folder, name="", version="tensorboard"),
            ],
            callbacks=callbacks,
        )
        if config.compile:
            task.model.compile()
        started = time.monotonic()
        try:
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        except (InterruptedTraining, NonFiniteError) as error:
            saved = checkpoints.saved_step is not None or checkpoint is not None
            raise type(error)(f"{error}; {_advice(error, folder, saved=saved)}") from None
        seconds = time.monotonic() - started
        if not trainer.is_global_zero:
            return None
        # Lightning leaves the averaged weights in place only if it has trained a step.
        weights = task.state_dict() if ema is None else ema.averaged()
        _save_weights(
            folder / "model.safetensors", weights, pretrained_cfg(config.data, data.source)
        )
        return _show(config, data, folder, seconds=seconds)


def _advice(error: Exception, folder: Path, *, saved: bool) -> str:
    if not saved:
        return "there is nothing to resume"
    last = folder / "checkpoints" / "last.ckpt"
    if isinstance(error, NonFiniteError):
        return (
            f"{last} holds the last good weights; train anew from them with --model.checkpoint "
            f"{last} and a smaller --optim.lr, or with --clip-grad 1"
        )
    return f"resume with: convattn train --resume {shlex.quote(str(folder))}"


def _task(
    config: TrainConfig, data: ClassificationData, *, checkpoint: Path | None
) -> ClassificationTask:
    """The task of a configuration, its random start given by the seed."""
    seed_all(config.seed)
    optim = config.optim
    assert config.model.num_classes is not None
    return ClassificationTask(
        config.model.name,
        num_classes=config.model.num_classes,
        in_chans=data.source.in_chans,
        pretrained=config.model.pretrained,
        drop_rate=config.model.drop_rate,
        drop_path_rate=config.model.drop_path_rate,
        model_args=config.model.model_args,
        checkpoint=checkpoint,
        augment=_augment_arguments(config, data),
        freeze=config.augment.freeze,
        loss=optim.loss,
        label_smoothing=config.data.label_smoothing,
        mixup=config.data.mixup,
        cutmix=config.data.cutmix,
        epochs=config.epochs,
        optimizer_args={
            "opt": optim.opt,
            "lr": optim.lr,
            "weight_decay": optim.weight_decay,
            "momentum": optim.momentum,
            "betas": optim.betas,
            "opt_args": optim.opt_args,
            "layer_decay": optim.layer_decay,
            "new_lr_scale": config.augment.lr_scale,
        },
        schedule_args={
            "schedule": optim.schedule,
            "warmup_epochs": optim.warmup_epochs,
            "warmup_lr": optim.warmup_lr,
            "min_lr": optim.min_lr,
            "decay_rate": optim.decay_rate,
            "decay_epochs": optim.decay_epochs,
            "decay_milestones": optim.decay_milestones,
        },
        channels_last=config.channels_last,
        seed=config.seed,
    )


def _augment_arguments(config: TrainConfig, data: ClassificationData) -> dict[str, Any] | None:
    """What ``convattn.augment`` is called with, None if no attention is added."""
    size = pretrained_cfg(config.data, data.source)["input_size"]
    return augment_arguments(dataclasses.asdict(config.augment), size)


def _with_classes(config: TrainConfig, num_classes: int) -> TrainConfig:
    """The configuration with the number of classes of the data."""
    given = config.model.num_classes
    if given is not None and given != num_classes:
        raise ValueError(
            f"model.num_classes={given}, but {config.data.name} has {num_classes} classes; leave "
            "model.num_classes out"
        )
    model = dataclasses.replace(config.model, num_classes=num_classes)
    return dataclasses.replace(config, model=model)


def _new_folder(config: TrainConfig) -> Path:
    """The run folder: made by the first process, only named by the others."""
    first = rank_zero_only.rank == 0
    if config.out is not None:
        folder = Path(config.out)
        if first:
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                raise FileExistsError(
                    f"{folder} exists and is never overwritten; give another --out, or go on with "
                    f"`convattn train --resume {folder}`"
                ) from None
        return folder
    folder = Path("runs") / config.recipe
    return make_numbered_folder(folder) if first else folder


def _check_checkpoint(file: Path, task: ClassificationTask) -> int:
    """The step of a checkpoint that fits the task."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged ({' '.join(str(error).split())}); train anew"
        ) from None
    differences = tensor_differences(content["state_dict"], task.state_dict())
    if differences:
        raise ValueError(
            f"{file} is of another model than config.json, {differences}; restore config.json"
        )
    return int(content["global_step"])


def _save_weights(file: Path, weights: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> None:
    """What inference needs: the model's tensors, and as metadata what its pictures need."""
    prefix = "model."
    tensors = {
        name.removeprefix(prefix): tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    content = safetensors.torch.save(tensors, {"pretrained_cfg": json.dumps(cfg)})
    replace_atomically(file, content)


def _show(config: TrainConfig, data: ClassificationData, folder: Path, *, seconds: float) -> Run:
    """Test what was saved, as anyone would load it, and write the pictures and the report."""
    source = data.source
    model, _ = load_run(folder)
    loader, boxes = test_batches(config.data, source, pretrained_cfg(config.data, source))
    result = evaluate(model, loader, class_names=source.class_names, boxes=boxes)
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    title = f"{config.recipe}: {config.model.name} on {config.data.name}"
    draw_curves(folder / "metrics.csv", folder / "curves.png", title=title)
    attention = folder / "attention.png" if attention_layers(model) else None
    if attention is not None:
        dataset = loader.dataset
        items = [dataset[index] for index in range(min(_NUM_PICTURES, len(source.test)))]
        draw_attention(
            model.cpu(),
            torch.stack([image for image, _ in items]),
            [label for _, label in items],
            attention,
            class_names=source.class_names,
            mean=source.mean,
            std=source.std,
            boxes=boxes,
            title=f"{title}: where it looks ({result.top1:.1%} right)",
        )
    run = Run(folder=folder, result=result, attention=attention)
    augmented = _augmented(config, data)
    report = _report(config, run, seconds, augmented=augmented)
    replace_atomically(folder / "report.md", report.encode())
    return run


def _augmented(config: TrainConfig, data: ClassificationData) -> str:
    """What attention the network was given, in a line."""
    arguments = _augment_arguments(config, data)
    if arguments is None:
        return "no"
    found = plan_model(
        config.model.name,
        arguments,
        num_classes=config.model.num_classes,
        in_chans=data.source.in_chans,
        **config.model.model_args,
    )
    augment = config.augment
    parts = []
    if augment.pool is not None:
        parts.append(f"pool {augment.pool}")
    if augment.conv:
        replaced = sum(conv.replaced for conv in found.convs)
        parts.append(f"conv {' '.join(augment.conv)}")
        parts.append(f"{replaced} of {len(found.convs)} convolutions")
    parts.append(f"{(found.params_after - found.params) / 1e6:+.2f} M parameters")
    if augment.lr_scale != 1:
        parts.append(f"new layers' learning rate times {augment.lr_scale:g}")
    if augment.freeze:
        parts.append("all but attention and classifier frozen")
    return ", ".join(parts)


def _report(config: TrainConfig, run: Run, seconds: float, *, augmented: str) -> str:
    """``report.md``."""
    result, folder = run.result, shlex.quote(str(run.folder))
    rows = [
        ("top-1", f"{result.top1:.2%}"),
        ("top-5", f"{result.top5:.2%}"),
        ("cross-entropy", f"{result.loss:.4f}"),
    ]
    if result.peak_in_box is not None and result.energy_in_box is not None:
        rows.append(("attention peak inside the object's box", f"{result.peak_in_box:.2%}"))
        rows.append(("attention inside the object's box", f"{result.energy_in_box:.2%}"))
    optim, data = config.optim, config.data
    summary = [
        ("recipe", config.recipe),
        ("model", " ".join([config.model.name, *_arguments(config.model.model_args)])),
        ("augmented", augmented),
        ("data", data.name),
        ("epochs", f"{config.epochs} of batches of {data.batch_size}"),
        ("optimiser", f"{optim.opt}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}"),
        ("schedule", f"{optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up"),
        ("averaged weights", "no" if config.ema_decay is None else f"decay {config.ema_decay}"),
        ("precision", config.precision),
        ("seed", str(config.seed)),
        ("training time of the last sitting", f"{seconds / 60:.1f} minutes"),
    ]
    pictures = "![curves](curves.png)\n"
    if run.attention is not None:
        pictures += "\n![attention](attention.png)\n"
    return (
        f"# {config.recipe}\n\n"
        f"On {result.num_images:,} test pictures of {data.name}:\n\n"
        f"{_markdown_table(('result', 'value'), rows)}\n"
        f"{pictures}\n"
        f"## What was trained\n\n{_markdown_table(('setting', 'value'), summary)}\n"
        "`config.json` holds every setting, `metrics.csv` every row of the curves.\n\n"
        "## Again\n\n"
        "```sh\n"
        f"convattn evaluate {folder}          # test model.safetensors again\n"
        f"convattn train --resume {folder}    # had it been stopped: go on\n"
        "```\n"
    )


def _arguments(arguments: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in arguments.items()]


def _markdown_table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [header, ("---", "---"), *rows]
    return "".join(f"| {left} | {right} |\n" for left, right in lines)


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
