"""Tools that change or wrap a network's layers: adapters, int8 weights, trainers."""

import copy
import json
import re

import pytest
import torch
from torch import nn

from tests.interop.networks import NETWORKS, difference, images, woken

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_learns_and_merges(name):
    peft = pytest.importorskip("peft")
    model = woken(name)
    kinds = (nn.Linear, nn.Conv2d)
    targets = [
        re.escape(where)
        for where, module in model.named_modules()
        if isinstance(module, kinds) and getattr(module, "groups", 1) == 1
    ]
    config = peft.LoraConfig(r=2, target_modules="|".join(targets), init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted(images()).square().sum().backward()
    dead = [n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    assert not dead
    with torch.no_grad():
        before = adapted.eval()(images())
        after = adapted.merge_and_unload()(images())
    assert difference(after, before) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_torchaos_int8_weights_stay_close(name):
    quantization = pytest.importorskip("torchao.quantization")
    model = woken(name)
    changed = copy.deepcopy(model)
    quantization.quantize_(changed, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        assert 0 <= difference(changed(images()), model(images())) < 0.02


@pytest.mark.parametrize("name", NETWORKS)
def test_accelerate_trains_it(name):
    accelerate = pytest.importorskip("accelerate")
    model = woken(name)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1e-3))
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model.train()(images(4)), torch.arange(4))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_loads_a_saved_network(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    from timm.models import save_for_hf

    model = woken(name)
    save_for_hf(model, tmp_path, safe_serialization=True, model_config={"label_names": [*"abcde"]})
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # which transformers gives twice, plain or not
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images()).logits, model(images()))


def test_fastai_keeps_the_attention_pool():
    learner = pytest.importorskip("fastai.vision.learner")
    model, _ = learner.create_timm_model("patchconvnet_nano", 10, pretrained=False)
    model(images(4)).square().sum().backward()
    assert any("attn" in name for name, _ in model.named_parameters())
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
