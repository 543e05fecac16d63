import json

import pytest
import safetensors
import timm
import torch

import convattn  # noqa: F401  (registers the models)
from convattn.files import sha256_of
from convattn.runs.build import load_weights
from convattn.weights import convert_weights, patchconvnet_from_released, read_weights
from tests.weights.checkpoints import golden_network, write_checkpoint


def metadata(file):
    with safetensors.safe_open(file, framework="pt") as content:
        return content.metadata()


@pytest.mark.long
def test_a_released_file_becomes_ours_and_comes_back(s60_multi, tmp_path):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    made = convert_weights(s60_multi, ours)
    assert (made.model, made.parameters) == ("patchconvnet_s60_multi.fb_in1k", 25_614_712)
    convert_weights(ours, back, to="released")
    released = torch.load(s60_multi, weights_only=False)["model"]
    returned = torch.load(back, weights_only=True)
    assert returned.keys() == {"model"}
    assert returned["model"].keys() == released.keys()
    assert all(torch.equal(released[name], returned["model"][name]) for name in released)
    with safetensors.safe_open(ours, framework="pt") as content:
        for name, tensor in patchconvnet_from_released(released).items():
            assert torch.equal(content.get_tensor(name), tensor)


def test_the_file_tells_what_it_was_made_from_and_what_its_images_need(s60, tmp_path):
    convert_weights(s60, tmp_path / "ours.safetensors")
    told = metadata(tmp_path / "ours.safetensors")
    assert (told["source"], told["source_sha256"]) == ("s60_224_1k.pth", sha256_of(s60))
    cfg = json.loads(told["pretrained_cfg"])
    assert (cfg["architecture"], cfg["input_size"], cfg["num_classes"]) == (
        "patchconvnet_s60",
        [3, 224, 224],
        1000,
    )
    assert not {"file", "url"} & cfg.keys()


def test_another_network_s_own_metadata_stay(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, source, {"pretrained_cfg": '{"mean": [0.5]}'})
    assert convert_weights(source, target).model is None
    assert metadata(target)["pretrained_cfg"] == '{"mean": [0.5]}'
    assert torch.equal(read_weights(target)[1]["a"], torch.ones(1))


def test_a_network_of_timm_s_is_checked_and_described(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", model="test_resnet")
    cfg = json.loads(metadata(tmp_path / "b.safetensors")["pretrained_cfg"])
    assert (cfg["num_classes"], cfg["input_size"][0]) == (7, 1)
    other = timm.create_model("test_resnet", num_classes=7, in_chans=1)
    load_weights(other, tmp_path / "b.safetensors")
    assert torch.equal(other.fc.weight, model.fc.weight)
    with pytest.raises(ValueError, match="holds another model"):
        convert_weights(tmp_path / "a.pth", tmp_path / "c.safetensors", model="test_vit")
    assert not (tmp_path / "c.safetensors").exists()


def test_nothing_is_overwritten(tmp_path):
    source = write_checkpoint(tmp_path / "a.pth", golden_network("single_token")[0])
    (tmp_path / "b.pth").write_text("mine")
    with pytest.raises(FileExistsError, match="never overwritten"):
        convert_weights(source, tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_text() == "mine"


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out\.onnx is not named as one of \.safetensors, \.pth"):
        convert_weights(tmp_path / "a.pth", tmp_path / "out.onnx")


def test_what_has_no_released_names_leaves_nothing(tmp_path):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="belongs to no released PatchConvNet"):
        convert_weights(tmp_path / "a.pth", tmp_path / "b.pth", to="released")
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".pth"] == ["a.pth"]
