"""timm's own tests of models, run on our names.

    python benchmarks/timm_tests.py PATH [--models PATTERN]

``PATH`` is ``tests/test_models.py`` of a checkout of timm, of about the version that is installed.
Its tests take their models from ``timm.list_models``, which lists ours alone here. Left out are
tests of timm's models by name, and those that download weights. What is known to fail, and why, is
in ``EXCEPTIONS``; one of these that passes is a failure, too. It ends with pytest's status.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from convattn.models import OUR_MODELS

LEFT_OUT = ("inference", "pretrained", "with_features_fx", "naflex", "gemma4")
"""Words in the names of tests that are about timm's own models, or download."""
_SCRIPT = "TorchScript is deprecated: torch.export and ONNX are what is supported"
_AA = ("patchconvnet_*", "aa_*")
EXCEPTIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("test_model_default_cfgs", ("patchconvnet_*",), "takes any size: its cfg has no pool_size"),
    (
        "test_model_forward_features",
        ("patchconvnet_*",),
        "all its maps are of one stride: one level",
    ),
    ("test_model_forward_fx_torchscript", _AA, _SCRIPT),
    (
        "test_model_forward_torchscript",
        (*_AA, "wide_resnet*"),
        _SCRIPT,
    ),
)
"""Test, patterns of models, and why it cannot pass."""


class Exceptions:
    """Marks what is expected to fail, for pytest."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Mark what ``EXCEPTIONS`` name."""
        for item in items:
            for test, patterns, why in EXCEPTIONS:
                name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
                if (
                    name
                    and item.originalname == test
                    and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
                ):
                    item.add_marker(pytest.mark.xfail(reason=why, strict=True))


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--models", default="*", help="pattern of names, as *_nano")
    options = parser.parse_args()
    names = fnmatch.filter(OUR_MODELS, options.models)

    def list_models(*_: Any, **filters: Any) -> list[str]:
        return [] if filters.get("pretrained") else list(names)

    timm.list_models = list_models
    arguments = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "--tb=line", "-rf"]
    wanted = " and ".join(f"not {word}" for word in LEFT_OUT)
    root = f"--rootdir={options.path.parent}"
    arguments += [root, "-W", "ignore", "-k", wanted, str(options.path)]
    return int(pytest.main(arguments, plugins=[Exceptions()]))


if __name__ == "__main__":
    sys.exit(main())
