import itertools

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.campaign.serving import SECONDS, outcome_of, served
from tests.demo.images import UNREADABLE, encoded, png_of_zeros
from tests.mutations import mutate

pytestmark = pytest.mark.timeout(3600)
_WARM, _BLOCK = 400, 100
_MOST_GROWTH = 100 << 20
"""Bytes from the level after the first uploads to that after all."""


def _uploads():
    """Files of every kind, small ones, bad ones, and now and then one near the limits."""
    pixels = np.random.default_rng(0).integers(256, size=(240, 320, 3), dtype=np.uint8)
    small = Image.fromarray(pixels)
    smooth = Image.merge("RGB", [Image.linear_gradient("L")] * 3)
    kinds = ("PNG", "JPEG", "WEBP", "TIFF", "GIF")
    files = [(kind, encoded(small, kind)) for kind in kinds]
    large = {
        "png of 36 million pixels": encoded(smooth.resize((6_000, 6_000)), "PNG"),
        "jpeg of 100 million pixels": encoded(smooth.resize((10_000, 10_000)), "JPEG"),
        "tiff of 16 MB": encoded(smooth.resize((2_300, 2_300)), "TIFF"),
        "png of 41 million pixels": png_of_zeros(6_400),
    }
    bad = [(name, content) for name, (content, _) in UNREADABLE.items()]
    often = [*files, *bad]
    for number in itertools.count():
        if number % 50 == 25:
            yield list(large.items())[number // 50 % len(large)]
        elif number % 3 == 2:
            name, content = files[number // 3 % len(files)]
            yield f"mutated {name}", mutate(content, number)
        else:
            yield often[number % len(often)]


@pytest.mark.campaign("demo's memory", 1_000)
def test_demo_keeps_no_memory(row, tmp_path):
    """A thousand uploads to the demo: PNG, JPEG, WebP, TIFF and GIF, whole, damaged and no images,
    and one of fifty near the limits (36 million pixels of PNG, 100 million of JPEG, TIFF of 16 MB).
    From the level of the first 400, among which each large one comes twice, to the end the process
    may not grow by 100 MiB."""
    levels = []
    with served(tmp_path) as demo, httpx.Client(timeout=SECONDS) as client:
        start = demo.memory()
        for number, (name, content) in enumerate(itertools.islice(_uploads(), row.total), 1):
            row.add(f"{number}, {name}", outcome_of(demo.explain(client, content)))
            if number % _BLOCK == 0:
                levels.append(demo.memory())
                row.tell(f"{row.name}: {levels[-1] >> 20} MiB after {number}")
    row.figures.append(
        f"{start >> 20} MiB at the start, then, after every {_BLOCK} uploads, "
        f"{', '.join(str(level >> 20) for level in levels)} MiB"
    )
    warm = max(levels[: _WARM // _BLOCK])
    assert max(levels) - warm < _MOST_GROWTH, row.figures
    row.check()
