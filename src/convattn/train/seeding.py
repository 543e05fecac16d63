"""Randomness that depends on the place in the training only, never on what ran before.

Every batch draws its randomness from (seed, epoch, batch, rank). A run resumed in the middle of an
epoch therefore sees the same augmentation, mixup and drop path as one that was never stopped, and
no generator state has to travel in a checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """One 32-bit seed out of several non-negative integers, well mixed.

    Args:
        keys: For example the run's seed, the epoch, the batch and the rank.
    """
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on every device.

    Args:
        seed: Any 32-bit number.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the host's global generators inside the block and put their states back after it.

    Args:
        seed: Any 32-bit number.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
