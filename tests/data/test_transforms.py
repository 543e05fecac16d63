import random

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode

from convattn.data import (
    ImageFiles,
    TensorImages,
    batch_augmentation,
    batch_mix,
    eval_transform,
    train_transform,
    transform_of,
    transforms,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pil_image(width=70, height=50, seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def bytes_batch(count=6, channels=3, height=12, width=12):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def smooth_batch(count=6, side=32):
    """Images without fine detail, on which ways of resampling agree."""
    small = bytes_batch(count, 3, 4, 4).float()
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear").byte()


def as_bytes(floats):
    return (floats * 255).round().to(torch.uint8)


# --- evaluation


CFGS = [
    {"input_size": (3, 24, 24), "crop_pct": 0.875, "interpolation": "bicubic"},
    {"input_size": (3, 24, 40), "crop_pct": 1.0, "interpolation": "bilinear"},
    {"input_size": (3, 32, 32), "crop_pct": 0.95, "crop_mode": "squash"},
    {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "border"},
    {"input_size": (3, 20, 20), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
]


@pytest.mark.parametrize("cfg", CFGS)
def test_eval_is_timms_for_the_pretrained_cfg(cfg):
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    values = {name: value for name, value in cfg.items() if name != "input_size"}
    ours = eval_transform(cfg["input_size"][1:], **values)
    assert torch.equal(ours(pil_image()), theirs(pil_image()))


@pytest.mark.parametrize("cfg", [*CFGS, {"num_classes": 10}])
def test_transform_of_a_model_is_timms(cfg):
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    assert torch.equal(transform_of(cfg)(pil_image()), theirs(pil_image()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [12, 9, (16, 10)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_eval_of_bytes_equals_that_of_images(channels, size, crop_pct):
    images = bytes_batch(4, channels)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]
    transform = eval_transform(size, crop_pct=crop_pct, mean=mean, std=std)
    one_by_one = torch.stack([transform(TF.to_pil_image(image)) for image in images])
    assert torch.equal(transform(images), one_by_one)


# --- training, images


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"color_jitter": 0.4, "random_erasing": 0.5},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "random"},
    ],
)
def test_random_resized_training_of_images_is_timms(extra, monkeypatch):
    monkeypatch.setattr(transforms, "_resize", TF.resize)  # how nearly it is: the test below
    ours = train_transform(24, scale=(0.3, 1.0), **extra)
    theirs = timm.data.create_transform(
        24,
        is_training=True,
        scale=(0.3, 1.0),
        color_jitter=extra.get("color_jitter"),
        auto_augment=extra.get("auto_augment"),
        interpolation=extra.get("interpolation", "bicubic"),
        re_prob=extra.get("random_erasing", 0.0),
        re_mode="const",
    )
    for seed in range(5):
        seed_all(seed)
        expected = theirs(pil_image(seed=seed))
        seed_all(seed)
        assert torch.equal(ours(pil_image(seed=seed)), expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_training_resizes_nearly_as_pillow(mode, kind):
    image = pil_image(301, 203).convert(kind)
    for size in ((224, 224), (97, 400)):
        ours = transforms._resize(image, size, InterpolationMode(mode))
        pillows = TF.pil_to_tensor(image.resize(size[::-1], Image.Resampling[mode.upper()]))
        difference = (ours.int() - pillows.int()).abs()
        assert difference.max() <= 2
        assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize(("width", "height"), [(70, 50), (20, 90), (24, 24), (10, 12)])
@pytest.mark.parametrize("padding", [0, 4])
def test_images_of_any_shape_get_the_size_without_a_resized_crop(width, height, padding):
    transform = train_transform((24, 30), random_crop_padding=padding)
    assert transform(pil_image(width, height)).shape == (3, 24, 30)


def test_image_is_covered_and_cropped_in_its_middle():
    image = pil_image(48, 24)
    transform = train_transform(24, hflip=0, **PLAIN)
    expected = TF.to_tensor(image.crop((12, 0, 36, 24)))
    assert torch.equal(transform(image), expected)


@pytest.mark.parametrize("policy", ["rand-m10-n6-inc1", "rand-m0-n6", "v0", "augmix-m10-w2"])
def test_policies_survive_their_strongest_posterize(policy):
    transform = train_transform(16, auto_augment=policy)
    seed_all(0)
    for seed in range(40):
        assert transform(pil_image(16, 16, seed)).isfinite().all()


def test_posterize_to_no_bits_is_black():
    transform = train_transform(16, auto_augment="rand-m10-inc1")
    (augment,) = transform.pil.transforms[1].transforms
    (op,) = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
    op.prob = 1.0
    assert np.asarray(op(pil_image())).max() == 0


# --- training, bytes


def is_window(cropped, padded):
    height, width = cropped.shape[1:]
    return [
        (y, x)
        for y in range(padded.shape[1] - height + 1)
        for x in range(padded.shape[2] - width + 1)
        if torch.equal(cropped, padded[:, y : y + height, x : x + width])
    ]


@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
def test_random_crop_is_a_window_of_the_padded_image(padding_mode):
    images = bytes_batch(60, 3, 8, 10)
    transform = train_transform(
        (8, 10), random_crop_padding=2, padding_mode=padding_mode, hflip=0, **PLAIN
    )
    torch.manual_seed(0)
    cropped = as_bytes(transform(images))
    places = []
    for image, crop in zip(images, cropped, strict=True):
        padded = torch.from_numpy(
            np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode=padding_mode)
        )
        found = is_window(crop, padded)
        assert found
        places += found
    assert {y for y, _ in places} == {x for _, x in places} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("chance", "shares"), [(0, (0, 0)), (1, (1, 1)), (0.3, (0.2, 0.4))])
def test_flip_mirrors_the_share_asked_for(chance, shares):
    images = bytes_batch(400)
    torch.manual_seed(0)
    seen = as_bytes(train_transform(12, hflip=chance, **PLAIN)(images))
    mirrored = (seen == images.flip(3)).flatten(1).all(1)
    kept = (seen == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert shares[0] <= mirrored.float().mean() <= shares[1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_jitter_equals_torchvision_image_by_image(channels, seed):
    images = bytes_batch(5, channels)
    torch.manual_seed(seed)
    ours = batch_augmentation.jitter_colour(images, 0.6)
    torch.manual_seed(seed)
    expected = images.float() / 255
    for step in torch.randperm(3).tolist():
        adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[step]
        amounts = torch.empty(5, 1, 1, 1).uniform_(0.4, 1.6).flatten().tolist()
        expected = torch.stack(
            [adjust(image, amount) for image, amount in zip(expected, amounts, strict=True)]
        )
    # torchvision rounds one weight of the luminance, we round to bytes.
    assert (ours.float() / 255 - expected).abs().max() < 1 / 255


def test_erasing_clears_one_rectangle_of_allowed_size():
    side = 40
    images = torch.full((200, 3, side, side), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    seen = train_transform(side, random_erasing=0.5, **PLAIN)(images)
    shares = []
    for image in seen:
        erased = (image == 0).all(0)
        assert torch.equal(erased, (image != 1).any(0))
        if erased.any():
            rows, columns = erased.any(1).nonzero()[:, 0], erased.any(0).nonzero()[:, 0]
            tall, wide = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert erased.sum() == tall * wide
            assert 0.25 < tall / wide < 4
            shares.append((tall * wide / side**2).item())
    assert 80 < len(shares) < 120
    assert 0.015 < min(shares) < 0.06
    assert 0.28 < max(shares) < 0.35


@pytest.mark.parametrize("mode", ["rand", "pixel"])
def test_erasing_by_noise(mode):
    images = torch.full((20, 3, 16, 16), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    seen = train_transform(16, random_erasing=1.0, erasing_mode=mode, hflip=0)(images)
    untouched = eval_transform(16, crop_pct=1.0)(images)
    for image, before in zip(seen, untouched, strict=True):
        new = image[:, (image != before).any(0)]
        assert new.shape[1] > 0
        num_colours = 1 if mode == "rand" else new.shape[1]
        assert len(new.T.unique(dim=0)) == num_colours


def test_resized_crop_of_everything_changes_nothing():
    images = bytes_batch(4)
    transform = train_transform(
        12, scale=(1, 1), ratio=(1, 1), hflip=0, interpolation="bilinear", **PLAIN
    )
    assert torch.equal(as_bytes(transform(images)), images)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resized_crop_equals_torchvision_image_by_image(mode):
    images = smooth_batch(20)
    scale, ratio = (0.3, 0.9), (0.75, 4 / 3)
    torch.manual_seed(1)
    ours = batch_augmentation.random_resized_crop(images, (32, 32), scale, ratio, mode)
    torch.manual_seed(1)
    places, fits = batch_augmentation._draw_rectangles(20, (32, 32), scale, ratio, inclusive=True)
    assert fits.all()
    for image, crop, place in zip(images, ours, places.tolist(), strict=True):
        expected = TF.resized_crop(image, *place, [32, 32], InterpolationMode(mode))
        # At the rim we see the neighbours that a crop has cut off.
        difference = (crop.float() - expected.float())[:, 2:-2, 2:-2].abs()
        assert difference.max() <= 3


def test_rectangles_keep_to_area_ratio_and_image():
    torch.manual_seed(0)
    size, area, aspect = (40, 60), (0.1, 0.9), (0.5, 2.0)
    drawn, fits = batch_augmentation._draw_rectangles(2000, size, area, aspect, inclusive=True)
    top, left, height, width = drawn[fits].float().unbind(1)
    assert fits.float().mean() > 0.99
    assert ((top >= 0) & (top + height <= 40) & (left >= 0) & (left + width <= 60)).all()
    # Sides are rounded to pixels.
    assert ((width + 0.5) * (height + 0.5) >= 0.1 * 2400).all()
    assert ((width - 0.5) * (height - 0.5) <= 0.9 * 2400).all()
    assert ((width + 0.5) / (height - 0.5) >= 0.5).all()
    assert ((width - 0.5) / (height + 0.5) <= 2.0).all()
    share = height * width / 2400
    assert share.min() < 0.15
    assert share.max() > 0.8
    assert (width / height).min() < 0.6
    assert (width / height).max() > 1.8


@pytest.mark.parametrize("inclusive", [True, False])
def test_rectangle_as_long_as_the_image_fits_where_it_may(inclusive):
    _, fits = batch_augmentation._draw_rectangles(5, (9, 9), (1, 1), (1, 1), inclusive=inclusive)
    assert (fits == inclusive).all()


def test_where_no_rectangle_fits_the_middle_is_taken():
    images = bytes_batch(3, 3, 8, 32)
    seen = batch_augmentation.random_resized_crop(
        images, (8, 8), (0.9, 0.9), (1.0, 1.0), "bilinear"
    )
    assert torch.equal(seen, images[:, :, :, 12:20])


FULL = {
    "random_crop_padding": 2,
    "color_jitter": 0.3,
    "random_erasing": 0.4,
    "erasing_mode": "pixel",
}


@pytest.mark.parametrize(
    "arguments",
    [FULL, {"scale": (0.4, 1.0)}, {"auto_augment": "rand-m9-mstd0.5-inc1"}],
)
def test_same_states_same_bits(arguments):
    transform = train_transform(12, **arguments)
    images = bytes_batch(8)
    before = images.clone()
    results = []
    for seed in (0, 0, 1):
        seed_all(seed)
        results.append(transform(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(images, before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_repeats_with_its_seed(num_workers):
    dataset = TensorImages(bytes_batch(16), torch.arange(16), transform=train_transform(12, **FULL))

    def epoch():
        torch.manual_seed(3)
        return list(DataLoader(dataset, batch_size=4, shuffle=True, num_workers=num_workers))

    for (images, labels), (images_again, labels_again) in zip(epoch(), epoch(), strict=True):
        assert torch.equal(labels, labels_again)
        assert torch.equal(images, images_again)


@pytest.mark.parametrize("arguments", [{"auto_augment": "rand-m9-mstd0.5-inc1"}, FULL])
def test_grey_images_are_augmented_too(arguments):
    transform = train_transform(12, mean=(0.3,), std=(0.3,), **arguments)
    assert transform(bytes_batch(4, 1)).shape == (4, 1, 12, 12)


def test_another_size_is_resized():
    assert train_transform(20)(bytes_batch(4)).shape == (4, 3, 20, 20)
    assert train_transform(8, scale=(0.5, 1.0))(bytes_batch(4)).shape == (4, 3, 8, 8)


# --- mixing


def test_no_mixing_is_none():
    assert batch_mix(num_classes=3, label_smoothing=0.1) is None


def test_mixup_blends_image_and_target_alike():
    mix = batch_mix(num_classes=4, mixup=0.8, label_smoothing=0.1)
    images = bytes_batch(4).float()
    seed_all(0)
    mixed, targets = mix(images.clone(), torch.arange(4))
    share = ((mixed[0] - images[3]) / (images[0] - images[3])).nanmedian()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    # Smoothing leaves 0.925 at the class and 0.025 at each other.
    expected = 0.025 + 0.9 * (share * torch.eye(4) + (1 - share) * torch.eye(4).flip(0))
    torch.testing.assert_close(targets, expected)


def test_cutmix_pastes_a_rectangle_and_counts_it():
    mix = batch_mix(num_classes=2, cutmix=1.0)
    shares = []
    for seed in range(5):
        images = torch.stack([torch.zeros(3, 20, 20), torch.ones(3, 20, 20)])
        seed_all(seed)
        mixed, targets = mix(images, torch.tensor([0, 1]))
        shares.append(mixed[0].mean().item())
        assert ((mixed == 0) | (mixed == 1)).all()
        assert targets[0, 1].item() == pytest.approx(shares[-1], abs=1e-6)
    assert any(0.1 < share < 0.9 for share in shares)


def test_odd_batch_is_refused():
    mix = batch_mix(num_classes=2, mixup=1.0)
    with pytest.raises(ValueError, match=r"batch of 5 images.*even batch_size, for example 6"):
        mix(torch.rand(5, 3, 4, 4), torch.zeros(5, dtype=torch.int64))


# --- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"hflip": 1.5}, "hflip=1.5; expected a chance"),
        ({"random_erasing": -1}, "random_erasing=-1; expected a chance"),
        ({"scale": (0.5, 1), "random_crop_padding": 4}, "two kinds of random crop"),
        ({"scale": (0.8, 0.2)}, "scale=.0.8, 0.2.; expected"),
        ({"scale": (0.5, 1), "ratio": (2, 1)}, "ratio=.2, 1.; expected"),
        ({"random_crop_padding": -1}, "random_crop_padding=-1"),
        ({"random_crop_padding": 12, "padding_mode": "reflect"}, "expected at most 11"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1"),
        ({"auto_augment": "randm9"}, "auto_augment='randm9' is no policy of timm's"),
        ({"auto_augment": "rand-q9"}, "auto_augment='rand-q9' is no policy"),
        ({"auto_augment": "best"}, "auto_augment='best' is no policy"),
        ({"interpolation": "linear"}, "interpolation='linear'; expected one of nearest"),
        ({"interpolation": "random"}, "interpolation='random'; expected one of nearest"),
        ({"padding_mode": "edge"}, "padding_mode='edge'"),
        ({"erasing_mode": "black"}, "erasing_mode='black'"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "expected as many of each"),
    ],
)
def test_bad_training_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_transform(**{"image_size": 12, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_pct": 0}, "crop_pct=0; expected a share"),
        ({"crop_pct": 1.2}, "crop_pct=1.2; expected a share"),
        ({"crop_mode": "middle"}, "crop_mode='middle'; expected one of center"),
        ({"interpolation": "random"}, "interpolation='random'; expected one of nearest"),
        ({"image_size": (0, 3)}, "image_size=.0, 3."),
    ],
)
def test_bad_evaluation_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        eval_transform(**{"image_size": 12, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup": -1}, "mixup=-1"),
        ({"cutmix": -1}, "cutmix=-1"),
        ({"mixup": 1, "prob": 2}, "prob=2; expected 0 to 1"),
        ({"mixup": 1, "label_smoothing": 2}, "label_smoothing=2"),
        ({"mixup": 1, "mode": "all"}, "mode='all'"),
    ],
)
def test_bad_mixing_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_mix(num_classes=2, **arguments)


@pytest.mark.parametrize("size", [12, 10])
def test_channels_that_do_not_fit_the_mean_are_named(size):
    with pytest.raises(ValueError, match=r"images have 1 channels and mean=.* has 3"):
        eval_transform(size, crop_pct=1.0)(bytes_batch(2, 1))


# --- JPEGs decoded smaller


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(None, 3000 / 224 / 2), ((1.0, 1.0), 15.46 / 2), ((0.08, 1.0), 4.374 / 2)],
)
def test_reduction_leaves_twice_what_the_network_sees(scale, expected):
    transform = train_transform(224, scale=scale)
    assert transform.reduction(4000, 3000) == pytest.approx(expected, rel=1e-3)


def test_small_images_are_read_whole():
    assert train_transform(32).reduction(1600, 1200) == 1


def test_tests_read_every_pixel():
    assert not hasattr(eval_transform(32), "reduction")


def test_training_on_a_jpeg_decoded_smaller_sees_nearly_the_same(tmp_path):
    y, x = np.mgrid[:1440, :1920]
    waves = [np.sin(x / 37) * np.cos(y / 23), np.sin((x + y) / 61), np.cos(y / 17)]
    pixels = (127 + 120 * np.stack(waves, -1)).astype(np.uint8)
    pixels[300:500, 400:900] = (250, 20, 60)
    file = tmp_path / "x.jpg"
    Image.fromarray(pixels).save(file, quality=92)
    transform = train_transform(64, hflip=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = ImageFiles([str(file)], torch.tensor([0]))
    whole = transform(images[0][0])
    (drafted, _), size = images.with_transform(transform)[0], transform.reduction(1920, 1440)
    assert size > 4
    difference = (whole - drafted).abs() * 255
    assert 0 < difference.mean() < 0.5
    assert difference.max() < 12
