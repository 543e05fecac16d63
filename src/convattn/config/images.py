"""What is done with images and a trained network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from convattn.config.data import DataConfig
from convattn.config.model import PoolName
from convattn.config.numbers import check_numbers, require_at_least
from convattn.config.reading import build, parse
from convattn.text import json_text

DATA_FLAGS = (
    *("name", "format", "path_column", "labels_column", "bad_annotations", "bad_images"),
    *("group", "download", "num_train", "num_test", "num_workers"),
)
"""Fields of the data that a probe and finetuning heed."""


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
        found: Self = build(cls, parse(text, source), source, "")
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
        check_numbers(self)
        for name, least in (("epochs", 1), ("batch_size", 2)):
            require_at_least(name, getattr(self, name), least)
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
    pool: PoolName | Literal["auto"] = "attention"
    """What pools the last map: attention, avg, class ...; see convattn.POOLS. auto: attention or
    query, which finds one small thing in clutter, whichever validation images find better."""
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
        check_numbers(self)
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
