"""Recipes of segmenters."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.record import Recipe, Row, add_recipe, vary_model

_DIGITS = add_recipe(
    Recipe(
        config=TrainConfig(
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
        ),
        summary=(
            "A small UPerNet on a PatchConvNet that colours digits in clutter by their class."
        ),
        ours="77.1 / 78.5 / 77.7 % mIoU",
        ours_on="seeds 0 to 2",
        hardware="one CPU core",
        time="13.5 minutes, up to 19 beside other work",
    )
).config

add_recipe(
    Recipe(
        config=vary_model(
            _DIGITS,
            "cluttered_digits_upernet_aa",
            backbone="aa_resnet_nano",
            backbone_args={"img_size": 96},
        ),
        summary=("``cluttered_digits_upernet`` with a small attention-augmented ResNet instead."),
        hardware="2 CPU cores",
    )
)

add_recipe(
    Recipe(
        config=vary_model(_DIGITS, "cluttered_digits_upernet_plain", backbone="resnet_nano"),
        summary=(
            "The plain twin of ``cluttered_digits_upernet_aa``: no attention in its backbone."
        ),
        ours="76.5 / 77.6 / 78.2 % mIoU",
        ours_on="seeds 0 to 2",
        hardware="one CPU core",
        time="12 minutes, up to 20 beside other work",
    )
)

_CAMVID = add_recipe(
    Recipe(
        config=TrainConfig(
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
        ),
        summary=(
            "A small UPerNet on an attention-augmented ResNet on CamVid at half size, from scratch."
        ),
        ours="56.1 % mIoU",
        ours_on="seed 0",
        hardware="one CPU core",
        time="18 minutes",
    )
).config

add_recipe(
    Recipe(
        config=vary_model(
            _CAMVID, "camvid_upernet_plain", backbone="resnet_nano", backbone_args={}
        ),
        summary="The plain twin of ``camvid_upernet``: no attention in its backbone.",
        ours="56.4 % mIoU",
        ours_on="seed 0",
        hardware="one CPU core",
        time="17 minutes",
    )
)

add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="finetune_upernet",
            data=DataConfig(
                name="folder",
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
        ),
        summary=(
            "UPerNet with a trained backbone on your images with masks or outlines, in mask "
            "folders, Pascal VOC, COCO's json, YOLO or LabelMe: give their folder by "
            "``--data.root``."
        ),
        notes=(
            "It downloads nothing by itself: add ``--model.pretrained`` for the backbone's "
            "weights, or ``--model.checkpoint`` for others; ``--model.backbone`` chooses another "
            "network."
        ),
        hardware="one GPU",
    )
)

_ADE20K = TrainConfig(
    recipe="upernet_patchconvnet_s60_ade20k",
    data=DataConfig(
        name="ade20k",
        batch_size=16,
        num_workers=8,
        image_size=512,
        scale_jitter=(0.5, 2.0),
        crop_size=(512, 512),
        color_jitter=0.3,
    ),
    model=ModelConfig(name="upernet_patchconvnet_s60", drop_path_rate=0.05),
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
_ADE20K_SETTINGS = (
    "Inferred, from how XCiT was trained: 127 epochs (160,000 steps) of batch 16, 512 x 512 crops "
    "of images scaled by 0.5 to 2, AdamW with lr 6e-5 and weight decay 0.01, a straight fall after "
    "1,500 steps of warm-up."
)

for _size, _score, _rate in (
    ("s60", "49.3", 0.05),
    ("b60", "51.1", 0.2),
    ("b120", "52.8", 0.3),
    ("l120", "52.9", 0.4),
):
    _model = f"upernet_patchconvnet_{_size}"
    add_recipe(
        Recipe(
            config=vary_model(_ADE20K, f"{_model}_ade20k", name=_model, drop_path_rate=_rate),
            summary=(
                f"UPerNet with PatchConvNet-{_size.upper()} on ADE20k; give its ImageNet weights "
                "by --model.checkpoint."
            ),
            row=Row(
                table="upernets",
                name=f"UPerNet, PatchConvNet-{_size.upper()}",
                source="arXiv 2112.13692",
                score=_score,
                metric="mIoU",
                from_weights=True,
            ),
            settings=_ADE20K_SETTINGS
            if _size == "s60"
            else f"Inferred: as ``upernet_patchconvnet_s60_ade20k``, drop path {_rate}.",
        )
    )
