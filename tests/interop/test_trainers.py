"""A script of one's own around transformers' Trainer."""

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.interop.networks import NETWORKS, images, woken

pytestmark = pytest.mark.interop


class WithLoss(nn.Module):
    """What the Trainer wants of a model: a loss beside the logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values, labels=None):
        logits = self.network(pixel_values)
        return (
            logits if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_trainer_trains_saves_and_predicts(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = WithLoss(woken(name))
    labels = torch.arange(8) % 5
    data = [{"pixel_values": x, "labels": y} for x, y in zip(images(8), labels, strict=True)]
    words = {"per_device_train_batch_size": 4, "num_train_epochs": 8, "learning_rate": 3e-3}
    words |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), seed=0, **words)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.save_model(str(tmp_path / "saved"))
    again = WithLoss(NETWORKS[name]())
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors"))
    predicted = trainer.predict(data).predictions
    with torch.no_grad():
        logits = again.eval()(images(8))
    torch.testing.assert_close(torch.from_numpy(predicted), logits, rtol=1e-4, atol=1e-5)
