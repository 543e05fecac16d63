"""FSDP2 by every linear layer and convolution, in two processes, gives what none gives."""

import multiprocessing

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from convattn import augment

NETWORKS = {
    "patchconvnet": lambda: timm.create_model("patchconvnet_nano", depth=2, num_classes=5),
    "pool": lambda: augment(timm.create_model("test_resnet", num_classes=5), pool="attention"),
    "block": lambda: augment(timm.create_model("test_resnet", num_classes=5), pool="aggregation"),
    "convolutions": lambda: augment(
        timm.create_model("test_resnet", num_classes=5), conv="last-2-stages", input_size=64
    ),
}


def woken(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def images(rank):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank))


def sharded(rank, name, file, found):
    """Logits of this rank's images, and the mean gradients, whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = woken(name)
    for module in list(model.modules()):
        if type(module) in (nn.Linear, nn.Conv2d):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    logits = model(images(rank))
    logits.square().sum().backward()
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    torch.save((logits.detach(), gradients), found / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_sharded_by_layers_is_the_same(name, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=sharded, args=(rank, name, tmp_path / "store", tmp_path))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    model = woken(name)
    logits = [model(images(rank)) for rank in range(2)]
    (sum(out.square().sum() for out in logits) / 2).backward()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for rank in range(2):
        own, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(own, logits[rank].detach(), rtol=1e-4, atol=1e-5)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-4)
