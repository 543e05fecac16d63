import colorsys
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, WebPImagePlugin

from convattn.data import UnreadableImageError, reading
from convattn.data.reading import (
    MAX_PIXELS,
    read_header,
    read_image,
    read_sample,
    read_size,
    read_values,
    turned,
    turned_boxes,
)


def noise(height=6, width=8, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, channels))
    return pixels.astype(np.uint8)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels_of(source):
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def over_white(colours, opacity):
    share = opacity[..., None] / 255
    return colours * share + 255 * (1 - share)


def assert_close(seen, expected, most):
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(float) - expected).max() <= most


# --- where images come from


def test_all_sources_give_the_same_image(tmp_path):
    pixels = noise()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    with path.open("rb") as opened, Image.open(path) as image:
        sources = [
            path,
            str(path),
            opened,
            io.BytesIO(path.read_bytes()),
            image,
            torch.from_numpy(pixels).permute(2, 0, 1),
            pixels,
            pixels[::-1].copy()[::-1],
            torch.from_numpy(pixels / 255).permute(2, 0, 1),
            torch.from_numpy(pixels / 255).permute(2, 0, 1).bfloat16().clamp(0, 1),
            (pixels / 255).astype(np.float16),
        ]
        for source in sources:
            is_rough = isinstance(source, torch.Tensor) and source.dtype == torch.bfloat16
            assert_close(pixels_of(source), pixels, 1 if is_rough else 0)


def test_open_file_is_read_from_its_start_and_stays_open():
    file = encoded(Image.fromarray(noise()), "PNG")
    file.seek(30)
    assert np.array_equal(pixels_of(file), noise())
    assert not file.closed
    assert np.array_equal(pixels_of(file), noise())


def test_given_image_is_left_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(encoded(Image.fromarray(noise(channels=4)), "PNG", exif=exif)) as image:
        seen = read_image(image)
        assert image.mode == "RGBA"
        assert image.size == (8, 6)
        assert seen.size == (6, 8)
        assert np.array_equal(np.asarray(image), noise(channels=4))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_tensors_and_arrays_of_every_number_of_channels(shape):
    pixels = noise(*shape) if len(shape) == 3 else noise(*shape, 1)[..., 0]
    filled = np.atleast_3d(pixels)
    expected = filled[..., :3].astype(float) + np.zeros(3)
    if filled.shape[2] == 4:
        expected = over_white(filled[..., :3], filled[..., 3])
    tensor = torch.from_numpy(pixels)
    assert_close(pixels_of(pixels), expected, 1)
    assert_close(pixels_of(tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor), expected, 1)


def test_tensor_that_needs_a_gradient_is_read():
    assert pixels_of(torch.rand(3, 4, 6, requires_grad=True)).shape == (4, 6, 3)


# --- kinds of pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_rgba_lies_on_white(kind):
    pixels = noise(channels=4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    seen = pixels_of(encoded(Image.fromarray(pixels), kind, **options))
    assert_close(seen, over_white(pixels[..., :3], pixels[..., 3]), 1)


def test_la_lies_on_white():
    pixels = noise(channels=2)
    expected = over_white(pixels[..., [0, 0, 0]], pixels[..., 1])
    assert_close(pixels_of(encoded(Image.fromarray(pixels), "PNG")), expected, 1)


def test_invisible_colour_of_rgb_is_white():
    pixels = noise()
    pixels[2, 3] = pixels[4, 5] = (10, 20, 30)
    expected = pixels.copy()
    expected[2, 3] = expected[4, 5] = 255
    file = encoded(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30))
    assert np.array_equal(pixels_of(file), expected)


def palette_image():
    """Four colours, each a row of two pixels."""
    image = Image.new("P", (2, 4))
    image.putpalette([0, 0, 0, 200, 10, 20, 30, 220, 40, 50, 60, 230])
    image.putdata([0, 0, 1, 1, 2, 2, 3, 3])
    colours = np.array([[0, 0, 0], [200, 10, 20], [30, 220, 40], [50, 60, 230]])
    return image, np.repeat(colours[:, None], 2, 1)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(kind):
    image, expected = palette_image()
    assert np.array_equal(pixels_of(encoded(image, kind)), expected)


def test_palette_with_one_invisible_colour():
    image, expected = palette_image()
    expected[1] = 255
    assert np.array_equal(pixels_of(encoded(image, "GIF", transparency=1)), expected)


def test_palette_with_opacities():
    image, colours = palette_image()
    opacity = np.repeat(np.array([[255], [0], [128], [51]]), 2, 1)
    file = encoded(image, "PNG", transparency=bytes([255, 0, 128, 51]))
    assert_close(pixels_of(file), over_white(colours, opacity), 1)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (40, 90, 200, 60), (0, 0, 0, 255)])
def test_cmyk_is_light_that_no_ink_took(kind, ink):
    expected = [(255 - amount) * (255 - ink[3]) / 255 for amount in ink[:3]]
    options = {"quality": 100} if kind == "JPEG" else {}
    seen = pixels_of(encoded(Image.new("CMYK", (16, 16), ink), kind, **options))
    assert_close(seen, np.broadcast_to(expected, (16, 16, 3)), 3)


SIXTEEN_BITS = np.array([[0, 1, 128, 129, 257, 1000], [30000, 32768, 40000, 65000, 65534, 65535]])
EIGHT_OF_SIXTEEN = np.rint(SIXTEEN_BITS / 257)[..., None] + np.zeros(3)


def netpbm():
    return io.BytesIO(b"P5 6 2 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        (encoded(Image.fromarray(SIXTEEN_BITS.astype(np.uint16)), "PNG"), "I;16"),
        (encoded(Image.fromarray(SIXTEEN_BITS.astype(np.uint16)), "TIFF"), "I;16"),
        (encoded(Image.fromarray(SIXTEEN_BITS.astype(">u2")), "TIFF"), "I;16B"),
        (encoded(Image.fromarray(SIXTEEN_BITS.astype(np.int32)), "TIFF"), "I"),
        (netpbm(), "I"),
    ],
    ids=["png", "tiff", "big-endian tiff", "32-bit tiff", "pgm"],
)
def test_sixteen_bits_are_scaled(file, mode):
    with Image.open(file) as image:
        assert image.mode == mode
    assert np.array_equal(pixels_of(file), EIGHT_OF_SIXTEEN)


def rgb_tiff(values, sample_format):
    """A TIFF of (H, W, 3), which Pillow cannot write for more than 8 bits a channel."""
    height, width, channels = values.shape
    pixels, bits = values.tobytes(), 8 * values.itemsize
    after = 8 + 2 + 10 * 12 + 4
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, after),  # bits of each channel
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, 2),  # RGB
        (273, 4, 1, after + 12),  # where the pixels are
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
        (339, 3, channels, after + 6),  # whole numbers (1) or floats (3)
    ]
    folder = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = b"II*\0" + struct.pack("<IH", 8, len(entries))
    kinds = struct.pack("<6H", *[bits] * channels, *[sample_format] * channels)
    return start + folder + bytes(4) + kinds + pixels


def test_sixteen_bits_of_rgb_tiff_are_scaled():
    values = np.random.default_rng(0).integers(65536, size=(5, 4, 3)).astype("<u2")
    assert_close(pixels_of(io.BytesIO(rgb_tiff(values, 1))), values / 257, 1)


def test_invisible_grey_of_sixteen_bits_is_white():
    file = encoded(Image.fromarray(SIXTEEN_BITS.astype(np.uint16)), "PNG", transparency=1000)
    expected = EIGHT_OF_SIXTEEN.copy()
    expected[SIXTEEN_BITS == 1000] = 255
    assert np.array_equal(pixels_of(file), expected)


@pytest.mark.parametrize("values", [[[0, 65536]], [[-1, 5]]])
def test_more_than_sixteen_bits_are_refused(values):
    image = Image.fromarray(np.array(values, np.int32))
    with pytest.raises(UnreadableImageError, match=r"has values from .* expected 16 bits"):
        read_image(image)


def test_floats_are_shares_of_white():
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.rint(values * 255)[..., None] + np.zeros(3)
    assert np.array_equal(pixels_of(encoded(Image.fromarray(values), "TIFF")), expected)


@pytest.mark.parametrize("values", [[[0.0, 1.5]], [[-0.1, 0.5]], [[0.5, float("nan")]]])
def test_floats_without_agreed_range_are_refused(values):
    file = encoded(Image.fromarray(np.array(values, np.float32)), "TIFF")
    with pytest.raises(UnreadableImageError, match=r"the image, in 32-bit floats, has values"):
        read_image(file)


def test_one_bit():
    bits = noise(5, 11, 1)[..., 0] > 127
    expected = np.where(bits[..., None], 255, 0) + np.zeros(3)
    assert np.array_equal(pixels_of(encoded(Image.fromarray(bits), "PNG")), expected)


def test_grey():
    grey = noise(channels=1)
    file = encoded(Image.fromarray(grey[..., 0]), "PNG")
    assert np.array_equal(pixels_of(file), grey + np.zeros(3))


COLOURS = [(0, 0, 0), (255, 255, 255), (200, 30, 90), (80, 240, 120), (90, 70, 150)]


@pytest.mark.parametrize("hsv", [(0, 0, 0), (0, 0, 255), (30, 200, 220), (200, 255, 128)])
def test_hsv(hsv):
    expected = np.array(colorsys.hsv_to_rgb(*(value / 255 for value in hsv))) * 255
    assert_close(pixels_of(Image.new("HSV", (1, 1), hsv)), expected[None, None], 2)


@pytest.mark.parametrize("colour", COLOURS)
def test_ycbcr(colour):
    red, green, blue = colour  # JFIF's equations
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ycbcr = [luma, 128 + 0.564 * (blue - luma), 128 + 0.713 * (red - luma)]
    image = Image.new("YCbCr", (1, 1), tuple(round(min(value, 255)) for value in ycbcr))
    assert_close(pixels_of(image), np.array(colour)[None, None], 2)


def lab_of(colour):
    """CIE L*a*b* for the white D50, of an sRGB colour: Lindbloom's matrix."""
    shares = np.array(colour) / 255
    light = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
    x, y, z = np.cbrt(to_xyz @ light / [0.96422, 1, 0.82521])
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("colour", COLOURS)
def test_lab(colour):
    lightness, a, b = lab_of(colour)
    stored = round(lightness * 2.55), round(a + 128), round(b + 128)
    file = encoded(Image.new("LAB", (4, 4), stored), "TIFF")
    assert_close(pixels_of(file), np.broadcast_to(colour, (4, 4, 3)), 6)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(first, kind, save_all=True, append_images=[second], duration=100, **options)
    with Image.open(file) as image:
        assert image.n_frames == 2
    assert np.array_equal(pixels_of(file), np.broadcast_to([255, 0, 0], (6, 8, 3)))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_one_pixel(kind):
    file = encoded(Image.new("RGB", (1, 1), (12, 34, 56)), kind)
    assert np.array_equal(pixels_of(file), [[[12, 34, 56]]])


def test_progressive_jpeg():
    pixels = np.repeat(np.repeat(noise(3, 4), 16, 0), 16, 1)
    file = encoded(
        Image.fromarray(pixels), "JPEG", progressive=True, quality=100, subsampling="4:4:4"
    )
    with Image.open(file) as image:
        assert image.info["progressive"]
    assert_close(pixels_of(file), pixels, 4)


# --- which side is up

# Where the first row and the first column of the file belong: EXIF 2.32, 4.6.5.1.
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright, orientation):
    sides = FIRST_ROW_AND_COLUMN[orientation]
    height, width = upright.shape[:2]
    is_turned = sides[0] in ("left", "right")
    stored = np.empty((width, height, 3) if is_turned else upright.shape, np.uint8)
    for place in np.ndindex(stored.shape[:2]):
        at = {side: index for side, index in zip(sides, place, strict=True)}
        y = at["top"] if "top" in at else height - 1 - at["bottom"]
        x = at["left"] if "left" in at else width - 1 - at["right"]
        stored[place] = upright[y, x]
    return stored


@pytest.mark.parametrize("orientation", FIRST_ROW_AND_COLUMN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_stand_upright(kind, orientation):
    upright = np.repeat(np.repeat(noise(2, 3), 16, 0), 16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": "4:4:4"},
    }.get(kind, {})
    file = encoded(Image.fromarray(as_stored(upright, orientation)), kind, exif=exif, **options)
    most = 4 if kind == "JPEG" else 0
    assert_close(pixels_of(file), upright, most)
    with Image.open(file) as image:
        assert_close(pixels_of(image), upright, most)
    assert_close(pixels_of(read_image(file)), upright, most)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", FIRST_ROW_AND_COLUMN)
def test_a_sample_tells_how_it_is_stored(kind, orientation):
    upright = noise(4, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = as_stored(upright, orientation)
    file = encoded(Image.fromarray(stored), kind, exif=exif)
    sample = read_sample(file.getvalue(), "x")
    assert sample.orientation == orientation
    assert sample.stored_size == stored.shape[1::-1]
    assert np.array_equal(turned(stored[..., 0], orientation), upright[..., 0])


@pytest.mark.parametrize("orientation", FIRST_ROW_AND_COLUMN)
def test_boxes_turn_as_the_pixels_in_them(orientation):
    stored = np.zeros((5, 9), np.uint8)
    stored[1:3, 2:8] = 1
    (box,) = turned_boxes(np.array([[2, 1, 8, 3]], np.float32), orientation, (9, 5)).astype(int)
    expected = turned(stored, orientation)
    seen = np.zeros_like(expected)
    seen[box[1] : box[3], box[0] : box[2]] = 1
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(noise()), "PNG", exif=exif)
    assert np.array_equal(pixels_of(file), noise())


def test_damaged_notes_are_ignored():
    file = encoded(Image.fromarray(noise()), "PNG", exif=b"Exif\0\0no TIFF, this")
    assert np.array_equal(pixels_of(file), noise())


# --- what is refused


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG that ends where its pixels would begin: decoding it fails."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def whole_file(kind):
    return encoded(Image.fromarray(noise(64, 64)), kind).getvalue()


def wrapped_in_iptc(content):
    fields = [(3, 60, b"\x01\0"), (3, 20, b"\x08"), (3, 30, b"\x06"), (3, 120, b"\x05")]
    return b"".join(
        struct.pack(">BBBH", 0x1C, *tag, len(value)) + value
        for *tag, value in [*fields, (8, 10, content)]
    )


UNREADABLE = {
    "text": (b"This is no image but a letter.", "it is not in a known image format"),
    "empty": (b"", "it is empty"),
    "cut PNG": (whole_file("PNG")[:2000], "truncated"),
    "cut JPEG": (whole_file("JPEG")[:1500], "truncated"),
    "cut TIFF": (whole_file("TIFF")[:2000], "cannot be read"),
    "cut WEBP": (whole_file("WEBP")[:1000], "cannot be read"),
    "cut GIF": (whole_file("GIF")[:2000], "truncated"),
    "start of a PNG": (whole_file("PNG")[:12], "cannot be read"),
    "start of a JPEG": (whole_file("JPEG")[:3], "cannot be read"),
    "PDF": (b"%PDF-1.4\n%%EOF", "it is not in a known image format"),
    "program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "it is not in a known image format",
    ),
    "wrapped file": (wrapped_in_iptc(whole_file("JPEG")), "it is not in a known image format"),
    "RGB TIFF of floats": (
        rgb_tiff(np.ones((2, 2, 3), "<f4"), 3),
        "TIFF file, .*: unknown pixel mode",
    ),
    "RGB TIFF of 32 bits": (
        rgb_tiff(np.ones((2, 2, 3), "<u4"), 1),
        "TIFF file, .*: unknown pixel mode",
    ),
    "30,000 x 30,000": (png_header(30_000, 30_000), "too large: 30000 x 30000 pixels, .*at most"),
    "just too large": (png_header(2**14, 2**13 + 1), "too large: 16384 x 8193 pixels"),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_path_is_named(content, message, tmp_path):
    path = tmp_path / "strange.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in caught.value.args[0]


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_path_behind_an_open_file_is_not_shown(content, message, tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(UnreadableImageError, match=message) as caught:
        read_image(file)
    assert str(caught.value).startswith("the image ")
    assert str(tmp_path) not in str(caught.value)


def test_largest_allowed_passes_the_check_of_its_size():
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(io.BytesIO(png_header(2**14, MAX_PIXELS // 2**14)))


def test_closed_file():
    file = encoded(Image.fromarray(noise()), "PNG")
    file.close()
    with pytest.raises(UnreadableImageError, match=r"the image cannot be read: .*closed file"):
        read_image(file)


def test_image_that_was_opened_but_is_cut_short():
    with (
        Image.open(io.BytesIO(whole_file("JPEG")[:1500])) as image,
        pytest.raises(UnreadableImageError, match=r"the image cannot be read: .*truncated"),
    ):
        read_image(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_pillows_own_limit_neither_warns_nor_refuses(kind, monkeypatch):
    file = encoded(Image.new("RGB", (64, 64)), kind)
    for limit in (64 * 64 - 1, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert np.array_equal(pixels_of(file), np.zeros((64, 64, 3)))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_is_refused_before_pillow_warns(compression, monkeypatch):
    file = encoded(Image.new("RGB", (64, 64)), "TIFF", compression=compression)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(UnreadableImageError, match="too large: 64 x 64 pixels"):
        read_image(file)


def test_format_without_its_library_is_named(monkeypatch):
    file = encoded(Image.fromarray(noise()), "WEBP")
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    with pytest.raises(UnreadableImageError, match="WEBP support not installed"):
        read_image(file)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist; give the path"):
        read_image(tmp_path / "nowhere.png")


def test_folder(tmp_path):
    with pytest.raises(UnreadableImageError, match="is a folder; expected the path of one image"):
        read_image(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.randn(3, 8, 8), "looks normalised"),
        (torch.full((3, 8, 8), float("nan")), "looks normalised"),
        (noise().astype(np.float32), "floats are expected in 0..1"),
        (np.full((4, 4), np.inf), "looks normalised"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), r"tensor of torch.bool and shape \(3, 8, 8\) is"),
        (np.zeros((8, 8), bool), r"array of bool and shape \(8, 8\) is no image; expected"),
        (np.zeros((8, 8, 3), np.uint16), r"expected \(H, W, C\) or \(H, W\) with C 1, 3 or 4"),
        (np.array([["a", None]], dtype=object), "array of object"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(1, 3, 8, 8), r"expected \(C, H, W\) or \(H, W\) with C 1, 3 or 4"),
        (torch.zeros(5, 8, 8), r"shape \(5, 8, 8\) is no image"),
        (np.zeros((3, 8, 8)), r"shape \(3, 8, 8\) is no image"),
        (torch.zeros(8), "is no image"),
        (torch.tensor(0.5), "is no image"),
        (torch.zeros(3, 0, 8), r"0, 8\) is 8 x 0 pixels; expected at least 1 x 1"),
        (np.zeros((8, 0), np.uint8), "is 0 x 8 pixels"),
        (Image.new("RGB", (0, 5)), "the image is 0 x 5 pixels"),
        (torch.zeros(1).expand(MAX_PIXELS + 1, 1), "too large: 1 x 134217729 pixels"),
    ],
)
def test_no_images_of_values(source, message):
    with pytest.raises(UnreadableImageError, match=message):
        read_image(source)


@pytest.mark.parametrize("source", [None, 5, b"bytes", [[0, 1]]])
def test_other_types_are_named(source):
    with pytest.raises(
        UnreadableImageError, match=f"of type {type(source).__name__}; expected a path"
    ):
        read_image(source)


# --- JPEGs decoded smaller


def photograph(height, width):
    """Slopes with grain, so that neighbours differ."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1)
    grain = np.random.default_rng(0).integers(-20, 20, slopes.shape)
    return Image.fromarray((slopes + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("most", "size"),
    [(0.3, (641, 480)), (1.9, (641, 480)), (2, (321, 240)), (5, (161, 120)), (99, (81, 60))],
)
def test_a_jpeg_may_be_decoded_smaller(most, size):
    file = encoded(photograph(480, 641), "JPEG")
    assert read_sample(file.getvalue(), "x", reduction=lambda w, h: most).image.size == size


def test_reduction_is_told_the_size_and_only_jpegs_heed_it():
    seen = []

    def reduction(width, height):
        seen.append((width, height))
        return 8

    png = encoded(photograph(48, 64), "PNG").getvalue()
    jpeg = encoded(photograph(48, 64), "JPEG").getvalue()
    assert read_sample(png, "x", reduction=reduction).image.size == (64, 48)
    assert read_sample(jpeg, "x", reduction=reduction).image.size == (8, 6)
    assert seen == [(64, 48)]


@pytest.mark.parametrize("kind", ["L", "CMYK"])
def test_colours_are_kept_where_a_jpeg_is_decoded_smaller(kind):
    file = encoded(photograph(480, 640).convert(kind), "JPEG")
    whole = np.asarray(read_image(file).reduce(2)).astype(float)
    seen = np.asarray(read_sample(file.getvalue(), "x", reduction=lambda w, h: 2).image)
    assert np.abs(seen - whole).mean() < 2


def test_upright_also_where_it_is_decoded_smaller():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(photograph(480, 640), "JPEG", exif=exif)
    assert read_sample(file.getvalue(), "x", reduction=lambda w, h: 4).image.size == (120, 160)


# --- HEIC


def test_heif_is_read_where_its_package_is_installed(monkeypatch):
    known = []

    class Package:
        @staticmethod
        def register_heif_opener():
            known.append(True)

    monkeypatch.setitem(sys.modules, "pillow_heif", Package)
    for cached in (reading._add_heif, reading.image_extensions):
        cached.cache_clear()
    try:
        assert ".heic" in reading.image_extensions()
        read_image(encoded(Image.fromarray(noise()), "PNG"))
        assert known == [True]
    finally:
        for cached in (reading._add_heif, reading.image_extensions):
            cached.cache_clear()


def test_extensions_without_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for cached in (reading._add_heif, reading.image_extensions):
        cached.cache_clear()
    assert ".heic" not in reading.image_extensions()


# --- sizes alone


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_size_is_that_of_the_upright_image(tmp_path, kind, orientation):
    notes = Image.Exif()
    notes[0x0112] = orientation
    path = str(tmp_path / "image")
    Image.fromarray(noise(6, 8)).save(path, kind, exif=notes)
    width, height = read_image(path).size
    assert read_size(path) == (height, width)
    assert (height, width) == ((8, 6) if orientation > 4 else (6, 8))


def test_notes_behind_the_pixels_of_a_png_count(tmp_path):
    notes = Image.Exif()
    notes[0x0112] = 6
    content = encoded(Image.fromarray(noise(6, 8)), "PNG").getvalue()
    chunk = b"eXIf" + notes.tobytes().removeprefix(b"Exif\0\0")
    length, check = len(chunk) - 4, zlib.crc32(chunk)
    exif = struct.pack(">I", length) + chunk + struct.pack(">I", check)
    path = tmp_path / "image.png"
    path.write_bytes(content[:-12] + exif + content[-12:])
    assert read_size(str(path)) == read_image(path).size[::-1] == (8, 6)


def test_size_of_no_image_is_an_error(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"image\.png cannot be read as an image"):
        read_size(str(path))


@pytest.mark.parametrize("read", [read_image, read_size, read_values, read_header])
def test_pipes_and_devices_are_refused_at_once(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (str(tmp_path / "pipe.png"), "/dev/zero"):
        with pytest.raises(UnreadableImageError, match=r"pipe or a device|no longer there"):
            read(path)
