"""timm's own tests of models, run on our names.

    python benchmarks/timm_tests.py PATH [--models PATTERN]

``PATH`` is ``tests/test_models.py`` of a checkout of timm, of about the version that is installed.
Its tests take their models from ``timm.list_models``, which lists ours alone here. Left out are
tests of timm's models by name, and those that download weights. It ends with pytest's status.
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
    return int(pytest.main([*arguments, root, "-W", "ignore", "-k", wanted, str(options.path)]))


if __name__ == "__main__":
    sys.exit(main())
