import json
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, recall_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convattn.classification.evaluation import evaluate_classification, predict_batches, summarize
from convattn.classification.predictions import Predictions, join
from convattn.exceptions import NonFiniteError
from convattn.runs.build import create_model

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
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
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


def test_five_classes_have_no_top5():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 3, 4])
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES[:5], device="cpu"
    )
    assert result.top5 is None
    assert "top-5" not in result.table()


def test_balanced_accuracy_and_f1_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 7, generator=generator), torch.arange(60) % 11 % 5
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
    truth, taken = labels.numpy(), logits.argmax(1).numpy()
    recalls = recall_score(truth, taken, average=None, labels=range(5), zero_division=0)
    assert result.balanced_accuracy == pytest.approx(recalls.mean())
    assert result.macro_f1 == pytest.approx(f1_score(truth, taken, average="macro"))


def test_calibration_error_is_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(60, 7, generator=generator), torch.arange(60) % 7
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
    shares = logits.double().softmax(1).max(1)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i in range(60) if low < float(shares.values[i]) <= high]
        if inside:
            right = sum(int(shares.indices[i]) == int(labels[i]) for i in inside)
            mean = sum(float(shares.values[i]) for i in inside)
            expected += abs(right - mean) / 60
    assert result.ece == pytest.approx(expected, abs=1e-6)


def test_file_has_what_programs_read():
    logits, labels = torch.eye(7)[:4], torch.arange(4)
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
    found = json.loads(result.to_json())
    assert {"top1", "balanced_accuracy", "macro_f1", "ece", "num_images"} <= found.keys()
    assert (found["top1"], found["balanced_accuracy"], found["macro_f1"]) == (1, 1, 1)


def test_model_is_left_in_its_mode():
    model = Lookup().train()
    evaluate_classification(
        model, batches(torch.randn(4, 7), torch.arange(4)), class_names=NAMES, device="cpu"
    )
    assert model.training


def test_model_is_left_in_its_mode_after_an_error():
    model = Lookup().train()
    with pytest.raises(ValueError, match="classes"):
        evaluate_classification(
            model, batches(torch.randn(4, 7), torch.arange(4)), class_names=NAMES[:3]
        )
    assert model.training


def test_other_number_of_classes_is_refused():
    loader = batches(torch.randn(4, 7), torch.arange(4))
    with pytest.raises(ValueError, match="has 7 classes and the data 3"):
        evaluate_classification(Lookup(), loader, class_names=NAMES[:3], device="cpu")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no image"):
        evaluate_classification(Lookup(), [], class_names=NAMES, device="cpu")


def test_boxes_give_the_share_of_peaks_inside():
    model = create_model("patchconvnet_nano", num_classes=7, **SMALL)
    images = torch.randn(10, 3, 32, 32)
    loader = DataLoader(TensorDataset(images, torch.zeros(10, dtype=torch.long)), batch_size=4)
    whole = torch.tensor([[0, 0, 32, 32]]).repeat(10, 1)
    nothing = torch.tensor([[1, 1, 2, 2]]).repeat(10, 1)
    boxes = torch.cat([whole[:7], nothing[:3]])
    result = evaluate_classification(model, loader, class_names=NAMES, boxes=boxes, device="cpu")
    assert result.peak_in_box == pytest.approx(0.7)
    assert 0.7 <= result.energy_in_box < 0.71


def test_table_tells_the_shares():
    logits = F.one_hot(torch.arange(7), 7).float() * 5
    result = evaluate_classification(
        Lookup(), batches(logits, torch.arange(7)), class_names=NAMES, device="cpu"
    )
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
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
    assert ("classes with images", "2 of 7") in result.rows()


def test_predictions_come_a_batch_at_a_time():
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 7), torch.randint(0, 7, (10,))
    loader = batches(logits, labels)
    parts = list(predict_batches(Lookup(), loader, num_classes=7, device="cpu"))
    assert [len(part) for part in parts] == [4, 4, 2]
    found = join(parts)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.classes, logits.argsort(dim=1, descending=True)[:, :5])
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(found.losses, expected.double())


def test_no_gradient_mode_leaks_between_batches():
    loader = batches(torch.randn(8, 7), torch.arange(8) % 7)
    for _ in predict_batches(Lookup(), loader, num_classes=7, device="cpu"):
        assert not torch.is_inference_mode_enabled()


def test_several_classes_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 7, generator=generator)
    labels = (torch.rand(40, 7, generator=generator) < 0.4).float()
    labels[:, 2] = 0  # a class without images
    logits[:, 2] = -9
    result = evaluate_classification(
        Lookup(), batches(logits, labels), class_names=NAMES, device="cpu"
    )
    having = [0, 1, 3, 4, 5, 6]
    scores, truth = logits.sigmoid().numpy(), labels.numpy()
    for number in having:
        expected = average_precision_score(truth[:, number], scores[:, number])
        assert result.per_class[NAMES[number]] == pytest.approx(expected, abs=1e-6)
    expected = average_precision_score(truth[:, having], scores[:, having], average="macro")
    assert result.map == pytest.approx(expected, abs=1e-6)
    expected = f1_score(truth[:, having], scores[:, having] >= 0.5, average="macro")
    assert result.macro_f1 == pytest.approx(expected, abs=1e-6)
    expected = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert "mAP" in result.table()
    assert "6 of 7" in result.table()


@pytest.mark.parametrize("several", [False, True])
def test_logits_that_are_no_numbers_are_refused(several):
    def model(images):
        return torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [0.0, float("inf")]])

    labels = torch.zeros(3, 2) if several else torch.zeros(3, dtype=torch.int64)
    network = nn.Identity()
    network.forward = model
    with pytest.raises(NonFiniteError, match=r"not finite .* for 2 of 3 images"):
        evaluate_classification(network, [(torch.zeros(3, 3, 8, 8), labels)], class_names="ab")
