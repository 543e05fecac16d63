import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
)

from convattn.probing.scores import per_image, score, training_loss


def draw(several):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 4, generator=generator)
    if several:
        return logits, torch.rand(200, 4, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.7])
    return logits, torch.randint(0, 4, (200,), generator=generator)


def test_one_class_an_image_as_scikit_learn():
    logits, labels = draw(False)
    found = score(logits, labels)
    said = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(float((said == labels).double().mean()))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, said))
    expected = log_loss(labels, logits.double().softmax(1))
    assert found["cross_entropy"] == pytest.approx(expected, rel=1e-6)


def test_calibration_error_by_hand():
    logits, labels = draw(False)
    sure, said = logits.double().softmax(1).max(1)
    total = 0.0
    for place in range(15):
        inside = (sure > place / 15) & (sure <= (place + 1) / 15)
        if inside.any():
            right = (said == labels)[inside].double().mean()
            total += float(inside.double().mean() * (right - sure[inside].mean()).abs())
    assert score(logits, labels)["ece"] == pytest.approx(total, abs=1e-6)


def test_several_classes_an_image_as_scikit_learn():
    logits, labels = draw(True)
    found, said = score(logits, labels), logits > 0
    expected = average_precision_score(labels, logits, average="macro")
    assert found["map"] == pytest.approx(expected, rel=1e-5)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"), rel=1e-5)
    by_class = [balanced_accuracy_score(labels[:, k], said[:, k]) for k in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(sum(by_class) / 4, rel=1e-5)


def test_a_class_that_no_image_has_is_left_out_of_the_means():
    logits, labels = draw(True)
    labels[:, 0] = False
    expected = average_precision_score(labels[:, 1:], logits[:, 1:], average="macro")
    assert score(logits, labels)["map"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_accuracy_is_the_mean_over_images(several):
    logits, labels = draw(several)
    found = float(per_image(logits, labels).mean())
    assert found == pytest.approx(score(logits, labels)["accuracy"])


def test_the_loss_of_several_classes_is_binary():
    logits, labels = draw(True)
    shares = logits.sigmoid()
    expected = -torch.where(labels, shares.log(), (1 - shares).log()).mean()
    torch.testing.assert_close(training_loss(logits, labels), expected, rtol=1e-4, atol=1e-5)


def test_each_class_of_an_image_may_count_by_itself():
    logits, labels = draw(True)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    each = torch.nn.functional.binary_cross_entropy(
        logits.sigmoid(), labels.to(logits.dtype), reduction="none"
    )
    found = float(training_loss(logits, labels, weights.to(logits.dtype)))
    assert found == pytest.approx(float((weights * each).mean()), rel=1e-5)
