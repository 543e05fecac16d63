"""What a detector is given: looked over, then resized, normalised and padded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from convattn.text import nearest

Targets = Sequence[Mapping[str, Any]]

_SLACK = 0.01  # pixels; boxes were scaled in float32 before they came here


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which can leave the sizes of training images alone.

    Attributes:
        resize_training: Set to False if training images come at their final size; they are then
            only normalised and padded.
    """

    resize_training = True

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As torchvision's, or nothing."""
        if self.training and not self.resize_training:
            return image, target
        return super().resize(image, target)


def check_images(images: Sequence[Tensor]) -> None:
    """Looks the images over.

    Args:
        images: (3, H, W) floats between 0 and 1 each.

    Raises:
        ValueError: If there is none, or one of another shape, type or range; says which.
    """
    if len(images) == 0:
        raise ValueError("no images were given; a detector needs a list of at least one")
    for number, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(f"image {number} has shape {tuple(image.shape)}, expected (3, H, W)")
        if not image.is_floating_point():
            raise ValueError(
                f"image {number} is of {image.dtype}, expected floats between 0 and 1; divide "
                "by 255"
            )
        low, high = (value.item() for value in image.aminmax())
        # Smooth interpolation overshoots a little.
        if not (low >= -0.5 and high <= 1.5):
            raise ValueError(
                f"image {number} has values from {low:.3g} to {high:.3g}, expected 0 to 1; the "
                "detector itself subtracts the mean"
            )


def checked_targets(
    images: Sequence[Tensor], targets: Targets | None, *, num_classes: int, masks: bool
) -> list[dict[str, Tensor]]:
    """Looks the targets over, and leaves out crowds and what training does not need.

    Args:
        targets: Boxes and labels, and masks if needed, an image; with ``iscrowd``, those that are
            true are left out.
        num_classes: Classes and the background.

    Returns:
        ``boxes``, ``labels`` and with ``masks`` ``masks`` of each image, as plain tensors.

    Raises:
        ValueError: If targets are missing or wrong; says of which image, and which entry.
    """
    if targets is None or len(targets) != len(images):
        count = "none" if targets is None else str(len(targets))
        raise ValueError(
            f"{len(images)} images, but {count} targets; training needs one an image, for a "
            "image without objects one with boxes (0, 4)"
        )
    names = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    plain = []
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        where = f"image {number}"
        if "image_id" in target:
            where += f" (image_id {int(target['image_id'])})"
        missing = [name for name in names if name not in target]
        if missing:
            raise ValueError(f"the target of {where} has no {missing[0]!r}; it needs {names}")
        parts = {name: target[name].as_subclass(Tensor) for name in names}
        _check_boxes(where, parts["boxes"], *image.shape[-2:])
        _check_labels(where, parts["labels"], len(parts["boxes"]), num_classes)
        if masks:
            _check_masks(where, parts["masks"], (len(parts["boxes"]), *image.shape[-2:]))
        if "iscrowd" in target:
            kept = ~target["iscrowd"].bool()
            parts = {name: part[kept] for name, part in parts.items()}
        plain.append(parts)
    return plain


def _check_boxes(where: str, boxes: Tensor, height: int, width: int) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"the boxes of {where} are {boxes.dtype} of shape {tuple(boxes.shape)}, expected "
            "floats of shape (N, 4): left, top, right, bottom in pixels"
        )
    # Both tests are written so that a coordinate that is not a number fails them.
    sized = (boxes[:, 2:] > boxes[:, :2]).all(1)
    limit = boxes.new_tensor([width, height, width, height])
    inside = ((boxes >= -_SLACK) & (boxes <= limit + _SLACK)).all(1)
    for good, fault in (
        (sized, "is not left < right and top < bottom"),
        (inside, f"does not lie inside the image, {width} wide and {height} high"),
    ):
        if not good.all():
            entry = _first(~good)
            raise ValueError(
                f"box {entry} of {where} {fault}: {boxes[entry].tolist()}; mend or leave it out"
            )


def _check_labels(where: str, labels: Tensor, count: int, num_classes: int) -> None:
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"the labels of {where} are {labels.dtype} of shape {tuple(labels.shape)}, expected "
            f"torch.int64, one for each of the {count} boxes"
        )
    wrong = (labels < 1) | (labels >= num_classes)
    if wrong.any():
        entry = _first(wrong)
        raise ValueError(
            f"label {entry} of {where} is {int(labels[entry])}, expected 1 to {num_classes - 1}; "
            f"num_classes={num_classes} counts the background, 0"
        )


def _check_masks(where: str, masks: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(masks.shape) != expected:
        raise ValueError(
            f"the masks of {where} have shape {tuple(masks.shape)}, expected {expected}: one a "
            "box, of the image's height and width"
        )


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0])


def check_numbers(detector: type, given: Mapping[str, Any]) -> None:
    """Refuses an argument that torchvision's detector has not, which it would not notice itself.

    Args:
        detector: torchvision's class; its arguments with a number as default are meant.
        given: What shall be handed to it.

    Raises:
        ValueError: If it has no such argument; names the nearest.
    """
    known = [
        name
        for name, parameter in inspect.signature(detector).parameters.items()
        if isinstance(parameter.default, int | float)
    ]
    for name in given:
        if name not in known:
            near = nearest(name, known)
            raise ValueError(
                f"{detector.__name__} has no argument {name!r}; the nearest is {near!r}"
            )
