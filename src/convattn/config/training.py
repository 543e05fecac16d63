"""How a network is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from convattn.config.data import DataConfig
from convattn.config.model import AugmentConfig, ModelConfig, Scalar
from convattn.config.numbers import check_numbers, nearest_multiple, require_at_least
from convattn.config.reading import RESTORE, build, parse
from convattn.text import json_text


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The loss, the optimiser and the schedule of its learning rate."""

    loss: Literal["cross_entropy", "bce", "focal"] = "cross_entropy"
    """cross_entropy; bce: one yes-or-no question a class; or focal: cross_entropy, or bce where
    images have several classes, in which images count less the surer the network is of them."""
    class_weights: Literal["balanced"] | None = None
    """balanced: the loss of an image counts inversely to how frequent its class is; where images
    have several classes, the yes of each as much as all its noes."""
    freeze_batch_norm: bool = False
    """Classification: every BatchNorm keeps the statistics that it has in the weights that training
    starts from; its scale and shift are trained."""
    opt: str = "adamw"
    """timm's name of an optimiser, for example sgd, adamw, lamb or rmsproptf."""
    lr: float = 1e-3
    """Highest learning rate, for the whole batch_size; nothing rescales it."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels; biases, norms and class tokens get none."""
    momentum: float = 0.9
    """Momentum of the optimisers that have one."""
    betas: tuple[float, float] | None = None
    """Decay of the first and second moment, for Adam's family; None keeps the default."""
    opt_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the optimiser, for example nesterov True."""
    layer_decay: float | None = None
    """Factor on the learning rate per layer, from the classifier down; None: the same for all."""
    schedule: Literal["cosine", "step", "multistep", "poly", "constant"] = "cosine"
    """How the learning rate falls; it is set anew before every optimiser step."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises, in a straight line."""
    warmup_lr: float = 0.0
    """Learning rate of the very first step of the warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine or poly schedule."""
    decay_rate: float = 0.1
    """Factor at each step of a step or multistep schedule; the power of a poly schedule."""
    decay_epochs: float = 30.0
    """Epochs between two steps of a step schedule."""
    decay_milestones: tuple[int, ...] = ()
    """Epochs at which a multistep schedule steps down."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr} must be above 0, for example 0.001")
        check_numbers(self, "optim.")
        if self.schedule == "multistep" and not self.decay_milestones:
            raise ValueError(
                "optim.schedule=multistep needs optim.decay_milestones, for example 30 60 80"
            )


FSDP2 = "fsdp2"
"""The strategy that shares weights out among processes."""

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
"""Where curves may go beside ``metrics.csv``."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run."""

    recipe: str = "custom"
    """Name of the recipe that the run started from; it names the run folder."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 10
    """Times that the training images are gone through."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same weights."""
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"] = "auto"
    """Number format; the mixed ones keep float32 weights. auto: mixed on a GPU where training
    starts from weights, else 32-true."""
    accelerator: str = "auto"
    """cpu, gpu, mps, ... as Lightning names them; auto takes the fastest there is."""
    devices: int | Literal["auto"] = "auto"
    """Number of devices a machine; on the CPU, of processes."""
    strategy: str = "auto"
    """How several devices work together, as Lightning names it, for example ddp; classification:
    fsdp2 shares weights, gradients and the optimiser's memory out among them."""
    num_nodes: int = 1
    """Number of machines."""
    sync_batchnorm: bool = False
    """Normalise over the batches of all GPUs together."""
    accumulate: int = 1
    """Parts that a batch is split into to save memory; the step is the same but for BatchNorm."""
    clip_grad: float | None = None
    """Largest norm of the gradient; None does not clip."""
    ema_decay: float | None = None
    """Decay a step of the averaged weights that are tested and saved; None: no average."""
    channels_last: bool = False
    """Keep images and kernels channels-last, which is faster on recent GPUs."""
    grad_checkpointing: bool = False
    """Compute what blocks keep for the backward pass once more there, which saves memory."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = True
    """Use deterministic algorithms only, so that a seed gives the same weights on a GPU, too."""
    eval_every: int = 1
    """Epochs between two looks at the validation images, or the test images, during training."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights are saved and tested: those of the last, or of the best by the
    validation part (data.val_share); of equal ones the one of the least loss, then the first."""
    patience: int | None = None
    """Epochs without a better one by the validation part after which training stops; None: never
    before the last."""
    logger: tuple[LoggerName, ...] = ("tensorboard",)
    """Where curves go beside metrics.csv: any of tensorboard, csv, wandb, mlflow, by Lightning."""
    log_every: int = 20
    """Optimiser steps between two rows of metrics.csv."""
    checkpoint_every: int = 0
    """Optimiser steps between two checkpoints inside an epoch; 0: by the clock only."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints inside an epoch; one is always written at its end."""
    out: str | None = None
    """Run folder to make; None makes runs/RECIPE, or runs/RECIPE-2 where that is taken."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_at_least("epochs", self.epochs, 1)
        if self.chooses and self.eval_every > self.epochs:
            raise ValueError(
                f"eval_every={self.eval_every} looks at no epoch of {self.epochs}, and keep and "
                f"patience choose by what is seen; give at most {self.epochs}"
            )
        if self.optim.freeze_batch_norm and not self.model.is_trained:
            raise ValueError(
                "optim.freeze_batch_norm keeps the statistics of trained weights, and training "
                "starts from random ones; name some with model.checkpoint, or leave it out"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1, as 0.999 does")
        if self.data.sampler == "balanced" and self.optim.class_weights == "balanced":
            raise ValueError(
                "data.sampler=balanced and optim.class_weights=balanced both make up for rare "
                "classes; give one of them"
            )
        if self.data.batch_size % self.accumulate:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} is not divisible by "
                f"accumulate={self.accumulate}; nearest that works: "
                f"{nearest_multiple(self.data.batch_size, self.accumulate)}"
            )

    @property
    def chooses(self) -> bool:
        """Whether the validation part decides which epoch is kept, or how many there are."""
        return self.keep == "best" or self.patience is not None

    @property
    def balances_classes(self) -> bool:
        """Whether training makes up for rare classes."""
        return self.data.sampler == "balanced" or self.optim.class_weights == "balanced"

    def check_task(self, task: str) -> None:
        """Refuse what has no meaning for a task.

        Args:
            task: What the model is for, a key of ``convattn.tasks.TASKS``.

        Raises:
            ValueError: If a field of another task was set.
        """
        if self.strategy in _REFUSED_STRATEGIES[task]:
            raise ValueError(
                f"strategy={self.strategy} is for classifiers, and {self.model.name} is for "
                f"{task}; train it by ddp"
            )
        for path, default in _UNUSED[task].items():
            part, name = path.split(".")
            value = getattr(getattr(self, part), name)
            if value != default:
                raise ValueError(
                    f"{path}={value!r} has no meaning for {task} with {self.model.name}; leave it "
                    "out"
                )

    def with_precision(self, *, gpu: bool, bfloat16: bool) -> TrainConfig:
        """The configuration with the number format that "auto" means on a machine.

        Args:
            gpu: Whether a CUDA GPU trains.
            bfloat16: Whether that computes in bfloat16.
        """
        if self.precision != "auto":
            return self
        if not gpu or not self.model.is_trained:
            return dataclasses.replace(self, precision="32-true")
        return dataclasses.replace(self, precision="bf16-mixed" if bfloat16 else "16-mixed")

    def with_classes(self, num_classes: int) -> TrainConfig:
        """The configuration with the number of classes of the data.

        Args:
            num_classes: Without the background.

        Raises:
            ValueError: If another one was asked for.
        """
        given = self.model.num_classes
        if given is not None and given != num_classes:
            raise ValueError(
                f"model.num_classes={given}, but {self.data.name} has {num_classes} classes; leave "
                "model.num_classes out"
            )
        model = dataclasses.replace(self.model, num_classes=num_classes)
        return dataclasses.replace(self, model=model)

    def to_json(self) -> str:
        """The configuration as JSON text, every field spelled out."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(
        cls, text: str, source: str = "the configuration", *, required: Sequence[str] = ()
    ) -> TrainConfig:
        """Read back what ``to_json`` wrote.

        Args:
            text: The JSON text; a field that is left out keeps its default.
            source: Where the text came from, for error messages.
            required: Fields that must not be left out, for example ``model.name``.

        Raises:
            ValueError: If it is no JSON, lacks a field, or holds a field that does not exist or has
                a wrong type.
        """
        values = _with_paper_pool(parse(text, source))
        config: TrainConfig = build(cls, values, source, "")
        for path in required:
            found = values
            for name in path.split("."):
                if name not in found:
                    raise ValueError(f"{source}: {path} is missing; {RESTORE}")
                found = found[name]
        return config


def _with_paper_pool(values: Any) -> Any:
    """What "attention" meant in files from before ``pool_norm``: the paper's block."""
    augment = values.get("augment") if isinstance(values, dict) else None
    if not isinstance(augment, dict) or "pool_heads" not in augment or "pool_norm" in augment:
        return values
    old = dict(augment)
    if old.get("pool") == "attention":
        old["pool"] = "aggregation"
    if old.get("pool") is None:
        old |= {"pool_heads": None, "mlp_ratio": None}
    return values | {"augment": old}


def _defaults(part: str, kind: type[Any], *names: str) -> dict[str, Any]:
    """Path of each field -> its default."""
    default = kind()
    return {f"{part}.{name}": getattr(default, name) for name in names}


_OF_CLASSIFIERS = (
    _defaults(
        "data",
        DataConfig,
        "scale",
        "ratio",
        "random_crop_padding",
        "auto_augment",
        "random_erasing",
        "mixup",
        "cutmix",
        "label_smoothing",
        "interpolation",
        "crop_pct",
        "path_column",
        "labels_column",
        "in_chans",
        "sampler",
    )
    | _defaults("model", ModelConfig, "drop_rate")
    | _defaults("augment", AugmentConfig, "pool")
    | _defaults("optim", OptimConfig, "loss", "class_weights", "freeze_batch_norm")
)

_OF_DENSE = _defaults("data", DataConfig, "scale_jitter", "crop_size", "split")
_OF_DENSE |= _defaults("model", ModelConfig, "backbone", "backbone_args", "backbone_weights")

_OF_DETECTORS = _defaults("data", DataConfig, "max_size", "annotations", "empty_images")

_UNUSED = {
    "classification": _OF_DENSE | _OF_DETECTORS,
    "detection": _OF_CLASSIFIERS,
    "segmentation": _OF_CLASSIFIERS | _OF_DETECTORS,
}
"""Task -> the fields that it does not heed."""

_REFUSED_STRATEGIES = {"classification": (), "detection": (FSDP2,), "segmentation": (FSDP2,)}
"""Task -> the strategies that cannot train its networks."""
