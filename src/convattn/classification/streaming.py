"""Many images in, what a classifier says of them out: a batch at a time, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from convattn.classification.predictions import THRESHOLD
from convattn.config import PredictConfig
from convattn.data import ImageSource, UnreadableImageError, read_image, transform_of
from convattn.data.bands import read_channels
from convattn.data.batches import list_images
from convattn.data.workers import end_with_reader
from convattn.explanation import class_names, class_probabilities
from convattn.explanation.classes import pretrained_cfg
from convattn.explanation.preprocessing import check_elongation
from convattn.modes import default_device, eval_mode, num_cores

_WORTH_WORKERS = 200  # images
_Item = Tensor | str  # what a network is given of an image, or why it could not be read


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """What a classifier says of an image."""

    path: str | None
    """Of the file, with the folder as it was given; None of an image in memory."""
    prediction: str | tuple[str, ...] | None
    """The likeliest class. Of a network that finds several classes an image: all those that reach
    their threshold, the likeliest first. None if the image could not be read."""
    probability: float | tuple[float, ...] | None
    """That of ``prediction``, from 0 to 1."""
    rejected: bool
    """Whether the probability is below the one that was asked for."""
    probabilities: Mapping[str, float]
    """Every class's, in the order of the classes; empty if the image could not be read."""
    embedding: Tensor | None
    """What the classifier layer reads, (C,) float32, or (K, C) where each of K classes reads its
    own; None if the image could not be read."""
    error: str | None
    """Why the image could not be read; None if it could."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a classifier says of the next B images, on the CPU."""

    errors: Sequence[str | None]
    """Why an image could not be read, (B,); None of those that were."""
    probabilities: Tensor
    """How likely each class is, (M, K) float32, of the M images that could be read, in order."""
    features: Tensor | None
    """What the classifier layer reads, (M, C) or (M, K, C) float32; None unless asked for, or if
    M is 0."""

    def __len__(self) -> int:
        return len(self.errors)


class Pictures(Dataset[_Item]):
    """Images as a network is tested with them; of one that cannot be read, why.

    Args:
        images: Paths, and whatever else ``read_image`` takes.
        cfg: The network's ``pretrained_cfg``.
    """

    def __init__(self, images: Sequence[ImageSource], cfg: Mapping[str, Any]) -> None:
        self.images = images
        self.transform = transform_of(cfg)
        self.in_chans = in_chans_of(cfg)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        source = self.images[index]
        try:
            image = self._read(source)
        except UnreadableImageError as error:
            return str(error)
        try:
            check_elongation(image, self.transform)
        except ValueError as error:
            return f"{source}: {error}" if isinstance(source, str | Path) else str(error)
        return self.transform(image)

    def _read(self, source: ImageSource) -> Any:
        """The upright image: of PIL in RGB or grey, or bytes (C, H, W) of other channels."""
        if isinstance(source, str | Path):
            return read_channels(str(source), self.in_chans)
        image = read_image(source)
        return image.convert("L") if self.in_chans == 1 else image


def in_chans_of(cfg: Mapping[str, Any]) -> int:
    """Channels that a network sees.

    Args:
        cfg: Its ``pretrained_cfg``.
    """
    return int(cfg.get("input_size", (3,))[0])


def load_batches(
    images: Pictures, *, batch_size: int, num_workers: int | None, pin_memory: bool = False
) -> DataLoader[Any]:
    """The images in order: of each batch those that could be read, and why others could not.

    Args:
        images: All of them.
        batch_size: Images a batch.
        num_workers: Processes that read images; None takes one a core if there are many images.
        pin_memory: Whether a GPU copies the batches.
    """
    if num_workers is None:
        num_workers = num_cores() if len(images) >= _WORTH_WORKERS else 0
    return DataLoader(
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=end_with_reader,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )


def classify_batches(
    model: nn.Module,
    images: Pictures,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
    embeddings: bool = False,
) -> Iterator[Batch]:
    """What a classifier says of images, a batch at a time; only a few batches are in memory.

    Until the last batch is taken the model is in evaluation mode; it stays on ``device``.

    Args:
        model: A classifier of timm's, ours among them.
        images: All of them.
        batch_size: Images a batch.
        num_workers: Processes that read images; None takes one a core if there are many images.
        device: Where to compute; None takes the GPU if there is one.
        embeddings: Whether to keep what the classifier layer reads.

    Raises:
        ValueError: If the network has no classifier layer whose features could be kept.
    """
    place = default_device(device)
    model.to(place)
    loader = load_batches(
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=place.type == "cuda",
    )
    features = _Features(model) if embeddings else None
    try:
        with eval_mode(model):
            for pixels, errors in loader:
                # Not around the yield: it would last in the caller's code.
                with torch.inference_mode():
                    batch = _classified(model, pixels.to(place), errors, features)
                yield batch
    finally:
        if features is not None:
            features.hook.remove()


def _collate(items: Sequence[_Item]) -> tuple[Tensor, list[str | None]]:
    """The images that could be read as (M, C, H, W), and of each image why it could not be."""
    errors = [item if isinstance(item, str) else None for item in items]
    read = [item for item in items if isinstance(item, Tensor)]
    return torch.stack(read) if read else torch.empty(0), errors


def _classified(
    model: nn.Module, pixels: Tensor, errors: Sequence[str | None], features: _Features | None
) -> Batch:
    if not len(pixels):
        return Batch(errors=errors, probabilities=torch.empty(0, 0), features=None)
    shares = class_probabilities(model, model(pixels)).cpu()
    kept = None if features is None else features.of(len(pixels))
    return Batch(errors=errors, probabilities=shares, features=kept)


class _Features:
    """Keeps what a network's classifier layer was given last."""

    def __init__(self, model: nn.Module) -> None:
        found = cast(Any, model).get_classifier()
        # Distilled transformers have two, which read alike.
        classifier = found[0] if isinstance(found, tuple | list) else found
        if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Identity):
            raise ValueError(f"{type(model).__name__} has no classifier layer, and no embeddings")
        self.hook = classifier.register_forward_pre_hook(self._keep)
        self.last: Tensor | None = None

    def _keep(self, classifier: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.last = given[0]

    def of(self, num_images: int) -> Tensor:
        """(B, C), or (B, K, C) where each of K classes reads features of its own."""
        assert self.last is not None
        x = self.last.float().cpu()
        if x.dim() == 4:  # of a convolution; before the pool in some networks
            x = x.mean((2, 3))
        return x.reshape(num_images, -1, x.shape[-1]).squeeze(1)


def predict_each(model: nn.Module, images: Any, config: PredictConfig) -> Iterator[ImagePrediction]:
    """What a classifier says of each image, see ``convattn.Run.predict``.

    Args:
        model: A classifier of timm's, ours among them.
        images: A folder, an image as ``read_image`` takes it, or a list of those.
        config: Size of a batch, workers, device, and the probability below which to reject.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If a folder holds no image, or the network finds several classes an image and
            shall reject.
    """
    classes, cfg = Classes.of(model), pretrained_cfg(model)
    reject_below = classes.find_rejected(config)
    sources = _sources(images, in_chans_of(cfg))
    batches = classify_batches(
        model,
        Pictures(sources, cfg),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=config.device,
        embeddings=True,
    )
    return _records(classes, sources, batches, reject_below)


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes that a network tells apart."""

    names: Sequence[str]
    """What they are called, in order."""
    thresholds: Tensor | None
    """Where an image may have several: the probability from which on it has each, (K,)."""
    reject_below: float | None = None
    """Where it has one: the probability that ``convattn finetune`` chose to reject by."""

    @classmethod
    def of(cls, model: nn.Module) -> Classes:
        """Those of a classifier.

        Args:
            model: Its ``pretrained_cfg`` has the ``thresholds``, which else are 0.5, or the
                ``reject_below`` that ``convattn finetune`` chose.
        """
        cfg, count = pretrained_cfg(model), int(cast(Any, model).num_classes)
        names = class_names(model, count)
        if not cfg.get("multi_label"):
            return cls(names=names, thresholds=None, reject_below=cfg.get("reject_below"))
        return cls(names=names, thresholds=torch.tensor(cfg.get("thresholds", [THRESHOLD] * count)))

    def ranked(self, shares: Tensor) -> list[int]:
        """Numbers of all classes, the likeliest first; of equals the lower number.

        Args:
            shares: How likely each is, (K,).
        """
        order: list[int] = shares.argsort(descending=True, stable=True).tolist()
        return order

    def taken(self, shares: Tensor) -> list[int]:
        """Numbers of those that an image is taken to have, the likeliest first.

        Args:
            shares: How likely each is, (K,).

        Examples:
            >>> classes = Classes(names="abc", thresholds=torch.tensor([0.5, 0.5, 0.8]))
            >>> classes.taken(torch.tensor([0.6, 0.4, 0.9]))
            [2, 0]
        """
        order = self.ranked(shares)
        if self.thresholds is None:
            return order[:1]
        reached = (shares >= self.thresholds).tolist()
        return [one for one in order if reached[one]]

    def find_rejected(self, config: PredictConfig) -> float | None:
        """The probability below which images are rejected; None: none is.

        Args:
            config: Says whether to, and by which.

        Raises:
            ValueError: If images may have several classes, or none was chosen.
        """
        if config.reject_below is not None and self.thresholds is not None:
            raise ValueError(
                f"reject_below={config.reject_below} is for networks that give an image one class; "
                "this one may find several, each by a threshold of its own: leave it out"
            )
        if config.reject_below != "auto":
            return config.reject_below
        if self.reject_below is None:
            raise ValueError(
                "reject_below=auto takes the probability that convattn finetune chose by "
                "validation images, and this network has none; give a number, as 0.9"
            )
        return self.reject_below


def _sources(images: Any, in_chans: int) -> Sequence[ImageSource]:
    if isinstance(images, list | tuple):
        return [_as_text(one) for one in images]
    if isinstance(images, str | os.PathLike):
        return list_images(Path(images), in_chans)
    return [images]


def _as_text(source: Any) -> Any:
    return os.fspath(source) if isinstance(source, os.PathLike) else source


def _records(
    classes: Classes,
    sources: Sequence[ImageSource],
    batches: Iterator[Batch],
    reject_below: float | None,
) -> Iterator[ImagePrediction]:
    waiting = iter(sources)
    for batch in batches:
        rows = iter(range(len(batch.probabilities)))
        for error in batch.errors:
            source = next(waiting)
            path = source if isinstance(source, str) else None
            if error is not None:
                yield _unread(path, error)
            else:
                yield _record(classes, path, batch, next(rows), reject_below)


def _unread(path: str | None, error: str) -> ImagePrediction:
    return ImagePrediction(
        path=path,
        prediction=None,
        probability=None,
        rejected=False,
        probabilities={},
        embedding=None,
        error=error,
    )


def _record(
    classes: Classes, path: str | None, batch: Batch, row: int, reject_below: float | None
) -> ImagePrediction:
    shares = batch.probabilities[row]
    taken = classes.taken(shares)
    found = tuple(classes.names[one] for one in taken)
    values = tuple(float(shares[one]) for one in taken)
    single = classes.thresholds is None
    return ImagePrediction(
        path=path,
        prediction=found[0] if single else found,
        probability=values[0] if single else values,
        rejected=reject_below is not None and values[0] < reject_below,
        probabilities=dict(zip(classes.names, shares.tolist(), strict=True)),
        embedding=None if batch.features is None else batch.features[row],
        error=None,
    )
