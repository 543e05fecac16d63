"""How much of the loader's own speed ``convattn predict RUN FOLDER --out FILE.csv`` keeps.

    python benchmarks/predict_speed.py [--images 10000] [--side 128] [--repeats 5]

Small JPEGs in ten folders, in the page cache. The same loader with the same workers is gone through
without a network, and by ``Run.predict``, table and embeddings and all; the two take turns, and a
share is of neighbouring passes. The network is so small (a PatchConvNet of one block and 8 channels
that sees 32 x 32 pixels) that the share tells of all else. Beside the clock's time stands that of
the processors, which holds on a machine that does other work, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image

from convattn.bench.comparison import Quartiles
from convattn.classification.streaming import Pictures, load_batches
from convattn.config import ModelConfig, Scalar, TrainConfig
from convattn.data.batches import list_images
from convattn.runs import Run

NUM_CLASSES = 10
SEEN = 32  # pixels a side
MODEL = "patchconvnet_nano"
MODEL_ARGS: dict[str, Scalar] = {"embed_dim": 8, "depth": 1}


def paint(folder: Path, count: int, side: int) -> None:
    """Colourful JPEGs."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % 10) / f"{number:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        image.save(place, quality=90)


def make_run(folder: Path) -> Run:
    """A run of a network with random weights."""
    torch.manual_seed(0)
    cfg = {"input_size": [3, SEEN, SEEN], "crop_pct": 1.0, "num_classes": NUM_CLASSES}
    tensors = timm.create_model(MODEL, num_classes=NUM_CLASSES, **MODEL_ARGS).state_dict()
    folder.mkdir()
    config = TrainConfig(model=ModelConfig(name=MODEL, model_args=MODEL_ARGS))
    (folder / "config.json").write_text(config.to_json())
    metadata = {"pretrained_cfg": json.dumps(cfg)}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata)
    return Run.open(folder)


def cost(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processors in this process and its workers."""
    before, began = os.times(), time.perf_counter()
    step()
    seconds, after = time.perf_counter() - began, os.times()
    return seconds, sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        paint(top / "images", arguments.images, arguments.side)
        run = make_run(top / "run")

        def load() -> None:
            pictures = Pictures(list_images(top / "images"), run.pretrained_cfg)
            for _ in load_batches(pictures, batch_size=64, num_workers=None):
                pass

        def predict() -> None:
            files = top / "table.csv", top / "embeddings.npy"
            run.predict(top / "images", out=files[0], embeddings=files[1])
            for file in files:
                file.unlink()

        found = []
        for turn in range(arguments.repeats + 1):  # the first warms up
            found.append((cost(load), cost(predict)))
            print(f"round {turn}: {found[-1]}", file=sys.stderr)
        del found[0]
    for name, place_of in (("by the clock", 0), ("of the processors", 1)):
        pairs = [(loaded[place_of], predicted[place_of]) for loaded, predicted in found]
        alone, whole = (Quartiles.of(column) for column in zip(*pairs, strict=True))
        share = Quartiles.of([one / other for one, other in pairs])
        print(
            f"seconds {name}: loader {alone:.2f}, predict {whole:.2f}; share of the loader's "
            f"speed {share:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
