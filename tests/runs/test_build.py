import inspect

import pytest
import timm
import torch
from torch import nn

from convattn import augment
from convattn.config import AugmentConfig
from convattn.runs.build import augment_arguments, create_model, load_weights, plan_model
from convattn.text import nearest
from convattn.weights import tensor_differences

SMALL = {"embed_dim": 16, "depth": 1}


def test_differences_are_spelt_out():
    ours = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(1), "d": torch.zeros(1)}
    theirs = {"a": torch.zeros(2, 4), "d": torch.zeros(1), "e": torch.zeros(5)}
    assert tensor_differences(theirs, ours) == (
        "4 tensors differ: a is 2x4 in the file, 2x3 in the model, b scalar is missing in the "
        "file, c 1 is missing in the file, and 1 more"
    )
    assert tensor_differences(ours, ours) == ""


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_weights_come_from_plain_and_wrapped_state_dicts(wrap, tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    other = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    load_weights(other, tmp_path / "weights.pth")
    assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())


def test_other_number_of_classes_names_the_classifier(tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    other = create_model("patchconvnet_nano", num_classes=5, **SMALL)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"2 tensors differ: head.fc.weight is 7x16 in the file"):
        load_weights(other, tmp_path / "weights.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "weights.pth")
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    with pytest.raises(ValueError, match="no PyTorch file of plain tensors"):
        load_weights(model, tmp_path / "weights.pth")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pth does not exist"):
        load_weights(nn.Linear(1, 1), tmp_path / "nothing.pth")


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'patchconvnet_nano'"):
        create_model("patchconvnet_nan")


def test_unknown_argument_of_a_model_is_one_sentence():
    with pytest.raises(ValueError, match="'patchconvnet_nano' refuses its arguments"):
        create_model("patchconvnet_nano", colour="red")


def test_missing_released_weights_are_one_sentence():
    with pytest.raises(ValueError, match="no released weights of 'patchconvnet_l60'"):
        create_model("patchconvnet_l60", pretrained=True)


def test_nearest_always_gives_a_name():
    assert nearest("???", ["train", "list"]) in ("train", "list")


ATTENTION = {
    "pool": "attention",
    "conv": ["layer2.0.conv2"],
    "position": "sine",
    "preserve": False,
    "input_size": (3, 64, 64),
}


@pytest.fixture
def trained(tmp_path):
    """A small network, a file of its weights, and one of its weights with attention."""
    plain = timm.create_model("test_resnet", num_classes=7)
    augmented = augment(plain, **ATTENTION)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.save(augmented.state_dict(), tmp_path / "augmented.pt")
    return plain, augmented, tmp_path


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_plain_weights_go_into_the_convolutions_before_attention_does(trained):
    plain, _, folder = trained
    model = create_model(
        "test_resnet", num_classes=7, checkpoint=folder / "plain.pt", augment=ATTENTION
    )
    conv = model.layer2[0].conv2.conv
    assert torch.equal(conv.weight, plain.layer2[0].conv2.weight[: conv.out_channels])
    assert torch.equal(model.conv1[0].weight, plain.conv1[0].weight)
    assert torch.equal(model.fc.weight, plain.fc.weight)


def test_weights_with_attention_go_in_after_it(trained):
    _, augmented, folder = trained
    model = create_model(
        "test_resnet", num_classes=7, checkpoint=folder / "augmented.pt", augment=ATTENTION
    )
    assert same_weights(model, augmented)


def test_without_attention_the_checkpoint_is_the_whole_network(trained):
    plain, _, folder = trained
    model = create_model("test_resnet", num_classes=7, checkpoint=folder / "plain.pt")
    assert same_weights(model, plain)
    with pytest.raises(ValueError, match="holds another model"):
        create_model("test_resnet", num_classes=7, checkpoint=folder / "augmented.pt")


def test_weights_that_fit_neither_way_are_compared_with_the_plain_network(trained):
    file = trained[2] / "plain.pt"
    message = r"fits test_resnet neither without .* without it 2 tensors differ: fc.weight is 7x"
    with pytest.raises(ValueError, match=message):
        create_model("test_resnet", num_classes=5, checkpoint=file, augment=ATTENTION)


@pytest.mark.parametrize(("file", "arguments"), [("plain.pt", None), ("augmented.pt", ATTENTION)])
def test_weights_for_other_classes_go_in_without_their_classifier(file, arguments, trained):
    plain, augmented, folder = trained
    words = {"checkpoint": folder / file, "own_classifier": True, "augment": arguments}
    ours = create_model("test_resnet", num_classes=5, **words).state_dict()
    theirs = (plain if arguments is None else augmented).state_dict()
    assert ours["fc.weight"].shape[0] == 5
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs if not n.startswith("fc."))


def test_other_differences_than_the_classifiers_are_refused(trained):
    file = trained[2] / "plain.pt"
    with pytest.raises(ValueError, match="holds another model"):
        create_model("resnet10t", num_classes=5, checkpoint=file, own_classifier=True)


def test_arguments_of_a_run_are_those_of_augment():
    config = AugmentConfig(conv=("all",), num_heads=4, lr_scale=3.0, freeze=True)
    found = augment_arguments(config, (3, 8, 8))
    assert {name: found[name] for name in ("pool", "conv", "num_heads", "input_size")} == {
        "pool": None,
        "conv": ["all"],
        "num_heads": 4,
        "input_size": (3, 8, 8),
    }
    assert set(found) == set(inspect.signature(augment).parameters) - {"model", "inplace"}
    assert augment_arguments(AugmentConfig(pool="attention"), 8)["conv"] is None
    assert augment_arguments(AugmentConfig(num_heads=4), 8) is None
    assert augment_arguments(AugmentConfig(), 8) is None


class Counting(nn.Module):
    """A network whose depth comes out of a computation, as some of timm's."""

    def __init__(self, num_classes=1000):
        super().__init__()
        depth = int(torch.ones(2).sum())
        self.body = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


@timm.models.register_model
def computes_while_it_is_made(pretrained=False, **arguments):
    return Counting(num_classes=arguments.get("num_classes", 1000))


def test_plan_of_a_network_that_computes_while_it_is_made():
    found = plan_model("computes_while_it_is_made", {"pool": "attention", "conv": None})
    assert found.pool.name == "pool"
    assert len(found.convs) == 2
