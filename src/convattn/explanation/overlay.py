"""A heat map over its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SHARE_OF_COLD = 0.3  # of the hottest place's opacity
_BRIGHTNESS_OUTSIDE = 0.35  # of what the network was not given


def overlay(
    image: Image.Image,
    heat: NDArray[np.float32],
    *,
    opacity: float = 0.7,
    region: tuple[float, float, float, float] | None = None,
    signed: bool = False,
) -> Image.Image:
    """An image with a heat map over it, the hotter the clearer, its own colours fading to grey.

    Args:
        image: RGB.
        heat: (H, W) of the image; drawn relative to its highest value.
        opacity: Of the hottest place, between 0, the image alone, and 1.
        region: Left, top, right, bottom in pixels of what the network was given; what lies outside
            is dark. None: all of it.
        signed: The heat has a sign: red above 0, blue below, nothing at 0.

    Raises:
        ValueError: If the opacity is out of its range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}; expected 0, the image alone, to 1")
    # Loaded where it is drawn, so that maps and logits come without matplotlib.
    from matplotlib import colormaps

    strongest = np.abs(heat).max() if signed else heat.max()
    relative = (heat / max(float(strongest), 1e-12))[..., None]
    own = np.asarray(image, np.float32) / 255
    grey = 0.25 + 0.6 * own.mean(-1, keepdims=True)
    faded = own + opacity * (grey - own)
    if signed:
        share = opacity * np.abs(relative)
        colours = colormaps["coolwarm"](0.5 + 0.5 * np.sign(relative[..., 0]))[..., :3]
    else:
        share = opacity * (_SHARE_OF_COLD + (1 - _SHARE_OF_COLD) * relative)
        colours = colormaps["inferno"](relative[..., 0])[..., :3]
    shown = (1 - share) * faded + share * colours
    if region is not None:
        left, top, right, bottom = region
        y, x = np.arange(image.height) + 0.5, np.arange(image.width) + 0.5
        inside = ((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))
        shown = np.where(inside[..., None], shown, _BRIGHTNESS_OUTSIDE * own)
    return Image.fromarray((255 * shown).round().astype(np.uint8))
