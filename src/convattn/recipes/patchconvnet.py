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

from dataclasses import replace

from convattn.config import ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.imagenet import imagenet
from convattn.recipes.record import Recipe, Row, add_recipe, vary_model
from convattn.weights.releases import RELEASES

_PAPER = "arXiv 2112.13692"
_DROP_PATH = {"s60": 0.05, "s120": 0.1, "b60": 0.2, "b120": 0.3, "l60": 0.3, "l120": 0.4}
_RANDAUGMENT = "rand-m9-mstd0.5-inc1"

_FROM_SCRATCH = TrainConfig(
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
_FROM_SCRATCH_SETTINGS = (
    "From the authors: LAMB, lr 3e-3, batch 2048. From the defaults of their command line: warm-up "
    "5, weight decay 0.05, RandAugment, mixup 0.8, cutmix 1.0, smoothing 0.1, erasing 0.25, "
    "repeated augmentation. Inferred: 400 epochs, drop path 0.05, bfloat16."
)
_PRETRAINING = replace(
    _FROM_SCRATCH,
    recipe="patchconvnet_s60_imagenet21k",
    data=replace(
        _FROM_SCRATCH.data, name="folder", mixup=0.0, random_erasing=0.0, repeated_augmentation=1
    ),
    optim=replace(_FROM_SCRATCH.optim, lr=1e-3, weight_decay=0.02),
    epochs=90,
)
_TO_ONE_K = replace(
    _PRETRAINING,
    recipe="patchconvnet_s60_finetune_21k",
    data=replace(_PRETRAINING.data, name="imagenet"),
    optim=replace(_PRETRAINING.optim, lr=3e-4),
    epochs=50,
)
_TO_384 = TrainConfig(
    recipe="patchconvnet_s60_finetune_384",
    data=imagenet(
        512,
        image_size=384,
        auto_augment=_RANDAUGMENT,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
    ),
    model=ModelConfig(name="patchconvnet_s60.fb_in22k_ft_in1k", drop_path_rate=_DROP_PATH["s60"]),
    optim=OptimConfig(
        opt="adamw", lr=1e-5, weight_decay=0.1, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-6
    ),
    epochs=20,
    precision="bf16-mixed",
    channels_last=True,
    log_every=50,
)
_FINETUNING_SETTINGS = (
    "Inferred, from DeiT III: 20 epochs, AdamW with lr 1e-5 and weight decay 0.1, 5 epochs of "
    "warm-up, batch 512, RandAugment, mixup 0.8, cutmix 1.0, smoothing 0.1."
)

# Millions of parameters, and G multiply-adds by height and width of the image.
_COSTS = {
    "s60": ("25.2", {224: "3.98", 384: "11.68", 512: "20.76"}),
    "s120": ("47.7", {224: "7.49"}),
    "b60": ("99.4", {224: "15.80", 384: "46.39"}),
    "b120": ("188.6", {224: "29.77", 384: "87.42"}),
    "l120": ("334.3", {384: "155.2"}),
    "s60_multi": ("25.6", {224: "5.31"}),
}
_CHANNELS = {"s": 384, "b": 768, "l": 1024}


def _row(name: str, size: str, score: str, *, pixels: int = 224, **more: object) -> Row:
    parameters, costs = _COSTS[size]
    # Keys and values of all patches, which our aggregation does without, but for class tokens.
    projections = 2 * (pixels // 16) ** 2 * _CHANNELS[size[0]] ** 2
    return Row(
        table="patchconvnets",
        name=name,
        source=_PAPER,
        score=score,
        parameters=parameters,
        cost=costs[pixels],
        left_out=0 if size.endswith("_multi") else projections,
        **more,  # type: ignore[arg-type]
    )


def _released(name: str, size: str, tag: str, **more: object) -> Row:
    """The row of weights that the authors released: their figure stands with those."""
    release = RELEASES[f"patchconvnet_{size}.{tag}"]
    score = f"{release.top1:.1f}"
    return _row(name, size, score, pixels=release.pixels, release=release.name, **more)


def _add(size: str, what: str, base: TrainConfig, **words: object) -> None:
    """The same training of a network of another size, with its stochastic depth."""
    model = f"patchconvnet_{size}"
    rate = _DROP_PATH[size.removesuffix("_multi")]
    config = vary_model(base, f"{model}_{what}", name=model, drop_path_rate=rate)
    add_recipe(Recipe(config=config, **words))  # type: ignore[arg-type]


for _size in ("s60", "s120", "b60", "b120", "l60", "l120"):
    _title = f"PatchConvNet-{_size.upper()}"
    _rate = f"drop path {_DROP_PATH[_size]}"
    _add(
        _size,
        "imagenet",
        _FROM_SCRATCH,
        summary=f"{_title} on ImageNet.",
        row=None if _size[0] == "l" else _released(_title, _size, "fb_in1k"),
        paper=f"({_PAPER}): no figure without ImageNet-21k",
        settings=_FROM_SCRATCH_SETTINGS
        if _size == "s60"
        else f"Inferred: as ``patchconvnet_s60_imagenet``, {_rate}.",
    )

for _size in ("s60", "b60", "b120", "l60", "l120"):
    _add(
        _size,
        "imagenet21k",
        _PRETRAINING,
        summary=(
            f"PatchConvNet-{_size.upper()} on ImageNet-21k: a folder a class, given by "
            "``--data.root``."
        ),
        paper=f"({_PAPER}): trained so before fine-tuning, no figure of its own",
        hardware="32 GPUs",
        settings=(
            "Inferred, from DeiT III: 90 epochs, LAMB with lr 1e-3 and weight decay 0.02, batch "
            "2048, cutmix 1.0, smoothing 0.1, no mixup, no erasing."
        )
        if _size == "s60"
        else "Inferred: as ``patchconvnet_s60_imagenet21k``.",
    )

for _size in ("s60", "b60", "b120", "l120"):
    _title = f"PatchConvNet-{_size.upper()}"
    _large = f"{_title}, ImageNet-21k, 224"
    _add(
        _size,
        "finetune_21k",
        _TO_ONE_K,
        summary=(
            f"{_title} from ImageNet-21k to ImageNet; give its weights by ``--model.checkpoint``."
        ),
        row=None
        if _size == "l120"
        else _released(_large, _size, "fb_in22k_ft_in1k", from_weights=True),
        paper=f"({_PAPER}): no figure at 224",
        settings=(
            "Inferred, from DeiT III: 50 epochs, LAMB with lr 3e-4 and weight decay 0.02, batch "
            "2048, cutmix 1.0, smoothing 0.1, no mixup, no erasing; the classifier starts anew."
        )
        if _size == "s60"
        else "Inferred: as ``patchconvnet_s60_finetune_21k``.",
    )

_AFTER = " after ImageNet-21k"
for _size, _pixels in (("s60", 384), ("s60", 512), ("b60", 384), ("b120", 384), ("l120", 384)):
    _title = f"PatchConvNet-{_size.upper()}"
    _large = f"{_title}, ImageNet-21k, {_pixels}"
    _is_released = _size != "l120"
    _start = "``--model.pretrained`` starts from the released."
    if not _is_released:
        _start = "none were released: give ``--model.checkpoint``."
    _model = f"patchconvnet_{_size}{'.fb_in22k_ft_in1k' if _is_released else ''}"
    _is_base = (_size, _pixels) == ("s60", 384)
    add_recipe(
        Recipe(
            config=vary_model(
                replace(_TO_384, data=replace(_TO_384.data, image_size=_pixels)),
                f"patchconvnet_{_size}_finetune_{_pixels}",
                name=_model,
                drop_path_rate=_DROP_PATH[_size],
            ),
            summary=f"{_title} from 224 to {_pixels} pixels; {_start}",
            notes=(
                "The released weights are those from ImageNet-21k, at 224; ``--model.checkpoint "
                "FILE`` starts from others."
            )
            if _is_base
            else "",
            row=_released(
                _large, _size, f"fb_in22k_ft_in1k_{_pixels}", remark=_AFTER, from_weights=True
            )
            if _is_released
            else _row(_large, _size, "87.1", pixels=_pixels, remark=_AFTER, from_weights=True),
            settings=_FINETUNING_SETTINGS
            if _is_base
            else "Inferred: as ``patchconvnet_s60_finetune_384``.",
        )
    )

_TOKENS = "PatchConvNet-S60, a token a class"
_add(
    "s60_multi",
    "finetune",
    replace(_TO_384, data=replace(_TO_384.data, image_size=224)),
    summary=(
        "PatchConvNet-S60 from one class token to one a class; give its ``--model.checkpoint``."
    ),
    notes="Every class starts with the one token and with its own row of the classifier.",
    row=_released(f"{_TOKENS}, fine-tuned", "s60_multi", "fb_in1k", from_weights=True),
    settings=_FINETUNING_SETTINGS,
)
_add(
    "s60_multi",
    "imagenet",
    _FROM_SCRATCH,
    summary="PatchConvNet-S60 with a class token for every class on ImageNet, from scratch.",
    row=_released(f"{_TOKENS}, from scratch", "s60_multi", "fb_in1k_scratch"),
    settings="Inferred: as ``patchconvnet_s60_imagenet``.",
)
