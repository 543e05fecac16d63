"""Files that are written whole or not at all, folders that are shared with nobody, hashes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place to write a file to, which takes its name when all has gone well.

    Args:
        path: The file; one that is there is replaced.

    Yields:
        Another name in the same folder, with the same suffix.
    """
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        part.touch()
        readers = part.stat().st_mode
        part.unlink()
        yield part
        part.chmod(readers)  # safetensors' own writer lets nobody else read
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new one, never a part.

    Args:
        path: The file.
        content: What it shall hold.
    """
    with written_whole(path) as part:
        part.write_bytes(content)


def make_numbered_folder(folder: Path) -> Path:
    """Make a folder, or where it is taken the first of its name with a number, from 2 on.

    Args:
        folder: The folder to make; its parents are made as well.

    Returns:
        The folder that was made; none is ever shared with another process.
    """
    for number in itertools.count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            free.mkdir(parents=True)
            return free
    raise AssertionError("the numbers have no end")


def new_folder(wanted: str | None, usual: str) -> Path:
    """Make the folder that is asked for, or the first free one of the usual name.

    Args:
        wanted: Asked for; None leaves the choice.
        usual: The usual name.

    Raises:
        FileExistsError: If the folder that is asked for exists.
    """
    if wanted is None:
        return make_numbered_folder(Path(usual))
    folder = Path(wanted)
    folder.mkdir(parents=True)
    return folder


def new_run_folder(wanted: str | None, usual: str, resume: str) -> Path:
    """As ``new_folder``, for what can be gone on with.

    Args:
        wanted: Asked for; None leaves the choice.
        usual: The usual name.
        resume: The command that goes on with what a folder holds.

    Raises:
        FileExistsError: If the folder that is asked for exists.
    """
    try:
        return new_folder(wanted, usual)
    except FileExistsError:
        folder = Path(str(wanted))
        raise FileExistsError(
            f"{folder} exists and is never overwritten; give another --out, or go on with "
            f"`{resume} {folder}`"
        ) from None


def unfinished(folder: Path, *, config: str, end: str, what: str, command: str) -> Path:
    """The file that holds the configuration of what was stopped.

    Args:
        folder: Where it was stopped.
        config: Name of that file.
        end: Name of the file that is written last.
        what: Was stopped, for errors.
        command: That makes such folders.

    Raises:
        FileNotFoundError: If the folder is another's.
        ValueError: If it has ended.
    """
    file = folder / config
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is the folder of no {what}: {file} does not exist; name one that "
            f"`{command}` has made"
        )
    if (folder / end).exists():
        raise ValueError(f"{folder} has ended: nothing is left to resume; see {folder / end}")
    return file


def unused_name(name: str, used: set[str]) -> str:
    """The name, or the first numbered one that no file has yet, whatever the case.

    Args:
        name: Of a file, without its suffix.
        used: Names that are taken, in folded case; the new one is added.
    """
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    free = next(one for one in numbered if one.casefold() not in used)
    used.add(free.casefold())
    return free


def sha256_of(file: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_file(file: Path) -> Path:
    """Where the hash of a file is kept: beside it."""
    return file.with_name(f"{file.name}.sha256")


def record_hash(file: Path) -> None:
    """Keep the hash of a file that has none yet, as ``sha256sum --check`` reads it."""
    if not hash_file(file).exists():
        replace_atomically(hash_file(file), f"{sha256_of(file)}  {file.name}\n".encode())


def check_hash(file: Path) -> None:
    """Compare a file with the hash that is kept of it, if one is.

    Raises:
        ValueError: If they differ.
    """
    record = hash_file(file)
    if not record.is_file():
        return
    expected, found = record.read_text(errors="replace").split(maxsplit=1)[:1], sha256_of(file)
    if expected != [found]:
        raise ValueError(
            f"{file} is not the file that {record.name} was made for: its SHA-256 is {found}, "
            f"expected {' '.join(expected) or 'none'}; delete both files and get the weights anew"
        )
