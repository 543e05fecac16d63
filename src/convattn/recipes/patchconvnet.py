"""Recipes of the PatchConvNets of Touvron et al. 2021 on ImageNet.

The authors published no command. Asked for one, they named the changes to the command line of their
repository (https://github.com/facebookresearch/deit/issues/185): LAMB, learning rate 3e-3, a batch
of 2048, stochastic depth by the size of the network. What they did not name is that command line's
own: 5 epochs of warm-up from 1e-6 and a cosine down to 1e-5, weight decay 0.05, RandAugment, mixup
0.8, cutmix 1.0, smoothing 0.1, erasing 0.25, repeated augmentation. The number of epochs and the
rates of stochastic depth are inferred. So is all of pretraining and fine-tuning: it follows the
commands of the same authors' next paper, DeiT III, in the same repository.
"""

from __future__ import annotations

import dataclasses

from convattn.config import ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.imagenet import imagenet
from convattn.recipes.registry import register_recipe, variant

_DROP_PATH = {"s60": 0.05, "s120": 0.1, "b60": 0.2, "b120": 0.3, "l60": 0.3, "l120": 0.4}
_RANDAUGMENT = "rand-m9-mstd0.5-inc1"


@register_recipe
def patchconvnet_s60_imagenet() -> TrainConfig:
    """PatchConvNet-S60 on ImageNet.

    Paper (arXiv 2112.13692): 82.1 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. From the authors: LAMB, lr 3e-3, batch 2048. From the defaults of their command line:
    warm-up 5, weight decay 0.05, RandAugment, mixup 0.8, cutmix 1.0, smoothing 0.1, erasing 0.25,
    repeated augmentation. Inferred: 400 epochs, drop path 0.05, bfloat16.
    """
    return TrainConfig(
        recipe="patchconvnet_s60_imagenet",
        data=imagenet(
            2048,
            auto_augment=_RANDAUGMENT,
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            label_smoothing=0.1,
            repeated_augmentation=3,
        ),
        model=ModelConfig(name="patchconvnet_s60", drop_path_rate=_DROP_PATH["s60"]),
        optim=OptimConfig(
            opt="lamb", lr=3e-3, weight_decay=0.05, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5
        ),
        epochs=400,
        precision="bf16-mixed",
        channels_last=True,
        log_every=50,
    )


def _sized(base: TrainConfig, size: str, what: str) -> TrainConfig:
    """The same training of a network of another size, with its stochastic depth."""
    name = f"patchconvnet_{size}"
    return variant(base, f"{name}_{what}", name=name, drop_path_rate=_DROP_PATH[size])


@register_recipe
def patchconvnet_s60_multi_imagenet() -> TrainConfig:
    """PatchConvNet-S60 with a class token for every class on ImageNet, from scratch.

    Paper (arXiv 2112.13692): 81.1 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_imagenet``.
    """
    return variant(
        patchconvnet_s60_imagenet(),
        "patchconvnet_s60_multi_imagenet",
        name="patchconvnet_s60_multi",
    )


@register_recipe
def patchconvnet_s120_imagenet() -> TrainConfig:
    """PatchConvNet-S120 on ImageNet.

    Paper (arXiv 2112.13692): 83.2 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_imagenet``, drop path 0.1.
    """
    return _sized(patchconvnet_s60_imagenet(), "s120", "imagenet")


@register_recipe
def patchconvnet_b60_imagenet() -> TrainConfig:
    """PatchConvNet-B60 on ImageNet.

    Paper (arXiv 2112.13692): 83.5 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_imagenet``, drop path 0.2.
    """
    return _sized(patchconvnet_s60_imagenet(), "b60", "imagenet")


@register_recipe
def patchconvnet_b120_imagenet() -> TrainConfig:
    """PatchConvNet-B120 on ImageNet.

    Paper (arXiv 2112.13692): 84.1 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_imagenet``, drop path 0.3.
    """
    return _sized(patchconvnet_s60_imagenet(), "b120", "imagenet")


@register_recipe
def patchconvnet_l60_imagenet() -> TrainConfig:
    """PatchConvNet-L60 on ImageNet.

    Paper (arXiv 2112.13692): no figure without ImageNet-21k. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet``, drop path 0.3.
    """
    return _sized(patchconvnet_s60_imagenet(), "l60", "imagenet")


@register_recipe
def patchconvnet_l120_imagenet() -> TrainConfig:
    """PatchConvNet-L120 on ImageNet.

    Paper (arXiv 2112.13692): no figure without ImageNet-21k. Ours: not trained yet.
    Hardware: 8 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet``, drop path 0.4.
    """
    return _sized(patchconvnet_s60_imagenet(), "l120", "imagenet")


@register_recipe
def patchconvnet_s60_imagenet21k() -> TrainConfig:
    """PatchConvNet-S60 on ImageNet-21k: a folder a class, given by ``--data.root``.

    Paper (arXiv 2112.13692): trained so before fine-tuning, no figure of its own. Ours: not trained
    yet. Hardware: 32 GPUs. Time: not measured. Inferred, from DeiT III: 90 epochs, LAMB with lr
    1e-3 and weight decay 0.02, batch 2048, cutmix 1.0, smoothing 0.1, no mixup, no erasing.
    """
    base = patchconvnet_s60_imagenet()
    return dataclasses.replace(
        base,
        recipe="patchconvnet_s60_imagenet21k",
        data=dataclasses.replace(
            base.data, name="folder", mixup=0.0, random_erasing=0.0, repeated_augmentation=1
        ),
        optim=dataclasses.replace(base.optim, lr=1e-3, weight_decay=0.02),
        epochs=90,
    )


@register_recipe
def patchconvnet_b60_imagenet21k() -> TrainConfig:
    """PatchConvNet-B60 on ImageNet-21k: a folder a class, given by ``--data.root``.

    Paper (arXiv 2112.13692): trained so before fine-tuning, no figure of its own. Ours: not trained
    yet. Hardware: 32 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet21k``.
    """
    return _sized(patchconvnet_s60_imagenet21k(), "b60", "imagenet21k")


@register_recipe
def patchconvnet_b120_imagenet21k() -> TrainConfig:
    """PatchConvNet-B120 on ImageNet-21k: a folder a class, given by ``--data.root``.

    Paper (arXiv 2112.13692): trained so before fine-tuning, no figure of its own. Ours: not trained
    yet. Hardware: 32 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet21k``.
    """
    return _sized(patchconvnet_s60_imagenet21k(), "b120", "imagenet21k")


@register_recipe
def patchconvnet_l60_imagenet21k() -> TrainConfig:
    """PatchConvNet-L60 on ImageNet-21k: a folder a class, given by ``--data.root``.

    Paper (arXiv 2112.13692): trained so before fine-tuning, no figure of its own. Ours: not trained
    yet. Hardware: 32 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet21k``.
    """
    return _sized(patchconvnet_s60_imagenet21k(), "l60", "imagenet21k")


@register_recipe
def patchconvnet_l120_imagenet21k() -> TrainConfig:
    """PatchConvNet-L120 on ImageNet-21k: a folder a class, given by ``--data.root``.

    Paper (arXiv 2112.13692): trained so before fine-tuning, no figure of its own. Ours: not trained
    yet. Hardware: 32 GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_imagenet21k``.
    """
    return _sized(patchconvnet_s60_imagenet21k(), "l120", "imagenet21k")


@register_recipe
def patchconvnet_s60_finetune_21k() -> TrainConfig:
    """PatchConvNet-S60 from ImageNet-21k to ImageNet; give its weights by ``--model.checkpoint``.

    Paper (arXiv 2112.13692): 83.5 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred, from DeiT III: 50 epochs, LAMB with lr 3e-4 and weight decay 0.02, batch
    2048, cutmix 1.0, smoothing 0.1, no mixup, no erasing; the classifier starts anew.
    """
    base = patchconvnet_s60_imagenet21k()
    return dataclasses.replace(
        base,
        recipe="patchconvnet_s60_finetune_21k",
        data=dataclasses.replace(base.data, name="imagenet"),
        optim=dataclasses.replace(base.optim, lr=3e-4),
        epochs=50,
    )


@register_recipe
def patchconvnet_b60_finetune_21k() -> TrainConfig:
    """PatchConvNet-B60 from ImageNet-21k to ImageNet; give its weights by ``--model.checkpoint``.

    Paper (arXiv 2112.13692): 85.4 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_finetune_21k``.
    """
    return _sized(patchconvnet_s60_finetune_21k(), "b60", "finetune_21k")


@register_recipe
def patchconvnet_b120_finetune_21k() -> TrainConfig:
    """PatchConvNet-B120 from ImageNet-21k to ImageNet; give its weights by ``--model.checkpoint``.

    Paper (arXiv 2112.13692): 86.0 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_finetune_21k``.
    """
    return _sized(patchconvnet_s60_finetune_21k(), "b120", "finetune_21k")


@register_recipe
def patchconvnet_l120_finetune_21k() -> TrainConfig:
    """PatchConvNet-L120 from ImageNet-21k to ImageNet; give its weights by ``--model.checkpoint``.

    Paper (arXiv 2112.13692): no figure at 224. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred: as ``patchconvnet_s60_finetune_21k``.
    """
    return _sized(patchconvnet_s60_finetune_21k(), "l120", "finetune_21k")


@register_recipe
def patchconvnet_s60_finetune_384() -> TrainConfig:
    """PatchConvNet-S60 from 224 to 384 pixels; ``--model.pretrained`` starts from the released.

    The released weights are those from ImageNet-21k, at 224; ``--model.checkpoint FILE`` starts
    from others.

    Paper (arXiv 2112.13692): 84.9 % top-1 after ImageNet-21k. Ours: not trained yet. Hardware: 8
    GPUs. Time: not measured. Inferred, from DeiT III: 20 epochs, AdamW with lr 1e-5 and weight
    decay 0.1, 5 epochs of warm-up, batch 512, RandAugment, mixup 0.8, cutmix 1.0, smoothing 0.1.
    """
    return TrainConfig(
        recipe="patchconvnet_s60_finetune_384",
        data=imagenet(
            512,
            image_size=384,
            auto_augment=_RANDAUGMENT,
            mixup=0.8,
            cutmix=1.0,
            label_smoothing=0.1,
        ),
        model=ModelConfig(
            name="patchconvnet_s60.fb_in22k_ft_in1k", drop_path_rate=_DROP_PATH["s60"]
        ),
        optim=OptimConfig(
            opt="adamw", lr=1e-5, weight_decay=0.1, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-6
        ),
        epochs=20,
        precision="bf16-mixed",
        channels_last=True,
        log_every=50,
    )


@register_recipe
def patchconvnet_s60_finetune_512() -> TrainConfig:
    """PatchConvNet-S60 from 224 to 512 pixels; ``--model.pretrained`` starts from the released.

    Paper (arXiv 2112.13692): 85.4 % top-1 after ImageNet-21k. Ours: not trained yet. Hardware: 8
    GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_finetune_384``.
    """
    base = patchconvnet_s60_finetune_384()
    return dataclasses.replace(
        base,
        recipe="patchconvnet_s60_finetune_512",
        data=dataclasses.replace(base.data, image_size=512),
    )


def _larger(size: str, *, tag: str = "") -> TrainConfig:
    """Fine-tuning at 384 of a network of another size."""
    return variant(
        patchconvnet_s60_finetune_384(),
        f"patchconvnet_{size}_finetune_384",
        name=f"patchconvnet_{size}{tag}",
        drop_path_rate=_DROP_PATH[size],
    )


@register_recipe
def patchconvnet_b60_finetune_384() -> TrainConfig:
    """PatchConvNet-B60 from 224 to 384 pixels; ``--model.pretrained`` starts from the released.

    Paper (arXiv 2112.13692): 86.5 % top-1 after ImageNet-21k. Ours: not trained yet. Hardware: 8
    GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_finetune_384``.
    """
    return _larger("b60", tag=".fb_in22k_ft_in1k")


@register_recipe
def patchconvnet_b120_finetune_384() -> TrainConfig:
    """PatchConvNet-B120 from 224 to 384 pixels; ``--model.pretrained`` starts from the released.

    Paper (arXiv 2112.13692): 86.9 % top-1 after ImageNet-21k. Ours: not trained yet. Hardware: 8
    GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_finetune_384``.
    """
    return _larger("b120", tag=".fb_in22k_ft_in1k")


@register_recipe
def patchconvnet_l120_finetune_384() -> TrainConfig:
    """PatchConvNet-L120 from 224 to 384 pixels; none were released: give ``--model.checkpoint``.

    Paper (arXiv 2112.13692): 87.1 % top-1 after ImageNet-21k. Ours: not trained yet. Hardware: 8
    GPUs. Time: not measured. Inferred: as ``patchconvnet_s60_finetune_384``.
    """
    return _larger("l120")


@register_recipe
def patchconvnet_s60_multi_finetune() -> TrainConfig:
    """PatchConvNet-S60 from one class token to one a class; give its ``--model.checkpoint``.

    Every class starts with the one token and with its own row of the classifier.

    Paper (arXiv 2112.13692): 82.0 % top-1. Ours: not trained yet. Hardware: 8 GPUs. Time: not
    measured. Inferred, from DeiT III: 20 epochs, AdamW with lr 1e-5 and weight decay 0.1, 5 epochs
    of warm-up, batch 512, RandAugment, mixup 0.8, cutmix 1.0, smoothing 0.1.
    """
    base = patchconvnet_s60_finetune_384()
    return variant(
        dataclasses.replace(base, data=dataclasses.replace(base.data, image_size=224)),
        "patchconvnet_s60_multi_finetune",
        name="patchconvnet_s60_multi",
    )
