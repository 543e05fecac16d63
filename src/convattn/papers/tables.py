"""The rows of both papers' tables, as the papers print them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from convattn.config import TrainConfig
from convattn.recipes import RECIPES
from convattn.weights import RELEASES, Release


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a paper's table."""

    name: str
    """What the paper calls it."""
    recipe: str
    """Name of the recipe that trains it."""
    score: str
    """The paper's figure, in per cent as it is printed; "" if it gives none."""
    score_known: bool = True
    """Whether a second source confirms that figure."""
    parameters: str = ""
    """Millions, as the paper prints them."""
    cost: str = ""
    """G multiply-adds or GFLOPs, whichever the table has, as the paper prints them."""
    cost_known: bool = True
    """Whether a second source confirms these two."""
    left_out: int = 0
    """Multiply-adds that the paper's network has and ours, computing the same, has not."""
    release: str | None = None
    """Name and tag of the authors' weights."""

    @cached_property
    def config(self) -> TrainConfig:
        """Of the recipe."""
        return RECIPES[self.recipe]()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are counted alike."""

    title: str
    """Stands above it."""
    metric: str
    """What the score is, for people."""
    field: str
    """Where ``evaluation.json`` holds it."""
    rows: tuple[Row, ...]
    """In the paper's order."""
    flops: int = 1
    """What a multiply-add counts: 1, or 2 where the paper has FLOPs."""

    @property
    def unit(self) -> str:
        """Of the cost."""
        return "GMACs" if self.flops == 1 else "GFLOPs"


def _patchconvnets() -> Iterator[Row]:
    """ImageNet, in the order of the authors' README."""
    costs = {
        "s60": ("25.2", {224: "3.98", 384: "11.68", 512: "20.76"}),
        "s120": ("47.7", {224: "7.49"}),
        "b60": ("99.4", {224: "15.80", 384: "46.39"}),
        "b120": ("188.6", {224: "29.77", 384: "87.42"}),
        "l120": ("334.3", {224: "52.85", 384: "155.2"}),
        "s60_multi": ("25.6", {224: "5.31"}),
    }
    for key, release in RELEASES.items():
        size = release.model.removeprefix("patchconvnet_")
        parameters, macs = costs[size]
        yield Row(
            name=_title(size, release),
            recipe=f"{release.model}_{_training_of(release)}",
            release=key,
            score=f"{release.top1:.1f}",
            parameters=parameters,
            cost=macs[release.pixels],
            left_out=0 if size.endswith("_multi") else _projections(size, release.pixels),
        )
    yield Row(
        name="PatchConvNet-L120, ImageNet-21k, 384",
        recipe="patchconvnet_l120_finetune_384",
        score="87.1",
        parameters=costs["l120"][0],
        cost=costs["l120"][1][384],
        left_out=_projections("l120", 384),
    )


def _projections(size: str, pixels: int) -> int:
    """Multiply-adds of the keys and values of all patches, which our aggregation does without."""
    channels = {"s": 384, "b": 768, "l": 1024}[size[0]]
    return 2 * (pixels // 16) ** 2 * channels**2


def _title(size: str, release: Release) -> str:
    title = f"PatchConvNet-{size.removesuffix('_multi').upper()}"
    if size.endswith("_multi"):
        start = "from scratch" if release.tag.endswith("scratch") else "fine-tuned"
        return f"{title}, a token a class, {start}"
    return f"{title}, ImageNet-21k, {release.pixels}" if "22k" in release.tag else title


def _training_of(release: Release) -> str:
    """What follows the network in the name of the recipe."""
    if release.model.endswith("_multi") and not release.tag.endswith("scratch"):
        return "finetune"
    if "22k" not in release.tag:
        return "imagenet"
    return "finetune_21k" if release.pixels == 224 else f"finetune_{release.pixels}"


def _resnets() -> Iterator[Row]:
    """Base, SE and AA of each depth: GFLOPs, parameters and top-1."""
    depths = {
        34: (("7.4", "21.8", "73.6"), ("7.4", "22.0", "74.3"), ("7.1", "20.7", "74.7")),
        50: (("8.2", "25.6", "76.4"), ("8.2", "28.1", "77.5"), ("8.3", "25.8", "77.7")),
        101: (("15.6", "44.5", "77.9"), ("15.6", "49.3", "78.4"), ("16.1", "45.4", "78.7")),
        152: (("23.0", "60.2", "78.4"), ("23.1", "66.8", "78.9"), ("23.8", "61.6", "79.1")),
    }
    for depth, columns in depths.items():
        for kind, model, column in zip(
            ("", "SE-", "AA-"), ("resnet", "seresnet", "aa_resnet"), columns, strict=True
        ):
            cost, parameters, score = column
            yield Row(
                name=f"{kind}ResNet-{depth}",
                recipe=f"{model}{depth}_imagenet",
                score=score,
                parameters=parameters,
                cost=cost,
            )


def _variants() -> Iterator[Row]:
    ladder = {
        "0.25": ("24.31", "77.7"),
        "0.5": ("22.36", "77.3"),
        "0.75": ("20.75", "76.7"),
        "1.0": ("19.40", "73.9"),
    }
    for ratio, (parameters, score) in ladder.items():
        yield Row(
            name=f"AA-ResNet-50, kappa = upsilon = {ratio}",
            recipe=f"aa_resnet50_ratio{round(100 * float(ratio)):03d}_imagenet",
            score=score,
            score_known=False,
            parameters=parameters,
        )
    for position, words in (("none", "no positions"), ("sine", "sine"), ("coord", "CoordConv")):
        yield Row(
            name=f"AA-ResNet-50, {words}",
            recipe=f"aa_resnet50_{position}_imagenet",
            score="77.5",
        )


def _mnasnets() -> Iterator[Row]:
    """Base and AA of each width: GFLOPs, parameters, top-1."""
    widths = {
        "0.75": ("semnasnet_075", ("0.45", "2.91", "73.3"), ("0.51", "3.02", "73.9")),
        "1.0": ("semnasnet_100", ("0.63", "3.89", "75.2"), ("0.70", "4.06", "75.7")),
        "1.25": ("mnasnet_a1_125", ("1.01", "5.26", "76.7"), ("1.07", "5.53", "77.2")),
        "1.4": ("semnasnet_140", ("1.17", "6.10", "77.2"), ("1.25", "6.44", "77.7")),
    }
    for width, (plain, *columns) in widths.items():
        models = (plain, f"aa_mnasnet_{round(100 * float(width)):03d}")
        for kind, model, (cost, parameters, score) in zip(
            ("", "AA-"), models, columns, strict=True
        ):
            yield Row(
                name=f"{kind}MnasNet {width}",
                recipe=f"{model}_imagenet",
                score=score,
                score_known=False,
                parameters=parameters,
                cost=cost,
                cost_known=False,
            )


def _wide_resnets() -> Iterator[Row]:
    for kind, model, parameters, cost, score in (
        ("", "wide_resnet28_10", "36.3", "10.4", "80.3"),
        ("SE-", "se_wide_resnet28_10", "36.5", "10.4", "81.0"),
        ("AA-", "aa_wide_resnet28_10", "36.2", "10.9", "81.6"),
    ):
        yield Row(
            name=f"{kind}Wide-ResNet-28-10",
            recipe=f"{model}_cifar100",
            score=score,
            parameters=parameters,
            cost=cost,
        )


def _retinanets() -> Iterator[Row]:
    depths = {
        50: (("182", "33.4", "36.8"), ("183", "35.9", "36.5"), ("182", "33.1", "38.2")),
        101: (("243", "52.4", "38.5"), ("243", "57.2", "37.4"), ("245", "51.7", "39.2")),
    }
    for depth, columns in depths.items():
        for kind, prefix, (cost, parameters, score) in zip(
            ("", "SE-", "AA-"), ("", "se_", "aa_"), columns, strict=True
        ):
            yield Row(
                name=f"{kind}RetinaNet, ResNet-{depth}",
                recipe=f"{prefix}retinanet_resnet{depth}_coco",
                score=score,
                parameters=parameters,
                cost=cost,
            )


TABLES = (
    Table(
        title="PatchConvNet on ImageNet",
        metric="top-1",
        field="top1",
        rows=tuple(_patchconvnets()),
    ),
    Table(
        title="Attention-augmented ResNets on ImageNet, with their twins",
        metric="top-1",
        field="top1",
        flops=2,
        rows=(*_resnets(), *_variants()),
    ),
    Table(
        title="Attention-augmented MnasNets on ImageNet, with their twins",
        metric="top-1",
        field="top1",
        flops=2,
        rows=tuple(_mnasnets()),
    ),
    Table(
        title="Attention-augmented Wide-ResNet on CIFAR-100, with its twins",
        metric="top-1",
        field="top1",
        flops=2,
        rows=tuple(_wide_resnets()),
    ),
    Table(
        title="RetinaNet on COCO",
        metric="mAP",
        field="map",
        flops=2,
        rows=tuple(_retinanets()),
    ),
    Table(
        title="PatchConvNet in UPerNet on ADE20k",
        metric="mIoU",
        field="miou",
        rows=tuple(
            Row(
                name=f"UPerNet, PatchConvNet-{size.upper()}",
                recipe=f"upernet_patchconvnet_{size}_ade20k",
                score=score,
            )
            for size, score in (
                ("s60", "49.3"),
                ("b60", "51.1"),
                ("b120", "52.8"),
                ("l120", "52.9"),
            )
        ),
    ),
    Table(
        title="PatchConvNet in Mask R-CNN on COCO",
        metric="box AP",
        field="map",
        rows=tuple(
            Row(
                name=f"Mask R-CNN, PatchConvNet-{size.upper()}",
                recipe=f"mask_rcnn_patchconvnet_{size}_coco",
                score=score,
            )
            for size, score in (("s60", "46.4"), ("s120", "47.0"))
        ),
    ),
)
"""Every row of both papers that there is a network for."""

HEADLINE = (
    "patchconvnet_s60_imagenet",
    "patchconvnet_s120_imagenet",
    "patchconvnet_b60_imagenet",
    "patchconvnet_b120_imagenet",
    "patchconvnet_s60_finetune_512",
    "patchconvnet_b60_finetune_384",
    "patchconvnet_l120_finetune_384",
    "aa_resnet152_imagenet",
    "aa_wide_resnet28_10_cifar100",
)
"""Recipes of the rows that the papers are known by."""
