"""Where the cells of a map lie on the image that the network sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pair = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """A map's cells as points on the network's input.

    Examples:
        >>> Grid.regular((4, 4), (32, 32)).rows
        tensor([ 0.5000,  8.5000, 16.5000, 24.5000])
    """

    feat_size: tuple[int, int]
    """Height and width of the map in cells."""
    image_size: tuple[int, int]
    """Height and width of the network's input in pixels."""
    start: Pair
    """y and x of the point that the first cell looks at, in pixels from the input's edge; the
    first pixel's centre lies at 0.5."""
    stride: Pair
    """Pixels from a cell to the next, down and across."""

    @classmethod
    def of_pixels(cls, image_size: tuple[int, int]) -> Grid:
        """The input itself, every pixel a cell.

        Args:
            image_size: Height and width in pixels.
        """
        return cls(image_size, image_size, (0.5, 0.5), (1.0, 1.0))

    @classmethod
    def regular(cls, feat_size: tuple[int, int], image_size: tuple[int, int]) -> Grid:
        """The grid that a map's size suggests, see ``cell_centres``.

        Args:
            feat_size: Height and width of the map.
            image_size: Height and width of the network's input.
        """
        rows, columns = map(cell_centres, feat_size, image_size)
        start = (float(rows[0][0]), float(columns[0][0]))
        return cls(feat_size, image_size, start, (rows[1], columns[1]))

    @property
    def rows(self) -> Tensor:
        """Y of each row of cells in pixels, (h,)."""
        return self.start[0] + self.stride[0] * torch.arange(self.feat_size[0])

    @property
    def columns(self) -> Tensor:
        """X of each column of cells in pixels, (w,)."""
        return self.start[1] + self.stride[1] * torch.arange(self.feat_size[1])

    def cell(self, point: Pair) -> tuple[int, int]:
        """The row and column of the cell that looks nearest to a point.

        Args:
            point: y and x in pixels of the input.
        """
        row, column = (
            min(max(round((at - start) / stride), 0), cells - 1)
            for at, start, stride, cells in zip(
                point, self.start, self.stride, self.feat_size, strict=True
            )
        )
        return row, column

    def heat(
        self,
        maps: Tensor,
        size: tuple[int, int] | None = None,
        region: tuple[float, float, float, float] | None = None,
    ) -> Tensor:
        """Maps enlarged to heat maps: linear between the cells' points, constant beyond.

        Args:
            maps: (..., h, w).
            size: Height and width of the heat maps; None gives the input's.
            region: Where on the heat maps the network's input lies: left, top, right, bottom in
                pixels. What it did not see is 0. None: it fills them.

        Returns:
            (..., H, W).
        """
        height, width = self.image_size if size is None else size
        left, top, right, bottom = (0, 0, width, height) if region is None else region
        rows = self._interpolation(0, height, top, bottom).to(maps)
        columns = self._interpolation(1, width, left, right).to(maps)
        return rows @ maps @ columns.T

    def _interpolation(self, axis: int, size: int, low: float, high: float) -> Tensor:
        """Share of each cell in each pixel of one side, (size, cells)."""
        middle = torch.arange(size, dtype=torch.float64) + 0.5
        at = (middle - low) / (high - low) * self.image_size[axis]
        cells = self.feat_size[axis]
        place = ((at - self.start[axis]) / self.stride[axis]).clamp(0, cells - 1)
        share = (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0)
        return share * ((at >= 0) & (at <= self.image_size[axis]))[:, None]


def cell_centres(num_cells: int, size: int) -> tuple[Tensor, float]:
    """The point that each cell of a map looks at, along one side, as far as the sizes tell.

    A convolution of stride 2 with an odd kernel, padded by half of it, is centred on every second
    pixel, from the first one on. After a stack of them cell i looks at pixel ``i * stride``, not
    at the middle of the i-th tile: half a cell nearer to the image's origin. All networks here
    shrink their maps in this way, attention's own average pool included. Of a side that no power
    of two shrinks to so many cells, the middles of equal tiles are given. ``GridTracker`` finds
    the true points of any network.

    Args:
        num_cells: Cells along the side.
        size: Pixels along the side.

    Returns:
        (num_cells,) in pixels from the image's edge, the first pixel's centre at 0.5; and the
        distance from one to the next.

    Examples:
        >>> cell_centres(4, 32)
        (tensor([ 0.5000,  8.5000, 16.5000, 24.5000]), 8.0)
    """
    steps = torch.arange(num_cells, dtype=torch.float32)
    for stride in (2**k for k in range(size.bit_length())):
        if -(-size // stride) == num_cells:
            return steps * stride + 0.5, float(stride)
    stride = size / num_cells
    return (steps + 0.5) * stride, stride


class GridTracker(TorchFunctionMode):
    """Follows, while a network runs, where the cells of its maps lie on its input.

    Inside the ``with`` block every convolution, pool, pad and interpolation passes its input's
    grid on, shifted and widened as its window asks; all other operations pass it on unchanged,
    whatever they do with the layout. So a network that cuts its input into patches is placed as
    exactly as one with padded kernels. Of branches that are added, the first counts.

    Examples:
        >>> patchify = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> with GridTracker() as grids:
        ...     y = patchify(torch.zeros(1, 3, 32, 32))
        >>> grids.of(y).start
        (2.0, 2.0)
    """

    def __init__(self) -> None:
        super().__init__()
        # By identity, since tensors compare by value; the references are weak, so that maps are
        # freed as they would be anyway.
        self._grids: dict[int, tuple[ref[Tensor], Grid]] = {}

    def begin(self, images: Tensor) -> None:
        """Take a tensor for the network's input, whatever came before.

        Args:
            images: (B, C, H, W).
        """
        self._grids.clear()
        self._set(images, Grid.of_pixels(_size(images)))

    def of(self, tensor: Tensor, feat_size: tuple[int, int] | None = None) -> Grid | None:
        """Where a map lies.

        Args:
            tensor: A result of the network, in any layout.
            feat_size: Height and width of the map, in case something has changed its size that is
                not followed: then the grid that its size suggests is given.

        Returns:
            The grid, None for a tensor that does not come from an input.
        """
        grid = self._get(tensor)
        if grid is None or feat_size in (None, grid.feat_size):
            return grid
        assert feat_size is not None
        return Grid.regular(feat_size, grid.image_size)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note the grid of its result."""
        # Every operation of the network comes by here: this is what capturing costs.
        result = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(result, Tensor):
            self._note(func, args, kwargs or {}, result)
        elif isinstance(result, tuple | list):
            for part in result:
                if isinstance(part, Tensor):
                    self._note(func, args, kwargs or {}, part)
        return result

    def _note(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor
    ) -> None:
        window = _WINDOWS.get(getattr(func, "__name__", ""))
        if window is None or out.ndim != 4:
            first = self._grids.get(id(args[0])) if args else None
            if first is None or first[0]() is not args[0]:
                known = (grid for tensor in _tensors(args) if (grid := self._get(tensor)))
                source = next(known, None)
            else:
                source = first[1]
            if source is not None:
                self._set(out, source)
            return
        x = args[0] if args else kwargs["input"]
        before = self.of(x, _size(x)) or Grid.of_pixels(_size(x))
        sides = window(x, out, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        grid = Grid(
            _size(out),
            before.image_size,
            _pair(
                s + shift * step
                for s, step, (_, shift) in zip(before.start, before.stride, sides, strict=True)
            ),
            _pair(step * stride for step, (stride, _) in zip(before.stride, sides, strict=True)),
        )
        self._set(out, grid)

    def _get(self, tensor: Tensor) -> Grid | None:
        known = self._grids.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _set(self, tensor: Tensor, grid: Grid) -> None:
        self._grids[id(tensor)] = ref(tensor), grid


Sides = list[Pair]
"""Of height and width: the stride, and by how much the first window's centre lies after the first
cell's, both in cells of the input."""


def _convolved(
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Sides:
    reach = [d * (k - 1) for d, k in zip(_two(dilation), weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        pads = [r // 2 if padding == "same" else 0 for r in reach]
    else:
        pads = _two(padding)
    return [(s, r / 2 - p) for s, r, p in zip(_two(stride), reach, pads, strict=True)]


def _pooled(
    x: Tensor,
    out: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *args: Any,
    **kwargs: Any,
) -> Sides:
    kernels = _two(kernel_size)
    strides = _two(stride) if stride not in (None, [], ()) else kernels
    dilations = [1, 1] if isinstance(dilation, bool) else _two(dilation)
    reach = [d * (k - 1) for d, k in zip(dilations, kernels, strict=True)]
    return [(s, r / 2 - p) for s, r, p in zip(strides, reach, _two(padding), strict=True)]


def _padded(x: Tensor, out: Tensor, pad: Sequence[int], *args: Any, **kwargs: Any) -> Sides:
    left, _, top, *_ = [*pad, 0, 0]
    return [(1, -top), (1, -left)]


def _tiled(x: Tensor, out: Tensor, *args: Any, **kwargs: Any) -> Sides:
    """Cells as equal tiles: adaptive pools, and interpolation without aligned corners."""
    ratios = [before / after for before, after in zip(_size(x), _size(out), strict=True)]
    return [(ratio, (ratio - 1) / 2) for ratio in ratios]


_WINDOWS: dict[str, Callable[..., Sides]] = {
    "conv2d": _convolved,
    "max_pool2d": _pooled,
    "avg_pool2d": _pooled,
    "pad": _padded,
    "interpolate": _tiled,
    "adaptive_avg_pool2d": _tiled,
    "adaptive_max_pool2d": _tiled,
}


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _two(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _pair(values: Iterable[float]) -> Pair:
    y, x = (float(value) for value in values)
    return y, x


def _tensors(args: Sequence[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple | list):
            yield from (part for part in arg if isinstance(part, Tensor))
