import json
import math

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convattn import augment
from convattn.classification.predictions import Predictions
from convattn.evaluate import (
    augment_arguments,
    create_model,
    evaluate,
    load_run,
    load_weights,
    nearest,
    plan_model,
    predict_batches,
    summarize,
    tensor_differences,
)

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
SMALL = {"embed_dim": 16, "depth": 1}


class Lookup(nn.Module):
    """Gives the logits that are handed in as the image."""

    def forward(self, images):
        return images.flatten(1)


def batches(logits, labels, size=4):
    return DataLoader(TensorDataset(logits[:, :, None, None], labels), batch_size=size)


def test_accuracy_and_loss_are_the_slow_loop():
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 7), torch.randint(0, 6, (30,))
    result = evaluate(Lookup(), batches(logits, labels), class_names=NAMES, device="cpu")
    top1, top5, loss = 0, 0, 0.0
    hits: dict[str, list[bool]] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(7), key=lambda index: -row[index])
        top1 += order[0] == label
        top5 += label in order[:5]
        loss -= row[label] - math.log(sum(map(math.exp, row)))
        hits.setdefault(NAMES[label], []).append(order[0] == label)
    assert result.num_images == 30
    assert result.top1 == pytest.approx(top1 / 30)
    assert result.top5 == pytest.approx(top5 / 30)
    assert result.loss == pytest.approx(loss / 30, rel=1e-5)
    assert result.per_class == pytest.approx({k: sum(v) / len(v) for k, v in hits.items()})
    assert result.peak_in_box is None


def test_top5_of_three_classes_is_all():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    result = evaluate(Lookup(), batches(logits, labels), class_names=NAMES[:3], device="cpu")
    assert result.top5 == 1


def test_model_is_left_in_its_mode():
    model = Lookup().train()
    evaluate(model, batches(torch.randn(4, 7), torch.arange(4)), class_names=NAMES, device="cpu")
    assert model.training


def test_model_is_left_in_its_mode_after_an_error():
    model = Lookup().train()
    with pytest.raises(ValueError, match="classes"):
        evaluate(model, batches(torch.randn(4, 7), torch.arange(4)), class_names=NAMES[:3])
    assert model.training


def test_other_number_of_classes_is_refused():
    loader = batches(torch.randn(4, 7), torch.arange(4))
    with pytest.raises(ValueError, match="has 7 classes and the data 3"):
        evaluate(Lookup(), loader, class_names=NAMES[:3], device="cpu")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no image"):
        evaluate(Lookup(), [], class_names=NAMES, device="cpu")


def test_boxes_give_the_share_of_peaks_inside():
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    images = torch.randn(10, 3, 32, 32)
    loader = DataLoader(TensorDataset(images, torch.zeros(10, dtype=torch.long)), batch_size=4)
    whole = torch.tensor([[0, 0, 32, 32]]).repeat(10, 1)
    nothing = torch.tensor([[1, 1, 2, 2]]).repeat(10, 1)
    boxes = torch.cat([whole[:7], nothing[:3]])
    result = evaluate(model, loader, class_names=NAMES, boxes=boxes, device="cpu")
    assert result.peak_in_box == pytest.approx(0.7)
    assert 0.7 <= result.energy_in_box < 0.71


def test_table_tells_the_shares():
    logits = F.one_hot(torch.arange(7), 7).float() * 5
    result = evaluate(Lookup(), batches(logits, torch.arange(7)), class_names=NAMES, device="cpu")
    assert "100.00%" in result.table().splitlines()[1]
    assert json.loads(result.to_json())["top1"] == 1


def test_real_accuracy_leaves_out_images_without_classes():
    predictions = Predictions(
        labels=torch.tensor([0, 1, 2, 3]),
        classes=torch.tensor([[5, 0], [1, 0], [4, 0], [3, 0]]),
        losses=torch.zeros(4),
    )
    real = [(5, 6), (), (2, 3), (3,)]
    result = summarize(predictions, class_names=NAMES, real=real, images_per_second=1)
    assert (result.top1, result.real_top1, result.num_real) == (2 / 4, 2 / 3, 3)
    assert ("ImageNet-ReaL top-1, 3 images", "66.67%") in result.rows()


def test_classes_without_images_are_told():
    labels = torch.tensor([0, 1, 1])
    logits = F.one_hot(labels, 7).float()
    result = evaluate(Lookup(), batches(logits, labels), class_names=NAMES, device="cpu")
    assert ("classes with images", "2 of 7") in result.rows()


def test_predictions_come_a_batch_at_a_time():
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 7), torch.randint(0, 7, (10,))
    loader = batches(logits, labels)
    parts = list(predict_batches(Lookup(), loader, num_classes=7, device="cpu"))
    assert [len(part) for part in parts] == [4, 4, 2]
    found = Predictions.cat(parts)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.classes, logits.argsort(dim=1, descending=True)[:, :5])
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(found.losses, expected.double())


def test_no_gradient_mode_leaks_between_batches():
    loader = batches(torch.randn(8, 7), torch.arange(8) % 7)
    for _ in predict_batches(Lookup(), loader, num_classes=7, device="cpu"):
        assert not torch.is_inference_mode_enabled()


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
    loaded, config = load_run(write_run(tmp_path / "run", model, epochs=3))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert config["epochs"] == 3
    assert loaded.pretrained_cfg["label_names"] == list(NAMES)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_run(tmp_path)


def test_unfinished_run_says_how_to_go_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="convattn train --resume"):
        load_run(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    folder = write_run(tmp_path / "run", model)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_run(folder)


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
    config = {"pool": None, "conv": ("all",), "num_heads": 4, "lr_scale": 3.0, "freeze": True}
    assert augment_arguments(config, (3, 8, 8)) == {
        "pool": None,
        "conv": ["all"],
        "num_heads": 4,
        "input_size": (3, 8, 8),
    }
    assert augment_arguments({"pool": "attention", "conv": ()}, 8)["conv"] is None
    assert augment_arguments({"pool": None, "conv": (), "num_heads": 4}, 8) is None
    assert augment_arguments({}, 8) is None


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
