"""What images there are, and how they are seen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from convattn.config.numbers import check_numbers, require_share

DataFormat = Literal["auto", "folder", "table", "coco", "yolo", "voc", "labelme", "masks"]
"""How a person's own data hold what is known of each image."""

BadAnnotations = Literal["error", "skip"]
"""Whether a faulty entry of a data set stops the loading, or is left out and counted."""

OF_LOADING = ("prefetch_factor", "persistent_workers", "pin_memory")
"""How a training's batches are fetched, which changes nothing about them."""


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
        check_numbers(self, "data.")
        for name in ("hflip", "random_erasing", "label_smoothing"):
            require_share(f"data.{name}", getattr(self, name))
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
        loading = ("batch_size", "num_workers", *OF_LOADING)
        alike = dataclasses.replace(self, **{name: getattr(other, name) for name in loading})
        return alike == other


OF_TRAINING: tuple[str, ...] = (
    "empty_images",
    "val_share",
    "scale_jitter",
    "crop_size",
    "num_train",
    "sampler",
    *OF_LOADING,
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
