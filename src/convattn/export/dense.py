"""Detectors and segmenters as networks of tensors: images in, raw boxes or logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from convattn.detection.retinanet import RetinaNet
from convattn.export.nms import OUTPUTS
from convattn.segmentation.upernet import UPerNet

_MULTIPLE = 32  # that torchvision pads images to
_TOLERANCE = 1e-4
_USUAL_SIZE = (3, 256, 256)  # of a network that no run has told of one


class DenseNetwork(nn.Module):
    """A detector or segmenter whose outputs are tensors of sizes that the images' tell.

    Attributes:
        outputs: Names of what its file gives.
    """

    outputs: tuple[str, ...]
    model: nn.Module

    def expected(self, images: Tensor) -> tuple[Tensor, ...]:
        """What its file has to give.

        Args:
            images: Such as it takes.
        """
        outputs = self(images)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def aligned(
        self, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Outputs in the order in which they can be compared one by one.

        Args:
            outputs: Of the file.
            expected: Of the network.
        """
        return outputs

    def cfg(self, size: tuple[int, int] | None) -> dict[str, Any]:
        """What is to be known of its images and its classes.

        Args:
            size: Height and width that the file is checked with; None takes its own.
        """
        own: Any = getattr(self.model, "pretrained_cfg", {})
        channels, *sides = own.get("input_size", _USUAL_SIZE)
        # A program of torch.export takes no image whose coarsest map is one row or column.
        sides = [max(side, self.coarsest + 1) for side in sides]
        kept = ("mean", "std", "image_size", "max_size", "num_classes", "label_names")
        known = {name: own[name] for name in kept if name in own}
        return known | {"input_size": (channels, *(size or sides))}

    def images(self, noise: Tensor) -> Tensor:
        """Images such as it takes, (B, 3, H, W), out of normal noise."""
        return noise

    def example(self, images: Tensor) -> Tensor:
        """Images to trace with, large enough that no map is a single row or column.

        The tracer would take that for a size which never changes.

        Args:
            images: Such as it takes.
        """
        side = self.coarsest
        return images.new_zeros(*images.shape[:2], 2 * side + 1, 3 * side + 1)

    @property
    def coarsest(self) -> int:
        """Stride of its coarsest map."""
        return _MULTIPLE

    def agree(self, outputs: tuple[Tensor, ...], images: Tensor) -> None:
        """Compare what is made of outputs with what the network itself finds.

        Args:
            outputs: Of a file, or of this network.
            images: That it was given.

        Raises:
            ValueError: If they differ.
        """


class RawDetector(DenseNetwork):
    """A RetinaNet's boxes and scores of every anchor, before any is left out.

    Shape:
        (B, 3, H, W) of 0 to 1, at the size that the network shall see, -> boxes (B, A, 4) in pixels
        of these images, within them, and scores (B, A, K) of the classes from label 1.
    """

    outputs: tuple[str, ...] = ("boxes", "scores")
    mean: Tensor
    std: Tensor

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.model = model
        # Images come at their final size.
        cast(Any, model.transform).resize = lambda image, target=None: (image, target)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.transform, f"image_{name}"))
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def cfg(self, size: tuple[int, int] | None) -> dict[str, Any]:
        """As for all, and how boxes are chosen."""
        model: Any = self.model
        names = ("score_thresh", "nms_thresh", "topk_candidates", "detections_per_img")
        chosen = {name: getattr(model, name) for name in names}
        return super().cfg(size) | chosen | {"level_strides": model.anchor_generator.strides}

    @property
    def coarsest(self) -> int:
        """Stride of its coarsest map."""
        return int(cast(Any, self.model).anchor_generator.strides[-1])

    def images(self, noise: Tensor) -> Tensor:
        """Of values from 0 to 1."""
        return noise.sigmoid()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, A, 4) and (B, A, K)."""
        model: Any = self.model
        count, _, height, width = images.shape
        x = (images - self.mean) / self.std
        below, right = ((_MULTIPLE - side % _MULTIPLE) % _MULTIPLE for side in (height, width))
        maps = list(model.backbone(F.pad(x, (0, right, 0, below))).values())
        raw = model.head(maps)
        (anchors,) = model.anchor_generator(ImageList(x[:1], [(height, width)]), maps)
        boxes = model.box_coder.decode_single(
            raw["bbox_regression"].flatten(0, 1), anchors.repeat(count, 1)
        )
        left, top, right_edge, bottom = boxes.unflatten(0, (count, -1)).unbind(-1)
        inside = [
            left.clamp(0, width),
            top.clamp(0, height),
            right_edge.clamp(0, width),
            bottom.clamp(0, height),
        ]
        return torch.stack(inside, -1), raw["cls_logits"][..., 1:].sigmoid()

    def agree(self, outputs: tuple[Tensor, ...], images: Tensor) -> None:
        """Boxes, scores, classes and order are the detector's own, to 1e-4.

        Of the longer side, for boxes. Those whose scores differ by less may change places, at the
        end of the list also with one that is on it no more.

        Raises:
            ValueError: If they differ.
        """
        height, width = images.shape[2:]
        expected = self.model(list(images))
        for number, own in enumerate(expected):
            boxes, scores = (output[number] for output in outputs)
            found = choose_boxes(boxes, scores, (height, width), self.cfg(None))
            if not _are_same(found, {name: one.cpu() for name, one in own.items()}, images):
                raise ValueError(
                    f"boxes chosen from the file's outputs for images of {height} x {width} are "
                    f"not the detector's own: {len(found['labels'])} and {len(own['labels'])}"
                )


class BestBoxes(RawDetector):
    """A RetinaNet whose file chooses its boxes itself.

    Shape:
        (B, 3, H, W) of 0 to 1 -> boxes (B, A, 4) and scores (B, A, K), those 0 that are not among
        the best of their level; what ``add_nms`` makes of them is the file's: ``boxes`` (B, D, 4),
        ``labels`` (B, D) and ``scores`` (B, D), 0 where there are fewer.
    """

    outputs = OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, A, 4) and (B, A, K)."""
        boxes, scores = super().forward(images)
        most = self.cfg(None)["topk_candidates"]
        a_place = cast(Any, self.model).anchor_generator.num_anchors_per_location()[0]
        padded = [(side + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE for side in images.shape[2:]]
        start, levels = 0, []
        for stride in cast(Any, self.model).anchor_generator.strides:
            rows, columns = ((side + stride - 1) // stride for side in padded)
            level = scores[:, start : start + rows * columns * a_place]
            start += rows * columns * a_place
            # As many zeros behind, so that there are enough on every level.
            best = F.pad(level.flatten(1), (0, most)).topk(most).values[:, -1]
            levels.append(level * (level >= best[:, None, None]))
        return boxes, torch.cat(levels, 1)

    def expected(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the detector itself finds, filled up with zeros."""
        count = self.cfg(None)["detections_per_img"]
        found = self.model(list(images))
        return tuple(
            torch.stack([_filled(one[name], count) for one in found]) for name in self.outputs
        )

    def aligned(
        self, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Boxes whose scores are alike may change places, at a list's end also with others."""
        ours, theirs = (
            [dict(zip(self.outputs, row, strict=True)) for row in zip(*given, strict=True)]
            for given in (outputs, expected)
        )
        rows = [_aligned(one, other) for one, other in zip(ours, theirs, strict=True)]
        return tuple(torch.stack([row[name] for row in rows]) for name in self.outputs)

    def agree(self, outputs: tuple[Tensor, ...], images: Tensor) -> None:
        """Has been compared by ``aligned``."""


def _filled(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def _aligned(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Boxes and labels in the places of their twins; scores are in order anyway."""
    near = (ours["scores"][:, None] - theirs["scores"]).abs() <= _TOLERANCE
    near &= ours["labels"][:, None] == theirs["labels"]
    apart = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2)
    apart = torch.where(near, apart, torch.inf)
    places = apart.argmin(0)
    found = theirs["scores"] > 0
    last = theirs["scores"][found].amin() if found.any() else 0.0
    at_end = ~near.any(0) & (theirs["scores"] <= last + _TOLERANCE)
    aligned = {name: ours[name][places] for name in ("boxes", "labels")}
    for name, values in aligned.items():
        values[at_end] = theirs[name][at_end]
    return {**aligned, "scores": ours["scores"]}


def _are_same(found: Mapping[str, Tensor], own: Mapping[str, Tensor], images: Tensor) -> bool:
    scores, theirs = found["scores"], own["scores"]
    if len(scores) != len(theirs) or not torch.allclose(scores, theirs, rtol=0, atol=_TOLERANCE):
        return False
    if not len(scores):
        return True
    apart = (found["boxes"][:, None] - own["boxes"]).abs().amax(2)
    alike = (apart <= _TOLERANCE * max(images.shape[2:])) & (
        (scores[:, None] - theirs).abs() <= _TOLERANCE
    )
    alike &= found["labels"][:, None] == own["labels"]
    return bool((alike.any(0) | (theirs <= theirs[-1] + _TOLERANCE)).all())


def choose_boxes(
    boxes: Tensor | NDArray[np.float32],
    scores: Tensor | NDArray[np.float32],
    size: Sequence[int],
    cfg: Mapping[str, Any],
) -> dict[str, Tensor]:
    """What a RetinaNet finds on an image, of the outputs of its exported file.

    Of every level those boxes count whose score is high enough, the best first, and of boxes of one
    class that overlap the best alone.

    Args:
        boxes: (A, 4), one an anchor.
        scores: (A, K), of the classes from label 1.
        size: Height and width of the image that the file was given.
        cfg: ``pretrained_cfg`` of the file's metadata.

    Returns:
        ``boxes`` (N, 4), ``labels`` (N,) from 1 and ``scores`` (N,), the surest first.
    """
    boxes, scores = torch.as_tensor(boxes), torch.as_tensor(scores)
    padded = [-(-side // _MULTIPLE) * _MULTIPLE for side in size]
    places = [-(-padded[0] // stride) * -(-padded[1] // stride) for stride in cfg["level_strides"]]
    a_place = len(scores) // sum(places)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    num_classes = scores.shape[1]
    levels = [count * a_place for count in places]
    for of_level, at in zip(boxes.split(levels), scores.split(levels), strict=True):
        above = (at.flatten() > cfg["score_thresh"]).nonzero()[:, 0]
        best, order = at.flatten()[above].topk(min(cfg["topk_candidates"], len(above)))
        chosen = above[order]
        kept.append((of_level[chosen // num_classes], chosen % num_classes + 1, best))
    found, labels, best = (torch.cat(parts) for parts in zip(*kept, strict=True))
    order = batched_nms(found, best, labels, cfg["nms_thresh"])[: cfg["detections_per_img"]]
    return {"boxes": found[order], "labels": labels[order], "scores": best[order]}


class RawSegmenter(DenseNetwork):
    """A UPerNet, which gives logits of every pixel.

    Shape:
        Normalised (B, 3, H, W) -> (B, num_classes, H, W).
    """

    outputs = ("logits",)

    def __init__(self, model: UPerNet) -> None:
        super().__init__()
        self.model = model
        _replace_pools(model)
        # A view's strides tell whether anything was cut off, which a program would freeze.
        cast(Any, model.levels).cropped = _copied_part

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes, H, W)."""
        return cast(Tensor, self.model(images))


def _copied_part(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left of a map, (B, C, height, width)."""
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(2, rows).index_select(3, columns)


class _AnySizePool(nn.Module):
    """Adaptive average pooling as two products, which holds for every size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        rows, columns = (self._shares(side, x) for side in x.shape[2:])
        return rows @ x @ columns.mT

    def _shares(self, side: int, like: Tensor) -> Tensor:
        """(size, side): what each position counts in each mean."""
        number = torch.arange(self.size, device=like.device)[:, None]
        place = torch.arange(side, device=like.device)[None]
        start = number * side // self.size
        end = ((number + 1) * side + self.size - 1) // self.size
        inside = ((place >= start) & (place < end)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def _replace_pools(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size != 1:
            setattr(module, name, _AnySizePool(cast(int, child.output_size)))
        else:
            _replace_pools(child)


def raw_network(model: nn.Module, *, nms: bool = False) -> DenseNetwork | None:
    """The network to export of a copy of a detector or segmenter; None for a classifier.

    Args:
        model: A copy, which is changed.
        nms: Whether a detector's file shall choose its boxes.

    Raises:
        ValueError: If it is one that cannot be exported, or has no boxes to choose.
    """
    if isinstance(model, RetinaNet):
        return BestBoxes(model) if nms else RawDetector(model)
    if nms and not isinstance(model, GeneralizedRCNN):
        raise ValueError(f"{type(model).__name__} finds no boxes; leave nms out")
    if isinstance(model, UPerNet):
        return RawSegmenter(model)
    if isinstance(model, GeneralizedRCNN):
        raise ValueError(
            f"{type(model).__name__} is not exported: its boxes decide what it computes next; "
            "export a retinanet"
        )
    return None
