"""Batches whose order and augmentation depend on the seed and the place in the training alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from convattn.config import DataConfig
from convattn.data.images import Replacing, TensorImages, digest_of_list
from convattn.data.workers import end_with_reader
from convattn.train.seeding import derive_seed, seeded

_SHARDS_AT_ONCE = 8


class Batch(NamedTuple):
    """Which images a batch holds, and the seed of their augmentation."""

    seed: int
    indices: list[int]


class EpochBatches(Sampler[Batch]):
    """The shuffled batches of one rank, from any place in the training on.

    Every optimiser step takes the next ``batch_size`` images of the epoch's order. Ranks and
    accumulated parts share them out evenly, so that their number does not change what a step sees.
    The images left over at the end of an epoch wait for the next one.

    Args:
        num_images: Number of training images.
        batch_size: Images per optimiser step, over all ranks and accumulated parts.
        seed: Seed of the order and of the augmentation.
        rank: Of this process.
        world_size: Number of processes.
        accumulate: Parts a step is split into.
        chances: How likely each image is to be drawn, (N,), with replacement; None: each stands
            once in the order.
        shards: Number of the shard that each image lies in, (N,): the order goes through a few of
            them at a time; None: through all.
        repeats: Times that an image stands in the order, one after the other: repeated
            augmentation (Hoffer et al. 2019, https://arxiv.org/abs/1901.09335), as DeiT has it. The
            epoch keeps its length and shows that many fewer images.
        start_step: Optimiser steps already taken; the first epoch is begun there.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        chances: Tensor | None = None,
        shards: Tensor | None = None,
        repeats: int = 1,
        start_step: int = 0,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.chances = chances
        self.shards = shards
        self.repeats = repeats
        self.steps = num_images // batch_size
        self.epoch, self._start = divmod(start_step, self.steps)
        self._start_epoch = self.epoch

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning sets the epoch on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through.

        Args:
            epoch: Counted from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.shards is not None:
            order = order_by_shards(self.shards, generator)
        elif self.chances is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = self.chances.multinomial(self.num_images, True, generator=generator)
        order = order.repeat_interleave(self.repeats)
        share = self.batch_size // (self.world_size * self.accumulate)
        start = self._start if self.epoch == self._start_epoch else 0
        for batch in range(start * self.accumulate, len(self)):
            first = (batch * self.world_size + self.rank) * share
            yield Batch(
                seed=derive_seed(self.seed, self.epoch, batch, self.rank),
                indices=order[first : first + share].tolist(),
            )


def order_by_shards(shards: Tensor, generator: torch.Generator) -> Tensor:
    """Every image once, (N,): eight shards at a time, drawn, and their images shuffled together.

    Args:
        shards: Number of the shard that each image lies in, (N,), counted from 0.
        generator: Draws.
    """
    place = torch.randperm(int(shards.max()) + 1, generator=generator)
    order = torch.randperm(len(shards), generator=generator)
    turn = place[shards[order]] // _SHARDS_AT_ONCE
    return order[turn.argsort(stable=True)]


class SeededBatches(Dataset[Any]):
    """A data set that is asked for ``Batch``es and augments each by the batch's own seed.

    Args:
        dataset: Gives (image, label) items and augments with the global generators.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: Batch) -> Sequence[Any]:
        with seeded(batch.seed):
            if isinstance(self.dataset, TensorImages):
                return self.dataset.__getitems__(batch.indices)
            return [self.dataset[index] for index in batch.indices]


class TrainingData(L.LightningDataModule):
    """Training batches, and those that are looked at between epochs.

    Args:
        config: How images are grouped and loaded.
        train: Training images with their augmentation.
        val: Images that are looked at between epochs: of a validation part, or for the test.
        cfg: What a network trained on them needs of a test image: its ``pretrained_cfg``.
        seed: Seed of the order and the augmentation; the images are the same for every seed.
        accumulate: Parts a step's batch is split into.
        chances: As of ``EpochBatches``.
        shards: As of ``EpochBatches``.
        collate: Makes a batch of items; None stacks them.

    Raises:
        ValueError: If the batch does not fit the number of images.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        train: Dataset[Any],
        val: Dataset[Any],
        cfg: Mapping[str, Any],
        seed: int,
        accumulate: int = 1,
        chances: Tensor | None = None,
        shards: Tensor | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        replaces = config.bad_images == "skip" and not isinstance(train, TensorImages)
        self.train_images = Replacing(train) if replaces else train
        self.val_images = val
        self.cfg = dict(cfg)
        self.seed = seed
        self.accumulate = accumulate
        self.chances = chances
        self.shards = shards
        self.collate = collate
        self.images_sha256 = digest_of_list(train)
        self.num_images = num_images = _length(train)
        if num_images < config.batch_size:
            raise ValueError(
                f"data.batch_size={config.batch_size} is more than the {num_images} training "
                f"images; choose at most {num_images}"
            )
        self._step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return self.num_images // self.config.batch_size

    @property
    def num_judging(self) -> int:
        """Images that are looked at between epochs."""
        return _length(self.val_images)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training, what images need, and which they are, for the checkpoint."""
        assert self.trainer is not None
        return {
            "step": self.trainer.global_step,
            "cfg": json.loads(json.dumps(self.cfg)),
            "images": self.images_sha256,
            "num_images": self.num_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin at that place.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self._step = state_dict["step"]

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the training batches."""
        assert self.trainer is not None
        config, world_size = self.config, self.trainer.world_size
        parts = world_size * self.accumulate
        if config.batch_size % parts:
            good = max(1, round(config.batch_size / parts)) * parts
            raise ValueError(
                f"data.batch_size={config.batch_size} cannot be shared by {world_size} devices in "
                f"accumulate={self.accumulate} parts; nearest that works: {good}"
            )
        return self._loader(
            SeededBatches(self.train_images),
            batch_sampler=EpochBatches(
                self.num_images,
                config.batch_size,
                seed=self.seed,
                rank=self.trainer.global_rank,
                world_size=world_size,
                accumulate=self.accumulate,
                chances=self.chances,
                shards=self.shards,
                repeats=config.repeated_augmentation,
                start_step=self._step,
            ),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the images that are looked at between epochs."""
        assert self.trainer is not None
        world_size = self.trainer.world_size
        share = range(self.trainer.global_rank, _length(self.val_images), world_size)
        return self._loader(
            Subset(self.val_images, share),
            batch_size=max(1, self.config.batch_size // world_size),
        )

    def _loader(self, dataset: Dataset[Any], **arguments: Any) -> DataLoader[Any]:
        config = self.config
        stay = config.persistent_workers is not False and config.num_workers > 0
        return DataLoader(
            dataset,
            num_workers=config.num_workers,
            worker_init_fn=end_with_reader,
            persistent_workers=stay,
            prefetch_factor=config.prefetch_factor,
            pin_memory=self._pins_memory(),
            collate_fn=self.collate,
            **arguments,
        )

    def _pins_memory(self) -> bool:
        """Whether a GPU copies batches.

        Raises:
            ValueError: If it is to, and there is none.
        """
        assert self.trainer is not None
        device, wanted = self.trainer.strategy.root_device.type, self.config.pin_memory
        if wanted and device != "cuda":
            raise ValueError(
                f"data.pin_memory=True is for batches that a CUDA GPU copies, and {device} trains; "
                "leave it out"
            )
        return device == "cuda" and wanted is not False


def _length(images: Dataset[Any]) -> int:
    """Of a data set that is no stream."""
    return len(cast(Sized, images))
