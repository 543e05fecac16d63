"""An image in, the class of every pixel out: drawn, or as a mask file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from convattn.data import UnreadableImageError
from convattn.data.annotated import AnnotatedImages
from convattn.data.dense_transforms import segmentation_test_transform
from convattn.data.masks import IGNORED
from convattn.data.video import named_images
from convattn.drawing import (
    BLACK,
    WHITE,
    Colour,
    class_colour,
    draw_legend,
    draw_sheet,
    enlarge_for_labels,
    magnify,
    save_png,
    stack_images,
    tint,
)
from convattn.files import replace_atomically, unused_name
from convattn.modes import check_finite, eval_mode
from convattn.segmentation.upernet import resize_logits, sliding_window
from convattn.text import csv_text

_OPACITY = 0.7


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The class of every pixel of an image, found or true."""

    classes: Tensor
    """(H, W) uint8, from 0; 255 where no class counts."""
    class_names: tuple[str, ...]
    """Name of each class from 0."""

    def largest(self, count: int) -> list[tuple[str, float]]:
        """The classes that cover most, and their shares of the pixels that count.

        Args:
            count: How many classes at most.
        """
        counted = self.classes[self.classes != IGNORED].long()
        shares = counted.bincount(minlength=len(self.class_names)) / max(1, len(counted))
        order = shares.argsort(descending=True, stable=True)[:count].tolist()
        return [(self.class_names[k], shares[k].item()) for k in order if shares[k] > 0]

    def choices(self) -> list[tuple[str, float, Colour]]:
        """Name, share of the pixels and colour of each class, the largest first."""
        colours = dict(zip(self.class_names, _colours(self.class_names), strict=True))
        found = self.largest(len(self.class_names))
        return [(name, share, colours[name]) for name, share in found]

    def choice_at(self, y: float, x: float) -> int | None:
        """The place of a pixel's class among ``choices``.

        Args:
            y: Row.
            x: Column.
        """
        name = self.class_names[int(self.classes[int(y), int(x)])]
        return [own for own, _, _ in self.choices()].index(name)

    def overlay(self, image: Image.Image) -> Image.Image:
        """Translucent colours of the classes; stripes where none counts.

        Args:
            image: The one that was looked at. A small one comes back as a multiple of its size.
        """
        canvas, times = enlarge_for_labels(image)
        classes = magnify(self.classes.numpy(), times)
        colours = _palette(self.class_names)[classes]
        opacity = np.full(classes.shape, _OPACITY, np.float32)
        ignored = classes == IGNORED
        colours[ignored] = _stripes(*classes.shape)[ignored]
        opacity[ignored] = 1
        return tint(canvas, colours, opacity)

    def draw(self, image: Image.Image) -> Image.Image:
        """The overlay above a legend of the classes that are there.

        Args:
            image: As for ``overlay``.
        """
        colours = dict(zip(self.class_names, _colours(self.class_names), strict=True))
        present = [self.class_names[k] for k in self.classes.unique().tolist() if k != IGNORED]
        shown = self.overlay(image)
        return stack_images(
            shown, draw_legend({name: colours[name] for name in present}, shown.width)
        )

    def mask(self) -> Image.Image:
        """An image of mode "P" whose values are the classes, in the colours of ``draw``."""
        image = Image.fromarray(self.classes.numpy())
        image.putpalette(_palette(self.class_names).tobytes())
        return image


def segment(
    model: nn.Module,
    image: Image.Image,
    *,
    window: tuple[int, int] | None = None,
    flip: bool = False,
) -> Segmentation:
    """Find the class of every pixel of an image; the segmenter is left as it was.

    The image is prepared as for the segmenter's evaluation, and the logits are brought back to
    the image's own size.

    Args:
        model: A segmenter whose ``pretrained_cfg`` has ``image_size``, ``mean``, ``std`` and
            ``label_names``.
        image: Of any mode and size.
        window: Height and width of what the model sees at once, as in ``sliding_window``; None
            shows it the whole image.
        flip: Also look at the mirror image, and take the mean of both probabilities.

    Examples:
        >>> from convattn.segmentation import create_segmenter
        >>> model = create_segmenter("upernet", num_classes=3, backbone="patchconvnet_nano")
        >>> segment(model, Image.new("RGB", (70, 50))).classes.shape
        torch.Size([50, 70])
    """
    batch = prepared(model, image)
    with eval_mode(model), torch.inference_mode():
        logits = model(batch) if window is None else sliding_window(model, batch, window)
        check_finite(logits)
        if flip:
            other = batch.flip(3)
            mirrored = model(other) if window is None else sliding_window(model, other, window)
            logits = (logits.softmax(1) + mirrored.flip(3).softmax(1)) / 2
        classes = resize_logits(logits, (image.height, image.width)).argmax(1)[0]
    return Segmentation(
        classes=classes.to("cpu", torch.uint8),
        class_names=tuple(cast(Any, model).pretrained_cfg["label_names"]),
    )


def prepared(model: nn.Module, image: Image.Image) -> Tensor:
    """An image as a segmenter sees it, (1, 3, H, W), where the segmenter is.

    Args:
        model: As in ``segment``.
        image: Of any mode and size.
    """
    cfg = cast(Any, model).pretrained_cfg
    prepare = segmentation_test_transform(
        image_size=cfg["image_size"], mean=tuple(cfg["mean"]), std=tuple(cfg["std"])
    )
    unknown = tv_tensors.Mask(torch.full((image.height, image.width), IGNORED))
    pixels, _ = prepare(tv_tensors.Image(image.convert("RGB")), unknown)
    return pixels[None].to(next(model.parameters()).device)


def draw_beside_truth(
    model: nn.Module, images: AnnotatedImages[Tensor], count: int, out: Path, *, title: str
) -> None:
    """Write a sheet of images from all over a data set: alone, with the truth and what is found.

    Args:
        model: As in ``segment``.
        images: A data set without a transform: uint8 (3, H, W) and the class of every pixel.
        count: How many; a smaller data set gives all it has.
    """
    class_names = tuple(cast(Any, model).pretrained_cfg["label_names"])
    groups, present = [], set[int]()
    for pixels, mask in images.spread(count):
        image = to_pil_image(pixels)
        truth = Segmentation(
            classes=mask.as_subclass(Tensor).to(torch.uint8), class_names=class_names
        )
        found = segment(model, image)
        present |= {*truth.classes.unique().tolist(), *found.classes.unique().tolist()}
        groups.append((enlarge_for_labels(image)[0], truth.overlay(image), found.overlay(image)))
    whole = draw_sheet(groups, ("image", "truth", "prediction"), title)
    colours = _colours(class_names)
    names = {class_names[k]: colours[k] for k in sorted(present - {IGNORED})}
    save_png(stack_images(whole, draw_legend(names, whole.width)), out)


def _colours(class_names: Sequence[str]) -> list[Colour]:
    """Of each class; a background is black, so that the objects stand out."""
    return [
        BLACK if name == "background" else class_colour(k) for k, name in enumerate(class_names)
    ]


def _palette(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """(256, 3): the classes' colours, and white for what does not count."""
    palette = np.full((256, 3), WHITE, np.uint8)
    palette[: len(class_names)] = _colours(class_names)
    return palette


def _stripes(height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3): black and grey, aslant."""
    rows, columns = np.ogrid[:height, :width]
    dark = (rows + columns) // 8 % 2 == 0
    return np.where(dark[..., None], np.uint8(0), np.uint8(120)).repeat(3, -1)


def predict_images(
    model: nn.Module,
    files: Sequence[Path],
    out: Path,
    *,
    window: tuple[int, int] | None,
    flip: bool = False,
    every: int = 1,
) -> Iterator[tuple[str, str | UnreadableImageError]]:
    """Find the class of every pixel of images, and of videos' frames, one after the other.

    Every image gets a drawing ``NAME.png`` and a mask ``NAME_mask.png``, whose pixels are the
    classes' numbers and whose palette shows them. ``classes.txt`` names them, number 0 first;
    ``predictions.csv`` has a row for each class on each image, with its pixels and their share.

    Args:
        model: A segmenter, as ``Run.load_model`` gives it.
        files: The images and videos.
        out: A folder.
        window: Height and width of the overlapping windows that images are cut into; None takes
            them whole.
        flip: As for ``segment``.
        every: As for ``named_images``.

    Yields:
        Name of each image, and what was found on it, in a few words; or why it could not be read.
    """
    cfg: Any = model.pretrained_cfg
    used: set[str] = set()
    rows: list[tuple[object, ...]] = [("image", "class", "pixels", "share")]
    for one in named_images(files, every=every):
        image = one.image
        if isinstance(image, UnreadableImageError):
            yield one.name, image
            continue
        found = segment(model, image, window=window, flip=flip)
        total = found.classes.numel()
        for name, share in found.largest(len(found.class_names)):
            rows.append((one.name, name, round(share * total), f"{share:.6f}"))
        stem = unused_name(one.stem, used)
        found.draw(image).save(out / f"{stem}.png")
        found.mask().save(out / f"{unused_name(f'{stem}_mask', used)}.png")
        yield one.name, ", ".join(f"{name} {share:.0%}" for name, share in found.largest(3))
    replace_atomically(out / "classes.txt", ("\n".join(cfg["label_names"]) + "\n").encode())
    table = csv_text(rows).encode(errors="surrogateescape")
    replace_atomically(out / "predictions.csv", table)
