"""Run folders of tiny classifiers, images for them, and the slow way to what they say."""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image

from convattn.config import ModelConfig, TrainConfig
from convattn.data import read_image, transform_of
from convattn.runs import Run

SIDE = 32
CLASSES = ["plain", "with, comma", 'with "quotes"', "ümlaut", "=1+1", "<b>", "two\nlines"]


def make_run(folder, names, *, model="test_resnet", seed=0, **cfg):
    """A run folder of a network with random weights."""
    torch.manual_seed(seed)
    network = timm.create_model(model, num_classes=len(names))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)  # residual branches begin at zero
    _tell_colours_apart(network)
    known = {
        "input_size": [3, SIDE, SIDE],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "num_classes": len(names),
        "label_names": list(names),
    }
    folder.mkdir()
    config = TrainConfig(model=ModelConfig(name=model))
    (folder / "config.json").write_text(config.to_json())
    safetensors.torch.save_file(
        network.state_dict(),
        folder / "model.safetensors",
        {"pretrained_cfg": json.dumps({**known, **cfg})},
    )
    return folder


@torch.no_grad()
def _tell_colours_apart(network):
    """Have the classes differ between images of different colours."""
    colours = torch.randn(64, 3, 1, 1).expand(-1, -1, SIDE, SIDE)
    logits = network.eval()(colours)
    classifier = network.get_classifier()
    classifier.weight.mul_(2 / logits.std(0)[:, None])
    classifier.bias.sub_(logits.mean(0)).mul_(2 / logits.std(0))


def paint(file, number):
    """A picture of a colour, with noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    height, width = random.integers(20, 60, 2).tolist()
    noise = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise + random.integers(0, 195, 3, dtype=np.uint8)).save(file)


NAMES = ("b.png", "a/z.png", "a-b/1.png", "a/y.jpg", "ä ö.png", "c,d.png", "a.png")
IN_ORDER = ("a-b/1.png", "a.png", "a/y.jpg", "a/z.png", "b.png", "c,d.png", "ä ö.png")


def paint_folder(folder):
    """Pictures at several depths, and what is no picture of a person's."""
    for number, name in enumerate(NAMES):
        paint(folder / name, number)
    for number, name in enumerate((".hidden.png", ".ipynb_checkpoints/b.png", "__MACOSX/b.png")):
        paint(folder / name, 100 + number)
    (folder / "notes.txt").write_text("no picture")
    return folder


def slowly(run, file):
    """Probabilities of every class, (K,), and the embedding, (C,), of one image."""
    run = Run.open(run)
    cfg, model = run.pretrained_cfg, run.load_model()
    pixels = transform_of(cfg)(read_image(Path(file)))[None]
    with torch.no_grad():
        logits = model(pixels)[0]
        embedding = model.forward_head(model.forward_features(pixels), pre_logits=True)[0]
    return logits.sigmoid() if cfg.get("multi_label") else logits.softmax(0), embedding
