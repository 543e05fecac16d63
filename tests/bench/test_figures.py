import pytest
from PIL import Image

from convattn.bench import draw_costs
from tests.bench.rows import STARVED, costs, row


@pytest.mark.parametrize("sizes", [[32], [32, 64]])
def test_an_image_is_drawn_with_and_without_gaps(sizes, tmp_path):
    rows = [
        row(height=size, width=size, step=step, dtype=dtype, mode=mode, **words)
        for size in sizes
        for step in ("inference", "training")
        for dtype, mode, words in (
            ("float32", "eager", {}),
            ("float32", "compiled", {"memory_bytes": None}),
            ("bfloat16", "eager", STARVED),
        )
    ]
    draw_costs(costs(*rows), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > image.height > 500
