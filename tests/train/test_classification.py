import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from convattn.train.classification import ClassificationTask, training_loss


def test_task_reloads_from_a_checkpoint_alone(finished):
    file = finished.folder / "checkpoints" / "last.ckpt"
    task = ClassificationTask.load_from_checkpoint(file, weights_only=True)
    saved = load_file(finished.folder / "model.safetensors")
    assert task.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(task.model.state_dict()[name], saved[name]) for name in saved)


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
