"""A run's classifier as timm and the Hugging Face hub keep networks: in a folder, or there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import huggingface_hub
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from timm.models import save_for_hf

from convattn.files import replace_atomically
from convattn.runs.card import CARD, model_card
from convattn.runs.folder import Run
from convattn.text import one_line

_OURS = ("multi_label", "thresholds")  # fields of pretrained_cfg that timm has no word for

T = TypeVar("T")


def save_for_hub(run: Run, folder: Path, *, source: str | None = None) -> Path:
    """Write weights, ``config.json`` and model card into a new folder, as timm reads them.

    After ``import convattn``, ``timm.create_model("local-dir:FOLDER", pretrained=True)`` is the
    network. Nothing in the folder tells where the images were.

    Args:
        run: A finished one, of a classifier without attention added by ``augment``.
        folder: To make.
        source: What the card says that timm loads it from; None: this folder.

    Raises:
        FileExistsError: If the folder exists.
        FileNotFoundError: If the training has not ended.
        ValueError: If timm cannot build the network.
    """
    _check_timm_builds(run)
    model = run.load_model()
    cfg = dict(run.pretrained_cfg)
    more = {key: cfg[key] for key in _OURS if key in cfg}
    model.pretrained_cfg = {  # type: ignore[assignment]
        key: value
        for key, value in dict(model.pretrained_cfg).items()  # type: ignore[arg-type]
        if key not in _OURS
    }
    source = source or f"local-dir:{folder}"
    load = (
        f"import timm\n\nimport convattn\n\nmodel = timm.create_model({source!r}, pretrained=True)"
    )
    card = model_card(run, name=Path(source.split(":", 1)[1]).name, load=f"{load}.eval()")
    folder.mkdir(parents=True)
    save_for_hf(
        model,
        folder,
        model_config={"label_names": list(cfg.get("label_names") or ()), **more},
        model_args={
            "num_classes": cfg["num_classes"],
            "in_chans": cfg["input_size"][0],
            **run.config.model.model_args,
        },
        safe_serialization=True,
    )
    replace_atomically(folder / CARD, card.encode())
    return folder


def push(run: Run, repo: str, *, private: bool = False) -> str:
    """Upload what ``save_for_hub`` writes to a repository of the Hugging Face hub.

    The repository is made if there is none; a model card that is there stays.

    Args:
        run: As for ``save_for_hub``.
        repo: ``NAME`` or ``OWNER/NAME``.
        private: Whether a new repository is.

    Returns:
        The address.

    Raises:
        FileNotFoundError: If the training has not ended.
        ValueError: If timm cannot build the network, nobody is logged in, or the hub refuses.
    """
    validate_repo_id(repo)
    _check_timm_builds(run)
    if huggingface_hub.get_token() is None:
        raise ValueError(
            "nobody is logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN; "
            "--local DIR writes the same files without it"
        )
    api = huggingface_hub.HfApi(library_name="convattn")
    made = _asked(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
    with TemporaryDirectory() as parent:
        folder = save_for_hub(run, Path(parent, "network"), source=f"hf-hub:{made.repo_id}")
        kept = [CARD] if _asked(repo, lambda: api.file_exists(made.repo_id, CARD)) else []
        _asked(
            repo,
            lambda: api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                ignore_patterns=kept,
                commit_message="Add model",
            ),
        )
    return str(made)


def _check_timm_builds(run: Run) -> None:
    from convattn.detection import DETECTORS
    from convattn.segmentation import SEGMENTERS

    name, augment = run.config.model.name, run.config.augment
    if name in DETECTORS or name in SEGMENTERS:
        raise ValueError(
            f"{run.folder} is a {name}, which timm does not build; share its folder as it is: "
            "Run.open reads it"
        )
    if augment.pool is not None or augment.conv:
        raise ValueError(
            f"{run.folder} is a {name} with attention added by augment, which timm does not build; "
            "share its folder as it is: Run.open reads it"
        )


def _asked(repo: str, ask: Callable[[], T]) -> T:
    """What the hub answers; a ValueError where it refuses or cannot be reached."""
    try:
        return ask()
    except Exception as error:  # the client's, its HTTP library's and the system's
        raise ValueError(
            f"{repo} could not be written to the Hugging Face hub: {one_line(error)[:300]}"
        ) from error
