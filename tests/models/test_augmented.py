"""Augmented networks through timm's own saving and loading; nothing here reaches a network."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.models import save_for_hf
from torch import nn

from convattn import augment

NETWORKS = [
    ("test_resnet", {"pool": "attention", "conv": "last-2-stages"}),
    ("resnet10t", {"conv": "last-3-stages", "attn_downsample": {8: 2}, "position": "sine"}),
    ("test_efficientnet", {"pool": "class"}),
    ("mobilenetv3_small_050", {"pool": "ep", "pool_queries": 4, "pool_norm": True}),
    ("convnext_atto", {"pool": "aggregation", "mlp_ratio": 1.0}),
    ("regnetx_002", {"pool": "simpool", "pool_heads": 4}),
    ("tf_efficientnet_lite0", {"pool": "attention"}),
    ("densenet121", {"pool": "abmil"}),
    ("test_byobnet", {"pool": "gem"}),
    ("dla46_c", {"pool": "class-attention", "preserve": False}),
]


def woken(model):
    """With values in every gate and projection that starts at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(params=NETWORKS, ids=[name for name, _ in NETWORKS])
def saved(request, tmp_path):
    name, options = request.param
    base = timm.create_model(name, num_classes=5)
    model = woken(augment(base, input_size=64, **options))
    assert base.pretrained_cfg["architecture"] == name  # the copy alone carries the recipe
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    return model, tmp_path / "saved"


def test_timm_brings_it_back_with_equal_logits(saved):
    model, folder = saved
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))
    assert again.pretrained_cfg["architecture"] == "augmented"
    save_for_hf(again, folder.parent / "twice", safe_serialization=True)
    twice = timm.create_model(f"local-dir:{folder.parent / 'twice'}", pretrained=True).eval()
    assert torch.equal(twice(images), model(images))


def test_other_classes_get_a_new_classifier_and_keep_the_rest(saved):
    model, folder = saved
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert other(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    theirs, tensors = model.state_dict(), other.state_dict()
    same = [name for name in theirs if torch.equal(theirs[name], tensors.get(name, torch.empty(0)))]
    classifiers = [name for name in theirs if name not in same]
    assert same
    assert all(5 in theirs[name].shape for name in classifiers)


def test_without_what_timm_notes_itself_the_recipe_is_in_the_cfg(tmp_path):
    base = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    model = woken(augment(base, pool="attention", input_size=(1, 64, 64)))
    if hasattr(model, "_model_args"):  # as versions before it was there
        del model._model_args
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, in_chans=1)
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(again.eval()(images), model(images))


def test_who_augments_twice_gets_both(tmp_path):
    once = augment(timm.create_model("test_resnet", num_classes=5), conv="last-2-stages")
    model = woken(augment(once, pool="attention"))
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_args"]["base"] == "test_resnet"
    assert [sorted({"conv", "pool"} & step.keys()) for step in config["model_args"]["augment"]] == [
        ["conv"],
        ["pool"],
    ]
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))


def test_convolutions_chosen_by_a_function_are_named(tmp_path):
    base = timm.create_model("test_resnet", num_classes=5)
    model = woken(augment(base, conv=lambda module, name: name.startswith("layer4")))
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))


def test_a_new_process_needs_no_more_than_the_import(tmp_path):
    base = timm.create_model("test_resnet", num_classes=5)
    model = woken(augment(base, pool="attention"))
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    images = torch.randn(1, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import timm, torch, convattn\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'saved'}', pretrained=True).eval()\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)\n"
        f"torch.save(model(images).detach(), {str(tmp_path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, model(images))


def test_by_its_name_it_is_the_base_with_attention():
    options = {"pool": "attention", "input_size": 64}
    torch.manual_seed(0)
    model = timm.create_model("augmented", base="test_resnet", augment=options, num_classes=5)
    torch.manual_seed(0)
    expected = augment(timm.create_model("test_resnet", num_classes=5), **options)
    assert model.state_dict().keys() == expected.state_dict().keys()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), expected.eval()(images))


def test_what_a_newer_version_saved_is_named(tmp_path):
    model = augment(timm.create_model("test_resnet", num_classes=5), pool="attention")
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    config = tmp_path / "saved" / "config.json"
    written = json.loads(config.read_text())
    written["model_args"]["augment"][0]["pool_of_tomorrow"] = 3
    config.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"knows no pool_of_tomorrow.* newer version"):
        timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)


def test_without_a_base_it_says_how_to_name_one():
    with pytest.raises(ValueError, match=r"as in timm\.create_model"):
        timm.create_model("augmented")


def test_a_network_that_is_not_timms_is_left_alone():
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    model = augment(nn.Sequential(*layers), pool="attention", input_size=16)
    assert not hasattr(model, "pretrained_cfg")


class Own(nn.Module, PyTorchModelHubMixin):
    def __init__(self, base: str, pool: str) -> None:
        super().__init__()
        self.net = augment(timm.create_model(base, num_classes=5), pool=pool, input_size=64)

    def forward(self, x):
        return self.net(x)


def test_the_hubs_mixin_brings_it_back(tmp_path):
    model = woken(Own(base="test_resnet", pool="class"))
    model.save_pretrained(tmp_path / "own")
    again = Own.from_pretrained(tmp_path / "own").eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))
