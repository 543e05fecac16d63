"""Maps of a frozen network in memory, where the probe's own lie in files."""

from __future__ import annotations

from torch import Tensor


class MemoryMaps:
    """Read as ``convattn.probing.cache.MapCache`` is.

    Args:
        maps: (N, C, H, W).
        labels: (N,) class numbers.
    """

    views = 1

    def __init__(self, maps: Tensor, labels: Tensor) -> None:
        self.maps, self.labels = maps, labels
        self.shape = tuple(maps.shape[1:])

    def rows(self, images: Tensor, view: Tensor | int = 0) -> Tensor:
        """The rows of images."""
        return images

    def read(self, rows: Tensor) -> Tensor:
        """Maps in float32."""
        return self.maps[rows].float()
