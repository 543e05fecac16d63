"""Recipes of detectors."""

from __future__ import annotations

from dataclasses import replace

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.record import Recipe, Row, add_recipe, vary_model

_DIGITS = add_recipe(
    Recipe(
        config=TrainConfig(
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
        ),
        summary=(
            "A small attention-augmented RetinaNet that finds the digits in a clutter of up to "
            "five."
        ),
        ours="91.8 / 92.5 / 91.1 % AP50",
        ours_on="seeds 0 to 2",
        hardware="one CPU core",
        time="7 minutes, up to 10 beside other work",
    )
).config

add_recipe(
    Recipe(
        config=vary_model(
            _DIGITS, "cluttered_digits_retinanet_plain", backbone="resnet_nano", backbone_args={}
        ),
        summary=("The plain twin of ``cluttered_digits_retinanet``: no attention in its backbone."),
        ours="92.1 / 91.5 / 92.0 % AP50",
        ours_on="seeds 0 to 2",
        hardware="one CPU core",
        time="7 minutes, up to 11 beside other work",
    )
)

add_recipe(
    Recipe(
        config=replace(
            _DIGITS,
            recipe="cluttered_digits_mask_rcnn",
            data=replace(_DIGITS.data, batch_size=16),
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
        ),
        summary="A small Mask R-CNN on a PatchConvNet that finds and outlines digits.",
        hardware="2 CPU cores",
    )
)

_FINETUNING = add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="finetune_retinanet",
            data=DataConfig(
                name="folder",
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
        ),
        summary=(
            "RetinaNet with a trained backbone on your images with boxes, in COCO's json, YOLO, "
            "Pascal VOC or LabelMe: give their folder by ``--data.root``."
        ),
        notes=(
            "It downloads nothing by itself: add ``--model.pretrained`` for the backbone's "
            "weights, or ``--model.checkpoint`` for others; ``--model.backbone`` chooses another "
            "network."
        ),
        hardware="one GPU",
    )
).config

add_recipe(
    Recipe(
        config=vary_model(_FINETUNING, "finetune_mask_rcnn", name="mask_rcnn"),
        summary=(
            "Mask R-CNN with a trained backbone on your images with outlines, in COCO's json, YOLO "
            "or LabelMe; as ``finetune_retinanet``."
        ),
        hardware="one GPU",
    )
)

# COCO itself holds boxes without width or height.
_COCO = DataConfig(name="coco", num_workers=8, bad_annotations="skip")

_RETINANET = TrainConfig(
    recipe="aa_retinanet_resnet50_coco",
    data=replace(
        _COCO,
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
_RETINANET_SETTINGS = (
    "From the paper, by memory: 150 epochs from scratch, scale jitter. Inferred: 640 x 640 crops "
    "of images scaled by 0.8 to 1.2, batch 64, SGD 0.9 with lr 0.08, 5 epochs of warm-up then "
    "cosine, weight decay 1e-4, bfloat16; six anchors a place (docs/results/detection_cost.md)."
)
_TITLES = {
    "": ("", "RetinaNet with ResNet-{} on COCO, from scratch: the plain twin."),
    "se_": ("SE-", "RetinaNet with SE-ResNet-{} on COCO, from scratch."),
    "aa_": ("AA-", "Attention-augmented RetinaNet with ResNet-{} on COCO, from scratch."),
}

# Of each depth the plain network, its SE twin and ours: GFLOPs, M parameters, mAP.
_RETINANETS = {
    50: {
        "": ("182", "33.4", "36.8"),
        "se_": ("183", "35.9", "36.5"),
        "aa_": ("182", "33.1", "38.2"),
    },
    101: {
        "": ("243", "52.4", "38.5"),
        "se_": ("243", "57.2", "37.4"),
        "aa_": ("245", "51.7", "39.2"),
    },
}

for _depth, _kinds in _RETINANETS.items():
    for _kind, (_cost, _parameters, _score) in _kinds.items():
        _prefix, _summary = _TITLES[_kind]
        _model = f"{_kind}retinanet_resnet{_depth}"
        add_recipe(
            Recipe(
                config=vary_model(_RETINANET, f"{_model}_coco", name=_model),
                summary=_summary.format(_depth),
                row=Row(
                    table="retinanets",
                    name=f"{_prefix}RetinaNet, ResNet-{_depth}",
                    source="arXiv 1904.09925, table 5",
                    score=_score,
                    metric="mAP",
                    parameters=_parameters,
                    cost=_cost,
                ),
                settings=_RETINANET_SETTINGS
                if (_kind, _depth) == ("aa_", 50)
                else "Inferred: as ``aa_retinanet_resnet50_coco``.",
            )
        )

_MASK_RCNN = TrainConfig(
    recipe="mask_rcnn_patchconvnet_s60_coco",
    data=replace(_COCO, batch_size=16, image_size=800, max_size=1333, scale_jitter=(0.6, 1.0)),
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
_MASK_RCNN_SETTINGS = (
    "Inferred, from how XCiT was trained: 36 epochs, batch 16, AdamW with lr 1e-4 and weight decay "
    "0.05, a tenth at epochs 27 and 33, shorter side 480 to 800, longer at most 1333."
)

for _size, _score, _rate, _settings in (
    ("s60", "46.4", 0.05, _MASK_RCNN_SETTINGS),
    ("s120", "47.0", 0.1, "Inferred: as ``mask_rcnn_patchconvnet_s60_coco``, drop path 0.1."),
):
    _model = f"mask_rcnn_patchconvnet_{_size}"
    add_recipe(
        Recipe(
            config=vary_model(_MASK_RCNN, f"{_model}_coco", name=_model, drop_path_rate=_rate),
            summary=(
                f"Mask R-CNN with PatchConvNet-{_size.upper()} on COCO; give its ImageNet weights "
                "by --model.checkpoint."
            ),
            row=Row(
                table="mask_rcnns",
                name=f"Mask R-CNN, PatchConvNet-{_size.upper()}",
                source="arXiv 2112.13692",
                score=_score,
                metric="box AP",
                size=(800, 1344),
                from_weights=True,
            ),
            settings=_settings,
        )
    )
