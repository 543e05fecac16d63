"""Files as the authors of PatchConvNet released them, without their weights."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
LISTING = json.loads((GOLDEN / "patchconvnet_official_checkpoints.json").read_text())


def released_tensors(name, classes=1000):
    """Random values under the released names and shapes; fewer classes cut the classifier."""
    torch.manual_seed(0)
    tensors = {n: 0.02 * torch.randn(shape) for n, shape in LISTING[name]["tensors"].items()}
    for kind in ("weight", "bias"):
        tensors[f"head.{kind}"] = tensors[f"head.{kind}"][:classes].clone()
    return tensors


def write_checkpoint(file, tensors, **words):
    """The dictionary that the authors' training script saves."""
    content = {
        "model": tensors,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 3e-3, "params": [0]}]},
        "lr_scheduler": {"base_values": [3e-3]},
        "epoch": 399,
        "args": argparse.Namespace(lr=3e-3, model="S60", nested=argparse.Namespace(mixup=[0.8])),
    }
    torch.save(content, file, **words)
    return file


def golden_network(name):
    """Released tensors of a 64-wide, 3-block network, an image of float64, and its logits."""
    golden = load_file(GOLDEN / f"patchconvnet_{name}.safetensors")
    tensors = {n.removeprefix("state/"): t for n, t in golden.items() if n.startswith("state/")}
    return tensors, golden["input"], golden["logits"]
