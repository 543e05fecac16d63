"""Recipes of classifiers on small images, and for your own."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.registry import register_recipe, variant


@register_recipe
def quickstart() -> TrainConfig:
    """A small PatchConvNet with attention pooling on cluttered digits, in about 2 minutes.

    Paper: none; it shows the paper's claim, that attention pooling finds the object, on a laptop.
    Ours: docs/quickstart.md. Hardware: 2 CPU cores. Time: about 2 minutes.
    """
    return TrainConfig(
        recipe="quickstart",
        data=DataConfig(name="cluttered_digits", batch_size=128, hflip=0.0),
        model=ModelConfig(name="patchconvnet_nano"),
        optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.05, warmup_epochs=0.4),
        epochs=4,
        channels_last=True,
    )


@register_recipe
def quickstart_avgpool() -> TrainConfig:
    """The quickstart network with average pooling, trained alike: what attention is worth.

    Paper: none. Ours: docs/quickstart.md. Hardware: 2 CPU cores. Time: about 2 minutes.
    """
    return variant(quickstart(), "quickstart_avgpool", model_args={"global_pool": "avg"})


@register_recipe
def fashion_mnist_aa() -> TrainConfig:
    """A small attention-augmented network on Fashion-MNIST.

    Paper: none. Ours: 91.80 % top-1 (seed 0). Hardware: 2 CPU cores. Time: 8.6 minutes.
    """
    return TrainConfig(
        recipe="fashion_mnist_aa",
        data=DataConfig(name="fashion_mnist", batch_size=128, random_crop_padding=2),
        model=ModelConfig(name="aa_wide_resnet_nano"),
        optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.02, warmup_epochs=0.2),
        epochs=2,
        channels_last=True,
    )


@register_recipe
def patchconvnet_tiny_imagenet() -> TrainConfig:
    """A small PatchConvNet with attention pooling on Tiny ImageNet at 64 x 64.

    Paper: none; docs/localisation.md measures where it looks. Ours, on 40 classes, seeds 0 to 2:
    60.2 / 59.6 / 59.8 % top-1. Hardware: one CPU core. Time: 18 minutes, at worst 32.
    """
    return TrainConfig(
        recipe="patchconvnet_tiny_imagenet",
        data=DataConfig(
            name="tiny_imagenet", batch_size=128, random_crop_padding=8, label_smoothing=0.1
        ),
        model=ModelConfig(name="patchconvnet_nano", model_args={"embed_dim": 96, "depth": 6}),
        optim=OptimConfig(opt="muon", lr=2e-2, weight_decay=0.05, warmup_epochs=0.4),
        epochs=16,
        channels_last=True,
    )


@register_recipe
def resnet18_tiny_imagenet() -> TrainConfig:
    """A plain ResNet-18 on Tiny ImageNet at 64 x 64.

    Paper: none; docs/augment_study.md starts from it. Ours: 48.9 % top-1 on 40 classes (seed 0).
    Hardware: 2 CPU cores. Time: 34 minutes beside other work.
    """
    return TrainConfig(
        recipe="resnet18_tiny_imagenet",
        data=DataConfig(
            name="tiny_imagenet", batch_size=128, random_crop_padding=8, label_smoothing=0.1
        ),
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
    )


@register_recipe
def finetune() -> TrainConfig:
    """A trained network on a folder of a few hundred images: give it by ``--data.root``.

    It downloads nothing by itself: add ``--model.pretrained`` for timm's weights, or
    ``--model.checkpoint FILE`` for others; ``--model.name`` chooses another network.

    Paper: none. Ours: not trained yet. Hardware: 2 CPU cores or a GPU. Time: not measured.
    """
    return TrainConfig(
        recipe="finetune",
        data=DataConfig(
            name="folder",
            image_size=224,
            batch_size=32,
            num_workers=2,
            scale=(0.35, 1.0),
        ),
        model=ModelConfig(name="resnet18"),
        optim=OptimConfig(opt="adamw", lr=1e-4, weight_decay=0.05, warmup_epochs=1),
        epochs=10,
        channels_last=True,
    )


def _wide_resnet_cifar100(name: str, *, batch_size: int, weight_decay: float) -> TrainConfig:
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


@register_recipe
def aa_wide_resnet28_10_cifar100() -> TrainConfig:
    """Attention-augmented Wide-ResNet-28-10 on CIFAR-100.

    Paper (arXiv 1904.09925, table 1): 81.6 % top-1, 95.2 % top-5. Ours: not trained yet.
    Hardware: one GPU. Time: not measured. Inferred: 500 epochs, SGD 0.9 with lr 0.2 per 256
    images, 5 % warm-up then cosine, batch 256, weight decay 5e-4, flip and a crop padded by 4.
    """
    return _wide_resnet_cifar100("aa_wide_resnet28_10", batch_size=256, weight_decay=5e-4)


@register_recipe
def wide_resnet28_10_cifar100() -> TrainConfig:
    """Wide-ResNet-28-10 on CIFAR-100, the plain twin.

    Paper (arXiv 1904.09925, table 1): 80.3 % top-1, 95.0 % top-5. Ours: not trained yet.
    Hardware: one GPU. Time: not measured. Inferred: as the augmented twin, but batch 1024 and
    weight decay 2e-4.
    """
    return _wide_resnet_cifar100("wide_resnet28_10", batch_size=1024, weight_decay=2e-4)


@register_recipe
def se_wide_resnet28_10_cifar100() -> TrainConfig:
    """Squeeze-excite Wide-ResNet-28-10 on CIFAR-100.

    Paper (arXiv 1904.09925, table 1): 81.0 % top-1, 95.3 % top-5. Ours: not trained yet.
    Hardware: one GPU. Time: not measured. Inferred: as the plain twin.
    """
    return _wide_resnet_cifar100("se_wide_resnet28_10", batch_size=1024, weight_decay=2e-4)
