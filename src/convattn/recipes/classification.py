"""Recipes of classifiers on small images, and for your own."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.record import Recipe, Row, add_recipe, vary_model

quickstart = add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="quickstart",
            data=DataConfig(name="cluttered_digits", batch_size=128, hflip=0.0),
            model=ModelConfig(name="patchconvnet_nano"),
            optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.05, warmup_epochs=0.4),
            epochs=4,
            channels_last=True,
        ),
        summary=(
            "A small PatchConvNet with attention pooling on cluttered digits, in about 2 minutes."
        ),
        paper=(
            "none; it shows the paper's claim, that attention pooling finds the object, on a laptop"
        ),
        ours="docs/results/quickstart.md",
        hardware="2 CPU cores",
        time="about 2 minutes",
    )
)

add_recipe(
    Recipe(
        config=vary_model(
            quickstart.config, "quickstart_avgpool", model_args={"global_pool": "avg"}
        ),
        summary=(
            "The quickstart network with average pooling, trained alike: what attention is worth."
        ),
        ours="docs/results/quickstart.md",
        hardware="2 CPU cores",
        time="about 2 minutes",
    )
)

add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="fashion_mnist_aa",
            data=DataConfig(name="fashion_mnist", batch_size=128, random_crop_padding=2),
            model=ModelConfig(name="aa_wide_resnet_nano"),
            optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.02, warmup_epochs=0.2),
            epochs=2,
            channels_last=True,
        ),
        summary="A small attention-augmented network on Fashion-MNIST.",
        ours="91.80 % top-1 (seed 0)",
        hardware="2 CPU cores",
        time="8.6 minutes",
    )
)

_TINY_IMAGENET = DataConfig(
    name="tiny_imagenet", batch_size=128, random_crop_padding=8, label_smoothing=0.1
)

add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="patchconvnet_tiny_imagenet",
            data=_TINY_IMAGENET,
            model=ModelConfig(name="patchconvnet_nano", model_args={"embed_dim": 96, "depth": 6}),
            optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.05, warmup_epochs=0.4),
            epochs=16,
            channels_last=True,
        ),
        summary="A small PatchConvNet with attention pooling on Tiny ImageNet at 64 x 64.",
        paper="none; docs/results/localisation.md measures where it looks",
        ours="60.2 / 59.6 / 59.8 % top-1",
        ours_on="on 40 classes, seeds 0 to 2",
        hardware="one CPU core",
        time="18 minutes, at worst 32",
    )
)

add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="resnet18_tiny_imagenet",
            data=_TINY_IMAGENET,
            model=ModelConfig(name="resnet18"),
            optim=OptimConfig(
                opt="sgd",
                lr=0.1,
                momentum=0.9,
                weight_decay=5e-4,
                opt_args={"nesterov": True},
                warmup_epochs=1,
            ),
            epochs=8,
            channels_last=True,
        ),
        summary="A plain ResNet-18 on Tiny ImageNet at 64 x 64.",
        paper="none; docs/results/augment_study.md starts from it",
        ours="48.9 % top-1 on 40 classes (seed 0)",
        hardware="2 CPU cores",
        time="34 minutes beside other work",
    )
)

finetune = add_recipe(
    Recipe(
        config=TrainConfig(
            recipe="finetune",
            data=DataConfig(
                name="folder",
                batch_size=32,
                num_workers=2,
                scale=(0.35, 1.0),
            ),
            model=ModelConfig(name="resnet18"),
            optim=OptimConfig(opt="adamw", lr=1e-4, weight_decay=0.05, warmup_epochs=1),
            epochs=10,
            channels_last=True,
        ),
        summary=(
            "A trained network on a folder of a few hundred images: give it by ``--data.root``."
        ),
        notes=(
            "It downloads nothing by itself: add ``--model.pretrained`` for timm's weights, or "
            "``--model.checkpoint FILE`` for others; ``--model.name`` chooses another network."
        ),
        hardware="2 CPU cores or a GPU",
    )
)


def _wide_resnet(name: str, *, batch_size: int, weight_decay: float) -> TrainConfig:
    return TrainConfig(
        recipe=f"{name}_cifar100",
        data=DataConfig(
            name="cifar100", batch_size=batch_size, random_crop_padding=4, num_workers=4
        ),
        model=ModelConfig(name=name),
        optim=OptimConfig(
            opt="sgd",
            lr=0.2 * batch_size / 256,
            momentum=0.9,
            weight_decay=weight_decay,
            warmup_epochs=25,
        ),
        epochs=500,
        eval_every=5,
        log_every=50,
    )


_AA_SETTINGS = (
    "Inferred: 500 epochs, SGD 0.9 with lr 0.2 per 256 images, 5 % warm-up then cosine, batch 256, "
    "weight decay 5e-4, flip and a crop padded by 4."
)
_PLAIN_SETTINGS = "Inferred: as the augmented twin, but batch 1024 and weight decay 2e-4."

# Summary, batch size, weight decay; GFLOPs, M parameters, top-1, top-5; settings.
_WIDE_RESNETS = {
    "wide_resnet28_10": (
        ("Wide-ResNet-28-10 on CIFAR-100, the plain twin.", 1024, 2e-4),
        ("10.4", "36.3", "80.3", "95.0"),
        _PLAIN_SETTINGS,
    ),
    "se_wide_resnet28_10": (
        ("Squeeze-excite Wide-ResNet-28-10 on CIFAR-100.", 1024, 2e-4),
        ("10.4", "36.5", "81.0", "95.3"),
        "Inferred: as the plain twin.",
    ),
    "aa_wide_resnet28_10": (
        ("Attention-augmented Wide-ResNet-28-10 on CIFAR-100.", 256, 5e-4),
        ("10.9", "36.2", "81.6", "95.2"),
        _AA_SETTINGS,
    ),
}

for _model, (_training, _figures, _settings) in _WIDE_RESNETS.items():
    _summary, _batch_size, _weight_decay = _training
    _cost, _parameters, _score, _top5 = _figures
    _kind = _model.removesuffix("wide_resnet28_10").upper().replace("_", "-")
    add_recipe(
        Recipe(
            config=_wide_resnet(_model, batch_size=_batch_size, weight_decay=_weight_decay),
            summary=_summary,
            row=Row(
                table="wide_resnets",
                name=f"{_kind}Wide-ResNet-28-10",
                source="arXiv 1904.09925, table 1",
                score=_score,
                top5=_top5,
                parameters=_parameters,
                cost=_cost,
                size=(32, 32),
            ),
            hardware="one GPU",
            settings=_settings,
        )
    )
