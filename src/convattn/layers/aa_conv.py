"""Attention-augmented convolution."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.functional import relative_attention_2d, relative_attention_weights_2d
from convattn.kernels.attention import Backend, is_out_of_memory, wanted_backend
from convattn.kernels.tracing import as_number, refuse_scripting
from convattn.layers.rel_pos import (
    COORD_CHANNELS,
    POSITIONS,
    Position,
    RelativeTables,
    coord_position,
    sine_position,
)

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

_WEIGHTS_AT_ONCE = 2**24  # numbers that ``mean_attention`` holds: 64 MB of float32


def _pair(value: int | tuple[int, int], name: str, *, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(
            f"{name}={value!r} is not an integer of at least {least} or a pair of them; "
            f"for instance {name}={max(least, 1)}"
        )
    return pair


def _head_channels(channels: int, ratio: float, num_heads: int, least: int) -> int:
    """Largest multiple of ``num_heads`` within the ratio, but ``least`` channels a head."""
    within = math.floor(ratio * channels / num_heads + 1e-9)
    return max(within, least) * num_heads


class AAConv2d(nn.Module):
    """Convolution that computes part of its output channels by 2D self-attention.

    Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 3. ``qk_ratio`` is its kappa,
    ``v_ratio`` its upsilon. The output is the convolution's channels, then the attention's. A
    drop-in for nn.Conv2d: the same output size for every stride, padding, dilation and kernel.
    Where the convolution strides, the attention branch average-pools its input to the output's
    grid; where it is not padded, the branch is cropped to the centres of the windows.

    Args:
        in_channels: As in nn.Conv2d.
        out_channels: As in nn.Conv2d; the attention's channels are part of them.
        kernel_size: As in nn.Conv2d.
        stride: As in nn.Conv2d.
        padding: As in nn.Conv2d, with "same" and "valid".
        dilation: As in nn.Conv2d.
        groups: Groups of the convolution branch; the attention branch has none.
        bias: Whether the convolution, the query-key-value and the output projection have biases.
        padding_mode: As in nn.Conv2d, for the convolution branch.
        num_heads: Attention heads.
        qk_ratio: Query (and key) channels per output channel.
        v_ratio: Share of the output channels that attention computes; 1 leaves no convolution.
        min_head_dim: Least query channels of a head.
        position: "relative" tables, "sine" added to or "coord" appended to the attention's
            input, or "none".
        feat_size: Height and width of the *output* map that positions are made for; other sizes
            resample them.
        attn_downsample: Attention runs on a map this many times smaller than the output, average
            pooled before and bilinearly enlarged after.
        attn_backend: The attention's kernel, see :mod:`convattn.kernels`; None takes the
            environment variable ``CONVATTN_ATTENTION_BACKEND``'s, or the fastest for the place.
        residual: The convolution makes all output channels, and the attention is added to the last
            of them through a projection that starts at zero: before training the layer computes
            its convolution alone. Not in the paper; for networks that are trained already.
        device: As in nn.Conv2d.
        dtype: As in nn.Conv2d.

    Attributes:
        attn_backend: May be set at any time; "plain" computes by the definition, which holds all
            pairs of positions.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H', W'), as nn.Conv2d.

    Raises:
        ValueError: If no channel split fits ``num_heads`` or ``groups``, or an argument has no
            meaning.

    Examples:
        >>> layer = AAConv2d(64, 128, 3, stride=2, padding=1, feat_size=(28, 28))
        >>> layer(torch.randn(1, 64, 56, 40)).shape
        torch.Size([1, 128, 28, 20])
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        num_heads: int = 8,
        qk_ratio: float = 0.2,
        v_ratio: float = 0.1,
        min_head_dim: int = 20,
        position: Position = "relative",
        feat_size: int | tuple[int, int] = (14, 14),
        attn_downsample: int = 1,
        attn_backend: Backend | None = None,
        residual: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, count in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("groups", groups),
            ("num_heads", num_heads),
            ("min_head_dim", min_head_dim),
            ("attn_downsample", attn_downsample),
        ):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} is not a positive integer; for instance 1")
        for name, ratio in (("qk_ratio", qk_ratio), ("v_ratio", v_ratio)):
            if not 0 <= ratio <= 1:
                raise ValueError(
                    f"{name}={ratio!r} is not between 0 and 1; the paper uses qk_ratio=0.2, "
                    "v_ratio=0.1 (a ratio of the output channels, not a number of channels)"
                )
        wanted_backend(attn_backend, source="attn_backend")
        if position not in POSITIONS:
            raise ValueError(f"position={position!r} is not one of {', '.join(POSITIONS)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size", least=1)
        self.stride = _pair(stride, "stride", least=1)
        self.dilation = _pair(dilation, "dilation", least=1)
        self.padding = padding if isinstance(padding, str) else _pair(padding, "padding", least=0)
        self.groups = groups
        self.padding_mode = padding_mode
        self.num_heads = num_heads
        self.qk_ratio = qk_ratio
        self.v_ratio = v_ratio
        self.position = position
        self.feat_size = _pair(feat_size, "feat_size", least=1)
        self.attn_downsample = attn_downsample
        self.residual = residual
        self.attn_backend = attn_backend
        self.qk_channels = _head_channels(out_channels, qk_ratio, num_heads, min_head_dim)
        self.v_channels = _head_channels(out_channels, v_ratio, num_heads, 1)
        conv_channels = out_channels - self.v_channels
        if conv_channels < 0 or (v_ratio == 1 and conv_channels):
            good = [n for n in range(1, out_channels + 1) if out_channels % n == 0]
            raise ValueError(
                f"num_heads={num_heads} cannot share out_channels={out_channels} with "
                f"v_ratio={v_ratio}; nearest that works: num_heads="
                f"{min(good, key=lambda n: abs(n - num_heads))}"
            )
        if residual:
            conv_channels = out_channels
        if conv_channels % groups:
            good = [n for n in range(1, conv_channels + 1) if conv_channels % n == 0]
            good = [n for n in good if in_channels % n == 0]
            raise ValueError(
                f"groups={groups} does not divide the {conv_channels} channels that "
                f"v_ratio={v_ratio} leaves to the convolution; nearest that works: groups="
                f"{min(good, key=lambda n: abs(n - groups))}"
            )

        self.conv = None
        if conv_channels:
            self.conv = nn.Conv2d(
                in_channels,
                conv_channels,
                self.kernel_size,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=groups,
                bias=bias,
                padding_mode=padding_mode,
                device=device,
                dtype=dtype,
            )
        qkv_inputs = in_channels + (COORD_CHANNELS if position == "coord" else 0)
        self.qkv = nn.Conv2d(
            qkv_inputs,
            2 * self.qk_channels + self.v_channels,
            1,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.proj = nn.Conv2d(
            self.v_channels, self.v_channels, 1, bias=bias, device=device, dtype=dtype
        )
        if residual:
            nn.init.zeros_(self.proj.weight)
            if self.proj.bias is not None:
                nn.init.zeros_(self.proj.bias)
        self.rel_pos = None
        if position == "relative":
            self.rel_pos = RelativeTables(
                self.qk_channels // num_heads,
                self._attn_feat_size,
                device=device,
                dtype=dtype,
            )

    @property
    def _attn_feat_size(self) -> tuple[int, int]:
        height, width = (-(-size // self.attn_downsample) for size in self.feat_size)
        return height, width

    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Input to cut off (or, negative, to add) before and after, for each of H and W.

        What is left has one position for every place where the kernel's centre can stand.
        """
        if self.padding == "same":
            return (0, 0), (0, 0)
        pads = (0, 0) if isinstance(self.padding, str) else self.padding
        margins = []
        for kernel, dilation, pad in zip(self.kernel_size, self.dilation, pads, strict=True):
            reach = dilation * (kernel - 1)
            before = reach // 2 - pad
            margins.append((before, reach - 2 * pad - before))
        return margins[0], margins[1]

    def _attn_input(self, x: Tensor) -> Tensor:
        """The attention branch's map: cropped, pooled, with its position encoding."""
        (top, bottom), (left, right) = self._margins()
        if top or bottom or left or right:
            x = F.pad(x, (-left, -right, -top, -bottom))
        steps = [stride * self.attn_downsample for stride in self.stride]
        if max(steps) > 1:
            x = F.avg_pool2d(
                x,
                kernel_size=[2 * (step // 2) + 1 for step in steps],
                stride=steps,
                padding=[step // 2 for step in steps],
                count_include_pad=False,
            )
        size = (x.shape[2], x.shape[3])
        if self.position == "sine":
            code = sine_position(
                x.shape[1], size, trained_size=self._attn_feat_size, device=x.device
            )
            x = x + code.to(x.dtype)
        elif self.position == "coord":
            code = coord_position(size, device=x.device).to(x.dtype)
            x = torch.cat([x, code.expand(x.shape[0], -1, -1, -1)], dim=1)
        return x

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, H*W, d)."""
        split = [self.qk_channels, self.qk_channels, self.v_channels]
        parts = self.qkv(x).flatten(2).split(split, dim=1)
        q, k, v = (
            part.unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (B, heads, H*W, d)
            for part in parts
        )
        return q, k, v

    def _tables(self, size: tuple[int, int]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        return (None, None) if self.rel_pos is None else self.rel_pos(size)

    def attention_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the map that attention runs on, for an input of this layer.

        Args:
            x: (B, in_channels, H, W).
        """
        # Rounded up without negative numbers, whose quotients ONNX rounds the other way.
        steps = [stride * self.attn_downsample for stride in self.stride]
        height, width = (
            (size - before - after + step - 1) // step
            for size, (before, after), step in zip(x.shape[2:], self._margins(), steps, strict=True)
        )
        return height, width

    def attention_weights(
        self, x: Tensor, queries: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """Where positions of the output map look, for an input of this layer.

        Args:
            x: (B, in_channels, H, W).
            queries: Row and column of the positions that look, on the attention's map, see
                ``attention_size``; None takes all, N x N weights an image and head.

        Returns:
            (B, heads, N, N) after softmax, N the positions of the attention's map row by row; with
            Q queries (B, heads, Q, N).

        Raises:
            ValueError: If a query lies outside the map.
        """
        rows = None
        if queries is not None:
            height, width = self.attention_size(x)
            for row, column in queries:
                if not (0 <= row < height and 0 <= column < width):
                    raise ValueError(
                        f"query {(row, column)} lies outside the attention's map of {height} x "
                        f"{width}; give row and column, at most {(height - 1, width - 1)}"
                    )
            rows = torch.tensor([r * width + c for r, c in queries], device=x.device)
        return self._weights(x, rows)

    def mean_attention(self, x: Tensor) -> Tensor:
        """How much each position is looked at: the mean over all that look.

        Holds some rows of the N x N weights at a time.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, heads, N); sums to 1.
        """
        height, width = self.attention_size(x)
        positions = torch.arange(height * width, device=x.device)
        at_once = max(1, _WEIGHTS_AT_ONCE // (x.shape[0] * self.num_heads * len(positions) or 1))
        parts = [self._weights(x, rows).sum(2) for rows in positions.split(at_once)]
        return torch.stack(parts).sum(0) / len(positions)

    def _weights(self, x: Tensor, rows: Tensor | None) -> Tensor:
        x = self._attn_input(x)
        size = (x.shape[2], x.shape[3])
        q, k, _ = self._project(x)
        return relative_attention_weights_2d(
            q, k, *self._tables(size), feat_size=size, queries=rows
        )

    def _attend(self, x: Tensor) -> Tensor:
        attn_input = self._attn_input(x)
        size = (attn_input.shape[2], attn_input.shape[3])
        q, k, v = self._project(attn_input)
        try:
            out = relative_attention_2d(
                q, k, v, *self._tables(size), feat_size=size, backend=self.attn_backend
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"AAConv2d({self.extra_repr()}) has no memory for the attention of {x.shape[0]} "
                f"maps of {size[0]} x {size[1]}; attn_downsample={2 * self.attn_downsample}, "
                f"smaller batches or smaller images take less: {error}"
            ) from error
        out = out.transpose(1, 2).flatten(2).unflatten(1, size)  # (B, H, W, d_v)
        return self.proj(out.permute(0, 3, 1, 2))

    def _out_size(self, x: Tensor) -> tuple[int, int]:
        (top, bottom), (left, right) = self._margins()
        height = (x.shape[2] - top - bottom - 1) // self.stride[0] + 1
        width = (x.shape[3] - left - right - 1) // self.stride[1] + 1
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        if x.dim() != 4 or as_number(x.shape[1]) != self.in_channels:
            raise ValueError(
                f"input of shape {tuple(x.shape)}, expected (B, {self.in_channels}, H, W)"
            )
        convolved = None if self.conv is None else self.conv(x)
        attended = self._attend(x)
        if self.attn_downsample > 1:
            attended = F.interpolate(
                attended, size=self._out_size(x), mode="bilinear", align_corners=False
            )
        if convolved is None:
            return attended
        if self.residual:
            kept = self.out_channels - self.v_channels
            convolved, last = convolved.split([kept, self.v_channels], dim=1)
            attended = last + attended
        return torch.cat([convolved, attended], dim=1)

    def extra_repr(self) -> str:
        """What the children do not show."""
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, "
            f"qk_ratio={self.qk_ratio}, v_ratio={self.v_ratio}, position={self.position!r}, "
            f"feat_size={self.feat_size}, attn_downsample={self.attn_downsample}"
            f"{', residual=True' if self.residual else ''}"
        )
