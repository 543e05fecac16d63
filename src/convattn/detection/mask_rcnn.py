"""Mask R-CNN on any backbone, and the PatchConvNets' ones.

He et al. 2017, https://arxiv.org/abs/1703.06870, by torchvision; Touvron et al. 2021,
https://arxiv.org/abs/2112.13692.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from convattn.detection.anchors import LevelAnchors, cast_to_full_precision
from convattn.detection.inputs import (
    DetectorTransform,
    Targets,
    check_images,
    check_numbers,
    checked_targets,
)
from convattn.models.pyramid import FeaturePyramid, feature_levels

_STRIDES = (4, 8, 16, 32)
_BOX_SIDE = 7  # positions that a region is pooled to before its box is predicted


class MaskRCNN(torchvision.models.detection.MaskRCNN):
    """torchvision's Mask R-CNN, which says what is wrong with its images and targets.

    ``mask_rcnn`` makes one.

    Shape:
        Training: a list of (3, H, W) floats between 0 and 1, and a target each, -> a dictionary of
        losses. Evaluation: the list -> for each image ``boxes`` (N, 4) in its own pixels,
        ``labels`` (N,), ``scores`` (N,) and ``masks`` (N, 1, H, W), probabilities.

    Raises:
        ValueError: If an image or a target is not as it must be; says which.
    """

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        check_images(images)
        num_classes = self.roi_heads.box_predictor.cls_score.out_features
        return super().forward(
            images,
            checked_targets(images, targets, num_classes=num_classes, masks=True)
            if self.training
            else None,
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the backbone in the backward pass instead of keeping its activations."""
        self.backbone.levels.set_grad_checkpointing(enable)


def mask_rcnn(
    backbone: str,
    *,
    num_classes: int,
    pretrained: bool = False,
    backbone_weights: str | os.PathLike[str] | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    channels: int = 256,
    box_channels: int = 1024,
    mask_channels: int = 256,
    anchor_scale: float = 8.0,
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN on a network by its name in timm's registry.

    Args:
        backbone: The name, with or without a ``.tag``.
        num_classes: Classes and the background.
        pretrained: Load the backbone's released weights.
        backbone_weights: Or those of a classifier's run folder or file.
        augment: Arguments of ``convattn.augment`` for the backbone's convolutions.
        channels: Channels of the pyramid, of strides 4 to 64.
        box_channels: Channels of the two layers that classify a region.
        mask_channels: Channels of the convolutions that draw a region's mask.
        anchor_scale: Side of a level's anchors in strides.
        min_size: The shorter side that images are resized to, in pixels.
        max_size: The most that the longer side may get.
        image_mean: Of each colour, between 0 and 1; None takes ImageNet's.
        image_std: Likewise.
        **kwargs: Thresholds and numbers of torchvision's MaskRCNN, as ``box_score_thresh``,
            ``box_detections_per_img``, ``rpn_post_nms_top_n_test``.

    Raises:
        ValueError: If an argument is none of the known or has no meaning.

    Examples:
        >>> import convattn, torch
        >>> model = mask_rcnn("patchconvnet_nano", num_classes=11, channels=32, min_size=64).eval()
        >>> sorted(model([torch.rand(3, 64, 80)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    check_numbers(torchvision.models.detection.MaskRCNN, kwargs)
    levels = feature_levels(
        backbone,
        strides=_STRIDES,
        pretrained=pretrained,
        weights=backbone_weights,
        augment=augment,
        **(backbone_args or {}),
    )
    strides = (*_STRIDES, 2 * _STRIDES[-1])
    names = [str(index) for index in range(len(_STRIDES))]
    model = MaskRCNN(
        FeaturePyramid(levels, channels, LastLevelMaxPool()),
        rpn_anchor_generator=LevelAnchors(
            strides, [[int(anchor_scale * stride)] for stride in strides]
        ),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=_BOX_SIDE, sampling_ratio=2),
        box_head=TwoMLPHead(channels * _BOX_SIDE**2, box_channels),
        box_predictor=FastRCNNPredictor(box_channels, num_classes),
        mask_roi_pool=MultiScaleRoIAlign(names, output_size=2 * _BOX_SIDE, sampling_ratio=2),
        mask_head=MaskRCNNHeads(channels, (mask_channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_classes),
        **kwargs,
    )
    model.transform = DetectorTransform(
        min_size, max_size, image_mean or IMAGENET_DEFAULT_MEAN, image_std or IMAGENET_DEFAULT_STD
    )
    model.rpn.register_forward_hook(_never_no_proposal)
    heads = (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor)
    for head in heads:
        head.register_forward_hook(cast_to_full_precision)
    return model


def _never_no_proposal(
    rpn: nn.Module, args: tuple[Any, ...], output: tuple[list[Tensor], dict[str, Tensor]]
) -> tuple[list[Tensor], dict[str, Tensor]] | None:
    """The whole image where all proposals lie outside: the mean loss of none is not a number."""
    if not rpn.training:
        return None
    proposals, losses = output
    sizes = args[0].image_sizes
    whole = [
        boxes.new_tensor([[0, 0, width, height]])
        for boxes, (height, width) in zip(proposals, sizes, strict=True)
    ]
    return [
        boxes if len(boxes) else instead for boxes, instead in zip(proposals, whole, strict=True)
    ], losses


def mask_rcnn_patchconvnet_s60(*, num_classes: int, **arguments: Any) -> MaskRCNN:
    """Mask R-CNN on PatchConvNet-S60."""
    return mask_rcnn("patchconvnet_s60", num_classes=num_classes, **arguments)


def mask_rcnn_patchconvnet_s120(*, num_classes: int, **arguments: Any) -> MaskRCNN:
    """Mask R-CNN on PatchConvNet-S120."""
    return mask_rcnn("patchconvnet_s120", num_classes=num_classes, **arguments)
