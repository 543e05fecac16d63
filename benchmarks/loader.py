"""Images a second and core from files to batches at 224, beside timm's loader and torchvision's.

    python benchmarks/loader.py --root HYMENOPTERA [--repeats 15]
    python benchmarks/loader.py --names
    python benchmarks/loader.py --check

The first measures loaders, which take turns over the same photographs in one process, and appends a
row a pass to docs/results/loader.csv; it goes on where it was stopped. The second measures what
lists of 1.3 and 14 million file names take, and 16 workers that read one; nothing is there but the
names, which a listing makes up. Both write docs/results/loader.md out of all rows; ``--check``
compares it with them.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import decode_image
from torchvision.transforms import InterpolationMode, v2

from convattn.bench import Quartiles
from convattn.classification.sharding import shard_data
from convattn.config import DataConfig
from convattn.data import eval_transform, folders, load_source, train_transform
from convattn.text import markdown_table
from convattn.train.datamodule import TrainingData
from rows import append_rows, read_rows

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TABLE, PAGE = RESULTS / "loader.csv", RESULTS / "loader.md"
COLUMNS = (
    *("date", "what", "mode", "way", "round", "images", "seconds", "cpu_seconds"),
    *("peak_mb", "kept_mb", "first_mb", "last_mb"),
)
SIDE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = ("training", "test")
OURS = ("convattn, folder", "convattn, webdataset", "convattn, litdata")
OTHERS = (
    *("timm", "timm, use_prefetcher=False"),
    *("torchvision v2, PIL", "torchvision v2, decode_image"),
)
CLASSES, NAMES, WORKERS = 21_841, (1_281_167, 14_197_122), 16
LISTS = {"convattn": "convattn", "list": "list of (path, class)"}

Batches = Iterable[Any]


# --- loaders


def ours(name: str, root: Path, *, training: bool) -> Batches:
    """Batches as ``convattn train`` gets them."""
    source = load_source(name, root=root)
    data = TrainingData(
        DataConfig(name=name, batch_size=BATCH),
        train=source.train.with_transform(train_transform(SIDE, scale=(0.08, 1.0))),
        val=source.train.with_transform(eval_transform(SIDE)),
        cfg={},
        seed=0,
    )
    place = SimpleNamespace(root_device=torch.device("cpu"))
    cast(Any, data).trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=place)
    return data.train_dataloader() if training else data.val_dataloader()


def timms(root: Path, *, training: bool, use_prefetcher: bool) -> Batches:
    """timm's, with the same crops."""
    dataset = create_dataset("", root=str(root), split="train")
    loader: Batches = create_loader(
        dataset,
        input_size=(3, SIDE, SIDE),
        batch_size=BATCH,
        is_training=training,
        color_jitter=None,
        interpolation="bicubic",
        crop_pct=0.875,
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=use_prefetcher,
        device=torch.device("cpu"),
    )
    return loader


def torchvisions(root: Path, *, training: bool, tensors: bool) -> Batches:
    """torchvision's, with the same crops, of PIL images or of tensors that it decodes itself."""
    bicubic: Any = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    crops: list[Any] = [v2.Resize(256, **bicubic), v2.CenterCrop(SIDE)]
    if training:
        crops = [v2.RandomResizedCrop(SIDE, **bicubic), v2.RandomHorizontalFlip()]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    decode = partial(decode_image, mode="RGB", apply_exif_orientation=True)
    dataset = ImageFolder(
        str(root / "train"),
        transform=v2.Compose([*crops, *([] if tensors else [v2.ToImage()]), *finish]),
        loader=cast(Any, decode if tensors else default_loader),
    )
    return DataLoader(dataset, batch_size=BATCH, shuffle=training, drop_last=training)


def make_loaders(root: Path, shards: Path, *, training: bool) -> dict[str, Batches]:
    """Every way's loader of the same files."""
    formats = [("folder", root), ("webdataset", shards / "tar"), ("litdata", shards / "bin")]
    made = [ours(name, place, training=training) for name, place in formats]
    made += [timms(root, training=training, use_prefetcher=one) for one in (True, False)]
    made += [torchvisions(root, training=training, tensors=one) for one in (False, True)]
    return dict(zip((*OURS, *OTHERS), made, strict=True))


def measure_rates(root: Path, repeats: int) -> None:
    """A row a pass of each loader; rounds that are there are not made again."""
    torch.set_num_threads(1)
    there = [row for row in read_rows(TABLE) if row["what"] == "rate"]
    with tempfile.TemporaryDirectory() as place:
        shards = Path(place)
        config = DataConfig(name="folder", root=str(root))
        shard_data(config, shards / "tar", shard_size=100)
        shard_data(config, shards / "bin", shard_size=100, format="litdata")
        loaders = {mode: make_loaders(root, shards, training=mode == "training") for mode in MODES}
        done = max((int(row["round"]) for row in there), default=0)
        for turn in range(done, repeats + 1):  # the first warms up
            rows = [
                {"what": "rate", "mode": mode, "way": way, "round": turn, **go(loader)}
                for mode, ways in loaders.items()
                for way, loader in ways.items()
            ]
            if turn > done:
                append(rows)
            print(f"round {turn}", file=sys.stderr)


def go(loader: Batches) -> dict[str, Any]:
    """Go through a loader once."""
    count, began, worked = 0, time.perf_counter(), time.process_time()
    for images, _ in loader:
        assert images.dtype == torch.float32
        count += len(images)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    return {"images": count, "seconds": f"{seconds:.4f}", "cpu_seconds": f"{cpu_seconds:.4f}"}


# --- names


@dataclass(frozen=True)
class Entry:
    """What a listing of a folder has, as ``os.DirEntry``."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.folder

    def is_symlink(self) -> bool:
        """Never."""
        return False


def made_up(root: str, count: int) -> Callable[[str], Iterable[Entry]]:
    """Gives what is in a folder of a data set that is not there: train and val of some classes."""
    of_each, rest = divmod(count, CLASSES)

    def entries(folder: str) -> Iterator[Entry]:
        if folder in (root, f"{root}/train", f"{root}/val"):
            classes = (f"n{number:08d}" for number in range(CLASSES))
            for name in ("train", "val") if folder == root else classes:
                yield Entry(name, f"{folder}/{name}", folder=True)
            return
        split, name = folder.split("/")[-2:]
        images = of_each + (int(name[1:]) < rest) if split == "train" else 1
        for number in range(images):
            file = f"{name}_{number}.JPEG"
            yield Entry(file, f"{folder}/{file}", folder=False)

    return entries


def pretend(root: str, count: int) -> Callable[[str], Iterable[Entry]]:
    """Have folders listed that are not there."""
    entries = made_up(root, count)
    cast(Any, folders)._entries = entries
    cast(Any, folders)._identity = lambda folder: (0, hash(folder))
    return entries


def open_names(way: str, root: str, count: int) -> Any:
    """What a training opens: its images and their digest; or the least that others hold."""
    entries = pretend(root, count)
    if way == "list":
        return [
            (file.path, number)
            for number, name in enumerate(entries(f"{root}/train"))
            for file in entries(name.path)
        ]
    source = load_source("folder", root=root, format="folder")
    return TrainingData(
        DataConfig(name="folder"), train=source.train, val=source.test, cfg={}, seed=0
    )


def resident(name: str) -> float:
    """MB of this process: VmRSS or VmHWM."""
    return float(re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e3


def measure_start(way: str, count: int) -> dict[str, Any]:
    """Seconds and memory of opening a list of names, in this process."""
    with tempfile.TemporaryDirectory() as root:
        before, began = resident("VmRSS"), time.perf_counter()
        kept = open_names(way, root, count)
        seconds = time.perf_counter() - began
        peak, held = resident("VmHWM") - before, resident("VmRSS") - before
        del kept
    return {"seconds": f"{seconds:.2f}", "peak_mb": round(peak), "kept_mb": round(held)}


class Touched(Dataset[int]):
    """Reads name and class of images, and no file."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def __getitems__(self, indices: Sequence[int]) -> list[int]:
        """How many were read."""
        if isinstance(self.kept, list):
            pairs = [self.kept[index] for index in indices]
        else:
            images = self.kept.train_images
            pairs = [(images.paths[index], int(images.labels[index])) for index in indices]
        return [len(pairs)]

    def __len__(self) -> int:
        return len(self.kept) if isinstance(self.kept, list) else self.kept.num_images


def private_mb() -> float:
    """MB that the children of this process have for themselves, a child."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    rolled = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in listed]
    sizes = [sum(map(int, re.findall(r"Private_\w+:\s+(\d+) kB", text))) for text in rolled]
    return sum(sizes) / len(sizes) / 1e3


def measure_workers(way: str, count: int) -> dict[str, Any]:
    """Memory of each of the workers, early in an epoch over all names and after it."""
    with tempfile.TemporaryDirectory() as root:
        loader = DataLoader(
            Touched(open_names(way, root, count)),
            batch_size=1000,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
            collate_fn=sum,
        )
        batches = iter(loader)
        read = sum(itertools.islice(batches, 2 * WORKERS))
        first, began = private_mb(), time.perf_counter()
        read += sum(batches)
        assert read == count
        return {
            "seconds": f"{time.perf_counter() - began:.2f}",
            "first_mb": f"{first:.1f}",
            "last_mb": f"{private_mb():.1f}",
        }


def measure_names() -> None:
    """A row a way and number of names, each in a process of its own."""
    there = {(row["what"], row["way"], row["images"]) for row in read_rows(TABLE)}
    wanted = [("start", way, count) for count in NAMES for way in LISTS]
    wanted += [("workers", way, NAMES[0]) for way in LISTS]
    for what, way, count in wanted:
        if (what, way, str(count)) in there:
            continue
        command = [sys.executable, __file__, "--one", f"{what} {way} {count}"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        append([{"what": what, "way": way, "images": count, **found}])
        print(what, way, count, found, file=sys.stderr)


def append(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows, with the date."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    append_rows(TABLE, COLUMNS, [{"date": today, **row} for row in rows])


# --- the page

_TEXT = """# How fast images come

{rate_command},
then {names_command}, {dates}, on an AMD EPYC, 2 cores,
AVX-512, no AMX, which did other work too. One process, one thread, {images} photographs of web
pages' size (hymenoptera) in the page cache, batches of {batch}, bicubic throughout. Ways take
turns; a ratio is that of processor time in the same round, with quartiles of {rounds} rounds. The
page is made of [loader.csv](loader.csv).

## Decoding and augmentation

Training: a random resized crop to {side} and a flip. Test: resized to 256, cropped to {side}.

{rates}

Above 1: convattn's folder is faster. {reading}

litdata's own reader has one chunk open at a time and maps another anew, which a profile shows is
most of what it takes beyond a folder (`_try_arrow_footer_rows`, `_apply_mapped_chunk`): images in
random order lie in another chunk almost every time.

## Lists of millions of names

A listing of {classes:,} class folders that makes its names up, opened as a training opens it
(classes, labels, splits, and the digest that a resume compares); beside it the list of (path,
class) that torchvision and timm keep, made by the same listing without all that. Reading folders
of a disc takes more.

{starts}

Names lie one after the other in a buffer, which grows while folders are listed. Below, {workers}
workers read names and classes of a shuffled epoch, and no files: memory that a worker shares with
no other (private pages of `smaps_rollup`), after its first two batches of 1,000 and after the
epoch.

{shared}
"""


def write_page(rows: Sequence[Mapping[str, str]]) -> str:
    """docs/results/loader.md of the rows."""
    dates = sorted({row["date"] for row in rows})
    return _TEXT.format(
        rate_command="`python benchmarks/loader.py --root HYMENOPTERA`",
        names_command="`python benchmarks/loader.py --names`",
        dates=" and ".join(dict.fromkeys((dates[0], dates[-1]))),
        batch=BATCH,
        images=max(int(row["images"]) for row in rows if row["what"] == "rate"),
        side=SIDE,
        rounds=len({row["round"] for row in rows if row["what"] == "rate"}),
        rates=rates_table(rows),
        reading=tell_best(rows),
        classes=CLASSES,
        starts=starts_table(rows),
        workers=WORKERS,
        shared=workers_table(rows),
    )


def cpu_seconds(rows: Sequence[Mapping[str, str]], mode: str, way: str) -> list[float]:
    """Of the processor for an image, a round each."""
    return [
        float(row["cpu_seconds"]) / int(row["images"])
        for row in rows
        if row["what"] == "rate" and row["mode"] == mode and row["way"] == way
    ]


def ratio(rows: Sequence[Mapping[str, str]], mode: str, way: str, to: str = OURS[0]) -> Quartiles:
    """Time of a way over that of another."""
    pairs = zip(cpu_seconds(rows, mode, way), cpu_seconds(rows, mode, to), strict=True)
    return Quartiles.of([mine / other for mine, other in pairs])


def rates_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Images a second of a core, and time over that of our folder."""
    head = ["loader", *(f"{mode}: {what}" for mode in MODES for what in ("images/s", "time over"))]
    cells = []
    for way in (*OURS, *OTHERS):
        cells.append([way])
        for mode in MODES:
            rate = 1 / Quartiles.of(cpu_seconds(rows, mode, way)).median
            cells[-1] += [f"{rate:.0f}", f"{ratio(rows, mode, way):.2f}"]
    return markdown_table(head, cells)


def tell_best(rows: Sequence[Mapping[str, str]]) -> str:
    """How far ours are from the fastest of the others."""
    words = []
    for mode in MODES:
        best = min(OTHERS, key=lambda way: ratio(rows, mode, way).median)
        ratios = [f"{ratio(rows, mode, way, best):.2f}" for way in OURS]
        words.append(f"The fastest of the others in {mode} is {best}; ours take ")
        words[-1] += f"{ratios[0]}, {ratios[1]} and {ratios[2]} times its time."
    return " ".join(words)


def starts_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Seconds and memory of opening names."""
    cells = [
        [
            f"{int(row['images']):,}",
            LISTS[row["way"]],
            f"{float(row['seconds']):.0f} s",
            f"{int(row['peak_mb']):,} MB",
            f"{int(row['kept_mb']):,} MB",
        ]
        for row in rows
        if row["what"] == "start"
    ]
    return markdown_table(["names", "kept as", "opened in", "peak", "kept"], cells)


def workers_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Memory of a worker before and after an epoch."""
    cells = [
        [
            f"{int(row['images']):,}",
            LISTS[row["way"]],
            f"{row['first_mb']} MB",
            f"{row['last_mb']} MB",
        ]
        for row in rows
        if row["what"] == "workers"
    ]
    return markdown_table(["names", "kept as", "at first", "after the epoch"], cells)


def main() -> None:
    """Measure, and write or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--check", action="store_true", help="compare the page, measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, way, count = arguments.one.split()
        measure = measure_start if what == "start" else measure_workers
        print(json.dumps(measure(way, int(count))))
        return
    if arguments.check:
        if PAGE.read_text() != write_page(read_rows(TABLE)):
            sys.exit(f"{PAGE} is not what the rows of {TABLE} give: run python {sys.argv[0]}")
        return
    if arguments.root is not None:
        measure_rates(arguments.root, arguments.repeats)
    if arguments.names:
        measure_names()
    rows = read_rows(TABLE)
    if {row["what"] for row in rows} >= {"rate", "start", "workers"}:
        PAGE.write_text(write_page(rows))


if __name__ == "__main__":
    main()
