"""A data set with faults that are known, and photographs that have none."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

SIZE = (96, 72)


def photograph(seed, size=SIZE):
    """A picture with edges at all scales, of many colours, unlike one of another seed."""
    generator = np.random.default_rng(seed)
    width, height = size
    whole = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        blocks = generator.integers(256, size=(cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
        whole += np.asarray(layer) / 5
    return Image.fromarray(whole.round().astype(np.uint8))


def save(image, folder, name, **options):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)
    return folder / name


def good_classes(root, train=22, test=6):
    """train and val of two classes without a fault but that the test is small."""
    seed = 0
    for split, number in (("train", train), ("val", test)):
        for name in ("cat", "dog"):
            for index in range(number):
                seed += 1
                save(photograph(seed), root / split / name, f"{index:02d}.png")
    return root


def faulty_classes(root):
    """The same, and one fault of each kind; kind of finding -> names of its images."""
    good_classes(root)
    train, val = root / "train", root / "val"
    (val / "cat" / "copy.png").write_bytes((train / "cat" / "00.png").read_bytes())
    (train / "dog" / "wrong.png").write_bytes((train / "cat" / "01.png").read_bytes())
    near = Image.open(train / "dog" / "02.png")
    save(near, val / "dog", "near.jpg", quality=92)
    cut = save(photograph(900), train / "cat", "cut.jpg").read_bytes()
    (train / "cat" / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (train / "cat" / "empty.jpg").write_bytes(b"")
    save(Image.new("RGB", SIZE), train / "dog", "black.png")
    soft = photograph(901).filter(ImageFilter.GaussianBlur(9))
    soft = ImageOps.equalize(soft).filter(ImageFilter.GaussianBlur(9))
    save(soft, train / "cat", "soft.png")
    notes = Image.Exif()
    notes[0x0112] = 6
    turned = photograph(902, (SIZE[1], SIZE[0])).transpose(Image.Transpose.ROTATE_90)
    save(turned, train / "cat", "turned.jpg", exif=notes, quality=95)
    deep = np.asarray(photograph(903).convert("L")).astype(np.uint16) * 257
    save(Image.fromarray(deep), train / "cat", "deep.png")
    save(photograph(904, (480, 360)), train / "dog", "large.png")
    save(photograph(905, (96, 30)), train / "dog", "wide.png")
    frames = [photograph(906).quantize(), photograph(907).quantize()]
    save(frames[0], train / "dog", "film.gif", save_all=True, append_images=frames[1:])
    clear = photograph(908).convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    save(clear, train / "dog", "clear.png")
    (train / "dog" / "notes.txt").write_text("no image")
    return {
        "unreadable": {"train/cat/cut.jpg", "train/cat/empty.jpg"},
        "exact_copies_across_parts": {"train/cat/00.png", "val/cat/copy.png"},
        "exact_copies_of_two_classes": {"train/cat/01.png", "train/dog/wrong.png"},
        "near_copies_across_parts": {"train/dog/02.png", "val/dog/near.jpg"},
        "dark": {"train/dog/black.png"},
        "low_information": {"train/dog/black.png"},
        "blurry": {"train/cat/soft.png"},
        "odd_size": {"train/dog/large.png", "train/dog/wide.png"},
        "odd_aspect_ratio": {"train/dog/wide.png"},
        "turned": {"train/cat/turned.jpg"},
        "16_bits_or_floats": {"train/cat/deep.png"},
        "several_frames": {"train/dog/film.gif"},
        "transparent": {"train/dog/clear.png"},
        "grey": {"train/cat/deep.png", "train/dog/black.png"},
        "left_out": set(),
        "small_test": set(),
    }
