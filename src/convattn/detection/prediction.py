"""An image in, boxes and masks out: drawn, or as COCO's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype, to_pil_image

from convattn.data import UnreadableImageError
from convattn.data.annotated import AnnotatedImages
from convattn.data.video import named_images
from convattn.detection.tiling import detect_flipped, detect_in_tiles
from convattn.drawing import (
    Colour,
    class_colour,
    draw_box,
    draw_sheet,
    enlarge_for_labels,
    magnify,
    save_png,
    tint,
)
from convattn.files import replace_atomically, unused_name
from convattn.modes import eval_mode
from convattn.text import csv_text, json_text, report

_OPACITY = 0.5
_COLUMNS = ("image", "class", "score", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Objects of one image, found or true."""

    boxes: Tensor
    """(N, 4): xmin, ymin, xmax, ymax in pixels of the image."""
    labels: Tensor
    """(N,), from 1."""
    scores: Tensor | None
    """(N,), between 0 and 1; None for the truth."""
    masks: Tensor | None
    """(N, H, W) bool; None without masks."""
    class_names: tuple[str, ...]
    """Name of each class from label 1."""
    category_ids: tuple[int, ...]
    """COCO's id of each class from label 1."""

    @classmethod
    def of(
        cls,
        found: Mapping[str, Any],
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        threshold: float = 0.0,
    ) -> Self:
        """What a detector found in an image, or a data set's truth about it.

        Args:
            found: Of torchvision's contract: boxes, labels, and scores and masks where there are
                some; masks (N, 1, H, W) of probabilities or (N, H, W) of 0 and 1.
            class_names: Name of each class from label 1.
            category_ids: COCO's id of each.
            threshold: Objects of a lower score are left out.
        """
        scores, masks = found.get("scores"), found.get("masks")
        labels = found["labels"].cpu()
        kept = slice(None) if scores is None else (scores >= threshold).cpu()
        return cls(
            boxes=found["boxes"].cpu().as_subclass(Tensor)[kept],
            labels=labels[kept],
            scores=None if scores is None else scores.cpu()[kept],
            masks=None
            if masks is None
            else masks.cpu().as_subclass(Tensor).reshape(len(labels), *masks.shape[-2:])[kept]
            > 0.5,
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
        )

    def choices(self) -> list[tuple[str, float, Colour]]:
        """Class, score and colour of each object, the surest first."""
        assert self.scores is not None
        return [
            (self.class_names[label - 1], score, class_colour(label - 1))
            for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ]

    def choice_at(self, y: float, x: float) -> int | None:
        """The place of the smallest object whose box holds a point; None if there is none.

        Args:
            y: Row in pixels.
            x: Column.
        """
        left, top, right, bottom = self.boxes.unbind(1)
        inside = ((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).nonzero()[:, 0]
        areas = ((right - left) * (bottom - top))[inside]
        return int(inside[areas.argmin()]) if len(inside) else None

    def draw(self, image: Image.Image) -> Image.Image:
        """Boxes with their classes and scores, and translucent masks, on the image.

        Args:
            image: The one that they were found in. A small one comes back as a multiple of its
                size, so that labels can be read.
        """
        canvas, times = enlarge_for_labels(image)
        # The surest ones come last, and lie on top.
        order = range(len(self.labels)) if self.scores is None else self.scores.argsort().tolist()
        colours = [class_colour(label - 1) for label in self.labels.tolist()]
        if self.masks is not None:
            layer = np.zeros((image.height, image.width), np.int64)
            for k in order:
                layer[self.masks[k].numpy()] = k + 1
            shown = magnify(layer, times)
            palette = np.array([(0, 0, 0), *colours], np.uint8)
            canvas = tint(canvas, palette[shown], np.float32(_OPACITY) * (shown > 0))
        for k in order:
            draw_box(canvas, (times * self.boxes[k]).tolist(), colours[k], self._caption(k))
        return canvas

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file; masks as compressed run lengths.

        Args:
            image_id: The image's number in its annotation file.

        Raises:
            ValueError: If these are the truth, which has no scores.
        """
        if self.scores is None:
            raise ValueError("objects without scores are no results; give what a detector found")
        entries: list[dict[str, Any]] = []
        for k, (label, score) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            xmin, ymin, xmax, ymax = self.boxes[k].tolist()
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                "score": score,
            }
            if self.masks is not None:
                entry["segmentation"] = _run_lengths(self.masks[k])
            entries.append(entry)
        return entries

    def rows(self, image: str) -> list[tuple[object, ...]]:
        """Rows of a table: image, class, score and the box's edges in pixels.

        Args:
            image: Its name in the table.
        """
        assert self.scores is not None
        return [
            (
                image,
                self.class_names[label - 1],
                f"{score:.4f}",
                *(f"{edge:.2f}" for edge in box),
            )
            for label, score, box in zip(
                self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def _caption(self, k: int) -> str:
        name = self.class_names[int(self.labels[k]) - 1]
        return name if self.scores is None else f"{name} {self.scores[k]:.2f}"


def detect(
    model: nn.Module,
    image: Image.Image,
    *,
    threshold: float = 0.5,
    tile: int | None = None,
    flip: bool = False,
) -> Detections:
    """Find the objects of an image; the detector is left as it was.

    Args:
        model: A detector whose ``pretrained_cfg`` has ``label_names`` and ``category_ids``.
        image: Of any mode and size; the detector resizes it itself.
        threshold: Objects of a lower score are left out; 0 keeps all that the detector gives.
        tile: Side in pixels of the tiles that the image is cut into, see ``detect_in_tiles``; None
            shows it whole.
        flip: Also look at the mirror image; without masks.

    Raises:
        ValueError: If ``threshold`` is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}; expected a score between 0 and 1")
    cfg = cast(Any, model).pretrained_cfg
    device = next(model.parameters()).device
    pixels = to_dtype(pil_to_tensor(image.convert("RGB")), torch.float32, scale=True)

    def call(pixels: Tensor) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor]
        if tile is not None and tile < max(pixels.shape[1:]):
            return detect_in_tiles(model, pixels, tile)
        (found,) = model([pixels])
        return found

    with eval_mode(model), torch.inference_mode():
        pixels = pixels.to(device)
        threshold_of_nms = getattr(model, "nms_thresh", 0.5)
        found = detect_flipped(call, pixels, threshold_of_nms) if flip else call(pixels)
    return Detections.of(
        found,
        class_names=cfg["label_names"],
        category_ids=cfg["category_ids"],
        threshold=threshold,
    )


def draw_beside_truth(
    model: nn.Module,
    images: AnnotatedImages[Any],
    count: int,
    out: Path,
    *,
    title: str,
    threshold: float = 0.5,
) -> None:
    """Write a sheet of images from all over a data set: the truth and what the detector finds.

    Args:
        model: As in ``detect``.
        images: A data set without a transform: uint8 (3, H, W) and their truth.
        count: How many; a smaller data set gives all it has.
        threshold: As in ``detect``.
    """
    cfg = cast(Any, model).pretrained_cfg
    names = {"class_names": cfg["label_names"], "category_ids": cfg["category_ids"]}
    groups = []
    for pixels, target in images.spread(count):
        image = to_pil_image(pixels)
        found = detect(model, image, threshold=threshold)
        groups.append((Detections.of(target, **names).draw(image), found.draw(image)))
    save_png(draw_sheet(groups, ("truth", "prediction"), title), out)


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def predict_images(
    model: nn.Module,
    files: Sequence[Path],
    out: Path,
    *,
    threshold: float,
    tile: int | None = None,
    flip: bool = False,
    every: int = 1,
) -> Iterator[tuple[str, str | UnreadableImageError]]:
    """Find the objects on images, and on the frames of videos, one after the other.

    Every image gets a drawing ``NAME.png``. At the end ``predictions.json`` holds all that was
    found in COCO's layout: ``images``, ``categories``, and ``annotations`` with a ``score`` each,
    which COCO's evaluation takes as results, and ``predictions.csv`` a row an object. Images that
    all are named by their COCO ids keep them, others are numbered.

    Args:
        model: A detector, as ``Run.load_model`` gives it.
        files: The images and videos.
        out: A folder.
        threshold: Least score of what is drawn and written, 0 to 1.
        tile: As for ``detect``; one that is smaller than the largest object that training saw is
            told on stderr.
        flip: As for ``detect``.
        every: As for ``named_images``.

    Yields:
        Name of each image, and what was found on it, in a few words; or why it could not be read.
    """
    cfg: Any = model.pretrained_cfg
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: list[str] = []
    used: set[str] = set()
    largest = cfg.get("largest_object")
    if tile is not None and largest is not None and tile < largest:
        report(
            f"--tile {tile} is smaller than the largest object that training saw, {largest:.0f} "
            "pixels: such objects are found in parts; give a larger one"
        )
    rows: list[tuple[object, ...]] = [_COLUMNS]
    for place, one in enumerate(named_images(files, every=every)):
        names.append(one.stem)
        image = one.image
        if isinstance(image, UnreadableImageError):
            yield one.name, image
            continue
        found = detect(model, image, threshold=threshold, tile=tile, flip=flip)
        rows += found.rows(one.name)
        found.draw(image).save(out / f"{unused_name(one.stem, used)}.png")
        size = {"width": image.width, "height": image.height}
        images.append({"id": place, "file_name": one.file_name, **size})
        annotations += found.to_coco(place)
        yield one.name, f"{len(found.boxes)} objects"
    ids = _image_ids(names)
    for entry in images:
        entry["id"] = ids[entry["id"]]
    for number, annotation in enumerate(annotations, 1):
        annotation["image_id"] = ids[annotation["image_id"]]
        annotation["id"] = number
    categories = [
        {"id": number, "name": name}
        for number, name in zip(cfg["category_ids"], cfg["label_names"], strict=True)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    replace_atomically(out / "predictions.json", (json_text(content) + "\n").encode())
    table = csv_text(rows).encode(errors="surrogateescape")
    replace_atomically(out / "predictions.csv", table)


def _image_ids(stems: Sequence[str]) -> list[int]:
    """The images' COCO ids where all are named so, else their numbers from 1."""
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))
