"""What is done to an image before a network sees it, the same for files and for tensors.

A transform takes a PIL image and gives (C, H, W) floats, or takes (B, C, H, W) bytes and gives as
many floats: so it serves ``ImageFiles`` and ``TensorImages`` alike. Whole batches of bytes go
through tensor operations of the same meaning where there are some, else image by image through
PIL.

Randomness comes from the global generators: torch's alone for batches of bytes, and also Python's
and numpy's for PIL images (timm draws from all three). The same states before a call give the same
floats, bit for bit, in whatever process. A DataLoader's worker seeds all three anew each epoch from
the loader's generator; to have augmentation depend on neither the worker nor their number, seed
them before each batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform, resolve_data_config
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment, posterize
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import to_pil_image

from convattn.data.batch_augmentation import (
    ErasingMode,
    PaddingMode,
    erase,
    jitter_colour,
    random_crop,
    random_flip,
    random_resized_crop,
)
from convattn.data.images import Transform

Pixels = TypeVar("Pixels", Image.Image, Tensor)
"""An image of PIL's, or bytes (C, H, W)."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_LEAST_DRAFTED = 2**21  # pixels of a JPEG that may be decoded smaller
_DRAFT_MARGIN = 2  # times the network's side, that a JPEG decoded smaller still has


def eval_transform(
    image_size: int | tuple[int, int],
    *,
    crop_pct: float = 0.875,
    crop_mode: str = "center",
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> EvalTransform:
    """The image as a network is tested with: resized, cropped, normalised.

    Exactly timm's transform for a ``pretrained_cfg`` of these values, whose ``input_size[1:]`` is
    ``image_size``. Sets whose images have the network's own size want ``crop_pct=1.0``: they are
    then only normalised, and boxes and masks keep their places.

    Args:
        image_size: Height and width in pixels.
        crop_pct: Share of the resized image's side that the crop keeps.
        crop_mode: ``"center"``, ``"squash"`` or ``"border"``.
        interpolation: One of ``nearest, bilinear, bicubic, box, hamming, lanczos``.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> eval_transform(224)(Image.new("RGB", (500, 375))).shape
        torch.Size([3, 224, 224])
    """
    size = _height_width(image_size)
    _check_one_of("interpolation", interpolation, _INTERPOLATIONS)
    _check_one_of("crop_mode", crop_mode, ("center", "squash", "border"))
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct={crop_pct}; expected a share above 0, at most 1")
    if crop_mode == "border" and len(mean) not in (1, 3):
        raise ValueError(
            f"crop_mode='border' fills borders of grey and RGB alone, and mean has {len(mean)} "
            "channels; give 'center' or 'squash'"
        )
    return EvalTransform(size, crop_pct, crop_mode, interpolation, _Normalize(mean, std))


def transform_of(cfg: Mapping[str, Any]) -> EvalTransform:
    """What is done to a test image before a network sees it.

    Args:
        cfg: The ``pretrained_cfg`` of a model of timm's or of a run; what it lacks is timm's
            default.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> transform_of({"input_size": (3, 64, 64)})(Image.new("RGB", (500, 375))).shape
        torch.Size([3, 64, 64])
    """
    resolved = resolve_data_config(pretrained_cfg=dict(cfg))
    return eval_transform(
        tuple(resolved["input_size"][1:]),
        crop_pct=resolved["crop_pct"],
        crop_mode=resolved["crop_mode"],
        interpolation=resolved["interpolation"],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
    )


def train_transform(
    image_size: int | tuple[int, int],
    *,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    random_crop_padding: int = 0,
    padding_mode: PaddingMode = "constant",
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    erasing_mode: ErasingMode = "const",
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> Transform:
    """The image as a network is trained with: cropped, mirrored, recoloured, erased in part.

    With ``scale`` the crop is timm's random resized one (ImageNet's way). Without it the image
    is resized to cover ``image_size`` and cropped in its middle, or, with ``random_crop_padding``,
    at a random place after padding (CIFAR's way).

    Args:
        image_size: Height and width in pixels.
        scale: Lowest and highest share of the image's area that the random resized crop keeps.
        ratio: Lowest and highest width / height of that crop.
        random_crop_padding: Pixels of padding on every side.
        padding_mode: What is padded: ``"constant"`` black or ``"reflect"``.
        hflip: Chance of mirroring left to right.
        color_jitter: Largest relative change of brightness, contrast and saturation. As in timm,
            ``auto_augment`` turns it off, except for ``"3a"``.
        auto_augment: timm's name of a policy, for example ``"rand-m9-mstd0.5-inc1"``.
        random_erasing: Chance that a rectangle, a fiftieth to a third of the area, is erased.
        erasing_mode: By the mean (``"const"``), one random colour (``"rand"``) or random pixels.
        interpolation: As in ``eval_transform``; with ``scale`` also ``"random"``, bilinear or
            bicubic.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.

    Raises:
        ValueError: If a value is out of its range, or ``scale`` and ``random_crop_padding`` are
            both given.

    Examples:
        >>> transform = train_transform(32, random_crop_padding=4, random_erasing=0.25)
        >>> transform(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    size = _height_width(image_size)
    for name, chance in (("hflip", hflip), ("random_erasing", random_erasing)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{name}={chance}; expected a chance from 0 to 1")
    if scale is not None and random_crop_padding:
        raise ValueError(
            f"scale={scale} and random_crop_padding={random_crop_padding} are two kinds of random "
            "crop; give one of them"
        )
    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale={scale}; expected lowest and highest share, 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio={ratio}; expected lowest and highest width / height, above 0")
    if random_crop_padding < 0:
        raise ValueError(f"random_crop_padding={random_crop_padding}; expected pixels, at least 0")
    if padding_mode == "reflect" and random_crop_padding >= min(size):
        raise ValueError(
            f"random_crop_padding={random_crop_padding} cannot be reflected from images of "
            f"{size[0]} x {size[1]}; expected at most {min(size) - 1}"
        )
    if color_jitter < 0:
        raise ValueError(f"color_jitter={color_jitter}; expected a relative change, at least 0")
    _check_one_of("padding_mode", padding_mode, ("constant", "reflect"))
    _check_one_of("erasing_mode", erasing_mode, ("const", "rand", "pixel"))
    allowed = _INTERPOLATIONS if scale is None else (*_INTERPOLATIONS, "random")
    _check_one_of("interpolation", interpolation, allowed)
    return _TrainTransform(
        size,
        scale=scale,
        ratio=ratio,
        random_crop_padding=random_crop_padding,
        padding_mode=padding_mode,
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
        random_erasing=random_erasing,
        erasing_mode=erasing_mode,
        interpolation=interpolation,
        normalize=_Normalize(mean, std),
    )


def batch_mix(
    *,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    mode: Literal["batch", "pair", "elem"] = "batch",
    label_smoothing: float = 0.0,
) -> BatchMix | None:
    """Mixup and cutmix of a batch, as timm does them, or None when both are off.

    The result is called with images (B, C, H, W), which it changes, and labels (B,), and gives the
    images and soft targets (B, num_classes). It draws from numpy's global generator.

    Args:
        num_classes: Width of the targets.
        mixup: alpha of mixup (https://arxiv.org/abs/1710.09412); 0 turns it off.
        cutmix: alpha of cutmix (https://arxiv.org/abs/1905.04899); 0 turns it off.
        prob: Chance that a batch is mixed at all.
        switch_prob: Chance of cutmix where both are on.
        mode: Whether one strength is drawn for the batch, a pair or an element.
        label_smoothing: Share of the target spread evenly over all classes.

    Raises:
        ValueError: If a value is out of its range; when called, if the batch is odd.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if alpha < 0:
            raise ValueError(f"{name}={alpha}; expected alpha of a Beta distribution, or 0 for off")
    shares = (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing))
    for name, share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}; expected 0 to 1")
    _check_one_of("mode", mode, ("batch", "pair", "elem"))
    if mixup == cutmix == 0:
        return None
    return BatchMix(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=prob,
        switch_prob=switch_prob,
        mode=mode,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


class BatchMix(Mixup):
    """timm's Mixup, with an error that says what to change. See ``batch_mix``."""

    num_classes: int
    label_smoothing: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, C, H, W) images, in place, and give (B, num_classes) targets for (B,) labels."""
        if len(images) % 2:
            raise ValueError(
                f"a batch of {len(images)} images cannot be mixed in pairs; choose an even "
                f"batch_size, for example {len(images) + 1}"
            )
        mixed: tuple[Tensor, Tensor] = super().__call__(images, labels)
        return mixed

    def mix_weighted(
        self, images: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mix images whose targets are known for every class, and which may count differently.

        A loss that is linear in its targets is then the mean of the parts' losses by their shares
        and weights. ``label_smoothing`` is not applied.

        Args:
            images: (B, C, H, W), changed in place.
            targets: (B, K).
            weights: (B,); None: all alike.

        Returns:
            Images, targets and weights of the mixtures.
        """
        own: tuple[int, float] = (self.num_classes, self.label_smoothing)
        # As labels of so many classes the images' numbers become their shares in each mixture.
        self.num_classes, self.label_smoothing = len(images), 0.0
        try:
            images, shares = self(images, torch.arange(len(images), device=images.device))
        finally:
            self.num_classes, self.label_smoothing = own
        shares = shares.to(targets.dtype)
        if weights is None:
            return images, shares @ targets, None
        mixed = shares @ weights
        parts = shares * weights / mixed.clamp_min(torch.finfo(mixed.dtype).tiny)[:, None]
        return images, parts @ targets, mixed


class _Normalize:
    """Bytes (B, C, H, W) to floats of mean 0 and deviation 1, as torchvision's Normalize."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"mean={mean} and std={std}; expected as many of each, one a channel, std above 0"
            )
        self.mean = tuple(mean)
        self.std = tuple(std)

    def check(self, images: Tensor) -> None:
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"the images have {images.shape[1]} channels and mean={self.mean} has "
                f"{len(self.mean)}; give the data set's own mean and std"
            )

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        """A PIL image, or (C, H, W) bytes, as such floats; (B, C, H, W) bytes as as many floats."""
        if isinstance(images, Image.Image):
            return self(_bytes_of(images))[0]
        if images.ndim == 3:
            return self(images[None])[0]
        self.check(images)
        shape = (-1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        floats = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return floats.div_(255).sub_(mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class EvalTransform:
    """What a network is tested with. See ``eval_transform``.

    Attributes:
        pil: What is done to a PIL image, in three steps: resize, crop, normalise.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_pct: float,
        crop_mode: str,
        interpolation: str,
        normalize: _Normalize,
    ) -> None:
        self.size = size
        self.crop_pct = crop_pct
        self.normalize = normalize
        resize, crop, *_ = create_transform(
            (3, *size),
            is_training=False,
            interpolation=interpolation,
            mean=normalize.mean,
            std=normalize.std,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        ).transforms
        self.pil = transforms.Compose([resize, crop, normalize])

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        """A PIL image, or (C, H, W) bytes, as such floats; (B, C, H, W) bytes as as many floats."""
        if isinstance(images, Image.Image):
            return self.pil(images)
        if images.ndim == 3:
            return self(images[None])[0]
        if images.shape[2:] == self.size and self.crop_pct == 1:
            return self.normalize(images)
        return _one_by_one(images, self.pil, self.normalize)


class _TrainTransform:
    def __init__(
        self,
        size: tuple[int, int],
        *,
        scale: tuple[float, float] | None,
        ratio: tuple[float, float],
        random_crop_padding: int,
        padding_mode: PaddingMode,
        hflip: float,
        color_jitter: float,
        auto_augment: str | None,
        random_erasing: float,
        erasing_mode: ErasingMode,
        interpolation: str,
        normalize: _Normalize,
    ) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.padding = random_crop_padding
        self.padding_mode = padding_mode
        self.hflip = hflip
        self.color_jitter = color_jitter
        self.auto_augment = auto_augment
        self.random_erasing = random_erasing
        self.erasing_mode = erasing_mode
        self.interpolation = interpolation
        self.normalize = normalize
        try:
            crop_and_flip, recolour, finish = create_transform(
                (3, *size),
                is_training=True,
                scale=scale,
                ratio=ratio,
                hflip=hflip,
                color_jitter=color_jitter or None,
                auto_augment=auto_augment,
                interpolation=interpolation,
                mean=normalize.mean,
                std=normalize.std,
                re_prob=random_erasing,
                re_mode=erasing_mode,
                separate=True,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(
                f"auto_augment={auto_augment!r} is no policy of timm's ({error}); expected for "
                "example 'rand-m9-mstd0.5-inc1', 'augmix-m3-w3', 'original', 'v0' or '3a'"
            ) from error
        if auto_augment is not None:
            _allow_posterize_to_nothing(recolour.transforms[0])
        flip = crop_and_flip.transforms[1:]
        crops: list[Any]
        if scale is not None:
            crops = [_RandomResizedCrop(size, scale, ratio, interpolation)]
        else:
            crop = (
                transforms.RandomCrop(size, padding=self.padding, padding_mode=padding_mode)
                if self.padding
                else transforms.CenterCrop(size)
            )
            crops = [_Cover(size, interpolation), crop]
        for_recolour = [_as_pil] if recolour.transforms else []
        erase = finish.transforms[2:]
        self.pil = transforms.Compose(
            [transforms.Compose([*crops, *flip, *for_recolour]), recolour, normalize, *erase]
        )

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        if isinstance(images, Image.Image):
            return self.pil(images)
        if images.ndim == 3:
            return self(images[None])[0]
        if images.shape[1] not in (1, 3) and len(self.pil.transforms[1].transforms):
            raise ValueError(
                f"the images have {images.shape[1]} channels; color_jitter and auto_augment are "
                "for grey and RGB alone: leave them out"
            )
        if not self._has_tensor_operations(images.shape[2], images.shape[3]):
            return _one_by_one(images, self.pil, self.normalize)
        if self.padding:
            images = random_crop(images, self.size, self.padding, self.padding_mode)
        if self.scale is not None:
            images = random_resized_crop(
                images, self.size, self.scale, self.ratio, self.interpolation
            )
        images = random_flip(images, self.hflip)
        if self.color_jitter:
            images = jitter_colour(images, self.color_jitter)
        images = self.normalize(images)
        if self.random_erasing:
            erase(images, self.random_erasing, self.erasing_mode)
        return images

    def reduction(self, width: int, height: int) -> float:
        """By how much a JPEG of this size may be decoded smaller.

        What is then resized, the whole image or the smallest random crop, has still at least twice
        the sides of what the network sees (for a crop: by its area). An image of few pixels, whose
        neighbours differ more and which is decoded soon, is always read whole. Tests read all
        pixels, so that nothing which is reported depends on this.
        """
        if width * height < _LEAST_DRAFTED:
            return 1.0
        if self.scale is not None:
            return math.sqrt(self.scale[0] * width * height / math.prod(self.size)) / _DRAFT_MARGIN
        return min(height / self.size[0], width / self.size[1]) / _DRAFT_MARGIN

    def _has_tensor_operations(self, height: int, width: int) -> bool:
        if self.auto_augment is not None:
            return False
        if self.scale is None:
            return (height, width) == self.size
        # Sampling without a low-pass filter is right only where the crop is enlarged.
        enlarged = height <= self.size[0] and width <= self.size[1]
        return enlarged and self.interpolation in ("bilinear", "bicubic")


def _allow_posterize_to_nothing(augment: RandAugment | AugMixAugment | AutoAugment) -> None:
    """Have timm's strongest Posterize, which keeps 0 bits, give black as it always did.

    Pillow refuses 0 bits since version 13, in the middle of a training.
    """
    groups = augment.policy if isinstance(augment, AutoAugment) else [augment.ops]
    for group in groups:
        for op in group:
            if op.aug_fn is posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **unused: Any) -> Image.Image:
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = posterize(image, bits_to_keep)
    return posterized


class _Cover:
    """Resize until both sides reach ``size``, keeping the aspect ratio."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.size = size
        self.mode = str_to_interp_mode(interpolation)

    def __call__(self, image: Pixels) -> Pixels | Tensor:
        width, height = transforms.functional.get_image_size(image)
        enlarge = max(self.size[0] / height, self.size[1] / width)
        size = [
            max(least, round(length * enlarge))
            for least, length in zip(self.size, (height, width), strict=True)
        ]
        return _resize(image, (size[0], size[1]), self.mode)


class _RandomResizedCrop(RandomResizedCropAndInterpolation):
    """timm's, drawn alike and resized sooner."""

    def __call__(self, image: Pixels) -> Pixels | Tensor:
        box = self.get_params(image, self.scale, self.ratio)
        modes = self.interpolation
        mode = random.choice(modes) if isinstance(modes, tuple) else modes
        return _resize(transforms.functional.crop(image, *box), self.size, mode)


def _resize(image: Pixels, size: tuple[int, int], mode: InterpolationMode) -> Pixels | Tensor:
    """Resize to a height and width, for training; bytes (C, H, W) unless Pillow has to do it.

    PyTorch's vectors are two to five times as fast as Pillow's loops, and within 2 grey levels of
    them; fewer than one value in a hundred differs.
    """
    if mode not in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
        return transforms.functional.resize(image, list(size), mode)
    if isinstance(image, Image.Image):
        if (image.height, image.width) == size:
            return image
        pixels = _bytes_of(image)
    else:
        pixels = image[None]
    return F.interpolate(pixels, size, mode=mode.value, antialias=True)[0]


def _as_pil(image: Pixels) -> Image.Image:
    """As Pillow's, whose recolouring is timm's."""
    return image if isinstance(image, Image.Image) else to_pil_image(image)


def _bytes_of(image: Image.Image) -> Tensor:
    """(1, C, H, W), channels last in memory as Pillow has them, which PyTorch resizes fastest."""
    values = np.array(image)
    return torch.from_numpy(values.reshape(1, *values.shape[:2], -1)).permute(0, 3, 1, 2)


def _one_by_one(images: Tensor, pil: Any, normalize: _Normalize) -> Tensor:
    normalize.check(images)
    if images.shape[1] not in (1, 3):  # Pillow has no such images, and the steps take tensors, too
        return torch.stack([pil(image) for image in images])
    return torch.stack([pil(to_pil_image(image)) for image in images])


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size={image_size}; expected pixels, at least 1")
    return height, width


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(allowed)}")
