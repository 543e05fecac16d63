"""Trained weights out of a file: nothing in it is run, and nothing damaged is taken."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from convattn.files import check_hash, reading
from convattn.text import one_line
from convattn.weights.digests import (
    ENTRIES_SHA256,
    TENSORS_SHA256,
    digest_of_entries,
    digest_of_tensors,
)
from convattn.weights.names import architecture_of, remap_keys

_HOLDERS = ("state_dict", "model")  # Lightning's and timm's; the PatchConvNets' authors'
# Of torch.compile, of parallel training, of Lightning's checkpoints.
_WRAPPERS = ("_orig_mod.", "module.", "model.")
_COMPILED = _WRAPPERS[0]
TRAINING_DATA = "TrainingData"
"""Where a checkpoint of ours keeps what the training knows of its images."""
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")  # in the words of PyTorch's error


def read_weights(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file's tensors, under our names where the authors of PatchConvNet have named them.

    Of a file of ``torch.save`` only tensors, numbers, words and collections of them are read, and
    ``argparse.Namespace``, which the released files hold beside the weights. A file that lies
    beside one of its name and ``.sha256`` must have that hash.

    Args:
        path: A run folder, a ``.safetensors`` file, or a file of ``torch.save`` that holds a state
            dict, alone or under ``state_dict`` or ``model``. It may be that of a network that was
            compiled, parallel or wrapped by Lightning: see ``unwrapped``.

    Returns:
        The file that ``path`` stands for, and its tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, was changed, holds no state dict, or asks for code.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; name a finished run folder, a .safetensors file or a state "
            "dict"
        )
    check_hash(file)
    if file.suffix == ".safetensors":
        tensors = _read_safetensors(file)
        # A run's own file has its network's names, whatever they begin with.
        is_own = "pretrained_cfg" in read_metadata(file)
        return file, remap_keys(tensors if is_own else unwrapped(tensors))
    return file, remap_keys(unwrapped(_state_dict(read_torch(file), file)))


def read_metadata(file: Path) -> dict[str, str]:
    """What a file tells beside its tensors; nothing if it is no ``.safetensors``.

    Raises:
        ValueError: If it is damaged.
    """
    if file.suffix != ".safetensors":
        return {}
    with _whole_safetensors(file), safetensors.safe_open(file, framework="pt") as content:
        return content.metadata() or {}


def read_pretrained_cfg(path: Path) -> dict[str, Any] | None:
    """What a run's weights want of an image, in timm's words; None where a file does not say.

    Args:
        path: As ``read_weights`` takes it; a checkpoint of a training that goes on says it, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        return None
    if file.suffix == ".safetensors":
        text = read_metadata(file).get("pretrained_cfg", "null")
        with reading(file, "restore it or train anew"):
            found = json.loads(text)
    elif file.suffix == ".ckpt":
        content = read_torch(file)
        training = content.get(TRAINING_DATA) if isinstance(content, Mapping) else None
        found = training.get("cfg") if isinstance(training, Mapping) else None
    else:
        return None
    return found if isinstance(found, dict) else None


def read_checkpoint(file: Path, advice: str) -> dict[str, Any]:
    """The state of a training, as ``write_checkpoint`` wrote it, on the CPU.

    Args:
        advice: What to do if it is not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or was changed; nothing in it is run.
    """
    content = read_torch(file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} is no checkpoint of a training; {advice}")
    if content.pop(ENTRIES_SHA256, None) != digest_of_entries(content):
        raise ValueError(
            f"{file} is not as the training wrote it: an entry is missing or was changed; {advice}"
        )
    return content


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _whole_safetensors(file):
        tensors = safetensors.torch.load_file(file)
    metadata = read_metadata(file)
    if metadata.get(TENSORS_SHA256) not in (None, digest_of_tensors(tensors, metadata)):
        raise ValueError(
            f"{file} is damaged: its bytes have changed since it was written ({TENSORS_SHA256} in "
            "its metadata tells); restore it or train anew"
        )
    return tensors


@contextmanager
def _whole_safetensors(file: Path) -> Iterator[None]:
    try:
        yield
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is damaged ({one_line(error)}); restore it or train anew"
        ) from None


def read_torch(file: Path) -> Any:
    """What a file of ``torch.save`` holds: plain tensors, numbers, words and collections of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, was changed, or asks for code.
    """
    try:
        _check_archive(file)
        # A pickle of a newer protocol is read or refused; a remark about it helps nobody.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore", category=UserWarning),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(file, str(error))) from None
    except (PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # whatever its bytes have led the readers to
        reason = str(error).partition("\n")[0] or "it ends too early"
        if isinstance(error, LookupError | TypeError | AttributeError):
            reason = "it is not what torch.save writes"
        raise ValueError(f"{file} is damaged ({reason}); get it anew") from None


def _check_archive(file: Path) -> None:
    """Notice what PyTorch passes over: a missing end, and bytes that have changed."""
    with file.open("rb") as content:
        is_archive = content.read(2) == b"PK"
    if is_archive:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if packed or sum(part.file_size for part in parts) > file.stat().st_size:
                raise zipfile.BadZipFile("its parts are compressed, which torch.save never does")
            changed = archive.testzip()
        if changed is not None:
            raise zipfile.BadZipFile(f"the bytes of its part {changed} have changed")


def _refusal(file: Path, complaint: str) -> str:
    foreign = _FOREIGN.search(complaint)
    if foreign is None:
        return f"{file} is no PyTorch file of plain tensors; name one made by torch.save"
    return (
        f"{file} is no PyTorch file of plain tensors: it asks for {foreign[1]}, which could run "
        "anything, so nothing of it was read; have its author save model.state_dict() alone"
    )


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{file} holds no state dict; save model.state_dict() with torch.save")
    return dict(content)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors under its own names, where what was saved was wrapped round it.

    ``_orig_mod.``, ``module.`` and ``model.``, in any order and number, are taken from names that
    all begin so; ``_orig_mod.`` also inside a name, where parts of the network were compiled.

    Args:
        tensors: A state dict.

    Examples:
        >>> list(unwrapped({"model._orig_mod.fc.weight": torch.ones(1)}))
        ['fc.weight']
    """
    names = list(tensors)
    bare = [_bare(name) for name in names]
    # Two tensors under one name: then it is no wrapper that the names tell of.
    if len(set(bare)) < len(bare):
        bare = names
    while bare and (wrapper := _common_wrapper(bare)) is not None:
        bare = [name.removeprefix(wrapper) for name in bare]
    return dict(zip(bare, tensors.values(), strict=True))


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if f"{part}." != _COMPILED)


def _common_wrapper(names: Sequence[str]) -> str | None:
    """What all the names begin with; None if that is no wrapper."""
    wrapper = names[0].partition(".")[0] + "."
    known = wrapper in _WRAPPERS and all(name.startswith(wrapper) for name in names)
    return wrapper if known else None


def tensor_differences(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, show: int = 3
) -> str:
    """In which names and shapes two state dicts differ, in words; empty when they agree.

    Args:
        theirs: Tensors of the file.
        ours: Tensors of the model.
        show: How many differences to spell out.
    """
    lines = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in theirs:
            lines.append(f"{name} {_shape(ours[name])} is missing in the file")
        elif name not in ours:
            lines.append(f"{name} {_shape(theirs[name])} is unknown to the model")
        elif theirs[name].shape != ours[name].shape:
            lines.append(
                f"{name} is {_shape(theirs[name])} in the file, {_shape(ours[name])} in the model"
            )
    if not lines:
        return ""
    rest = f", and {len(lines) - show} more" if len(lines) > show else ""
    return f"{len(lines)} tensors differ: " + ", ".join(lines[:show]) + rest


def mismatch_error(file: Path, weights: Mapping[str, Tensor], differences: str) -> ValueError:
    """The error for weights of another network, with the network that they are of if it is known.

    Args:
        differences: From those of the model.
    """
    name = architecture_of(weights)
    classifier = weights.get("head.fc.weight")
    known = "the model that it was saved from"
    if name is not None and classifier is not None:
        known = f"{name} with num_classes={len(classifier)}, whose tensors these are"
    return ValueError(
        f"{file} holds another model or another number of classes: {differences}; create {known}"
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
