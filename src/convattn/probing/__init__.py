"""Attentive probing: a frozen network's maps cached once, every pool trained on them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from convattn.config import DATA_FLAGS, DataConfig, ProbeConfig

if TYPE_CHECKING:
    from convattn.probing.study import ProbedRun


def probe(images: str | os.PathLike[str], **options: Any) -> ProbedRun:
    """Train every pool on a frozen network's maps, and leave a run folder with the best.

    ``convattn probe`` in Python. The maps are computed once and cached; pools, learning rates and
    seeds are trained on them together.

    Args:
        images: A folder or table of images, see ``load_source``; or the name of a set that is
            generated.
        **options: Fields of ``convattn.config.ProbeConfig``, as ``model``, ``weights``, ``pools``,
            ``seeds``, ``out``; and of its data, as ``name``, ``format``, ``group``.

    Returns:
        The folder, its rows, and the sentence that says what they tell.

    Raises:
        ValueError: If the data, the network or an option do not fit.
        FileNotFoundError: If there are no such files.
        FileExistsError: If ``out`` exists.
    """
    from convattn.probing.study import run_probe

    of_data = {name: options.pop(name) for name in DATA_FLAGS if name in options}
    data = DataConfig(**located(str(os.fspath(images)), of_data))
    try:
        config = ProbeConfig(data=data, **options)
    except TypeError as error:
        raise ValueError(f"probe refuses its options: {error}") from None
    return run_probe(config)


def located(images: str, of_data: dict[str, Any]) -> dict[str, Any]:
    """Fields of the data: their folder, or the name of a set that is generated.

    Args:
        images: What was given.
        of_data: Further fields.
    """
    name = of_data.get("name", "folder")
    if images == "cluttered_digits":
        return {**of_data, "name": images}
    return {**of_data, "name": name, "root": images}
