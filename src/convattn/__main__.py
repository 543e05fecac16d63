"""``python -m convattn`` and the ``convattn`` command."""

from __future__ import annotations

import sys

_EXTRAS = ("lightning", "matplotlib", "pyarrow", "sklearn", "tensorboard", "torchmetrics", "tyro")


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
            "pip install 'convattn[train]'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
