"""A run's network as timm and the Hugging Face hub keep networks: in a folder, or there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import huggingface_hub
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from timm.models import save_for_hf
from torch import nn

from convattn.files import replace_atomically
from convattn.runs.build import is_dense
from convattn.runs.card import CARD, model_card
from convattn.runs.folder import CONFIG, Run
from convattn.text import json_text, one_line

_OURS = (
    "multi_label",
    "thresholds",
    "reject_below",
)  # fields of pretrained_cfg that timm has no word for

T = TypeVar("T")


def save_for_hub(run: Run, folder: Path, *, repo: str | None = None) -> Path:
    """Write weights, ``config.json`` and model card into a new folder.

    ``load_code`` of the folder is then the network, to the bit. Nothing in the folder tells where
    the images were.

    Args:
        run: A finished one.
        folder: To make.
        repo: The repository of the hub that it is for; None: none.

    Raises:
        FileExistsError: If the folder exists.
        FileNotFoundError: If the training has not ended.
    """
    model, code = run.load_model(), load_code(run, folder, repo)
    card = model_card(run, name=Path(repo or folder).name, load=code)
    folder.mkdir(parents=True)
    if is_dense(run.config.model.name):
        _save_run(run, folder)
    else:
        _save_for_timm(run, model, folder)
    replace_atomically(folder / CARD, card.encode())
    return folder


def load_code(run: Run, folder: Path, repo: str | None = None) -> str:
    """Lines of Python that make ``model`` of what ``save_for_hub`` wrote.

    Args:
        run: What it wrote.
        folder: Where to.
        repo: Where it was pushed to; None: nowhere.
    """
    if not is_dense(run.config.model.name):
        source = f"local-dir:{folder}" if repo is None else f"hf-hub:{repo}"
        model = f"timm.create_model({source!r}, pretrained=True).eval()"
        return f"import timm\n\nimport convattn\n\nmodel = {model}"
    if repo is None:
        return f"import convattn\n\nmodel = convattn.Run.open({str(folder)!r}).load_model()"
    return (
        "import convattn\nfrom huggingface_hub import snapshot_download\n\n"
        f"model = convattn.Run.open(snapshot_download({repo!r})).load_model()"
    )


def _save_for_timm(run: Run, model: nn.Module, folder: Path) -> None:
    cfg = dict(run.pretrained_cfg)
    more = {key: cfg[key] for key in _OURS if key in cfg}
    model.pretrained_cfg = {  # type: ignore[assignment]
        key: value
        for key, value in dict(model.pretrained_cfg).items()  # type: ignore[arg-type]
        if key not in _OURS
    }
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
    # The top of the file has the classes; among the arguments, too, transformers gives them twice.
    file = folder / CONFIG
    config = json.loads(file.read_text())
    del config["model_args"]["num_classes"]
    replace_atomically(file, (json_text(config, indent=2) + "\n").encode())


def _save_run(run: Run, folder: Path) -> None:
    """The run itself, without the ways to its images, weights and results."""
    config = replace(
        run.config,
        data=replace(run.config.data, root=None),
        model=replace(run.config.model, checkpoint=None),
        out=None,
    )
    shutil.copyfile(run.weights, folder / run.weights.name)
    replace_atomically(folder / CONFIG, config.to_json().encode())


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
        ValueError: If nobody is logged in, or the hub refuses.
    """
    validate_repo_id(repo)
    if huggingface_hub.get_token() is None:
        raise ValueError(
            "nobody is logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN; "
            "--local DIR writes the same files without it"
        )
    api = huggingface_hub.HfApi(library_name="convattn")
    made = _asked(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
    with TemporaryDirectory() as parent:
        folder = save_for_hub(run, Path(parent, "network"), repo=made.repo_id)
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


def _asked(repo: str, ask: Callable[[], T]) -> T:
    """What the hub answers; a ValueError where it refuses or cannot be reached."""
    try:
        return ask()
    except Exception as error:  # the client's, its HTTP library's and the system's
        raise ValueError(
            f"{repo} could not be written to the Hugging Face hub: {one_line(error)[:300]}"
        ) from error
