"""Recipes of segmenters."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.registry import register_recipe, variant


@register_recipe
def cluttered_digits_upernet() -> TrainConfig:
    """A small UPerNet on a PatchConvNet that colours digits in clutter by their class.

    Paper: none. Ours, seeds 0 to 2: 77.1 / 78.5 / 77.7 % mIoU. Hardware: one CPU core. Time: 13.5
    minutes, up to 19 beside other work.
    """
    return TrainConfig(
        recipe="cluttered_digits_upernet",
        data=DataConfig(name="cluttered_digits", batch_size=32, hflip=0.0),
        model=ModelConfig(
            name="upernet",
            backbone="patchconvnet_nano",
            model_args={"channels": 64, "aux_channels": 32},
        ),
        optim=OptimConfig(opt="muon", lr=1e-2, weight_decay=0.02, warmup_epochs=0.5),
        epochs=8,
        channels_last=True,
        eval_every=2,
    )


@register_recipe
def cluttered_digits_upernet_aa() -> TrainConfig:
    """``cluttered_digits_upernet`` with a small attention-augmented ResNet instead.

    Paper: none. Ours: not trained yet. Hardware: 2 CPU cores. Time: not measured.
    """
    return variant(
        cluttered_digits_upernet(),
        "cluttered_digits_upernet_aa",
        backbone="aa_resnet_nano",
        backbone_args={"img_size": 96},
    )


@register_recipe
def cluttered_digits_upernet_plain() -> TrainConfig:
    """The plain twin of ``cluttered_digits_upernet_aa``: no attention in its backbone.

    Paper: none. Ours, seeds 0 to 2: 76.5 / 77.6 / 78.2 % mIoU. Hardware: one CPU core. Time: 12
    minutes, up to 20 beside other work.
    """
    return variant(
        cluttered_digits_upernet(), "cluttered_digits_upernet_plain", backbone="resnet_nano"
    )


@register_recipe
def camvid_upernet() -> TrainConfig:
    """A small UPerNet on an attention-augmented ResNet on CamVid at half size, from scratch.

    Paper: none. Ours, seed 0: 56.1 % mIoU. Hardware: one CPU core. Time: 18 minutes.
    """
    return TrainConfig(
        recipe="camvid_upernet",
        data=DataConfig(
            name="camvid",
            batch_size=8,
            image_size=180,
            scale_jitter=(0.8, 1.5),
            crop_size=(160, 224),
            color_jitter=0.3,
        ),
        model=ModelConfig(
            name="upernet",
            backbone="aa_resnet_nano",
            backbone_args={"img_size": 180},
            model_args={"channels": 64, "aux_channels": 32},
        ),
        optim=OptimConfig(opt="muon", lr=1e-2, weight_decay=0.05, warmup_epochs=1),
        epochs=25,
        channels_last=True,
        eval_every=5,
    )


@register_recipe
def camvid_upernet_plain() -> TrainConfig:
    """The plain twin of ``camvid_upernet``: no attention in its backbone.

    Paper: none. Ours, seed 0: 56.4 % mIoU. Hardware: one CPU core. Time: 17 minutes.
    """
    return variant(
        camvid_upernet(), "camvid_upernet_plain", backbone="resnet_nano", backbone_args={}
    )


@register_recipe
def finetune_upernet() -> TrainConfig:
    """UPerNet with a trained backbone on your mask folders: give their folder by ``--data.root``.

    It downloads nothing by itself: add ``--model.pretrained`` for the backbone's weights, or
    ``--model.checkpoint`` for others; ``--model.backbone`` chooses another network.

    Paper: none. Ours: not trained yet. Hardware: one GPU. Time: not measured.
    """
    return TrainConfig(
        recipe="finetune_upernet",
        data=DataConfig(
            name="masks",
            image_size=512,
            batch_size=8,
            num_workers=2,
            scale_jitter=(0.5, 2.0),
            crop_size=(512, 512),
            color_jitter=0.3,
        ),
        model=ModelConfig(name="upernet", backbone="resnet50"),
        optim=OptimConfig(opt="adamw", lr=1e-4, weight_decay=0.05, warmup_epochs=1),
        epochs=20,
        channels_last=True,
        # Bilinear resizing and pooling have no deterministic gradient on GPUs.
        deterministic=False,
    )


def _ade20k(name: str, *, drop_path_rate: float) -> TrainConfig:
    return TrainConfig(
        recipe=f"{name}_ade20k",
        data=DataConfig(
            name="ade20k",
            batch_size=16,
            num_workers=8,
            image_size=512,
            scale_jitter=(0.5, 2.0),
            crop_size=(512, 512),
            color_jitter=0.3,
        ),
        model=ModelConfig(name=name, drop_path_rate=drop_path_rate),
        optim=OptimConfig(
            opt="adamw",
            lr=6e-5,
            weight_decay=0.01,
            schedule="poly",
            decay_rate=1.0,
            warmup_epochs=1.2,
        ),
        epochs=127,
        precision="bf16-mixed",
        # Bilinear resizing and pooling have no deterministic gradient on GPUs.
        deterministic=False,
        eval_every=12,
        log_every=50,
    )


@register_recipe
def upernet_patchconvnet_s60_ade20k() -> TrainConfig:
    """UPerNet with PatchConvNet-S60 on ADE20k; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 49.3 mIoU. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred, from how XCiT was trained: 127 epochs (160,000 steps) of batch 16, 512 x 512
    crops of images scaled by 0.5 to 2, AdamW with lr 6e-5 and weight decay 0.01, a straight fall
    after 1,500 steps of warm-up.
    """
    return _ade20k("upernet_patchconvnet_s60", drop_path_rate=0.05)


@register_recipe
def upernet_patchconvnet_b60_ade20k() -> TrainConfig:
    """UPerNet with PatchConvNet-B60 on ADE20k; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 51.1 mIoU. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``upernet_patchconvnet_s60_ade20k``, drop path 0.2.
    """
    return _ade20k("upernet_patchconvnet_b60", drop_path_rate=0.2)


@register_recipe
def upernet_patchconvnet_b120_ade20k() -> TrainConfig:
    """UPerNet with PatchConvNet-B120 on ADE20k; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 52.8 mIoU. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``upernet_patchconvnet_s60_ade20k``, drop path 0.3.
    """
    return _ade20k("upernet_patchconvnet_b120", drop_path_rate=0.3)


@register_recipe
def upernet_patchconvnet_l120_ade20k() -> TrainConfig:
    """UPerNet with PatchConvNet-L120 on ADE20k; give its ImageNet weights by --model.checkpoint.

    Paper (arXiv 2112.13692): 52.9 mIoU. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``upernet_patchconvnet_s60_ade20k``, drop path 0.4.
    """
    return _ade20k("upernet_patchconvnet_l120", drop_path_rate=0.4)
