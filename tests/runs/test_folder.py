import json

import pytest
import safetensors.torch
import torch

from convattn.cli import main
from convattn.runs import Run, create_model, open_model
from convattn.runs import folder as module

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
SMALL = {"embed_dim": 16, "depth": 1}


def write_run(folder, model, **config):
    folder.mkdir()
    spec = {
        "name": "patchconvnet_nano",
        "num_classes": 7,
        "drop_rate": None,
        "drop_path_rate": None,
        "model_args": SMALL,
    }
    (folder / "config.json").write_text(json.dumps({"model": spec, **config}))
    cfg = {"num_classes": 7, "input_size": [3, 32, 32], "mean": [0.5], "label_names": NAMES}
    safetensors.torch.save_file(
        model.state_dict(), folder / "model.safetensors", {"pretrained_cfg": json.dumps(cfg)}
    )
    return folder


def test_run_folder_gives_back_the_model(tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL).eval()
    run = Run.open(write_run(tmp_path / "run", model, epochs=3))
    loaded, config = run.load_model(), run.config
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert config.epochs == 3
    assert loaded.pretrained_cfg["label_names"] == list(NAMES)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        Run.open(tmp_path)


def test_unfinished_run_says_how_to_go_on(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"name": "patchconvnet_nano"}}')
    with pytest.raises(FileNotFoundError, match="convattn train --resume"):
        Run.open(tmp_path).load_model()


def test_damaged_weights_are_named(tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    folder = write_run(tmp_path / "run", model)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        Run.open(folder).load_model()


DENSE = {"name": "retinanet", "num_classes": 3, "backbone_args": {}, "model_args": {}}
UNREADABLE = {
    "empty": (b"", "it is empty"),
    "blank": (b" \n", "it is empty"),
    "a list": (b"[1, 2]", "must be an object of fields"),
    "a number": (b"3", "must be an object of fields"),
    "null": (b"null", "must be an object of fields"),
    "torn": (b'{"model": {"na', "is not JSON"),
    "lists without end": (b"[" * 100_000, "nested too deeply"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "a deep field": (
        b'{"model": {"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        "nested too deeply",
    ),
    "UTF-16": ('{"model": {"name": "patchconvnet_nano"}}'.encode("utf-16"), "not text in UTF-8"),
    "bytes": (bytes(range(128, 256)), "not text in UTF-8"),
    "a long number": (b'{"epochs": ' + b"9" * 5000 + b"}", "is not JSON"),
    "no model": (b'{"epochs": 3}', "model is missing"),
    "no name": (b'{"model": {"num_classes": 3}}', "model.name is missing"),
    "a model that is a list": (b'{"model": []}', "model must be an object of fields"),
    "a model that is null": (b'{"model": null}', "model must be an object of fields"),
    "a name that is a number": (b'{"model": {"name": 3}}', "model.name is 3"),
    "no backbone": (json.dumps({"model": DENSE}).encode(), "model.backbone is missing"),
    "an unknown field": (b'{"model": {"name": "a"}, "epoch": 3}', "the nearest is epochs"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_configuration_that_cannot_be_understood_is_one_sentence(what, tmp_path):
    content, expected = UNREADABLE[what]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        Run.open(tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN"),
        ("predict", "RUN", "image.png"),
        ("explain", "RUN", "image.png"),
        ("explain", "RUN", "--faithfulness"),
        ("augment", "RUN"),
        ("export", "RUN", "--format", "onnx"),
        ("bench", "RUN"),
        ("demo", "RUN"),
        ("train", "--resume", "RUN"),
        ("reproduce", "--runs", "RUN"),
    ],
)
@pytest.mark.parametrize("what", ["empty", "a list", "deep objects", "UTF-16", "no model"])
def test_every_command_names_the_configuration(words, what, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    content, expected = UNREADABLE[what]
    (folder / "config.json").write_bytes(content)
    (folder / "evaluation.json").write_text("{}")  # of what reproduce reads
    assert main([str(folder) if word == "RUN" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(folder / "config.json") in line
    assert expected in line


def test_unknown_model_of_a_configuration_is_named(tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    folder = write_run(tmp_path / "run", model)
    file = folder / "config.json"
    file.write_text(file.read_text().replace("patchconvnet_nano", "patchconvnet_nan"))
    with pytest.raises(ValueError, match=r"config\.json.*nearest is 'patchconvnet_nano'"):
        Run.open(folder).load_model()


@pytest.mark.parametrize(
    "model_args", [{"embed_dim": -4}, {"embed_dim": 0}, {"depth": "many"}, {"colour": 1}]
)
def test_arguments_that_make_no_network_are_one_sentence(model_args, tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    folder = write_run(tmp_path / "run", model)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["model_args"] = model_args
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        Run.open(folder).load_model()
    assert "\n" not in str(caught.value)


def test_a_model_by_name_takes_the_weights_that_are_installed(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = create_model("tf_efficientnet_lite0")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "lite.safetensors")
    monkeypatch.setattr(module, "find_installed", lambda: tmp_path / "lite.safetensors")
    opened = open_model("tf_efficientnet_lite0").state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(opened[name], tensor, rtol=0, atol=0)
