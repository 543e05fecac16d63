"""What a frozen backbone sees: the last maps of a data set, written once, and where objects lie."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from convattn.data import load_source
from convattn.data.transforms import eval_transform
from convattn.explanation import Grid, GridTracker
from convattn.files import sha256_of, written_whole

DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")


@dataclass(frozen=True)
class Question:
    """Whether a map's strongest cell points at the object."""

    truth: Tensor
    """(N, n): whether it does when it is this cell."""
    images: Tensor
    """(N,): of which images it is asked."""


@dataclass(frozen=True)
class Features:
    """A data set after the backbone: N images, C channels, n cells."""

    maps: NDArray[np.float16]
    """(N, C, n), a memory map: behind the last activation, before the pool."""
    means: Tensor
    """(N, C): the average pool."""
    lengths: Tensor
    """(N, n): |x| of every position, a map that knows no class."""
    size: tuple[int, int]
    labels: Tensor
    num_train: int
    """Images of the training set, which come first; 0 where there are folds instead."""
    groups: Tensor
    """(N,): what no split may tear apart."""
    questions: Mapping[str, Question]
    """What a map's peak is asked, by name."""

    def read(self, indices: Tensor) -> Tensor:
        """(B,) -> (B, C, n) in float32."""
        return torch.from_numpy(self.maps[indices.numpy()]).float()


def load_backbone(weights: Path) -> Any:
    """Lite0 with the tensors of a plain state dict, whose order is timm's."""
    model: Any = timm.create_model("tf_efficientnet_lite0")
    given = torch.load(weights, map_location="cpu", weights_only=True)
    tensors = [given[name] for name in given if "num_batches_tracked" not in name]
    names = [name for name in model.state_dict() if "num_batches_tracked" not in name]
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def read_features(name: str, root: Path, weights: Path, cache: Path) -> Features:
    """The maps of a data set, from the cache where they are there."""
    tiles, photographs = name == "magnetic_tiles", name == "hymenoptera"
    transform = eval_transform(
        320 if tiles else 224,
        crop_pct=0.875 if photographs else 1.0,
        crop_mode="center" if photographs else "squash",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    kind = "tiny_imagenet" if name.startswith("tiny") else "folder"
    source = load_source(kind, root=root / name / "images" if tiles else root / name)
    images: list[Any] = [source.train, source.test]
    sets = [part.with_transform(transform) for part in images]
    labels = torch.cat([part.labels for part in images])
    paths = [path for part in images for path in getattr(part, "paths", [])]
    listed = [Path(path).name for path in paths] or len(labels)
    key = f"{sha256_of(weights)} {transform.pil} {listed} {labels.tolist()}"
    file = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    model = load_backbone(weights)
    with GridTracker() as grids, torch.no_grad():
        image = torch.zeros(1, 3, *transform.size)
        grids.begin(image)
        grid = grids.of(model.forward_features(image))
    assert grid is not None
    if not file.exists():
        extract(model, sets, grid, file)
    maps = np.load(file, mmap_mode="r")
    means, norms = [], []
    for start in range(0, len(maps), 256):
        x = torch.from_numpy(maps[start : start + 256].astype(np.float32))
        means.append(x.mean(2))
        norms.append(x.norm(dim=1))
    groups, questions = torch.arange(len(labels)), {}
    if tiles:
        groups = tiles_of(paths)
        cells, seen = cells_of_masks(paths, grid, tracked=False), cells_of_masks(paths, grid)
        chosen = {name: labels == source.class_names.index(name) for name in DEFECTS}
        questions = {name: Question(cells, images) for name, images in chosen.items()}
        questions["defect_tracked"] = Question(seen, labels != source.class_names.index("free"))
    elif not photographs:
        boxes = torch.cat([part.boxes for part in images])
        small = (boxes[:, 2:] - boxes[:, :2]).prod(1) / 64**2 < 0.3
        inside = cells_in_boxes(boxes * grid.image_size[0] / 64, grid)
        tiled = cells_in_boxes(boxes * grid.image_size[0] / 64, tiled_grid(grid))
        questions = {
            "box": Question(inside, torch.ones_like(small)),
            "small_box": Question(inside, small),
            "small_box_tiled": Question(tiled, small),
        }
    num_train = 0 if tiles else len(source.train)
    return Features(
        maps,
        torch.cat(means),
        torch.cat(norms),
        grid.feat_size,
        labels,
        num_train,
        groups,
        questions,
    )


def extract(model: Any, sets: Sequence[Any], grid: Grid, file: Path) -> None:
    """The one pass through the backbone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    total, done = sum(map(len, sets)), 0
    shape = (total, model.num_features, grid.feat_size[0] * grid.feat_size[1])
    with (
        written_whole(file) as part,
        torch.inference_mode(),
        tqdm(total=total, desc=file.stem, unit=" images", mininterval=5) as bar,
    ):
        maps = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        for images in sets:
            for batch, _ in DataLoader(images, batch_size=32):
                x = model.forward_features(batch.to(memory_format=torch.channels_last))
                maps[done : done + len(x)] = x.flatten(2).half().numpy()
                done += len(x)
                bar.update(len(x))
        maps.flush()


def tiled_grid(grid: Grid) -> Grid:
    """The same cells, each looking at the middle of its equal share of the image."""
    start = (grid.stride[0] / 2, grid.stride[1] / 2)
    return Grid(grid.feat_size, grid.image_size, start, grid.stride)


def cells_in_boxes(boxes: Tensor, grid: Grid) -> Tensor:
    """(N, 4) in pixels -> (N, n): whether the point that a cell looks at is in the box."""
    xmin, ymin, xmax, ymax = boxes[:, :, None].unbind(1)
    rows = (ymin <= grid.rows) & (grid.rows < ymax)
    columns = (xmin <= grid.columns) & (grid.columns < xmax)
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def cells_of_masks(paths: Sequence[str], grid: Grid, tracked: bool = True) -> Tensor:
    """(N, n): whether a mask has a pixel in the square of one stride around a cell's point.

    The points are the tracked ones, or the middles of the image's equal tiles.
    """
    where = grid if tracked else tiled_grid(grid)
    truth = torch.zeros(len(paths), *grid.feat_size, dtype=torch.bool)
    for number, path in enumerate(map(Path, paths)):
        file = path.parents[2] / "masks" / path.parent.name / f"{path.stem}.png"
        if file.exists():
            mask = np.asarray(Image.open(file).convert("L")) > 127
            places = (np.argwhere(mask) + 0.5) / mask.shape * where.image_size
            cells = np.rint((places - where.start) / where.stride).astype(int)
            row, column = cells.clip(0, np.array(where.feat_size) - 1).T
            truth[number, row, column] = True
    return truth.flatten(1)


def tiles_of(paths: Sequence[str]) -> Tensor:
    """A number a tile, (N,).

    Pictures of one tile under other light do not share their number, they follow each other: the
    next tile begins where the numbers leap by more than 100 (224 tiles of 6 pictures).
    """
    numbers = torch.tensor([int(re.findall(r"num_(\d+)", path)[0]) for path in paths])
    order = numbers.argsort()
    tiles = torch.empty_like(numbers)
    tiles[order] = (numbers[order].diff(prepend=numbers[order][:1]) > 100).cumsum(0)
    return tiles
