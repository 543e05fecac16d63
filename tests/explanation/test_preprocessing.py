import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from convattn.data import transform_of
from convattn.explanation import preprocess

SHAPES = {
    "landscape": (120, 90),
    "portrait": (70, 110),
    "panorama": (300, 100),
    "tower": (41, 230),
    "same": (32, 32),
    "smaller than the crop": (20, 26),
    "sliver": (9, 30),
}
CFGS = [
    {"input_size": (3, *size), "crop_pct": crop_pct, "crop_mode": mode, "interpolation": kind}
    for size in ((32, 32), (32, 48), (45, 24))
    for crop_pct in (0.875, 0.95, 1.0)
    for mode in ("center", "squash", "border")
    for kind in (("bicubic",) if crop_pct == 0.95 else ("bilinear",))
]


def coloured(size):
    pixels = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cfg", CFGS)
def test_crop_is_the_evaluation_transform(cfg, size):
    image = coloured(size)
    assert torch.equal(preprocess(image, cfg, "crop").pixels, transform_of(cfg)(image))


def assert_region_is_where_the_steps_lead(cfg, size):
    """Send images whose values are their own coordinates through the transform's PIL steps."""
    region = preprocess(Image.new("RGB", size), cfg, "crop").region
    ramp = {**cfg, "input_size": (1, *cfg["input_size"][1:]), "mean": (0.5,), "std": (0.5,)}
    resize, crop = transform_of(ramp).pil.transforms[:2]
    centres = [
        start + (np.arange(cells) + 0.5) / cells * (end - start)
        for start, end, cells in zip(region[:2], region[2:], crop.size[::-1], strict=True)
    ]
    middle = [np.abs(at - side / 2).argmin() for at, side in zip(centres, size, strict=True)]
    empty = crop(Image.new("F", (1, 1))).getpixel((0, 0))
    for axis, coordinates in enumerate(np.mgrid[: size[0], : size[1]] + 0.5):
        values = np.asarray(crop(resize(Image.fromarray(coordinates.T.astype(np.float32)))))
        prepared = values[middle[1]] if axis == 0 else values[:, middle[0]]
        at, side = centres[axis], size[axis]
        pixel = max(1, (region[2 + axis] - region[axis]) / len(at))
        rim = 2 * pixel + 1  # the kernels' reach
        inside = (at > rim) & (at < side - rim)
        assert np.abs(prepared - at)[inside].max(initial=0) < 0.05 * pixel
        # Where the transform pads there is nothing of the image.
        assert (prepared == empty)[(at < 0) | (at > side)].all()


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cfg", CFGS)
def test_region_of_the_crop(cfg, size):
    assert_region_is_where_the_steps_lead({**cfg, "interpolation": "bicubic"}, size)


@given(
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    input_size=st.tuples(st.integers(8, 50), st.integers(8, 50)),
    crop_pct=st.floats(0.5, 1),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
@settings(max_examples=60, deadline=None)
def test_region_of_any_crop(size, input_size, crop_pct, crop_mode):
    assume(max(size) <= 6 * min(size))  # thinner ones are refused
    cfg = {"input_size": (3, *input_size), "crop_pct": crop_pct, "crop_mode": crop_mode}
    assert_region_is_where_the_steps_lead(cfg, size)


def expected_whole(image, size, mean, std):
    """Resized to ``size`` at once, with nothing cut off."""
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return normalize(to_tensor(resized), mean, std)


@pytest.mark.parametrize(
    ("size", "input_size", "crop_mode", "resized"),
    [
        ((120, 90), (28, 28), "center", (42, 32)),
        ((90, 120), (28, 28), "center", (32, 42)),
        ((300, 100), (28, 28), "center", (96, 32)),
        ((10, 16), (28, 28), "center", (32, 51)),
        ((120, 90), (28, 56), "center", (64, 48)),
        ((300, 100), (28, 28), "border", (32, 11)),
        ((300, 100), (28, 56), "squash", (64, 32)),
    ],
)
def test_whole_is_all_of_the_image_at_the_scale_of_the_evaluation(
    size, input_size, crop_mode, resized
):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    cfg = {"input_size": (3, *input_size), "crop_pct": 0.875, "crop_mode": crop_mode}
    image = coloured(size)
    prepared = preprocess(
        image, {**cfg, "mean": mean, "std": std, "interpolation": "bicubic"}, "whole"
    )
    assert torch.equal(prepared.pixels, expected_whole(image, resized, mean, std))
    assert prepared.region == (0, 0, *size)


def test_whole_is_the_crop_where_squashing_cuts_nothing():
    cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "crop_mode": "squash"}
    image = coloured((120, 50))
    crop, whole = (preprocess(image, cfg, view) for view in ("crop", "whole"))
    assert torch.equal(crop.pixels, whole.pixels)
    assert crop.region == whole.region


@pytest.mark.parametrize(
    ("size", "fixed", "view"),
    [
        ((120, 90), False, "crop"),
        ((199, 100), False, "crop"),
        ((200, 100), False, "whole"),
        ((100, 200), False, "whole"),
        ((300, 100), False, "whole"),
        ((300, 100), True, "crop"),
    ],
)
def test_auto_sees_panoramas_whole(size, fixed, view):
    cfg = {"input_size": (3, 32, 32), "fixed_input_size": fixed}
    image = coloured(size)
    chosen, expected = preprocess(image, cfg), preprocess(image, cfg, view)
    assert torch.equal(chosen.pixels, expected.pixels)
    assert chosen.region == expected.region


def test_missing_values_are_timms():
    given = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    given |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_mode": "center"}
    image = coloured((50, 40))
    prepared, expected = preprocess(image, {"architecture": "any"}), preprocess(image, given)
    assert torch.equal(prepared.pixels, expected.pixels)


@pytest.mark.parametrize("view", ["crop", "whole"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_networks_of_one_channel_see_grey(view, crop_mode):
    image = coloured((60, 40))
    cfg = {"crop_mode": crop_mode}
    one = {**cfg, "input_size": (1, 32, 32), "mean": (0.3,), "std": (0.4,)}
    three = {**cfg, "input_size": (3, 32, 32), "mean": (0.3,) * 3, "std": (0.4,) * 3}
    prepared = preprocess(image, one, view)
    # Grey in three channels is resized as grey in one.
    expected = preprocess(image.convert("L").convert("RGB"), three, view)
    assert torch.equal(prepared.pixels, expected.pixels[:1])
    assert prepared.region == expected.region


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_other_numbers_of_channels_are_refused(channels):
    cfg = {"input_size": (channels, 32, 32)}
    with pytest.raises(ValueError, match=rf"takes {channels} channels.* a file with as many bands"):
        preprocess(coloured((40, 40)), cfg)


def test_mean_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"input_size=\(1, 32, 32\) and mean=.*one mean and one"):
        preprocess(coloured((40, 40)), {"input_size": (1, 32, 32)})


def test_unknown_view():
    with pytest.raises(ValueError, match="view='all'; expected one of auto, crop, whole"):
        preprocess(coloured((40, 40)), {"input_size": (3, 32, 32)}, "all")


@pytest.mark.parametrize(
    ("size", "crop_mode", "view"),
    [
        ((30_000, 1), "center", "crop"),
        ((1, 30_000), "center", "crop"),
        ((1, 2**20), "squash", "crop"),  # ends small, but is 224 x 2**20 on the way
        ((30_000, 1), "border", "crop"),  # vanishes
        ((161, 10), "center", "whole"),
        ((161, 10), "center", "auto"),
        ((30_000, 1), "squash", "whole"),
    ],
)
def test_extreme_shapes_are_refused_before_they_are_resized(size, crop_mode, view, monkeypatch):
    def resize(self, *args, **kwargs):
        raise AssertionError("resized")

    monkeypatch.setattr(Image.Image, "resize", resize)
    cfg = {"input_size": (3, 224, 224), "crop_mode": crop_mode}
    message = f"an image of {size[0]} x {size[1]} pixels is too long .*; crop it first"
    with pytest.raises(ValueError, match=message):
        preprocess(Image.new("RGB", size), cfg, view)


def test_sixteen_to_one_is_seen_whole():
    prepared = preprocess(coloured((160, 10)), {"input_size": (3, 14, 14)})
    assert prepared.pixels.shape == (3, 16, 256)
