"""``python -m convattn`` and the ``convattn`` command."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata

_EXTRAS = {
    "cleanlab": "check",
    "cleanvision": "check",
    "cv2": "explain",  # pytorch-grad-cam's
    "faster_coco_eval": "detection",
    "gradio": "demo",
    "lightning": "train",
    "matplotlib": "explain",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "pyarrow": "train",
    "pytorch_grad_cam": "explain",
    "segmentation_models_pytorch": "segmentation",
    "sklearn": "train",
    "tensorboard": "train",
    "torchmetrics": "train",
    "litdata": "shards",
    "tyro": "train",
}
"""Module that may be missing -> the extra that brings it."""
_OF_DEVELOPERS = ("dev", "docs")


def find_too_old() -> list[str]:
    """A sentence for each package that is installed in a version older than convattn's bound."""
    from packaging.requirements import Requirement

    needing: dict[tuple[str, str], list[str]] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):  # convattn runs from a checkout
        for requirement in map(Requirement, metadata.requires("convattn") or ()):
            extra = re.search(r"extra == ['\"]([\w-]+)", str(requirement.marker))
            what = f"convattn[{extra[1]}]" if extra else "convattn"
            version = _version(requirement.name)
            if version is None or (extra and extra[1] in _OF_DEVELOPERS):
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                name = requirement.name
                key = (f"{name} {version}", f"{name}{requirement.specifier}")
                needing.setdefault(key, []).append(what)
    return [_sentence(*key, whats) for key, whats in needing.items()]


def _sentence(installed: str, wanted: str, whats: Sequence[str]) -> str:
    """Which package is too old, for what, and what mends it."""
    whats = list(dict.fromkeys(whats))
    *others, last = whats
    need = f"{', '.join(others)} and {last} need" if others else f"{last} needs"
    mended = wanted if others else last
    return (
        f"{installed} is installed, and {need} {wanted}; mend it with: "
        f"pip install --upgrade '{mended}'"
    )


@cache
def _version(name: str) -> str | None:
    """Extras name the same packages again and again, and each look reads files."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Run the command line; a missing or too old package is one sentence with what mends it."""
    too_old = find_too_old()
    for sentence in too_old:
        print(f"convattn: {sentence}", file=sys.stderr)
    try:
        from convattn.cli import main as run

        return run()
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in _EXTRAS:
            raise
        print(
            f"convattn: the command line needs {name}; install it with: "
            f"pip install 'convattn[{_EXTRAS[name]}]'",
            file=sys.stderr,
        )
        return 2
    except (ImportError, AttributeError, TypeError) as error:
        if not too_old or "--debug" in sys.argv:
            raise
        print(f"convattn: what is too old above may be why: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
