"""What a run is: frozen dataclasses that a recipe fills and ``config.json`` keeps; no torch.

They stop at the front door: models, transforms and optimisers take flat arguments.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from convattn.text import json_text, nearest

Scalar = bool | int | float | str

_EMBEDDINGS = (".npy", ".safetensors")

DataFormat = Literal["auto", "folder", "table", "coco", "yolo", "voc", "labelme", "masks"]
"""How a person's own data hold what is known of each image."""

BadAnnotations = Literal["error", "skip"]
"""Whether a faulty entry of a data set stops the loading, or is left out and counted."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are cropped, augmented and grouped."""

    name: str = "cluttered_digits"
    """Name of the data set; `convattn list --data` shows them all."""
    root: str | None = None
    """Folder that holds the data set, its table or its shards, as 'OUT/train-{000000..000003}.tar';
    sets that are generated need none."""
    format: DataFormat = "auto"
    """How the folder or file holds what is known of its images; auto looks, and says what it
    took."""
    path_column: str | None = None
    """Tables: the column of the images' paths; None: the one whose name says so."""
    labels_column: str | None = None
    """Tables: the column of their classes, alike."""
    annotations: str | None = None
    """Detection: name of the COCO json before _train2017.json; None: instances."""
    bad_annotations: BadAnnotations = "error"
    """Tables, detection and segmentation: refuse a set with faulty annotations, or leave them
    out."""
    bad_images: Literal["error", "skip"] = "error"
    """Stop at an image file that cannot be read, or go on: in training the next image takes its
    place, from a test it is left out. Each is told once."""
    empty_images: Literal["keep", "skip", "error"] = "keep"
    """Detection: what is done with training images that show no object."""
    group: str | None = None
    """Your own data without splits, or with val_share: a regular expression; images in whose paths
    it (or its group) finds the same are in one part, for example (patient[0-9]+)_."""
    split: str | None = None
    """Detection and segmentation: the split that is the test set, val or test; None: val where
    there are both."""
    val_share: float | None = None
    """Share of the training images that is set aside, drawn by the seed; every epoch is validated
    on it, and the test images are looked at once, at the end. Classification: validation images
    that the data set has itself, beside test images, are taken instead. None without such: every
    epoch is tested."""
    ignore_unknown: bool = False
    """Tests: leave out and count what is of a class that the network does not know."""
    download: bool = False
    """Fetch the data set into root when it is missing."""
    in_chans: int | None = None
    """Folders and tables: channels that the network sees; 1 for grey, None for RGB, any other
    number for the bands of the files themselves."""
    image_size: int | None = None
    """Height and width that the network sees, in pixels; None: what the weights want that training
    starts from, else the images' own size. Detection and segmentation: length of the shorter
    side."""
    max_size: int | None = None
    """Detection: longest side that a resized image may get, in pixels; None: 5/3 of the other."""
    scale_jitter: tuple[float, float] | None = None
    """Detection and segmentation: factor by which a training image is resized, from and to."""
    crop_size: tuple[int, int] | None = None
    """Detection and segmentation: height and width of training crops; what is smaller is padded."""
    num_train: int | None = None
    """Number of training images to make or keep; None means all."""
    num_test: int | None = None
    """Number of test images to make or keep; None means all."""
    batch_size: int = 128
    """Images per optimiser step, over all devices and accumulated batches together."""
    sampler: Literal["shuffle", "balanced", "shards"] = "shuffle"
    """Classification: every image once an epoch; or as many, drawn so that all classes are equally
    frequent; or every image once, of eight shards at a time, for storage that is slow to seek."""
    num_workers: int = 0
    """Processes that load images, per device; 0 loads them in the training process."""
    prefetch_factor: int | None = None
    """Training: batches that each of these processes has ready in advance; None: 2."""
    persistent_workers: bool | None = None
    """Training: whether these processes stay from epoch to epoch; None: they do."""
    pin_memory: bool | None = None
    """Training: whether batches wait in memory that a GPU copies from while it computes; None:
    where one trains."""
    repeated_augmentation: int = 1
    """Times that an image stands in a row in an epoch, each augmented anew; the epoch shows as
    many fewer images and is as long as before."""
    scale: tuple[float, float] | None = None
    """Share of the image's area that a random crop keeps, lowest and highest; None: no crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of that random crop, lowest and highest."""
    random_crop_padding: int = 0
    """Pixels of padding round the image before a crop of the image's own size is taken."""
    hflip: float = 0.5
    """Chance that a training image is mirrored left to right."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 turns it off."""
    auto_augment: str | None = None
    """timm's name of an augmentation policy, for example rand-m9-mstd0.5-inc1."""
    random_erasing: float = 0.0
    """Chance that a rectangle of a training image is erased."""
    mixup: float = 0.0
    """alpha of mixup; 0 turns it off."""
    cutmix: float = 0.0
    """alpha of cutmix; 0 turns it off."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    interpolation: str | None = None
    """How images are resized: bicubic, bilinear or nearest; None: as the weights want it that
    training starts from, else bicubic."""
    crop_pct: float | None = None
    """Share of a resized test image's side that its crop keeps; None: 1 where images have the
    network's size, else what the weights want that training starts from, else 0.875."""

    def __post_init__(self) -> None:
        _check_numbers(self, "data.")
        for name in ("hflip", "random_erasing", "label_smoothing"):
            _require_share(f"data.{name}", getattr(self, name))
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise ValueError(
                f"data.val_share={self.val_share} must lie between 0 and 1, as 0.2 does"
            )
        for name in ("prefetch_factor", "persistent_workers"):
            if getattr(self, name) and not self.num_workers:
                raise ValueError(
                    f"data.{name}={getattr(self, name)} is about processes that load images, and "
                    "data.num_workers=0 has none; give --data.num-workers 1 or more, or leave it "
                    "out"
                )

    def is_same(self, other: DataConfig) -> bool:
        """Whether these are the same images, read alike, however many at once.

        Args:
            other: What they are compared with.
        """
        loading = ("batch_size", "num_workers", *_OF_LOADING)
        alike = dataclasses.replace(self, **{name: getattr(other, name) for name in loading})
        return alike == other


_OF_LOADING = ("prefetch_factor", "persistent_workers", "pin_memory")
"""How a training's batches are fetched, which changes nothing about them."""


OF_TRAINING: tuple[str, ...] = (
    "empty_images",
    "val_share",
    "scale_jitter",
    "crop_size",
    "num_train",
    "sampler",
    *_OF_LOADING,
    "repeated_augmentation",
    "scale",
    "ratio",
    "random_crop_padding",
    "hflip",
    "color_jitter",
    "auto_augment",
    "random_erasing",
    "mixup",
    "cutmix",
    "label_smoothing",
)
"""What of ``DataConfig`` a test has no use for."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, by its name in timm's registry, where convattn's own networks are too."""

    name: str = "patchconvnet_nano"
    """Name of the model; `convattn list` shows convattn's own, --dense detectors and segmenters."""
    backbone: str | None = None
    """Detection and segmentation: name of the network that looks at the image, any of timm's."""
    backbone_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the backbone, for example embed_dim 96."""
    num_classes: int | None = None
    """Number of classes, without the background; None takes it from the data."""
    pretrained: bool = False
    """Start from the released weights of that name, or of that backbone."""
    checkpoint: str | None = None
    """Weights to start from: a run folder, a .safetensors file or a PyTorch state dict."""
    backbone_weights: str | None = None
    """Detection and segmentation: weights that the backbone starts from, a classifier's run folder
    or file."""
    drop_rate: float | None = None
    """Dropout before the classifier; None keeps the model's default."""
    drop_path_rate: float | None = None
    """Chance that a residual branch is dropped; None keeps the model's default."""
    model_args: dict[str, Scalar] = field(default_factory=dict)
    """Further keyword arguments of the model, for example global_pool avg."""

    def __post_init__(self) -> None:
        _check_numbers(self, "model.")
        starts = ("backbone_weights", "checkpoint", "pretrained")
        given = [name for name in starts if getattr(self, name)]
        if len(given) > 1 and given[0] == "backbone_weights":
            raise ValueError(
                f"model.backbone_weights={self.backbone_weights} and model.{given[1]} both say "
                "what the backbone starts from; give one of them"
            )

    @property
    def is_trained(self) -> bool:
        """Whether training starts from weights that are trained already."""
        return self.pretrained or bool(self.checkpoint or self.backbone_weights)

    @property
    def backbone_arguments(self) -> dict[str, Scalar]:
        """Every keyword argument of the backbone of a detector or segmenter."""
        if self.drop_path_rate is None:
            return self.backbone_args
        return {"drop_path_rate": self.drop_path_rate, **self.backbone_args}

    @property
    def title(self) -> str:
        """Model and backbone, for people."""
        return self.name if self.backbone is None else f"{self.name} {self.backbone}"


PoolName = Literal[
    "attention",
    "class",
    "aggregation",
    "class-attention",
    "query",
    "residual",
    "ep",
    "simpool",
    "abmil",
    "map",
    "avg",
    "max",
    "gem",
    "lse",
]
"""What can pool: ``convattn.POOLS``; "attention", which is the light default among them; and
"class-attention", the paper's block with a token a class."""

DEFAULT_POOL: PoolName = "residual"
"""What "attention" means; chosen by docs/results/frozen_pools.md."""

_HAVING: dict[str, tuple[str, ...]] = {
    "pool_heads": ("aggregation", "class-attention", "simpool", "map"),
    "pool_queries": ("ep",),
    "mlp_ratio": ("aggregation", "class-attention", "map"),
    "pool_norm": typing.get_args(PoolName),
}
"""Option of a pool -> the pools that have it."""


def pool_layer(pool: str) -> str:
    """Name of a pool, "attention" said by what it means.

    Examples:
        >>> pool_layer("ep")
        'ep'
    """
    return DEFAULT_POOL if pool == "attention" else pool


def check_pool_options(options: Any, prefix: str = "") -> None:
    """Refuse an option that the pool does not have.

    Args:
        options: Has ``pool`` and the options of pools.
        prefix: Of their names, for errors.

    Raises:
        ValueError: If one was given, or there is no pool.
    """
    pool = options.pool
    for word, having in _HAVING.items():
        value = getattr(options, word)
        if value is None or value is False:
            continue
        if pool is None:
            raise ValueError(
                f"{prefix}{word}={value!r} is about the pool, and {prefix}pool=None keeps that of "
                "the network; give one, for example attention"
            )
        if pool_layer(pool) not in having:
            raise ValueError(
                f"{prefix}{word}={value!r} means nothing to {prefix}pool={pool!r}; those that have "
                f"it are {', '.join(having)}"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Attention that the network is given after it is made, and how that is trained."""

    pool: PoolName | None = None
    """What pools: attention, a light pool that begins as the average; class: a map a class; ..."""
    conv: tuple[str, ...] = ()
    """Convolutions that get attention: last-3-stages, all, names, or globs as layer3.*.conv2."""
    num_heads: int = 8
    """Attention heads of a convolution."""
    qk_ratio: float = 0.2
    """Width of queries and keys over the convolution's output channels; the paper's kappa."""
    v_ratio: float = 0.1
    """Share of the output channels that attention makes; the paper's upsilon."""
    min_head_dim: int = 20
    """Least width of queries and keys a head."""
    position: Literal["relative", "sine", "coord", "none"] = "relative"
    """How the attention of a convolution knows positions."""
    attn_downsample: int | Literal["auto"] = "auto"
    """Factor by which attention sees its map smaller; auto chooses it by the map's size."""
    pool_heads: int | None = None
    """Attention heads of a pool that has heads; None takes the pool's own number."""
    pool_queries: int | None = None
    """Queries of the ep pool; None takes 32."""
    mlp_ratio: float | None = None
    """Width of the MLP of a pool that has one, over the channels; None takes the pool's own."""
    pool_norm: bool = False
    """A BatchNorm without factors behind the pool, as the authors of ep have it."""
    pool_name: str | None = None
    """Name of the pool in the network; None finds it."""
    classifier_name: str | None = None
    """Name of the classifier in the network; None finds it."""
    preserve: bool = True
    """Start with the same logits as without attention; else with the paper's layers as they are."""
    lr_scale: float = 1.0
    """Learning rate of the new layers over that of the others; metrics.csv shows the higher."""
    freeze: bool = False
    """Train only the new attention and the classifier."""

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(
                f"augment.lr_scale={self.lr_scale} must be above 0, for example 10; "
                "augment.freeze keeps the old layers as they are"
            )
        _check_numbers(self, "augment.")
        check_pool_options(self, "augment.")
        if self.pool is None and not self.conv and (self.freeze or self.lr_scale != 1):
            name = "freeze" if self.freeze else "lr_scale"
            raise ValueError(
                f"augment.{name} is about new attention, and there is none: give augment.pool, for "
                "example attention, or augment.conv, for example last-3-stages"
            )


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
        _check_numbers(self, "optim.")
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
        _check_numbers(self)
        _require_at_least("epochs", self.epochs, 1)
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
                f"{_nearest_multiple(self.data.batch_size, self.accumulate)}"
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
        values = _with_paper_pool(_parse(text, source))
        config: TrainConfig = _build(cls, values, source, "")
        for path in required:
            found = values
            for name in path.split("."):
                if name not in found:
                    raise ValueError(f"{source}: {path} is missing; {RESTORE}")
                found = found[name]
        return config


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is tested, on what, and where the results go."""

    weights: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format; bfloat16 is autocast's, over the weights as they are."""
    channels_last: bool = False
    """Keep kernels channels-last, which is faster on recent GPUs."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    threshold: float = 0.5
    """Detection: least score of a box that the confusion matrix counts, from 0 to 1."""
    allow_missing_classes: bool = False
    """ImageNet: test on the classes that are there; the network chooses among all it knows."""
    real: str | None = None
    """ImageNet: ReaL's real.json; None takes the one in data.root, else timm's copy."""
    out: str | None = None
    """Folder to make; None takes the run's own for its own test, else runs/evaluate/NAME or
    NAME-2 ..."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images; see DataConfig."""

    def __post_init__(self) -> None:
        _require_share("threshold", self.threshold)
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a trained network's predictions of images are made and kept."""

    threshold: float = 0.5
    """Detection: least score of what is drawn and written, from 0 to 1."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    tile: int | None = None
    """Detection: side in pixels of the overlapping tiles that large images are cut into, each seen
    at its own scale; None: whole."""
    flip: bool = False
    """Detection and segmentation: also look at the mirrored image; of detectors boxes alone."""
    every: int | None = None
    """Detection and segmentation: of a video, look at one frame of this many; None: at all."""
    out: str | None = None
    """Folder to make, or classification: FILE.csv for a table with a row an image; None makes
    predicted, or predicted-2 where that is taken."""
    embeddings: str | None = None
    """With FILE.csv: also write this .npy or .safetensors, what the classifier layer reads of each
    of its rows."""
    reject_below: float | Literal["auto"] | None = None
    """With FILE.csv: add the column rejected, true where the probability is below this; auto: below
    what convattn finetune chose by validation images."""
    batch_size: int = 64
    """With FILE.csv: images that are computed at a time."""
    num_workers: int | None = None
    """With FILE.csv: processes that read images; None takes one a core if there are many images."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""

    def __post_init__(self) -> None:
        _require_share("threshold", self.threshold)
        if self.embeddings is not None and not self.embeddings.endswith(_EMBEDDINGS):
            raise ValueError(
                f"embeddings={self.embeddings!r} must end in {' or '.join(_EMBEDDINGS)}"
            )
        if isinstance(self.reject_below, int | float) and not 0 < self.reject_below <= 1:
            raise ValueError(
                f"reject_below={self.reject_below} must lie above 0 and at most at 1, or be auto"
            )
        _check_numbers(self)

    @property
    def makes_table(self) -> bool:
        """Whether ``out`` is a table instead of a folder."""
        return self.out is not None and self.out.lower().endswith(".csv")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """What is done with images and a trained network, whose weights say how images are seen."""

    purpose: ClassVar[str]
    """What is done, for errors."""

    data: DataConfig = field(default_factory=lambda: DataConfig(name="folder"))
    """The images; see DataConfig."""

    def __post_init__(self) -> None:
        default = DataConfig()
        heeded = ("root", *DATA_FLAGS)
        for name in (item.name for item in dataclasses.fields(DataConfig)):
            if name in heeded or getattr(self.data, name) == getattr(default, name):
                continue
            if hasattr(self, name):
                raise ValueError(
                    f"data.{name}={getattr(self.data, name)} is not of the data but of "
                    f"{self.purpose}: give --{name.replace('_', '-')} instead"
                )
            raise ValueError(
                f"data.{name}={getattr(self.data, name)!r} has no meaning for "
                f"{self.purpose}, whose images are seen as the network's weights want them; "
                "leave it out"
            )

    @classmethod
    def of_images(cls, images: str, **options: Any) -> Self:
        """The configuration for a folder or table of images.

        Args:
            images: As ``located`` takes them.
            **options: Fields of the configuration, and of its data those in ``DATA_FLAGS``.

        Raises:
            ValueError: If there is no such field, or a value does not fit.
        """
        of_data = {name: options.pop(name) for name in DATA_FLAGS if name in options}
        data = dataclasses.replace(cls().data, **of_data)
        try:
            return cls(data=located(data, images), **options)
        except TypeError as error:
            raise ValueError(f"{cls.purpose} refuses its options: {error}") from None

    def to_json(self) -> str:
        """The configuration as JSON text, every field spelled out."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read back what ``to_json`` wrote.

        Args:
            text: The JSON text.
            source: Where it came from, for error messages.

        Raises:
            ValueError: If it is no JSON or does not fit.
        """
        found: Self = _build(cls, _parse(text, source), source, "")
        return found


def located(data: DataConfig, images: str) -> DataConfig:
    """The data, with the place or the name that a person gave.

    Args:
        data: All else of them.
        images: A folder or a table; or cluttered_digits, which is generated.
    """
    if images == "cluttered_digits":
        return dataclasses.replace(data, name=images)
    return dataclasses.replace(data, root=images)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ImagesConfig):
    """A frozen network's maps, and the pools that are trained on them."""

    purpose = "a probe"

    model: str | None = None
    """Name in timm's registry, torchvision/NAME, or a run folder; None: EfficientNet-Lite0 with
    the weights of the package of extra offline."""
    weights: str | None = None
    """File of trained weights of the model; None, without pretrained or random: a run's own."""
    pretrained: bool = False
    """Take the model's released weights, which may be downloaded."""
    random: bool = False
    """Take random weights, to know what the training is worth."""
    layer: str = "last"
    """The map: last, which the network's own pool reads; stage1, stage2 ...; or a module's name."""
    image_size: int | None = None
    """Height and width that the network sees, in pixels; None: what its weights want."""
    pools: tuple[str, ...] = ()
    """Names of convattn.POOLS, and knn; none: all of them."""
    seeds: int = 5
    """Times that all is drawn and trained anew: validation part, order, first weights."""
    views: int = 1
    """Passes over the training images; from the second on flipped and cropped at random."""
    epochs: int = 20
    """Times that the training images are gone through at most."""
    patience: int = 3
    """Epochs without a better validation loss after which a head is trained no further."""
    batch_size: int = 64
    """Images a step."""
    weight_decays: tuple[float, ...] = (0.01,)
    """Of AdamW; each is tried with every learning rate."""
    drop_rates: tuple[float, ...] = (0.0,)
    """Dropout before the classifier; each is tried with every learning rate and weight decay. A
    classifier that learns few images by heart leaves a query nothing to learn from."""
    val_share: float = 0.2
    """Share of the training images on which rates and epochs are chosen."""
    norm: bool = True
    """A BatchNorm without factors behind every pool."""
    cache: str | None = None
    """Folder of caches; None: convattn/maps in the user's cache folder."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the cached maps."""
    cache_limit: float = 20.0
    """Gigabytes of maps that may be written at most."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    out: str | None = None
    """Folder to make; None makes runs/probe, or runs/probe-2 where that is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self)
        for name, least in (("epochs", 1), ("batch_size", 2)):
            _require_at_least(name, getattr(self, name), least)
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share={self.val_share} must lie between 0 and 1, as 0.2 does")
        if not self.cache_limit > 0:
            raise ValueError(f"cache_limit={self.cache_limit} must be above 0 gigabytes, as 20 is")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise ValueError(
                f"weight_decays={self.weight_decays}; expected one or several from 0 on, as 0.01"
            )
        if not self.drop_rates or not all(0 <= rate < 1 for rate in self.drop_rates):
            raise ValueError(
                f"drop_rates={self.drop_rates}; expected one or several from 0 to below 1, as 0.5"
            )
        given = [name for name in ("weights", "pretrained", "random") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ImagesConfig):
    """From images to a trained, tested and explained classifier."""

    purpose = "finetuning"

    minutes: float = 10.0
    """Time that it may take, roughly; larger images that would take longer are not tried, the whole
    network is trained only if there is time for that, and too little for one pass is refused."""
    epochs: int | None = None
    """Epochs that the whole network is trained after its head, if validation images find that
    better; 0: only the head is trained; None: as many as there is time for, at most 12, and none
    where fewer than 150 images could tell."""
    seed: int = 0
    """Seed of everything random."""
    model: str | None = None
    """Name in timm's registry, or torchvision/NAME; None: EfficientNet-Lite0 with the weights of
    the package of extra offline."""
    weights: str | None = None
    """File of trained weights of the model."""
    pretrained: bool = False
    """Take the model's released weights, which may be downloaded."""
    pool: PoolName = "attention"
    """What pools the last map: attention, avg, class ...; see convattn.POOLS."""
    image_size: int | None = None
    """Height and width that the network sees, in pixels; None: what its weights want, or larger
    where the images are and that is better on validation images."""
    multi_label: bool = False
    """Images may have several classes: the same picture in several class folders."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: all classes count the same in the loss, however many images they have; where images
    have several, the yes of each as much as all its noes."""
    folds: int = 0
    """Parts of a cross-validation: each is judged by a network that has not learnt it; 0: none."""
    val_share: float = 0.2
    """Share of the training images on which everything is chosen."""
    kept_target: float = 0.99
    """Share of the images kept by predict --reject-below auto that is to be right; the probability
    that does it is chosen by validation images."""
    cache: str | None = None
    """Folder of cached maps; None: convattn/maps in the user's cache folder."""
    cache_limit: float = 20.0
    """Gigabytes of maps that may be written at most."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    out: str | None = None
    """Folder to make; None makes runs/finetune, or runs/finetune-2 where that is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes} must be above 0, as 10 is")
        _check_numbers(self)
        if not 0 < self.kept_target <= 1:
            raise ValueError(
                f"kept_target={self.kept_target} must lie above 0 and at most at 1, as 0.99 does"
            )
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds={self.folds}; expected 2 or more, as 5, or 0 for none")
        self.of_probe(self.image_size)  # has the other checks

    def of_probe(self, image_size: int | None) -> ProbeConfig:
        """How the frozen backbone is opened and its maps are cached.

        Args:
            image_size: As ``ProbeConfig`` has it.
        """
        return ProbeConfig(
            data=self.data,
            model=self.model,
            weights=self.weights,
            pretrained=self.pretrained,
            image_size=image_size,
            val_share=self.val_share,
            cache=self.cache,
            cache_limit=self.cache_limit,
            device=self.device,
        )


DATA_FLAGS = (
    *("name", "format", "path_column", "labels_column", "bad_annotations", "bad_images"),
    *("group", "download", "num_train", "num_test", "num_workers"),
)
"""Fields of the data that a probe and finetuning heed."""


def as_flags(config: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """The flags that make ``config`` out of ``default``.

    Args:
        config: A configuration.
        default: Another of its class.
        prefix: Of every flag.
    """
    for item in dataclasses.fields(config):
        value, other = getattr(config, item.name), getattr(default, item.name)
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from as_flags(value, other, f"{prefix}{name}.")
        elif value is True or value is False:
            if value != other:
                yield f"--{prefix}{'' if value else 'no-'}{name}"
        elif value != other:
            yield f"--{prefix}{name}"
            if isinstance(value, dict):
                yield from (str(word) for pair in value.items() for word in pair)
            else:
                yield from map(str, value if isinstance(value, tuple) else [value])


RESTORE = "restore it from the run's backup or train anew"
"""What to do when a run's `config.json` is not what was written."""


def _parse(text: str, source: str) -> Any:
    """JSON's values; whatever is wrong with the text is one sentence."""
    try:
        return json.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        reason = str(error) if text.strip() else "it is empty"
    raise ValueError(f"{source} is not JSON: {reason}; {RESTORE}")


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


def _build(cls: type[Any], values: Any, source: str, prefix: str) -> Any:
    """An instance of a configuration class out of parsed JSON."""
    if not isinstance(values, dict):
        raise ValueError(
            f"{source}: {prefix.rstrip('.') or 'the whole'} must be an object of fields, "
            f"got {reprlib.repr(values)}; {RESTORE}"
        )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(
                f"{source}: unknown field {prefix}{key}; the nearest is "
                f"{prefix}{nearest(key, hints)}"
            )
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            arguments[key] = _build(
                typing.cast("type[Any]", hint), value, source, f"{prefix}{key}."
            )
            continue
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(
                f"{source}: {prefix}{key} is {reprlib.repr(value)}, expected {expected}"
            )
        arguments[key] = value
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a parsed JSON value has the annotated type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, options[1]) for item in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


_MANY = 1_000_000_000
_RANGES: Mapping[str, tuple[float, float]] = {
    "accumulate": (1, _MANY),
    "attn_downsample": (1, 4_096),
    "batch_size": (1, _MANY),
    "every": (1, _MANY),
    "cache_limit": (0, _MANY),
    "checkpoint_every": (0, _MANY),
    "checkpoint_minutes": (0, _MANY),
    "clip_grad": (0, math.inf),
    "color_jitter": (0, _MANY),
    "crop_pct": (0.01, 10),
    "crop_size": (1, 16_384),
    "cutmix": (0, _MANY),
    "decay_epochs": (0, _MANY),
    "decay_milestones": (0, _MANY),
    "devices": (1, 4_096),
    "drop_path_rate": (0, 1),
    "drop_rate": (0, 1),
    "epochs": (0, _MANY),
    "eval_every": (1, _MANY),
    "folds": (0, _MANY),
    "image_size": (1, 16_384),
    "in_chans": (1, 4_096),
    "log_every": (1, _MANY),
    "max_size": (1, 16_384),
    "min_head_dim": (1, _MANY),
    "minutes": (0, _MANY),
    "mixup": (0, _MANY),
    "mlp_ratio": (0, 1_024),
    "num_classes": (1, 10_000_000),
    "num_heads": (1, 65_536),
    "num_nodes": (1, 65_536),
    "num_test": (1, _MANY),
    "num_train": (1, _MANY),
    "num_workers": (0, 1_024),
    "patience": (1, _MANY),
    "pool_heads": (1, 65_536),
    "pool_queries": (1, 65_536),
    "prefetch_factor": (1, 1_024),
    "random_crop_padding": (0, 16_384),
    "ratio": (0.001, 1_000),
    "repeated_augmentation": (1, _MANY),
    "scale": (0, 1_000),
    "scale_jitter": (0, 1_000),
    "seed": (0, 2**63 - 1),
    "seeds": (1, 1_000_000),
    "tile": (32, 16_384),
    "views": (1, 1_000_000),
    "warmup_epochs": (0, _MANY),
    "weight_decay": (0, math.inf),
    "window": (1, 16_384),
}
"""Number of a configuration -> the least and the most that can mean anything; the others may be any
that are finite."""


def _check_numbers(config: Any, prefix: str = "") -> None:
    """Refuse numbers beyond any use, NaN and infinities among them."""
    for item in dataclasses.fields(config):
        given = getattr(config, item.name)
        least, most = _RANGES.get(item.name, (-math.inf, math.inf))
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{prefix}{item.name}={value} is no number; give a finite one")
            if value < least:
                raise ValueError(f"{prefix}{item.name}={value} must be at least {least:,}")
            if value > most:
                raise ValueError(f"{prefix}{item.name}={value} must be at most {most:,}")


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1")


def _nearest_multiple(value: int, factor: int) -> int:
    return max(1, round(value / factor)) * factor


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
