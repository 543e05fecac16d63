"""Attentive probing: a frozen network's maps cached once, every pool trained on them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from convattn.config import ProbeConfig

if TYPE_CHECKING:
    from convattn.probing.study import ProbedRun


def probe(images: str | os.PathLike[str], **options: Any) -> ProbedRun | None:
    """Train every pool on a frozen network's maps, and leave a run folder with the best.

    ``convattn probe`` in Python. The maps are computed once and cached; pools, learning rates and
    seeds are trained on them together.

    Args:
        images: A folder or table of images, see ``load_source``; or the name of a set that is
            generated.
        **options: Fields of ``convattn.config.ProbeConfig``, as ``model``, ``weights``, ``pools``,
            ``seeds``, ``out``; and of its data, as ``name``, ``format``, ``group``.

    Returns:
        The folder, its rows, and the sentence that says what they tell; None in all but the first
        of several processes that torchrun or srun has started.

    Raises:
        ValueError: If the data, the network or an option do not fit.
        FileNotFoundError: If there are no such files.
        FileExistsError: If ``out`` exists.
    """
    from convattn.probing.study import run_probe

    return run_probe(ProbeConfig.of_images(os.fspath(images), **options))
