"""Networks that do not fit: FSDP2, by Lightning's strategy for it, with checkpoints in one file."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from convattn.config import FSDP2, TrainConfig
from convattn.models.blocks import units
from convattn.train.task import TrainingTask


class FullySharded(ModelParallelStrategy):
    """Each process holds its part of every parameter, gradient and moment of the optimiser.

    Checkpoints are the files that any other strategy writes: whole tensors, gathered one by one in
    the first process's memory, so that a run goes on with any number of processes. Lightning's
    folders of parts are written by all processes at once, which a kill leaves half new, half old.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)

    def setup_environment(self) -> None:
        """All processes share the parameters."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, in the first process; all processes have to call it."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As ``lightning_module_state_dict``.

        Args:
            optimizer: Whose state it is.
        """
        return self._whole(optimizer.state_dict())

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def whole(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            full = value.full_tensor()
            return full.detach().cpu() if self.is_global_zero else None

        found: dict[str, Any] = tree_map(whole, state)
        return found

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, in the first process.

        Args:
            checkpoint: Its content, whole.
            filepath: The file.
            storage_options: Nothing.
        """
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, and take this process's part of its weights and moments.

        Args:
            checkpoint_path: The file.
            weights_only: It always is.
        """
        content: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        self.lightning_module.load_state_dict(
            {name: _part(value, own[name]) for name, value in content["state_dict"].items()}
        )
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            optimizer.load_state_dict(_parts(state, optimizer))
        return content


def _part(value: Any, like: Any) -> Any:
    """This process's part of a tensor, as another is parted."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _parts(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimiser with tensors as its parameters are parted."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = {
        number: {name: _part(value, parameters[number]) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return {**state, "state": moments}


class SharedBuffers(Callback):
    """Before a validation all processes take the statistics of the first, whose are saved."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send them."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)


def check_fsdp2(config: TrainConfig) -> None:
    """Refuse what does not go together with it.

    Raises:
        ValueError: If something does not.
    """
    if config.strategy != FSDP2:
        return
    refused = {
        "ema_decay": config.ema_decay is not None,
        "sync_batchnorm": config.sync_batchnorm,
        "compile": config.compile,
        "precision": config.precision not in ("32-true", "bf16-mixed"),
    }
    for name, is_refused in refused.items():
        if is_refused:
            usual = "32-true or bf16-mixed" if name == "precision" else "leave it out"
            raise ValueError(
                f"{name}={getattr(config, name)} does not go with strategy={FSDP2}; "
                f"{'give ' + usual if name == 'precision' else usual}, or train by ddp"
            )


def part_when_configured(task: TrainingTask) -> None:
    """Have the network of a task parted as soon as Lightning knows the processes.

    Only this task gets the hook: of others Lightning takes its being there for a network that is
    not made yet.

    Args:
        task: Not yet in training.
    """

    def configure_model(self: TrainingTask) -> None:
        if not any(isinstance(one, DTensor) for one in self.model.parameters()):
            mesh = self.device_mesh["data_parallel"]
            for one in self.model.parameters():  # FSDP2 takes no channels-last kernels
                one.data = one.data.contiguous()
            for unit in (*units(self.model), self.model):
                fully_shard(unit, mesh=mesh)

    task.__dict__["configure_model"] = types.MethodType(configure_model, task)
