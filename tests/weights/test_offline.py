import importlib.machinery
from pathlib import Path

import timm
import torch

from convattn.weights import find_installed, load_backbone
from convattn.weights import offline as module


def test_weights_are_found_without_running_the_package(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "lite0.pth").touch()
    origin = tmp_path / "__init__.py"
    origin.write_text("raise AssertionError('was run')")
    spec = importlib.machinery.ModuleSpec("package", None, origin=str(origin))
    monkeypatch.setattr(module, "find_spec", lambda name: spec)
    assert find_installed() == tmp_path / "models" / "lite0.pth"


def test_a_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert find_installed() is None


def test_an_efficientnet_s_own_names_fill_timm_s_network(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("tf_efficientnet_lite0", num_classes=11)
    theirs = {}
    for number, (name, tensor) in enumerate(source.state_dict().items()):
        if "num_batches_tracked" in name:
            continue
        own = {0: "_conv_stem.weight"}.get(number, f"_layer{number}")
        theirs[name.replace("classifier", "_fc") if name.startswith("classifier") else own] = tensor
    torch.save(theirs, tmp_path / "lite.pth")
    for classes in (0, 3):
        network = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
        load_backbone(network, Path(tmp_path / "lite.pth"))
        for name, tensor in network.state_dict().items():
            if not name.startswith("classifier") and "num_batches" not in name:
                torch.testing.assert_close(tensor, source.state_dict()[name], rtol=0, atol=0)
