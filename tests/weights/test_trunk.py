"""A backbone's weights out of a classifier's file, and what is left out of it."""

import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from convattn.detection import create_detector
from convattn.runs import create_dense_model
from convattn.weights import check_reachable, download, load_trunk
from tests.train.test_starting import lite_names

CFG = {"num_classes": 3, "input_size": (3, 64, 64)}


def classifier(name="resnet18", **arguments):
    torch.manual_seed(1)
    return timm.create_model(name, **arguments)


def trunk_of(network):
    return {k: v for k, v in network.state_dict().items() if not k.startswith(("fc.", "classif"))}


def saved(tmp_path, tensors):
    file = tmp_path / "x.pth"
    torch.save(tensors, file)
    return file


@pytest.mark.parametrize("counted", [True, False])
def test_all_but_the_classifier_is_loaded_as_torch_does(tmp_path, counted):
    theirs = classifier(num_classes=7)
    tensors = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if counted or not name.endswith("num_batches_tracked")
    }
    torch.manual_seed(2)
    ours = timm.create_model("resnet18", num_classes=3)
    before = ours.fc.weight.clone()
    told = load_trunk(ours, saved(tmp_path, tensors))
    count = len(tensors)
    assert told == f"{count - 2} of {count} tensors loaded, 2 left out: fc.bias, fc.weight"
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in trunk_of(theirs).items())
    assert torch.equal(ours.fc.weight, before)


def test_a_file_without_classifier_is_loaded_whole(tmp_path):
    theirs = classifier(num_classes=0)
    told = load_trunk(timm.create_model("resnet18"), saved(tmp_path, theirs.state_dict()))
    assert told == f"{len(theirs.state_dict())} of {len(theirs.state_dict())} tensors loaded"


def test_a_pool_that_was_trained_with_it_is_left_out(tmp_path):
    tensors = classifier().state_dict() | {"global_pool.query": torch.zeros(3)}
    told = load_trunk(timm.create_model("resnet18"), saved(tmp_path, tensors))
    assert told.endswith("3 left out: fc.bias, fc.weight, global_pool.query")


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "tf_efficientnet_lite0"])
def test_another_network_is_one_sentence_and_changes_nothing(tmp_path, other):
    file = saved(tmp_path, classifier(other).state_dict())
    ours = timm.create_model("resnet18")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match=r"x\.pth holds another model"):
        load_trunk(ours, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_names_of_the_port_are_known(tmp_path):
    theirs = classifier("tf_efficientnet_lite0")
    ours = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    told = load_trunk(ours, saved(tmp_path, lite_names(theirs)))
    assert "2 left out: classifier.bias, classifier.weight" in told
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in trunk_of(theirs).items())


def body_of(model):
    return next(m for m in model.modules() if type(m).__name__ == "FeatureLevels").body.model


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "upernet"])
def test_dense_networks_take_them_and_say_so(tmp_path, capsys, name):
    theirs = classifier("resnet_nano", num_classes=7)
    file = tmp_path / "x.safetensors"
    save_file(theirs.state_dict(), file)
    arguments = {"backbone": "resnet_nano", "backbone_weights": file, "channels": 16}
    if name == "upernet":
        model = create_dense_model(name, cfg=CFG, **arguments)
    else:
        model = create_detector(name, num_classes=3, min_size=32, **arguments)
    told = capsys.readouterr().err
    assert "backbone resnet_nano: " in told
    assert "left out: " in told
    own, expected = body_of(model).state_dict(), theirs.state_dict()
    assert own
    assert all(torch.equal(tensor, expected[key]) for key, tensor in own.items())


def test_plain_weights_go_in_before_attention_is_added(tmp_path):
    theirs = classifier("resnet_nano", num_classes=7)
    file = saved(tmp_path, theirs.state_dict())
    augment = {"conv": ["layer4.0.conv1"], "num_heads": 4, "input_size": (64, 64)}
    model = create_dense_model(
        "upernet", cfg=CFG, backbone="resnet_nano", backbone_weights=file, augment=augment
    )
    own, expected = body_of(model).state_dict(), theirs.state_dict()
    kept = [name for name in own if name in expected and not name.startswith("layer4.0.conv1")]
    assert len(kept) > 20
    assert all(torch.equal(own[name], expected[name]) for name in kept)


def test_where_nothing_answers_it_is_told_at_once(monkeypatch):
    def hang(url, timeout):
        time.sleep(30)

    session = type("Session", (), {"head": staticmethod(hang)})
    monkeypatch.setattr(download, "get_session", lambda: session)
    monkeypatch.setattr(download, "_PATIENCE", 0.1)
    monkeypatch.setattr(download, "try_to_load_from_cache", lambda *_: None)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"not on this machine, and .* does not answer"):
        check_reachable("resnet18")
    assert time.monotonic() - start < 5
    expected = r"no released weights of 'resnet18' .*--model\.backbone-weights FILE"
    with pytest.raises(ValueError, match=expected):
        create_detector("retinanet", backbone="resnet18", num_classes=3, pretrained=True)


def test_what_is_on_this_machine_is_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "try_to_load_from_cache", lambda *_: str(tmp_path))
    monkeypatch.setattr(download, "get_session", lambda: pytest.fail("nobody is to be asked"))
    check_reachable("resnet18")
    check_reachable("resnet_nano")  # nothing was released
