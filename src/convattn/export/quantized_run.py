"""A run's classifier in int8: calibrated on its training images, tested on its test images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from convattn.classification.dataset import open_data, test_batches
from convattn.classification.evaluation import (
    ClassificationResult,
    MultiLabelResult,
    evaluate_classification,
)
from convattn.data import Source, transform_of
from convattn.data.choosing import draw_indices
from convattn.export.checking import Exported
from convattn.export.int8 import export_int8
from convattn.export.onnx_file import open_onnx
from convattn.runs import Run

CALIBRATION_IMAGES = 128
"""At most, drawn from the training images."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A file in int8, and what it cost."""

    exported: Exported
    """The file and its checks."""
    num_images: int
    """It was calibrated on."""
    before: ClassificationResult | MultiLabelResult
    """Of the network, on the test images."""
    after: ClassificationResult | MultiLabelResult
    """Of the file."""


def export_int8_run(run: Run, path: str | os.PathLike[str], **options: Any) -> Quantized:
    """Write a run's classifier as ONNX in int8, and test both on the run's test images.

    Args:
        run: Of a classifier whose data are still there.
        path: The file to write, ``.onnx``; one that exists is never overwritten.
        **options: As for :func:`export_int8`.

    Raises:
        ValueError: As for :func:`export_int8`.
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it, or the run's images are gone.
    """
    model = run.load_model()
    cfg = dict(cast(Mapping[str, Any], model.pretrained_cfg))
    if options.get("size") is not None:
        cfg["input_size"] = (cfg["input_size"][0], *options["size"])
    source = open_data(run.config.data, multi_label=bool(cfg.get("multi_label")))
    images = calibration_images(source, cfg)
    exported = export_int8(model, path, images, **options)
    before, after = (
        _test(network, run, source, cfg) for network in (model, _InOnnxRuntime(exported))
    )
    return Quantized(exported=exported, num_images=len(images), before=before, after=after)


def calibration_images(source: Source, cfg: Mapping[str, Any]) -> Tensor:
    """Some of the training images, as the network sees them.

    Args:
        source: The data set.
        cfg: A network's ``pretrained_cfg``.

    Returns:
        (N, C, H, W), N at most ``CALIBRATION_IMAGES``.
    """
    count = min(CALIBRATION_IMAGES, len(source.train))
    chosen = draw_indices(len(source.train), count, 0, f"{source.name}: calibration")
    images = source.train.select(chosen).with_transform(transform_of(cfg))
    return torch.stack([images[number][0] for number in range(count)])


def _test(
    network: nn.Module, run: Run, source: Source, cfg: Mapping[str, Any]
) -> ClassificationResult | MultiLabelResult:
    loader, _ = test_batches(run.config.data, source, cfg)
    return evaluate_classification(
        network, loader, class_names=source.class_names, device=torch.device("cpu")
    )


class _InOnnxRuntime(nn.Module):
    """A file as a network that gives logits."""

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.run = open_onnx(exported.file)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.run(images)[0]
