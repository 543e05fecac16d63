"""RetinaNet on any backbone, and the AA-RetinaNets with their twins.

Lin et al. 2017, https://arxiv.org/abs/1708.02002, by torchvision; Bello et al. 2019,
https://arxiv.org/abs/1904.09925, section 4.3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from convattn.detection.anchors import LevelAnchors, cast_to_full_precision
from convattn.detection.inputs import (
    DetectorTransform,
    Targets,
    check_images,
    check_numbers,
    checked_targets,
)
from convattn.models.pyramid import CoarserLevels, FeaturePyramid, feature_levels

_HEAD_CONVS = 4  # of torchvision's head
# Inferred. Heads from the paper's parameters: attention makes its detectors smaller, unlike its
# classifiers, whose heads have 20 channels. Downsampling from its FLOPs. Tables for the size that
# these count.
_AUGMENTED = {
    "num_heads": 8,
    "min_head_dim": 8,
    "attn_downsample": {8: 2, 16: 2},
    "img_size": 640,
}
_LAST_BACKBONE_LEVEL = 5  # stride 32; convolutions on the pyramid make what is coarser


class RetinaNet(torchvision.models.detection.RetinaNet):
    """torchvision's RetinaNet, which says what is wrong with its images and targets.

    Class 0, the background, is never predicted. ``retinanet`` makes one.

    Shape:
        Training: a list of (3, H, W) floats between 0 and 1, and a target each, -> a dictionary of
        losses. Evaluation: the list -> for each image ``boxes`` (N, 4) in its own pixels,
        ``labels`` (N,) and ``scores`` (N,).

    Raises:
        ValueError: If an image or a target is not as it must be; says which.
    """

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        check_images(images)
        num_classes = self.head.classification_head.num_classes
        return super().forward(
            images,
            checked_targets(images, targets, num_classes=num_classes, masks=False)
            if self.training
            else None,
        )

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """As torchvision's, without the background, which it would hand out as a class."""
        zero = torch.zeros(1, dtype=torch.int64, device=anchors[0][0].device)
        logits = [level.index_fill(-1, zero, float("-inf")) for level in head_outputs["cls_logits"]]
        return super().postprocess_detections(
            {**head_outputs, "cls_logits": logits}, anchors, image_shapes
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the backbone in the backward pass instead of keeping its activations."""
        self.backbone.levels.set_grad_checkpointing(enable)


def retinanet(
    backbone: str,
    *,
    num_classes: int,
    pretrained: bool = False,
    backbone_weights: str | os.PathLike[str] | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    channels: int = 256,
    min_level: int = 3,
    max_level: int = 7,
    anchor_scale: float = 4.0,
    num_scales: int = 3,
    head_convs: int = 4,
    head_init: Literal["normal", "kaiming"] = "normal",
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **kwargs: Any,
) -> RetinaNet:
    """RetinaNet on a network by its name in timm's registry.

    Args:
        backbone: The name, with or without a ``.tag``.
        num_classes: Classes and the background.
        pretrained: Load the backbone's released weights.
        backbone_weights: Or those of a classifier's run folder or file.
        augment: Arguments of ``convattn.augment`` for the backbone's convolutions.
        channels: Channels of pyramid and head.
        min_level: First level; level n has stride 2^n.
        max_level: Last level; those above 5 are made by convolutions on the pyramid.
        anchor_scale: Side of a level's smallest anchors in strides.
        num_scales: Anchor sides a level, evenly spaced within an octave.
        head_convs: 3x3 convolutions before each prediction, at most 4.
        head_init: How these start. "normal" is torchvision's, of deviation 0.01 whatever their
            width: right for 256 channels. It makes signals fade in narrow ones, which "kaiming"
            mends: from scratch they then learn at once.
        min_size: The shorter side that images are resized to, in pixels.
        max_size: The most that the longer side may get.
        image_mean: Of each colour, between 0 and 1; None takes ImageNet's.
        image_std: Likewise.
        **kwargs: Thresholds and numbers of torchvision's RetinaNet, as ``score_thresh``,
            ``nms_thresh``, ``detections_per_img``, ``topk_candidates``.

    Raises:
        ValueError: If an argument is none of the known or has no meaning.

    Examples:
        >>> import convattn, torch
        >>> model = retinanet("aa_resnet_nano", num_classes=11, channels=32, min_size=64).eval()
        >>> sorted(model([torch.rand(3, 64, 80)])[0])
        ['boxes', 'labels', 'scores']
    """
    check_numbers(torchvision.models.detection.RetinaNet, kwargs)
    if not 0 <= min_level <= min(max_level, _LAST_BACKBONE_LEVEL):
        raise ValueError(
            f"min_level={min_level}, max_level={max_level} are no levels; RetinaNet has 3 to 7, "
            f"and the first is at most {_LAST_BACKBONE_LEVEL}"
        )
    if not 0 <= head_convs <= _HEAD_CONVS:
        raise ValueError(f"head_convs={head_convs} is not between 0 and {_HEAD_CONVS}")
    if head_init not in ("normal", "kaiming"):
        raise ValueError(f"head_init={head_init!r}; expected 'normal' or 'kaiming'")
    levels = range(min_level, max_level + 1)
    own = [level for level in levels if level <= _LAST_BACKBONE_LEVEL]
    coarser = levels[len(own) :]
    pyramid = FeaturePyramid(
        feature_levels(
            backbone,
            strides=[2**level for level in own],
            pretrained=pretrained,
            weights=backbone_weights,
            augment=augment,
            **(backbone_args or {}),
        ),
        channels,
        CoarserLevels(channels, coarser) if coarser else None,
    )
    anchors = LevelAnchors(
        [2**level for level in levels],
        [
            [int(anchor_scale * 2 ** (level + scale / num_scales)) for scale in range(num_scales)]
            for level in levels
        ],
    )
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], num_classes)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:head_convs]
        if head_init == "kaiming":
            for conv in part.conv.modules():
                if isinstance(conv, nn.Conv2d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    head.register_forward_hook(cast_to_full_precision)
    model = RetinaNet(pyramid, num_classes, anchor_generator=anchors, head=head, **kwargs)
    model.transform = DetectorTransform(
        min_size, max_size, image_mean or IMAGENET_DEFAULT_MEAN, image_std or IMAGENET_DEFAULT_STD
    )
    return model


def retinanet_resnet50(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """RetinaNet-50."""
    return retinanet("resnet50", num_classes=num_classes, **arguments)


def retinanet_resnet101(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """RetinaNet-101."""
    return retinanet("resnet101", num_classes=num_classes, **arguments)


def se_retinanet_resnet50(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """RetinaNet-50 with squeeze-and-excitation in the backbone."""
    return retinanet("seresnet50", num_classes=num_classes, **arguments)


def se_retinanet_resnet101(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """RetinaNet-101 with squeeze-and-excitation in the backbone."""
    return retinanet("seresnet101", num_classes=num_classes, **arguments)


def aa_retinanet_resnet50(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """AA-RetinaNet-50 with attention as the paper's costs suggest.

    See docs/results/detection_cost.md.
    """
    return _augmented("aa_resnet50", num_classes, **arguments)


def aa_retinanet_resnet101(*, num_classes: int, **arguments: Any) -> RetinaNet:
    """AA-RetinaNet-101 with attention as the paper's costs suggest.

    See docs/results/detection_cost.md.
    """
    return _augmented("aa_resnet101", num_classes, **arguments)


def _augmented(
    backbone: str,
    num_classes: int,
    *,
    backbone_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> RetinaNet:
    return retinanet(
        backbone,
        num_classes=num_classes,
        backbone_args={**_AUGMENTED, **(backbone_args or {})},
        **arguments,
    )
