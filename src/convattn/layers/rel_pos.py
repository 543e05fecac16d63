"""Position encodings of a feature map: relative tables, sines, coordinates.

The four that Bello et al. 2019, https://arxiv.org/abs/1904.09925, table 8, compare: relative
tables, 2D sines (Parmar et al. 2018), CoordConv (Liu et al. 2018), and none.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from convattn.kernels.tracing import as_number

Position = Literal["relative", "sine", "coord", "none"]
POSITIONS: tuple[str, ...] = get_args(Position)
COORD_CHANNELS = 3


def resample_table(table: Tensor, num_rows: int) -> Tensor:
    """Stretches a table of relative offsets to another size, about its centre.

    Linear interpolation to a larger table; to a smaller one the mean of the rows around, weighted
    by distance, so that every row has a part in it.

    Args:
        table: (2S - 1, d), row ``offset + S - 1``.
        num_rows: Rows wanted, 2S' - 1.

    Returns:
        (num_rows, d); equal to ``table`` when it has that size already.
    """
    rows = table.shape[0]
    # While exporting or tracing, a comparison of sizes would freeze the image's into the program.
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not recorded and rows == num_rows:
        return table
    # Tensors rather than numbers from here on, for the same reason.
    position = torch.arange(num_rows, device=table.device, dtype=torch.float32)
    step = (rows - 1) / position[-1].clamp(min=1)
    source = (position - position.mean()) * step + (rows - 1) / 2
    distance = (source[:, None] - torch.arange(rows, device=table.device)).abs()
    reach = step.clamp(min=1)
    weight = (1 - distance / reach).clamp(min=0)  # (num_rows, rows)
    weight = weight / weight.sum(1, keepdim=True)
    return weight.to(table.dtype) @ table


class RelativeTables(nn.Module):
    """Learned vectors for the vertical and horizontal offset between a query and a key.

    Shared by the heads of a layer, initialised with standard deviation ``head_dim ** -0.5``.

    Args:
        head_dim: Channels of one head's queries and keys.
        feat_size: Height and width of the map that the tables are made for.
        device: As in nn.Linear.
        dtype: As in nn.Linear.
    """

    def __init__(
        self,
        head_dim: int,
        feat_size: tuple[int, int],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        height, width = feat_size
        self.height = nn.Parameter(
            torch.empty(2 * height - 1, head_dim, device=device, dtype=dtype)
        )
        self.width = nn.Parameter(torch.empty(2 * width - 1, head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both tables anew."""
        for table in (self.height, self.width):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, feat_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The tables for a map of this size: (2H - 1, head_dim) and (2W - 1, head_dim)."""
        height, width = feat_size
        return (
            resample_table(self.height, 2 * height - 1),
            resample_table(self.width, 2 * width - 1),
        )


def sine_position(
    channels: int,
    feat_size: tuple[int, int],
    *,
    trained_size: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """2D sinusoidal encoding: half of the channels for the row, half for the column.

    Args:
        channels: Channels of the map; what does not divide by 4 stays zero.
        feat_size: Height and width of the map.
        trained_size: Size at which one step is one position; other sizes are stretched to it.
        device: Where to make it.

    Returns:
        (channels, H, W), float32.
    """
    channels = as_number(channels)
    num_waves = channels // 4
    waves = torch.arange(num_waves, device=device, dtype=torch.float32)
    frequency = torch.exp(-math.log(10_000.0) * waves / max(num_waves, 1))
    codes = []
    for size, trained in zip(feat_size, trained_size, strict=True):
        step = torch.arange(size, device=device, dtype=torch.float32)
        position = (step + 0.5) * (trained / size) - 0.5
        angle = frequency[:, None] * position  # (waves, size)
        codes.append(torch.cat([angle.sin(), angle.cos()]))
    height, width = feat_size
    rows = codes[0][:, :, None].expand(-1, height, width)
    columns = codes[1][:, None, :].expand(-1, height, width)
    rest = rows.new_zeros(channels - 4 * num_waves, height, width)
    return torch.cat([rows, columns, rest])


def coord_position(feat_size: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """CoordConv's channels: x and y from -1 to 1, and the distance from the centre.

    Args:
        feat_size: Height and width of the map.
        device: Where to make it.

    Returns:
        (3, H, W), float32.
    """
    height, width = feat_size
    y, x = (
        (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
        for size in feat_size
    )
    y = y[:, None].expand(height, width)
    x = x[None, :].expand(height, width)
    return torch.stack([x, y, (x * x + y * y).sqrt()])
