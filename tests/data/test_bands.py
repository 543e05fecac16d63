import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import eval_transform, read_bands, train_transform
from convattn.data.bands import as_rgb, measure_channels, read_channels
from convattn.exceptions import UnreadableImageError

tifffile = pytest.importorskip("tifffile")


def values(channels, height=6, width=9, dtype=np.uint8, seed=0):
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(most, size=(height, width, channels), dtype=dtype)


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 2, 0)))


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("CMYK", "tif")])
def test_bands_that_pillow_knows(mode, kind, tmp_path):
    pixels = values(len(Image.new(mode, (1, 1)).getbands()))
    file = str(tmp_path / f"x.{kind}")
    Image.frombytes(mode, (9, 6), pixels.tobytes()).save(file)
    assert torch.equal(read_bands(file, pixels.shape[2]), channels_first(pixels))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_of_seven_bands(dtype, planar, tmp_path):
    pixels = values(7, dtype=dtype)
    file = str(tmp_path / "x.tif")
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(file, stored, photometric="minisblack", planarconfig=planar)
    expected = pixels if dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)
    assert torch.equal(read_bands(file, 7), channels_first(expected))


def test_a_turned_tiff_stands_upright(tmp_path):
    pixels = values(5)
    file = str(tmp_path / "x.tif")
    tag = (274, "H", 1, 6, True)
    tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig", extratags=[tag])
    assert torch.equal(read_bands(file, 5), channels_first(np.rot90(pixels, -1)))


def test_an_array_of_floats(tmp_path):
    shares = np.random.default_rng(0).random((5, 4, 6), np.float32)
    file = str(tmp_path / "x.npy")
    np.save(file, shares)
    expected = torch.from_numpy(np.rint(shares * 255).astype(np.uint8))
    assert torch.equal(read_bands(file, 5), expected)


def test_one_channel_is_grey_and_three_are_rgb(tmp_path):
    file = str(tmp_path / "x.png")
    image = Image.fromarray(values(3))
    image.save(file)
    assert np.array_equal(read_channels(file, 1), image.convert("L"))
    assert np.array_equal(read_channels(file, 3), image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), r"x\.npy has the shape \(4, 5, 3\); expected 6 bands"),
        (np.zeros((4, 5), np.uint8), r"x\.npy has 1 band; expected 6 bands"),
        (np.full((4, 5, 6), 7.0), r"values from 7 to 7 of float64; expected 8 or 16 bits"),
        (np.full((4, 5, 6), np.nan), r"values from nan to nan"),
        (np.zeros((4, 5, 6), np.int32), r"values of int32; expected 8 or 16 bits"),
        (np.array([{}]), r"cannot be read as an image"),
    ],
)
def test_other_values_are_refused(array, message, tmp_path):
    file = str(tmp_path / "x.npy")
    np.save(file, array)
    with pytest.raises(UnreadableImageError, match=message):
        read_bands(file, 6)


@pytest.mark.parametrize("name", ["x.npy", "x.tif", "x.png"])
def test_a_broken_file_is_one_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(b"II*\0" + bytes(range(60)))
    with pytest.raises(UnreadableImageError, match=name) as caught:
        read_bands(str(tmp_path / name), 5)
    assert "\n" not in str(caught.value)


def test_a_file_without_opacity_has_no_fourth_band(tmp_path):
    file = str(tmp_path / "x.png")
    Image.fromarray(values(3)).save(file)
    with pytest.raises(UnreadableImageError, match=r"expected 4 bands.*--data.in-chans"):
        read_bands(file, 4)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path):
    arrays = [values(4, seed=seed) for seed in range(3)]
    files = []
    for number, array in enumerate(arrays):
        files.append(str(tmp_path / f"{number}.npy"))
        np.save(files[-1], array)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    mean, std = measure_channels([str(tmp_path / "broken.npy"), *files], 4)
    pixels = np.stack(arrays).reshape(-1, 4) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=1e-4)
    assert std == pytest.approx(pixels.std(0), abs=1e-4)


def test_the_first_three_are_shown():
    bands = torch.arange(5, dtype=torch.uint8).view(5, 1, 1).expand(5, 2, 2)
    assert as_rgb(bands).getpixel((0, 0)) == (0, 1, 2)
    assert as_rgb(bands[:2]).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_a_test_sees_each_band_as_it_would_see_it_alone(crop_mode):
    image = channels_first(values(6, 40, 50))
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.2,) * 6
    seen = eval_transform(24, crop_mode=crop_mode, mean=mean, std=std)(image)
    for band, one in enumerate(seen):
        alone = eval_transform(24, crop_mode=crop_mode, mean=mean[band : band + 1], std=(0.2,))
        expected = alone(Image.fromarray(image[band].numpy()))[0]
        # Pillow rounds its weights coarser than PyTorch.
        assert (one - expected).abs().max() * 0.2 * 255 < 5.01


@pytest.mark.parametrize("arguments", [{"scale": (0.3, 1.0)}, {"random_erasing": 1.0}, {}])
def test_training_gives_the_size_and_takes_all_bands_alike(arguments):
    image = channels_first(values(1, 40, 50)).expand(5, -1, -1).contiguous()
    transform = train_transform(24, mean=(0.5,) * 5, std=(0.5,) * 5, **arguments)
    seen = transform(image)
    assert seen.shape == (5, 24, 24)
    assert torch.equal(seen, seen[:1].expand(5, -1, -1))


def test_colours_are_not_changed_where_there_are_none():
    transform = train_transform(24, mean=(0.5,) * 5, std=(0.5,) * 5, color_jitter=0.4)
    with pytest.raises(ValueError, match=r"5 channels; color_jitter .* leave them out"):
        transform(channels_first(values(5, 40, 50)))


def test_a_border_has_no_colour_for_them():
    with pytest.raises(ValueError, match=r"'border' .* mean has 5 channels; give 'center'"):
        eval_transform(24, crop_mode="border", mean=(0.5,) * 5, std=(0.5,) * 5)
