"""timm's own functions for the Hugging Face Hub, by way of a folder."""

import json

import pytest
import safetensors.torch
import timm
import torch

from convattn.runs import Run
from convattn.runs.build import create_model


def saved(model, folder):
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("patchconvnet_s60", {"embed_dim": 32, "depth": 2, "in_chans": 1}),
        ("patchconvnet_nano_multi", {}),
        ("aa_resnet34", {}),
    ],
)
def test_a_saved_network_comes_back_by_its_folder_alone(name, words, tmp_path):
    model = create_model(name, num_classes=5, **words).eval()
    back = timm.create_model(saved(model, tmp_path), pretrained=True).eval()
    image = torch.randn(1, model.in_chans if "in_chans" in words else 3, 64, 96)
    assert torch.equal(back(image), model(image))


@pytest.mark.parametrize("name", ["patchconvnet_nano", "patchconvnet_nano_multi"])
def test_a_saved_network_takes_other_classes(name, tmp_path):
    model = create_model(name, num_classes=5)
    back = timm.create_model(saved(model, tmp_path), pretrained=True, num_classes=3)
    assert back.head.fc.weight.shape[0] == 3
    assert torch.equal(back.head.mlp[0].weight, model.head.mlp[0].weight)


def test_a_run_can_be_saved(tmp_path):
    sizes = {"embed_dim": 16, "depth": 1}
    model = create_model("patchconvnet_nano", num_classes=7, **sizes).eval()
    run = tmp_path / "run"
    run.mkdir()
    spec = {"name": "patchconvnet_nano", "num_classes": 7, "model_args": sizes}
    spec |= {"drop_rate": None, "drop_path_rate": None}
    (run / "config.json").write_text(json.dumps({"model": spec}))
    cfg = {"num_classes": 7, "input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3}
    cfg |= {"label_names": list("abcdefg"), "crop_pct": 1.0, "interpolation": "bilinear"}
    safetensors.torch.save_file(
        model.state_dict(), run / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    back = timm.create_model(
        saved(Run.open(run).load_model(), tmp_path / "hub"), pretrained=True
    ).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(back(image), model(image))
    assert back.pretrained_cfg["mean"] == [0.4] * 3
    assert list(back.pretrained_cfg["label_names"]) == list("abcdefg")
