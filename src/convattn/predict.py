"""Images in, drawings and files out: what ``convattn predict`` does with a trained network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from convattn.data import UnreadableImageError, read_image
from convattn.detection.prediction import detect
from convattn.evaluate import unused_name
from convattn.files import replace_atomically
from convattn.segmentation.prediction import segment


def predict_objects(
    model: nn.Module, files: Sequence[Path], out: Path, *, threshold: float
) -> Iterator[str | UnreadableImageError]:
    """Find the objects on images, one after the other.

    Every image gets a drawing ``NAME.png``. At the end ``predictions.json`` holds all that was
    found in COCO's layout: ``images``, ``categories``, and ``annotations`` with a ``score`` each,
    which COCO's evaluation takes as results. An image named by its COCO id keeps it, the others
    are numbered.

    Args:
        model: A detector, as ``load_run`` gives it.
        files: The images.
        out: A folder.
        threshold: Least score of what is drawn and written, 0 to 1.

    Yields:
        What was found on each image, in a few words; or why it could not be read.
    """
    cfg: Any = model.pretrained_cfg
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[str] = set()
    ids = _image_ids(files)
    for file, image_id in zip(files, ids, strict=True):
        image = _read(file)
        if isinstance(image, UnreadableImageError):
            yield image
            continue
        found = detect(model, image, threshold=threshold)
        found.draw(image).save(out / f"{unused_name(file.stem, used)}.png")
        images.append(
            {
                "id": image_id,
                "file_name": file.name,
                "width": image.width,
                "height": image.height,
            }
        )
        annotations += found.to_coco(image_id)
        yield f"{len(found.boxes)} objects"
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [
        {"id": number, "name": name}
        for number, name in zip(cfg["category_ids"], cfg["label_names"], strict=True)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    replace_atomically(out / "predictions.json", (json.dumps(content) + "\n").encode())


def predict_classes(
    model: nn.Module, files: Sequence[Path], out: Path, *, window: tuple[int, int] | None
) -> Iterator[str | UnreadableImageError]:
    """Find the class of every pixel of images, one after the other.

    Every image gets a drawing ``NAME.png`` and a mask ``NAME_mask.png``, whose pixels are the
    classes' numbers and whose palette shows them. ``classes.txt`` names them, number 0 first.

    Args:
        model: A segmenter, as ``load_run`` gives it.
        files: The images.
        out: A folder.
        window: Height and width of the overlapping windows that images are cut into; None takes
            them whole.

    Yields:
        What was found on each image, in a few words; or why it could not be read.
    """
    cfg: Any = model.pretrained_cfg
    used: set[str] = set()
    for file in files:
        image = _read(file)
        if isinstance(image, UnreadableImageError):
            yield image
            continue
        found = segment(model, image, window=window)
        stem = unused_name(file.stem, used)
        found.draw(image).save(out / f"{stem}.png")
        found.mask().save(out / f"{unused_name(f'{stem}_mask', used)}.png")
        yield ", ".join(f"{name} {share:.0%}" for name, share in found.largest(3))
    replace_atomically(out / "classes.txt", ("\n".join(cfg["label_names"]) + "\n").encode())


def _read(file: Path) -> Image.Image | UnreadableImageError:
    try:
        return read_image(file)
    except UnreadableImageError as error:
        return error


def _image_ids(files: Sequence[Path]) -> list[int]:
    """The images' COCO ids where all are named so, else their numbers from 1."""
    stems = [file.stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(files) + 1))
