"""``python -m convattn`` and the ``convattn`` command."""

from __future__ import annotations

import sys

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


def main() -> int:
    """Run the command line; a missing extra is one sentence with the command that mends it."""
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


if __name__ == "__main__":
    sys.exit(main())
