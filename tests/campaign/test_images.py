import io

import pytest
from PIL import Image

from tests.campaign.running import Case, run_cases
from tests.mutations import mutate

pytestmark = pytest.mark.timeout(3600)


def _files():
    """A small image in every common format and a few of their kinds, by suffix."""
    grey = Image.linear_gradient("L").resize((40, 30))
    colours = Image.merge("RGB", (grey, grey.rotate(90, expand=True).resize((40, 30)), grey))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "png": (colours, {}),
        "palette.png": (colours.convert("P"), {}),
        "transparent.png": (colours.convert("RGBA"), {}),
        "deep.png": (grey.convert("I;16"), {}),
        "jpg": (colours, {}),
        "turned.jpg": (colours, {"exif": exif}),
        "progressive.jpg": (colours, {"progressive": True}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "webp": (colours, {}),
        "lossless.webp": (colours, {"lossless": True}),
        "gif": (colours, {"save_all": True, "append_images": [colours.rotate(90)]}),
        "tif": (colours, {}),
        "packed.tif": (colours, {"compression": "tiff_lzw"}),
        "bmp": (colours, {}),
        "ppm": (colours, {}),
    }
    for name, (image, options) in kinds.items():
        content = io.BytesIO()
        suffix = name.rpartition(".")[2]
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        image.save(content, kind, **options)
        yield f"image.{name}", content.getvalue()


@pytest.mark.campaign("mutated images", 1_000)
def test_mutated_images(row, runs, tmp_path):
    """Images of fifteen kinds (PNG, JPEG, WebP, GIF, TIFF, BMP, PPM) with bytes changed, cut and
    doubled, each given to `explain` or `predict`."""
    files = list(_files())

    def case(seed):
        name, content = files[seed % len(files)]

        def words(folder):
            (folder / name).write_bytes(mutate(content, seed))
            command = "explain" if seed % 4 == 0 else "predict"
            return [command, runs.finished, name, "--out", "out"]

        return Case(f"{name}, seed {seed}", words)

    run_cases(map(case, range(row.total)), row, tmp_path / "cases")
    row.check()
