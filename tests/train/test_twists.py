"""What training does to a network beside its steps: nothing that changes the function."""

import copy

import pytest
import timm
import torch
from torch import nn

from convattn.exceptions import LostProcess
from convattn.models.pyramid import FeatureLevels
from convattn.train.layer_sync import SyncBatchNorm
from convattn.train.task import TrainingTask, described_failure

OURS = sorted(
    name
    for name in timm.list_models("*_nano*")
    if timm.model_entrypoint(name).__module__.startswith("convattn.")
)


def wake(model):
    """Values for what begins at zero or one, or an error behind it would not show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.2, 1.0)
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 2.0)
    return model


def test_there_are_networks_to_try():
    assert len(OURS) >= 8


@pytest.mark.parametrize("name", OURS)
def test_shared_statistics_change_no_function(name):
    model = wake(timm.create_model(name, num_classes=5)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        names = list(model.state_dict())
        shared = SyncBatchNorm().apply(model)
        torch.testing.assert_close(shared(images), before)
        torch.testing.assert_close(SyncBatchNorm().revert(shared)(images), before)
    assert list(shared.state_dict()) == names
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in shared.modules())


def buffers_after_a_step(model, *, checkpointing):
    model = copy.deepcopy(model).train()
    model.set_grad_checkpointing(checkpointing)
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    out = model(images)
    sum(one.square().mean() for one in (out if isinstance(out, list) else [out])).backward()
    return dict(model.named_buffers()), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("patchconvnet_nano", depth=2),
        lambda: timm.create_model("aa_resnet_nano"),
        lambda: timm.create_model("aa_wide_resnet_nano"),
        lambda: timm.create_model("aa_mnasnet_nano", drop_path_rate=0.0),
        lambda: FeatureLevels(timm.create_model("test_resnet"), (4, 8)),
    ],
    ids=["patchconvnet", "aa_resnet", "aa_wide_resnet", "aa_mnasnet", "pyramid"],
)
def test_recomputing_counts_a_batch_once(make):
    torch.manual_seed(0)
    model = make()
    once, gradients = buffers_after_a_step(model, checkpointing=False)
    again, other = buffers_after_a_step(model, checkpointing=True)
    assert again.keys() == once.keys()
    for name in once:
        torch.testing.assert_close(again[name], once[name], msg=name)
    for name in gradients:
        if gradients[name] is not None:
            torch.testing.assert_close(other[name], gradients[name], rtol=1e-3, atol=1e-5)


def test_recomputing_can_be_turned_off_again():
    model = timm.create_model("patchconvnet_nano", depth=1)
    model.set_grad_checkpointing(True)
    model.set_grad_checkpointing(False)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_training_has_a_network_of_timm_count_a_batch_once():
    task = TrainingTask()
    task.model = timm.create_model("test_resnet", num_classes=5)
    task.model.set_grad_checkpointing(True)
    task.on_fit_start()
    task.model.train()(torch.randn(4, 3, 64, 64)).sum().backward()
    counts = [int(b) for name, b in task.named_buffers() if "num_batches" in name]
    assert set(counts) == {1}


def test_one_image_and_a_batch_norm_is_a_sentence():
    with pytest.raises(ValueError, match="a batch of one image"), described_failure():
        nn.BatchNorm1d(3).train()(torch.zeros(1, 3))


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3391",
        "[../gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:2: Connection reset by peer",
    ],
)
def test_a_lost_process_is_a_sentence(words):
    told = pytest.raises(LostProcess, match="process 0 of several lost another process, which")
    with told, described_failure():
        raise RuntimeError(words)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no such class")])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error), match=str(error)), described_failure():
        raise error
