"""Released files: fetched once, known by their hash ever after."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch.hub
from huggingface_hub import constants, get_session, try_to_load_from_cache

from convattn.files import record_hash, written_whole
from convattn.text import one_line
from convattn.weights.reading import read_weights
from convattn.weights.releases import RELEASES

_PATIENCE = 4.0  # seconds
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def cached_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where a released file lies on this machine, or would lie.

    Args:
        cache_dir: The folder; None takes PyTorch's, which ``TORCH_HOME`` moves.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints") if cache_dir is None else Path(cache_dir)
    return folder / url.rpartition("/")[2]


def fetch(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """A released file on this machine, downloaded if it is not there yet.

    Its SHA-256 is recorded beside it when it is first seen; ``read_weights`` compares it from then
    on.

    Args:
        cache_dir: As in :func:`cached_path`.

    Raises:
        FileNotFoundError: If it cannot be downloaded; tells where to put it by hand.
        ValueError: If what was downloaded holds no weights.
    """
    file = cached_path(url, cache_dir)
    if not file.exists():
        _download(url, file)
    record_hash(file)
    return file


def check_reachable(name: str) -> None:
    """Refuse at once what would be tried in vain for minutes: a download where nothing answers.

    Args:
        name: Of a network of timm's, whose released weights are going to be loaded.

    Raises:
        ConnectionError: If they are not on this machine, and the host that has them does not answer
            within four seconds.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or cfg.file or cfg.state_dict:
        return
    if any(cfg.url == release.url for release in RELEASES.values()):
        return  # ``fetch`` tells at once, and where to put the file
    if cfg.hf_hub_id:
        here = any(
            isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in _HUB_FILES
        )
        url = constants.ENDPOINT
    else:
        here, url = bool(cfg.url) and cached_path(cfg.url).is_file(), cfg.url
    if url and not here and not _answers(url):
        raise ConnectionError(
            f"they are not on this machine, and {urlsplit(url).hostname} does not answer"
        )


def _answers(url: str) -> bool:
    """Whether a host says anything; looking up its name has no limit of time of its own."""
    answered: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of whatever the session is made of
            answered.append(get_session().head(url, timeout=_PATIENCE))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answered)


def _download(url: str, file: Path) -> None:
    """Nothing takes the file's place before it has been read from end to end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            torch.hub.download_url_to_file(url, str(part))
            read_weights(part)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{file.name} is not on this machine and could not be downloaded from {url} "
            f"({one_line(error)}); get it by other means and put it at {file}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{url} did not send the weights ({one_line(error)}); try again, or get {file.name} by "
            f"other means and put it at {file}"
        ) from error
