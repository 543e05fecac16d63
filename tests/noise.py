"""Class folders of noise."""

from pathlib import Path

import torch
from PIL import Image


def write_noise(root: Path, *, num_train: int, num_test: int = 4) -> None:
    """PNG files of 32 x 32 pixels, so many of each of two classes."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for name in ("ants", "bees"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
