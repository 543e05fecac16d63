import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from convattn.surgery import new_parameters
from convattn.train.classification import ClassificationTask, training_loss


def test_task_reloads_from_a_checkpoint_alone(finished):
    file = finished.folder / "checkpoints" / "last.ckpt"
    task = ClassificationTask.load_from_checkpoint(file, weights_only=True)
    saved = load_file(finished.folder / "model.safetensors")
    assert task.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(task.model.state_dict()[name], saved[name]) for name in saved)


@pytest.mark.parametrize("pool", ["attention", "class-attention"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_frozen_network_learns_with_its_attention_and_its_classifier(name, pool):
    augment = {"pool": pool, "input_size": 64}
    task = ClassificationTask(name, num_classes=10, augment=augment, freeze=True)
    new = new_parameters(task.model)
    learning = {n for n, p in task.model.named_parameters() if p.requires_grad}
    classifier = {id(p) for p in task.model.get_classifier().parameters()}
    assert new < learning
    assert {id(task.model.get_parameter(n)) for n in learning - new} <= classifier
    assert {id(task.model.get_parameter(n)) for n in learning} >= classifier


def test_hyperparameters_are_plain_and_forget_the_checkpoint(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(ClassificationTask("test_resnet", num_classes=10).model.state_dict(), file)
    augment = {"pool": "attention", "conv": ["layer1.*"], "input_size": (3, 64, 64)}
    task = ClassificationTask("test_resnet", num_classes=10, augment=augment, checkpoint=file)
    assert "checkpoint" not in task.hparams
    again = ClassificationTask(**json.loads(json.dumps(dict(task.hparams))))
    again.load_state_dict(task.state_dict())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = training_loss("cross_entropy", label_smoothing=smoothing, mixes=False)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_mixed_targets_are_not_smoothed_twice():
    logits, targets = torch.randn(5, 4), torch.rand(5, 4).softmax(1)
    loss = training_loss("cross_entropy", label_smoothing=0.1, mixes=True)
    torch.testing.assert_close(loss(logits, targets), F.cross_entropy(logits, targets))


def test_bce_asks_every_class():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = training_loss("bce", label_smoothing=0.0, mixes=False)
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float())
    torch.testing.assert_close(loss(logits, labels), expected)
