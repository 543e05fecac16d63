"""Recipes of the networks of Bello et al. 2019 on ImageNet, with their plain and SE twins."""

from __future__ import annotations

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.recipes.record import Recipe, Row, add_recipe, vary_model

_PAPER = "arXiv 1904.09925"
_AS_RESNET50 = "Inferred: as ``aa_resnet50_imagenet``."
_AS_MNASNET = "Inferred: as ``aa_mnasnet_100_imagenet``."


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


_RESNET = TrainConfig(
    recipe="aa_resnet50_imagenet",
    data=imagenet(1024),
    model=ModelConfig(name="aa_resnet50"),
    optim=OptimConfig(
        opt="sgd",
        lr=0.128 * 1024 / 256,
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

_RESNET_SETTINGS = (
    "Inferred: 100 epochs, SGD 0.9 with lr 0.128 per 256 images, weight decay 1e-4, 5 % warm-up, a "
    "tenth at epochs 30, 60, 80 and 90; batch 1024, bfloat16 and the usual crop and flip."
)

# Of each depth the plain network, its SE twin and ours: GFLOPs, M parameters, top-1, top-5.
_RESNETS = {
    34: {
        "resnet": ("7.4", "21.8", "73.6", "91.5"),
        "seresnet": ("7.4", "22.0", "74.3", "91.8"),
        "aa_resnet": ("7.1", "20.7", "74.7", "92.0"),
    },
    50: {
        "resnet": ("8.2", "25.6", "76.4", "93.1"),
        "seresnet": ("8.2", "28.1", "77.5", "93.7"),
        "aa_resnet": ("8.3", "25.8", "77.7", "93.8"),
    },
    101: {
        "resnet": ("15.6", "44.5", "77.9", "94.0"),
        "seresnet": ("15.6", "49.3", "78.4", "94.2"),
        "aa_resnet": ("16.1", "45.4", "78.7", "94.4"),
    },
    152: {
        "resnet": ("23.0", "60.2", "78.4", "94.2"),
        "seresnet": ("23.1", "66.8", "78.9", "94.5"),
        "aa_resnet": ("23.8", "61.6", "79.1", "94.6"),
    },
}
_TITLES = {
    "resnet": ("", "ResNet-{0} on ImageNet, the plain twin of ``aa_resnet{0}_imagenet``."),
    "seresnet": ("SE-", "Squeeze-excite ResNet-{0} on ImageNet."),
    "aa_resnet": ("AA-", "Attention-augmented ResNet-{0} on ImageNet."),
}

for _depth, _kinds in _RESNETS.items():
    for _kind, (_cost, _parameters, _score, _top5) in _kinds.items():
        _prefix, _summary = _TITLES[_kind]
        _model = f"{_kind}{_depth}"
        add_recipe(
            Recipe(
                config=vary_model(_RESNET, f"{_model}_imagenet", name=_model),
                summary=_summary.format(_depth),
                row=Row(
                    table="resnets",
                    name=f"{_prefix}ResNet-{_depth}",
                    source=f"{_PAPER}, table 2",
                    score=_score,
                    top5=_top5,
                    parameters=_parameters,
                    cost=_cost,
                ),
                settings=_RESNET_SETTINGS if _model == "aa_resnet50" else _AS_RESNET50,
            )
        )

# The paper's kappa = upsilon: share of the channels, M parameters, top-1.
_LADDER = {
    0.25: ("a quarter of the channels by attention, on ImageNet", "24.31", "77.7"),
    0.5: ("half of the channels by attention, on ImageNet", "22.36", "77.3"),
    0.75: ("three quarters of the channels by attention, on ImageNet", "20.75", "76.7"),
    1.0: ("all of the channels by attention, on ImageNet; fully attentional", "19.40", "73.9"),
}

for _ratio, (_share, _parameters, _score) in _LADDER.items():
    _name = f"aa_resnet50_ratio{round(100 * _ratio):03d}_imagenet"
    add_recipe(
        Recipe(
            config=vary_model(_RESNET, _name, model_args={"qk_ratio": _ratio, "v_ratio": _ratio}),
            summary=f"AA-ResNet-50 with {_share}.",
            row=Row(
                table="resnets",
                name=f"AA-ResNet-50, kappa = upsilon = {_ratio}",
                source=_PAPER,
                score=_score,
                remark=f" with kappa = upsilon = {_ratio}",
                score_known=False,
                parameters=_parameters,
            ),
            settings=_AS_RESNET50,
        )
    )

_POSITIONS = {
    "none": ("no positions", "no position encoding"),
    "sine": ("sine", "sinusoidal positions"),
    "coord": ("CoordConv", "CoordConv's positions"),
}

for _position, (_title, _words) in _POSITIONS.items():
    add_recipe(
        Recipe(
            config=vary_model(
                _RESNET, f"aa_resnet50_{_position}_imagenet", model_args={"position": _position}
            ),
            summary=f"AA-ResNet-50 with {_words}, on ImageNet.",
            row=Row(
                table="resnets",
                name=f"AA-ResNet-50, {_title}",
                source=_PAPER,
                score="77.5",
                remark=f"; {_RESNETS[50]['aa_resnet'][2]} % with relative positions",
            ),
            settings=_AS_RESNET50,
        )
    )

_MNASNET = TrainConfig(
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

_MNASNET_SETTINGS = (
    "Inferred: 350 epochs of RMSProp with a step decay of 0.97 every 2.4 epochs, lr 0.064 at batch "
    "1024, weight decay 1e-5, dropout 0.2, averaged weights."
)

# Of each width the plain network and ours: GFLOPs, M parameters, top-1.
_MNASNETS = {
    "0.75": {
        "semnasnet_075": ("0.45", "2.91", "73.3"),
        "aa_mnasnet_075": ("0.51", "3.02", "73.9"),
    },
    "1.0": {
        "semnasnet_100": ("0.63", "3.89", "75.2"),
        "aa_mnasnet_100": ("0.70", "4.06", "75.7"),
    },
    "1.25": {
        "mnasnet_a1_125": ("1.01", "5.26", "76.7"),
        "aa_mnasnet_125": ("1.07", "5.53", "77.2"),
    },
    "1.4": {
        "semnasnet_140": ("1.17", "6.10", "77.2"),
        "aa_mnasnet_140": ("1.25", "6.44", "77.7"),
    },
}

for _width, _pair in _MNASNETS.items():
    _ours = list(_pair)[1]
    for _model, (_cost, _parameters, _score) in _pair.items():
        _is_ours = _model == _ours
        _twin = f"MnasNet-A1 {_width} on ImageNet, the plain twin of ``{_ours}_imagenet``."
        add_recipe(
            Recipe(
                config=vary_model(_MNASNET, f"{_model}_imagenet", name=_model),
                summary=f"Attention-augmented MnasNet {_width} on ImageNet." if _is_ours else _twin,
                row=Row(
                    table="mnasnets",
                    name=f"{'AA-' if _is_ours else ''}MnasNet {_width}",
                    source=_PAPER,
                    score=_score,
                    score_known=False,
                    parameters=_parameters,
                    cost=_cost,
                    cost_known=False,
                ),
                settings=_MNASNET_SETTINGS if _model == "aa_mnasnet_100" else _AS_MNASNET,
            )
        )
