"""One file is one image, whichever door it comes in by; equal to what the pixels were made of, and
to decoders that are not ours."""

import io
import json
import re
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import timm
import torch
from PIL import Image, features
from torchvision.io import decode_image

import convattn
from convattn.classification import prediction
from convattn.data import load_detection, load_segmentation, load_source, read_image
from convattn.data.reading import image_extensions

HEIGHT, WIDTH = 24, 36
TURNED_BACK = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
}
"""EXIF's orientation -> what a camera stores of an upright image."""


def scene():
    """Slopes and a step, (H, W, 3) uint8, nothing symmetric."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([7 * x, 10 * y, 3 * x + 5 * y], -1)
    pixels[6:14, 20:32] = (230, 40, 90)
    return pixels.astype(np.uint8)


RGB = scene()
GREY = RGB[..., 0]
OPACITY = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
SIXTEEN = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, WIDTH))
SIXTEEN_RGB = RGB.astype(np.uint16) * 257


def thrice(grey):
    return np.repeat(np.asarray(grey, float)[..., None], 3, -1)


def over_white(colours, opacity):
    share = opacity[..., None] / 255
    return colours * share + 255 * (1 - share)


def encode(pixels, kind, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    notes = Image.Exif()
    notes[0x0112] = orientation
    return notes


def png_of_sixteen_bits(pixels):
    """A PNG of 48 bits a pixel, which Pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@dataclass
class Kind:
    """A file, what its pixels mean, and which decoders besides can tell."""

    suffix: str
    content: bytes
    expected: np.ndarray | None = None
    most: float = 1
    others: tuple[str, ...] = field(default_factory=tuple)


BOTH = ("torchvision", "opencv")
LOSSY = {"quality": 95, "subsampling": "4:4:4"}
PALETTE = Image.fromarray(RGB).quantize(64)
ANIMATION = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}


def kinds():
    flat = encode(RGB, "PNG"), encode(RGB, "JPEG", **LOSSY)
    yield "png", Kind(".png", flat[0], RGB, 0, BOTH)
    yield "PNG in capitals", Kind(".PNG", flat[0], RGB, 0, BOTH)
    yield "jpg", Kind(".jpg", flat[1], RGB, 12, BOTH)
    yield "jpeg", Kind(".jpeg", flat[1], RGB, 12, BOTH)
    yield "jfif", Kind(".jfif", flat[1], RGB, 12, BOTH)
    yield "png called jpg", Kind(".jpg", flat[0], RGB, 0, BOTH)
    yield "subsampled", Kind(".jpg", encode(RGB, "JPEG", quality=90), others=BOTH)
    progressive = encode(RGB, "JPEG", progressive=True, **LOSSY)
    yield "progressive", Kind(".jpg", progressive, RGB, 12, BOTH)
    yield "grey jpeg", Kind(".jpg", encode(GREY, "JPEG", quality=95), thrice(GREY), 12, BOTH)
    for orientation, turn in TURNED_BACK.items():
        stored, notes = np.ascontiguousarray(turn(RGB)), exif(orientation)
        content = encode(stored, "JPEG", exif=notes, **LOSSY)
        yield f"jpeg turned {orientation}", Kind(".jpg", content, RGB, 12, BOTH)
    stored = np.ascontiguousarray(TURNED_BACK[6](RGB))
    for suffix, kind, options in (
        (".png", "PNG", {}),
        (".webp", "WEBP", {"lossless": True}),
        (".tif", "TIFF", {}),
    ):
        content = encode(stored, kind, exif=exif(6), **options)
        yield f"{suffix} turned 6", Kind(suffix, content, RGB, 0)
    cmyk = encode(RGB, "JPEG", "CMYK", quality=95)
    yield "cmyk jpeg", Kind(".jpg", cmyk, RGB, 16)
    yield "cmyk tiff", Kind(".tif", encode(RGB, "TIFF", "CMYK"), RGB, 2)
    yield "grey", Kind(".png", encode(GREY, "PNG"), thrice(GREY), 0, BOTH)
    bits = GREY > 127
    yield "one bit", Kind(".png", encode(bits, "PNG"), thrice(bits * 255), 0, BOTH)
    sixteen = thrice(SIXTEEN / 257)
    yield "16 bits png", Kind(".png", encode(SIXTEEN, "PNG"), sixteen, 1, ("opencv",))
    yield "16 bits tiff", Kind(".tiff", encode(SIXTEEN, "TIFF"), sixteen, 1, ("opencv",))
    netpbm = f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + SIXTEEN.astype(">u2").tobytes()
    yield "16 bits pgm", Kind(".pgm", netpbm, sixteen, 1, ("opencv",))
    netpbm = f"P6 {WIDTH} {HEIGHT} 65535\n".encode() + SIXTEEN_RGB.astype(">u2").tobytes()
    yield "16 bits ppm", Kind(".ppm", netpbm, RGB, 1, ("opencv",))
    yield "16 bits rgb png", Kind(".png", png_of_sixteen_bits(SIXTEEN_RGB), RGB, 1, ("opencv",))
    shares = GREY.astype(np.float32) / 255
    yield "floats", Kind(".tif", encode(shares, "TIFF"), thrice(GREY), 0)
    rgba = np.dstack([RGB, OPACITY])
    yield "rgba png", Kind(".png", encode(rgba, "PNG"), over_white(RGB, OPACITY))
    webp = encode(rgba, "WEBP", lossless=True, exact=True)
    yield "rgba webp", Kind(".webp", webp, over_white(RGB, OPACITY))
    pale = np.dstack([GREY, OPACITY])
    yield "grey with opacity", Kind(".png", encode(pale, "PNG"), over_white(thrice(GREY), OPACITY))
    colours = np.asarray(PALETTE.convert("RGB"))
    yield "palette png", Kind(".png", encode(PALETTE, "PNG"), colours, 0, BOTH)
    yield "palette tiff", Kind(".tif", encode(PALETTE, "TIFF"), colours, 0)
    yield "gif", Kind(".gif", encode(PALETTE, "GIF"), colours, 0, BOTH)
    index = np.asarray(PALETTE)
    seen = np.where((index == 5)[..., None], 255, colours)
    yield "gif with a hole", Kind(".gif", encode(PALETTE, "GIF", transparency=5), seen, 0)
    yield "png with a hole", Kind(".png", encode(PALETTE, "PNG", transparency=5), seen, 0)
    yield "moving gif", Kind(".gif", encode(PALETTE, "GIF", **ANIMATION), colours, 0)
    yield "moving png", Kind(".apng", encode(RGB, "PNG", **ANIMATION), RGB, 0)
    moving = encode(RGB, "WEBP", lossless=True, **ANIMATION)
    yield "moving webp", Kind(".webp", moving, RGB, 0)
    yield "webp", Kind(".webp", encode(RGB, "WEBP", lossless=True), RGB, 0, BOTH)
    yield "lossy webp", Kind(".webp", encode(RGB, "WEBP", quality=90), others=BOTH)
    for suffix, kind in ((".bmp", "BMP"), (".tif", "TIFF"), (".ppm", "PPM"), (".dib", "DIB")):
        others = () if kind == "DIB" else ("opencv",)
        yield kind.lower(), Kind(suffix, encode(RGB, kind), RGB, 0, others)
    two = {"save_all": True, "append_images": [Image.new("RGB", (9, 7))]}
    yield "pages of a tiff", Kind(".tif", encode(RGB, "TIFF", **two), RGB, 0)
    packed = encode(RGB, "TIFF", compression="tiff_lzw")
    yield "packed tiff", Kind(".tif", packed, RGB, 0, ("opencv",))
    profile = {"icc_profile": b"a profile that is none"}
    yield "colour profile", Kind(".jpg", encode(RGB, "JPEG", **LOSSY, **profile), RGB, 12, BOTH)
    if "avif" in features.get_supported():
        yield "avif", Kind(".avif", encode(RGB, "AVIF", quality=95, subsampling="4:4:4"), RGB, 12)


KINDS = dict(kinds())


@pytest.fixture(scope="module")
def model():
    made = timm.create_model("resnet10t", num_classes=2).eval()
    made.pretrained_cfg = dict(
        made.pretrained_cfg, input_size=(3, 64, 64), num_classes=2, label_names=("a", "b")
    )
    return made


def lay_out(root, kind, expected):
    """The file as a data set of every layout: of class folders, of COCO's json, of masks."""
    height, width = expected.shape[:2]
    for split in ("train", "val"):
        for folder in (split + "/a", split + "/b", "images/" + split):
            (root / folder).mkdir(parents=True)
            (root / folder / ("x" + kind.suffix)).write_bytes(kind.content)
        (root / "masks" / split).mkdir(parents=True)
        Image.new("L", (width, height)).save(root / "masks" / split / "x.png")
        listed = {"id": 1, "file_name": "a/x" + kind.suffix, "width": width, "height": height}
        content = {
            "images": [listed],
            "annotations": [],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (root / "classes.txt").write_text("nothing\nsomething\n")
    return root / "train" / "a" / ("x" + kind.suffix)


def predicted(model, file, out, monkeypatch):
    """What ``convattn predict`` shows to the network."""
    seen = []

    def classify(model, image):
        seen.append(image)
        return [convattn.explanation.Prediction(0, "a", 1.0)]

    monkeypatch.setattr(prediction, "classify", classify)
    list(prediction.predict_images(model, [file], out))
    return seen[0]


def demonstrated(file):
    handling = pytest.importorskip("convattn.demo.handling")
    return handling.read(file.read_bytes())


@pytest.mark.parametrize("name", KINDS)
def test_every_door_shows_the_same_pixels(tmp_path, monkeypatch, model, name):
    kind = KINDS[name]
    assert kind.suffix.lower() in image_extensions()
    expected = np.asarray(read_image(io.BytesIO(kind.content)))
    file = lay_out(tmp_path, kind, expected)
    folder = load_source("folder", root=tmp_path)
    boxes = load_detection("coco", root=tmp_path)
    masks = load_segmentation("masks", root=tmp_path)
    doors = {
        "read_image": read_image(file),
        "training": folder.train[0][0],
        "test": folder.test[0][0],
        "detection": boxes.train[0][0].permute(1, 2, 0),
        "segmentation": masks.test[0][0].permute(1, 2, 0),
        "predict": predicted(model, file, tmp_path, monkeypatch),
        "explain": convattn.explain(model, file).image,
        "demo": demonstrated(file),
    }
    different = [
        door for door, seen in doors.items() if not np.array_equal(np.asarray(seen), expected)
    ]
    assert not different


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if kind.expected is not None]
)
def test_the_pixels_are_those_that_the_file_was_made_of(name):
    kind = KINDS[name]
    seen = np.asarray(read_image(io.BytesIO(kind.content))).astype(float)
    assert seen.shape == kind.expected.shape
    assert np.abs(seen - kind.expected).max() <= kind.most


def read_by_torchvision(content):
    stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    read = decode_image(stored, mode="RGB", apply_exif_orientation=True)
    return read.permute(1, 2, 0).numpy().astype(float)


def read_by_opencv(content):
    cv2 = pytest.importorskip("cv2")
    # Turned as EXIF says, in the depth that the file has.
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    read = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if content.startswith(b"GIF") and re.search(r"GIF: +NO", cv2.getBuildInformation()):
        pytest.skip("this OpenCV is built without GIF")
    assert read is not None
    return read[..., ::-1] / (257 if read.dtype == np.uint16 else 1)


READERS = {"torchvision": read_by_torchvision, "opencv": read_by_opencv}


@pytest.mark.parametrize(
    ("name", "reader"), [(name, other) for name, kind in KINDS.items() for other in kind.others]
)
# An oracle may be deprecated; here it only says what it sees.
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_other_decoders_see_the_same(name, reader):
    content = KINDS[name].content
    seen = np.asarray(read_image(io.BytesIO(content))).astype(float)
    expected = READERS[reader](content)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= 1


def test_there_are_kinds_enough():
    assert len(KINDS) >= 40
