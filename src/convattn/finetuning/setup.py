"""What all networks of a finetuning have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convattn.config import FinetuneConfig, PoolName, TrainConfig
from convattn.finetuning import end_to_end
from convattn.finetuning.end_to_end import Trained
from convattn.finetuning.frozen import Maps
from convattn.finetuning.images import Images, Split
from convattn.finetuning.network import predict
from convattn.probing.network import network_cfg, run_config
from convattn.runs.build import build_trained
from convattn.text import json_text
from convattn.weights import write_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What every network of a finetuning has in common."""

    config: FinetuneConfig
    """What was asked for."""
    images: Images
    """All images."""
    maps: Maps
    """The frozen backbone and its maps."""
    pool: PoolName
    """What pools the last map."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.images.class_names)

    @cached_property
    def cfg(self) -> dict[str, Any]:
        """What the network needs of an image."""
        return network_cfg(self.maps.frozen, self.images.source)

    @cached_property
    def run_config(self) -> TrainConfig:
        """What ``config.json`` of the run folder holds."""
        config = self.config
        return run_config(
            "finetune",
            config.data,
            self.maps.frozen,
            self.pool,
            self.num_classes,
            seed=config.seed,
        )

    def splits(self, images: Tensor) -> list[Split]:
        """Numbers of those to learn, and of those to choose by; the whole network by the first.

        Args:
            images: Numbers of images.
        """
        return self.images.splits(images, self.config.val_share, self.config.seed)

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with trained tensors.

        Args:
            tensors: By its names.
        """
        config = self.run_config
        model = build_trained(config.model, cfg=self.cfg, augment=config.augment)
        model.load_state_dict(dict(tensors))
        return model

    def write(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Keep tensors of the network with what it needs of an image, to be trained on.

        Args:
            tensors: By its names.
            file: Where.
        """
        write_weights(file, tensors, {"pretrained_cfg": json_text(self.cfg)})

    def train_end_to_end(self, start: Path, folder: Path, **words: Any) -> Trained:
        """The second stage.

        Args:
            start: What ``write`` kept.
            folder: Of its checkpoints.
            **words: As ``end_to_end.train_end_to_end`` has them.
        """
        return end_to_end.train_end_to_end(
            self.run_config, self.config, self.images, start, folder, **words
        )

    def predict(self, tensors: Mapping[str, Tensor], numbers: Tensor, *, what: str) -> Tensor:
        """(N, K) logits of images.

        Args:
            tensors: Of the network, by its names.
            numbers: Of the images.
            what: Stands beside the progress.
        """
        model = self.build(tensors)
        return predict(model, self.images, numbers, self.config, self.cfg, what=what)
