"""From a folder of images to a trained, tested and explained classifier."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from convattn.config import FinetuneConfig

if TYPE_CHECKING:
    from convattn.finetuning.folder import FinetunedRun


def finetune(images: str | os.PathLike[str], **options: Any) -> FinetunedRun:
    """Train a classifier on your images, test it once, and leave a run folder with its report.

    ``convattn finetune`` in Python.

    Args:
        images: A folder or table of images, see ``load_source``; or the name of a set that is
            generated.
        **options: Fields of ``convattn.config.FinetuneConfig``, as ``minutes``, ``seed``,
            ``folds``, ``out``; and of its data, as ``name``, ``format``, ``group``.

    Returns:
        The folder, and what was found on the test images.

    Raises:
        ValueError: If the data, the network or an option do not fit.
        FileNotFoundError: If there are no such files.
        FileExistsError: If ``out`` exists.
    """
    from convattn.finetuning.run import run_finetune

    return run_finetune(FinetuneConfig.of_images(os.fspath(images), **options))
