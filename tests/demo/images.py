"""Files that somebody may drop on the page."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

# Says nothing of what it was saved as; what it looks like does not matter here.
PIXELS = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb():
    """The head of a PNG of 30,000 x 30,000: too large whatever follows."""
    content = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + header + encoded(RGB)[33:]


def png_of_zeros(side):
    """A file of a few kilobytes that announces side x side pixels."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" * (3 * side + 1)) * 3))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return encoded(RGB, "JPEG", exif=exif)


READABLE = {
    "rgba.png": encoded(RGB.convert("RGBA")),
    "sixteen.png": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG"),
    "palette.png": encoded(RGB.convert("P")),
    "turned.jpg": turned(),
    "animated.gif": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]),
    "pixel.png": encoded(RGB.crop((0, 0, 1, 1))),
    "nothing_but_a_name": encoded(RGB),
}

UNREADABLE = {
    "text.png": (b"Dear diary", "not in a known image format"),
    "cut.jpg": (encoded(RGB, "JPEG")[:900], "cannot be read"),
    "bomb.png": (bomb(), "30000 x 30000 pixels"),
    "empty.png": (b"", "it is empty"),
}
