"""Recipes of the networks of Bello et al. 2019 on ImageNet, with their plain and SE twins."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.registry import register_recipe, variant


def imagenet(batch_size: int, *, image_size: int = 224, **augmentation: float | str) -> DataConfig:
    """ImageNet with the usual random crop and flip.

    Args:
        batch_size: Images per optimiser step.
        image_size: Side of the crop in pixels.
        augmentation: Further fields.
    """
    return DataConfig(
        name="imagenet",
        image_size=image_size,
        batch_size=batch_size,
        num_workers=8,
        scale=(0.08, 1.0),
        **augmentation,  # type: ignore[arg-type]
    )


@register_recipe
def aa_resnet50_imagenet() -> TrainConfig:
    """Attention-augmented ResNet-50 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 77.7 % top-1, 93.8 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: 100 epochs, SGD 0.9 with lr 0.128 per 256
    images, weight decay 1e-4, 5 % warm-up, a tenth at epochs 30, 60, 80 and 90; batch 1024,
    bfloat16 and the usual crop and flip.
    """
    batch_size = 1024
    return TrainConfig(
        recipe="aa_resnet50_imagenet",
        data=imagenet(batch_size),
        model=ModelConfig(name="aa_resnet50"),
        optim=OptimConfig(
            opt="sgd",
            lr=0.128 * batch_size / 256,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="multistep",
            warmup_epochs=5,
            decay_milestones=(30, 60, 80, 90),
        ),
        epochs=100,
        precision="bf16-mixed",
        channels_last=True,
        log_every=50,
    )


def _resnet(name: str, recipe: str | None = None, **model_args: float | str) -> TrainConfig:
    """The same training of another network."""
    return variant(
        aa_resnet50_imagenet(), recipe or f"{name}_imagenet", name=name, model_args=model_args
    )


@register_recipe
def aa_resnet34_imagenet() -> TrainConfig:
    """Attention-augmented ResNet-34 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 74.7 % top-1, 92.0 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet34")


@register_recipe
def resnet34_imagenet() -> TrainConfig:
    """ResNet-34 on ImageNet, the plain twin of ``aa_resnet34_imagenet``.

    Paper (arXiv 1904.09925, table 2): 73.6 % top-1, 91.5 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("resnet34")


@register_recipe
def seresnet34_imagenet() -> TrainConfig:
    """Squeeze-excite ResNet-34 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 74.3 % top-1, 91.8 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("seresnet34")


@register_recipe
def resnet50_imagenet() -> TrainConfig:
    """ResNet-50 on ImageNet, the plain twin of ``aa_resnet50_imagenet``.

    Paper (arXiv 1904.09925, table 2): 76.4 % top-1, 93.1 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("resnet50")


@register_recipe
def seresnet50_imagenet() -> TrainConfig:
    """Squeeze-excite ResNet-50 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 77.5 % top-1, 93.7 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("seresnet50")


@register_recipe
def aa_resnet101_imagenet() -> TrainConfig:
    """Attention-augmented ResNet-101 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 78.7 % top-1, 94.4 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet101")


@register_recipe
def resnet101_imagenet() -> TrainConfig:
    """ResNet-101 on ImageNet, the plain twin of ``aa_resnet101_imagenet``.

    Paper (arXiv 1904.09925, table 2): 77.9 % top-1, 94.0 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("resnet101")


@register_recipe
def seresnet101_imagenet() -> TrainConfig:
    """Squeeze-excite ResNet-101 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 78.4 % top-1, 94.2 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("seresnet101")


@register_recipe
def aa_resnet152_imagenet() -> TrainConfig:
    """Attention-augmented ResNet-152 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 79.1 % top-1, 94.6 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet152")


@register_recipe
def resnet152_imagenet() -> TrainConfig:
    """ResNet-152 on ImageNet, the plain twin of ``aa_resnet152_imagenet``.

    Paper (arXiv 1904.09925, table 2): 78.4 % top-1, 94.2 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("resnet152")


@register_recipe
def seresnet152_imagenet() -> TrainConfig:
    """Squeeze-excite ResNet-152 on ImageNet.

    Paper (arXiv 1904.09925, table 2): 78.9 % top-1, 94.5 % top-5. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("seresnet152")


def _ladder(ratio: float) -> TrainConfig:
    """Keys and values of the same share of the channels: the paper's kappa = upsilon."""
    recipe = f"aa_resnet50_ratio{round(100 * ratio):03d}_imagenet"
    return _resnet("aa_resnet50", recipe, qk_ratio=ratio, v_ratio=ratio)


@register_recipe
def aa_resnet50_ratio025_imagenet() -> TrainConfig:
    """AA-ResNet-50 with a quarter of the channels by attention, on ImageNet.

    Paper (arXiv 1904.09925): 77.7 % top-1 with kappa = upsilon = 0.25, by memory and unconfirmed.
    Ours: not trained yet. Hardware: 8 GPUs. Time: not measured. Inferred: as
    ``aa_resnet50_imagenet``.
    """
    return _ladder(0.25)


@register_recipe
def aa_resnet50_ratio050_imagenet() -> TrainConfig:
    """AA-ResNet-50 with half of the channels by attention, on ImageNet.

    Paper (arXiv 1904.09925): 77.3 % top-1 with kappa = upsilon = 0.5, by memory and unconfirmed.
    Ours: not trained yet. Hardware: 8 GPUs. Time: not measured. Inferred: as
    ``aa_resnet50_imagenet``.
    """
    return _ladder(0.5)


@register_recipe
def aa_resnet50_ratio075_imagenet() -> TrainConfig:
    """AA-ResNet-50 with three quarters of the channels by attention, on ImageNet.

    Paper (arXiv 1904.09925): 76.7 % top-1 with kappa = upsilon = 0.75, by memory and unconfirmed.
    Ours: not trained yet. Hardware: 8 GPUs. Time: not measured. Inferred: as
    ``aa_resnet50_imagenet``.
    """
    return _ladder(0.75)


@register_recipe
def aa_resnet50_ratio100_imagenet() -> TrainConfig:
    """AA-ResNet-50 with all of the channels by attention, on ImageNet; fully attentional.

    Paper (arXiv 1904.09925): 73.9 % top-1 with kappa = upsilon = 1.0, by memory and unconfirmed.
    Ours: not trained yet. Hardware: 8 GPUs. Time: not measured. Inferred: as
    ``aa_resnet50_imagenet``.
    """
    return _ladder(1.0)


@register_recipe
def aa_resnet50_none_imagenet() -> TrainConfig:
    """AA-ResNet-50 with no position encoding, on ImageNet.

    Paper (arXiv 1904.09925): 77.5 % top-1; 77.7 % with relative positions. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet50", "aa_resnet50_none_imagenet", position="none")


@register_recipe
def aa_resnet50_sine_imagenet() -> TrainConfig:
    """AA-ResNet-50 with sinusoidal positions, on ImageNet.

    Paper (arXiv 1904.09925): 77.5 % top-1; 77.7 % with relative positions. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet50", "aa_resnet50_sine_imagenet", position="sine")


@register_recipe
def aa_resnet50_coord_imagenet() -> TrainConfig:
    """AA-ResNet-50 with CoordConv's positions, on ImageNet.

    Paper (arXiv 1904.09925): 77.5 % top-1; 77.7 % with relative positions. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``.
    """
    return _resnet("aa_resnet50", "aa_resnet50_coord_imagenet", position="coord")


@register_recipe
def aa_mnasnet_100_imagenet() -> TrainConfig:
    """Attention-augmented MnasNet 1.0 on ImageNet.

    Paper (arXiv 1904.09925): 75.7 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: 350 epochs of RMSProp with a step decay of 0.97
    every 2.4 epochs, lr 0.064 at batch 1024, weight decay 1e-5, dropout 0.2, averaged weights.
    """
    return TrainConfig(
        recipe="aa_mnasnet_100_imagenet",
        data=imagenet(1024),
        model=ModelConfig(name="aa_mnasnet_100", drop_rate=0.2),
        optim=OptimConfig(
            opt="rmsproptf",
            lr=0.064,
            momentum=0.9,
            weight_decay=1e-5,
            opt_args={"alpha": 0.9, "eps": 1e-3},
            schedule="step",
            warmup_epochs=5,
            decay_epochs=2.4,
            decay_rate=0.97,
        ),
        epochs=350,
        precision="bf16-mixed",
        ema_decay=0.9999,
        channels_last=True,
        log_every=50,
    )


def _mnasnet(name: str) -> TrainConfig:
    """The same training of another network."""
    return variant(aa_mnasnet_100_imagenet(), f"{name}_imagenet", name=name)


@register_recipe
def aa_mnasnet_075_imagenet() -> TrainConfig:
    """Attention-augmented MnasNet 0.75 on ImageNet.

    Paper (arXiv 1904.09925): 73.9 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("aa_mnasnet_075")


@register_recipe
def semnasnet_075_imagenet() -> TrainConfig:
    """MnasNet-A1 0.75 on ImageNet, the plain twin of ``aa_mnasnet_075_imagenet``.

    Paper (arXiv 1904.09925): 73.3 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("semnasnet_075")


@register_recipe
def semnasnet_100_imagenet() -> TrainConfig:
    """MnasNet-A1 1.0 on ImageNet, the plain twin of ``aa_mnasnet_100_imagenet``.

    Paper (arXiv 1904.09925): 75.2 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("semnasnet_100")


@register_recipe
def aa_mnasnet_125_imagenet() -> TrainConfig:
    """Attention-augmented MnasNet 1.25 on ImageNet.

    Paper (arXiv 1904.09925): 77.2 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("aa_mnasnet_125")


@register_recipe
def mnasnet_a1_125_imagenet() -> TrainConfig:
    """MnasNet-A1 1.25 on ImageNet, the plain twin of ``aa_mnasnet_125_imagenet``.

    Paper (arXiv 1904.09925): 76.7 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("mnasnet_a1_125")


@register_recipe
def aa_mnasnet_140_imagenet() -> TrainConfig:
    """Attention-augmented MnasNet 1.4 on ImageNet.

    Paper (arXiv 1904.09925): 77.7 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("aa_mnasnet_140")


@register_recipe
def semnasnet_140_imagenet() -> TrainConfig:
    """MnasNet-A1 1.4 on ImageNet, the plain twin of ``aa_mnasnet_140_imagenet``.

    Paper (arXiv 1904.09925): 77.2 % top-1, by memory and unconfirmed. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_mnasnet_100_imagenet``.
    """
    return _mnasnet("semnasnet_140")
