"""Images a second from files to what a network is given at 224, beside timm's and torchvision's.

    python benchmarks/reading.py --root HYMENOPTERA [--side 4000x3000] [--repeats 11]

One process, one thread, files in the page cache; the ways take turns over the same images. ``root``
holds photographs of a web page's size in class folders; large ones are made of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torchvision.io import decode_image
from torchvision.transforms import InterpolationMode, v2

from convattn.bench import Step, compare
from convattn.data import ImageFiles, eval_transform, load_source, train_transform

SIDE = 224
Way = Callable[[str], Any]


def _ours(transform: Any, path: str) -> Any:
    return ImageFiles([path], torch.tensor([0]), transform=transform)[0]


def _timms(transform: Any, path: str) -> Any:
    with Image.open(path) as image:
        return transform(image.convert("RGB"))


def _torchvisions(transform: Any, path: str) -> Any:
    return transform(decode_image(path, mode="RGB", apply_exif_orientation=True))


def _v2(*crops: Any) -> v2.Compose:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return v2.Compose([*crops, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def list_ways(training: bool) -> dict[str, Way]:
    """What takes a file to normalised floats (3, 224, 224), bicubic throughout."""
    bicubic = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    timms = create_transform((3, SIDE, SIDE), is_training=training, interpolation="bicubic")
    if training:
        ours: Any = train_transform(SIDE, scale=(0.08, 1.0))
        timms = create_transform(
            (3, SIDE, SIDE), is_training=True, interpolation="bicubic", color_jitter=None
        )
        theirs = _v2(v2.RandomResizedCrop(SIDE, **bicubic), v2.RandomHorizontalFlip())
    else:
        ours = eval_transform(SIDE)
        theirs = _v2(v2.Resize(256, **bicubic), v2.CenterCrop(SIDE))
    return {
        "ours": partial(_ours, ours),
        "timm": partial(_timms, timms),
        "torchvision": partial(_torchvisions, theirs),
    }


def enlarge(paths: Sequence[str], size: tuple[int, int], folder: Path) -> list[str]:
    """Large JPEGs of small ones."""
    made = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        made.append(str(folder / f"{number}.jpg"))
        large.save(made[-1], quality=90)
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--side", default="4000x3000")
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photographs = load_source("folder", root=arguments.root).train
    assert isinstance(photographs, ImageFiles)
    small = photographs.paths[::4]
    width, height = map(int, arguments.side.split("x"))
    print("| files | for | ours | timm | torchvision | timm / ours | torchvision / ours |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            f"{len(small)} photographs": small,
            arguments.side: enlarge(small[:4], (width, height), Path(folder)),
        }
        for files, paths in sets.items():
            for training in (True, False):
                steps = {
                    name: _over(way, paths) for name, way in list_ways(training=training).items()
                }
                found = compare(steps, reference="ours", repeats=arguments.repeats, title=files)
                rates = " | ".join(
                    f"{len(paths) / found.seconds(name).median:.0f}" for name in steps
                )
                print(
                    f"| {files} | {'training' if training else 'a test'} | {rates} | "
                    f"{found.ratio('timm'):.2f} | {found.ratio('torchvision'):.2f} |"
                )


def _over(way: Way, paths: Sequence[str]) -> Step:
    def step() -> None:
        for path in paths:
            way(path)

    return step


if __name__ == "__main__":
    main()
