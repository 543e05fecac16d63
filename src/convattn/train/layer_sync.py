"""Batch norms that share their statistics between processes."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import nn


class SyncBatchNorm(LayerSync):
    """Lightning's hook, with timm's conversion: PyTorch's loses the activations of fused norms."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The network with PyTorch's SyncBatchNorm in the place of every batch norm.

        Args:
            model: Altered in place.
        """
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """The network as it is: in evaluation these norms compute what others do.

        Args:
            model: Was converted.
        """
        return model
