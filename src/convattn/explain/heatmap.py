"""Where the cells of an attention map lie on the picture."""

import torch
from torch import Tensor


def cell_centres(num_cells: int, size: int) -> tuple[Tensor, float]:
    """The point that each cell of a map looks at, along one side of the picture.

    A convolution of stride 2 with an odd kernel, padded by half of it, is centred on every second
    pixel, from the first one on. After a stack of them cell i looks at pixel ``i * stride``, not
    at the middle of the i-th tile: half a cell nearer to the picture's origin. All networks here
    shrink their maps in this way, attention's own average pool included. Of a side that no power
    of two shrinks to so many cells, the middles of equal tiles are given.

    Args:
        num_cells: Cells along the side.
        size: Pixels along the side.

    Returns:
        (num_cells,) in pixels from the picture's edge, the first pixel's centre at 0.5; and the
        distance from one to the next.

    Example:
        >>> cell_centres(4, 32)
        (tensor([ 0.5000,  8.5000, 16.5000, 24.5000]), 8.0)
    """
    steps = torch.arange(num_cells, dtype=torch.float32)
    for stride in (2**k for k in range(size.bit_length())):
        if -(-size // stride) == num_cells:
            return steps * stride + 0.5, float(stride)
    stride = size / num_cells
    return (steps + 0.5) * stride, stride


def image_sized(maps: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Attention maps as heat maps of the picture's size.

    Linear between the points that the cells look at, constant beyond the outermost.

    Args:
        maps: (B, h, w).
        image_size: Height and width of the picture in pixels.

    Returns:
        (B, H, W).
    """
    rows, columns = (
        _interpolation(cells, size).to(maps)
        for cells, size in zip(maps.shape[1:], image_size, strict=True)
    )
    return rows @ maps @ columns.T


def _interpolation(num_cells: int, size: int) -> Tensor:
    """Share of each cell in each pixel, (size, num_cells)."""
    centres, stride = cell_centres(num_cells, size)
    place = (torch.arange(size) + 0.5 - centres[0]) / stride
    place = place.clamp(0, num_cells - 1)
    return (1 - (place[:, None] - torch.arange(num_cells)).abs()).clamp(min=0)
