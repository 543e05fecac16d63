"""Recipes of detectors."""

from __future__ import annotations

import dataclasses

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.registry import register_recipe, variant


@register_recipe
def cluttered_digits_retinanet() -> TrainConfig:
    """A small attention-augmented RetinaNet that finds the digits in a clutter of up to five.

    Paper: none. Ours, seeds 0 to 2: 91.8 / 92.5 / 91.1 % AP50. Hardware: one CPU core. Time: 7
    minutes, up to 10 beside other work.
    """
    return TrainConfig(
        recipe="cluttered_digits_retinanet",
        data=DataConfig(name="cluttered_digits", batch_size=32, hflip=0.0),
        model=ModelConfig(
            name="retinanet",
            backbone="aa_resnet_nano",
            backbone_args={"img_size": 96},
            model_args={
                "channels": 64,
                "min_level": 3,
                "max_level": 5,
                "anchor_scale": 2.0,
                "head_convs": 2,
                "head_init": "kaiming",
            },
        ),
        optim=OptimConfig(opt="muon", lr=5e-3, weight_decay=0.05, warmup_epochs=0.5),
        epochs=6,
        clip_grad=10.0,
        channels_last=True,
        eval_every=2,
    )


@register_recipe
def cluttered_digits_retinanet_plain() -> TrainConfig:
    """The plain twin of ``cluttered_digits_retinanet``: no attention in its backbone.

    Paper: none. Ours, seeds 0 to 2: 92.1 / 91.5 / 92.0 % AP50. Hardware: one CPU core. Time: 7
    minutes, up to 11 beside other work.
    """
    return variant(
        cluttered_digits_retinanet(),
        "cluttered_digits_retinanet_plain",
        backbone="resnet_nano",
        backbone_args={},
    )


@register_recipe
def cluttered_digits_mask_rcnn() -> TrainConfig:
    """A small Mask R-CNN on a PatchConvNet that finds and outlines digits.

    Paper: none. Ours: not trained yet. Hardware: 2 CPU cores. Time: not measured.
    """
    base = cluttered_digits_retinanet()
    return dataclasses.replace(
        base,
        recipe="cluttered_digits_mask_rcnn",
        data=dataclasses.replace(base.data, batch_size=16),
        model=ModelConfig(
            name="mask_rcnn",
            backbone="patchconvnet_nano",
            model_args={
                "channels": 64,
                "anchor_scale": 4.0,
                "box_channels": 128,
                "mask_channels": 32,
            },
        ),
    )


@register_recipe
def finetune_retinanet() -> TrainConfig:
    """RetinaNet with a trained backbone on your COCO json: give its folder by ``--data.root``.

    It downloads nothing by itself: add ``--model.pretrained`` for the backbone's weights, or
    ``--model.checkpoint`` for others; ``--model.backbone`` chooses another network.

    Paper: none. Ours: not trained yet. Hardware: one GPU. Time: not measured.
    """
    return TrainConfig(
        recipe="finetune_retinanet",
        data=DataConfig(
            name="coco",
            image_size=512,
            batch_size=8,
            num_workers=2,
            scale_jitter=(0.8, 1.25),
        ),
        model=ModelConfig(name="retinanet", backbone="resnet50"),
        optim=OptimConfig(opt="adamw", lr=1e-4, weight_decay=0.05, warmup_epochs=1),
        epochs=12,
        clip_grad=10.0,
        channels_last=True,
        # Bilinear resizing and RoI pooling have no deterministic gradient on GPUs.
        deterministic=False,
    )


@register_recipe
def finetune_mask_rcnn() -> TrainConfig:
    """Mask R-CNN with a trained backbone on your COCO json with masks; as ``finetune_retinanet``.

    Paper: none. Ours: not trained yet. Hardware: one GPU. Time: not measured.
    """
    return variant(finetune_retinanet(), "finetune_mask_rcnn", name="mask_rcnn")


def _coco(**values: object) -> DataConfig:
    return dataclasses.replace(
        # COCO itself holds boxes without width or height.
        DataConfig(name="coco", num_workers=8, bad_annotations="skip"),
        **values,  # type: ignore[arg-type]
    )


@register_recipe
def aa_retinanet_resnet50_coco() -> TrainConfig:
    """Attention-augmented RetinaNet with ResNet-50 on COCO, from scratch.

    Paper (arXiv 1904.09925, table 5): 38.2 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. From the paper, by memory: 150 epochs from scratch, scale jitter. Inferred: 640 x 640
    crops of images scaled by 0.8 to 1.2, batch 64, SGD 0.9 with lr 0.08, 5 epochs of warm-up then
    cosine, weight decay 1e-4, bfloat16; six anchors a place (docs/detection_cost.md).
    """
    return TrainConfig(
        recipe="aa_retinanet_resnet50_coco",
        data=_coco(
            batch_size=64,
            image_size=640,
            max_size=1066,
            scale_jitter=(0.8, 1.2),
            crop_size=(640, 640),
        ),
        model=ModelConfig(name="aa_retinanet_resnet50", model_args={"num_scales": 2}),
        optim=OptimConfig(opt="sgd", lr=0.08, momentum=0.9, weight_decay=1e-4, warmup_epochs=5),
        epochs=150,
        precision="bf16-mixed",
        clip_grad=10.0,
        channels_last=True,
        # Bilinear resizing and RoI pooling have no deterministic gradient on GPUs.
        deterministic=False,
        eval_every=10,
        log_every=50,
    )


@register_recipe
def aa_retinanet_resnet101_coco() -> TrainConfig:
    """Attention-augmented RetinaNet with ResNet-101 on COCO, from scratch.

    Paper (arXiv 1904.09925, table 5): 39.2 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``aa_retinanet_resnet50_coco``.
    """
    return variant(
        aa_retinanet_resnet50_coco(), "aa_retinanet_resnet101_coco", name="aa_retinanet_resnet101"
    )


@register_recipe
def retinanet_resnet50_coco() -> TrainConfig:
    """RetinaNet with ResNet-50 on COCO, from scratch: the plain twin.

    Paper (arXiv 1904.09925, table 5): 36.8 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``aa_retinanet_resnet50_coco``.
    """
    return variant(
        aa_retinanet_resnet50_coco(), "retinanet_resnet50_coco", name="retinanet_resnet50"
    )


@register_recipe
def se_retinanet_resnet50_coco() -> TrainConfig:
    """RetinaNet with SE-ResNet-50 on COCO, from scratch.

    Paper (arXiv 1904.09925, table 5): 36.5 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``aa_retinanet_resnet50_coco``.
    """
    return variant(
        aa_retinanet_resnet50_coco(), "se_retinanet_resnet50_coco", name="se_retinanet_resnet50"
    )


@register_recipe
def retinanet_resnet101_coco() -> TrainConfig:
    """RetinaNet with ResNet-101 on COCO, from scratch: the plain twin.

    Paper (arXiv 1904.09925, table 5): 38.5 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``aa_retinanet_resnet50_coco``.
    """
    return variant(
        aa_retinanet_resnet50_coco(), "retinanet_resnet101_coco", name="retinanet_resnet101"
    )


@register_recipe
def se_retinanet_resnet101_coco() -> TrainConfig:
    """RetinaNet with SE-ResNet-101 on COCO, from scratch.

    Paper (arXiv 1904.09925, table 5): 37.4 mAP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``aa_retinanet_resnet50_coco``.
    """
    return variant(
        aa_retinanet_resnet50_coco(), "se_retinanet_resnet101_coco", name="se_retinanet_resnet101"
    )


@register_recipe
def mask_rcnn_patchconvnet_s60_coco() -> TrainConfig:
    """Mask R-CNN with PatchConvNet-S60 on COCO; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 46.4 box AP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred, from how XCiT was trained: 36 epochs, batch 16, AdamW with lr 1e-4 and
    weight decay 0.05, a tenth at epochs 27 and 33, shorter side 480 to 800, longer at most 1333.
    """
    return TrainConfig(
        recipe="mask_rcnn_patchconvnet_s60_coco",
        data=_coco(batch_size=16, image_size=800, max_size=1333, scale_jitter=(0.6, 1.0)),
        model=ModelConfig(name="mask_rcnn_patchconvnet_s60", drop_path_rate=0.05),
        optim=OptimConfig(
            opt="adamw",
            lr=1e-4,
            weight_decay=0.05,
            schedule="multistep",
            warmup_epochs=0.07,
            decay_milestones=(27, 33),
        ),
        epochs=36,
        precision="bf16-mixed",
        # Bilinear resizing and RoI pooling have no deterministic gradient on GPUs.
        deterministic=False,
        eval_every=6,
        log_every=50,
    )


@register_recipe
def mask_rcnn_patchconvnet_s120_coco() -> TrainConfig:
    """Mask R-CNN with PatchConvNet-S120 on COCO; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 47.0 box AP. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``mask_rcnn_patchconvnet_s60_coco``, drop path 0.1.
    """
    return variant(
        mask_rcnn_patchconvnet_s60_coco(),
        "mask_rcnn_patchconvnet_s120_coco",
        name="mask_rcnn_patchconvnet_s120",
        drop_path_rate=0.1,
    )
