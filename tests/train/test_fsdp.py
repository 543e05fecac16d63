"""FSDP2 by every linear layer and convolution, in two processes, gives what none gives."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from convattn import augment
from convattn.config import TrainConfig
from convattn.train.fsdp import check_fsdp2, units

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


SCRIPT = """
import os, sys
from convattn.cli import main
from convattn.train import classification, run

real = classification.ClassificationTask.training_step

def training_step(self, *args):
    if self.global_step == int(os.environ.get("LAST_STEP", -1)):
        os._exit(9)
    return real(self, *args)

classification.ClassificationTask.training_step = training_step
run.draw_curves = classification.draw_attention = lambda *args, **kwargs: None
sys.exit(main(sys.argv[1:]))
"""
FLAGS = (
    "--data.num-train 48 --data.num-test 8 --data.image-size 32 --data.batch-size 16 "
    "--model.model-args depth 2 embed_dim 16 --epochs 2 "
    "--ema-decay None --clip-grad 1 --eval-every 2 --accelerator cpu --devices 2 "
    "--checkpoint-every 2 --grad-checkpointing"
)

WAYS = {
    "sgd": ("--optim.opt sgd --optim.lr 0.1", 1e-6),
    # AdamW divides by the size of gradients, of small ones as well: a hundredth of a step.
    "adamw": ("--optim.opt adamw --optim.lr 0.001", 2e-5),
    # A training in float32 ends 1.6e-3 away.
    "bf16": ("--optim.opt adamw --optim.lr 0.001 --precision bf16-mixed", 1e-4),
}
"""Name -> flags, and how far weights may end from those of DDP."""


@pytest.fixture
def command(tmp_path):
    """Trains by a strategy into a folder; LAST_STEP kills all processes there."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(out, strategy, way, **environment):
        words = [sys.executable, str(tmp_path / "script.py"), "train", "quickstart"]
        words += [*FLAGS.split(), *way.split(), "--strategy", strategy]
        words += ["--out", str(out), "--auto-resume"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=250)

    return run


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("way", WAYS)
def test_training_fully_sharded_ends_in_the_weights_of_ddp(way, command, tmp_path):
    plain, shared = tmp_path / "ddp", tmp_path / "fsdp2"
    flags, most = WAYS[way]
    found = command(plain, "ddp", flags)
    assert found.returncode == 0, found.stderr
    found = command(shared, "fsdp2", flags, LAST_STEP="3")
    assert (shared / "checkpoints" / "last.ckpt").is_file(), found.stderr
    kept = torch.load(shared / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] in (2, 3)
    found = command(shared, "fsdp2", flags)
    assert found.returncode == 0, found.stderr
    ours, theirs = (load_file(one / "model.safetensors") for one in (shared, plain))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=most)


def test_units_are_the_blocks():
    model = woken("patchconvnet")
    assert set(units(model)) == set(model.blocks)
    resnet = woken("pool")
    blocks = [
        block
        for name in ("layer1", "layer2", "layer3", "layer4")
        for block in getattr(resnet, name)
    ]
    assert set(blocks) <= set(units(resnet))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 0.9}, "ema_decay=0.9 does not go with strategy=fsdp2; leave it out"),
        ({"compile": True}, "compile=True does not go with strategy=fsdp2; leave it out"),
        ({"precision": "16-mixed"}, "precision=16-mixed does not go .* give 32-true or bf16-mixed"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    config = TrainConfig(strategy="fsdp2", precision="32-true")
    with pytest.raises(ValueError, match=message):
        check_fsdp2(replace(config, **changes))


def test_it_is_for_classifiers():
    with pytest.raises(ValueError, match=r"strategy=fsdp2 is for classifiers, and .* train it by"):
        TrainConfig(strategy="fsdp2").check_task("detection")
