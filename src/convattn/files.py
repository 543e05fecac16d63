"""Files that are written whole or not at all, folders that are shared with nobody, hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convattn.text import one_line

_PART = re.compile(r".\.(\d+)\.part(\.[^.]+)?$")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = re.compile(rf"No space left|os error ({_FULL[0]}|{_FULL[1]})\b")
_ROOM = 64 * 1024  # bytes; a disk with less is full, whatever the error of who wrote there


class UnwritableError(OSError):
    """A file could not be written; the message says which, and why."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place to write a file to, which takes its name when all has gone well.

    Args:
        path: The file; one that is there is replaced.

    Yields:
        Another name in the same folder, with the same suffix.

    Raises:
        UnwritableError: If the disk is full, or the folder is gone.
    """
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with writing(path):
            part.touch()
            readers = part.stat().st_mode
            part.unlink()
            yield part
            part.chmod(readers)  # safetensors' own writer lets nobody else read
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence that a file could not be written because of its disk or its folder.

    Args:
        path: The file that is written inside the block.

    Raises:
        UnwritableError: If the disk is full, or the folder is gone.
    """
    try:
        yield
    except UnwritableError:
        raise
    except Exception as error:
        if not path.parent.is_dir():
            raise UnwritableError(
                f"{path} could not be written: there is no folder {path.parent}; it was never "
                "made, or removed or moved meanwhile"
            ) from error
        if _is_full(error, path):
            raise UnwritableError(
                f"{path} could not be written: the disk is full, or its quota; free some room, or "
                "name a place elsewhere"
            ) from error
        raise


def _is_full(error: BaseException, path: Path) -> bool:
    """Whether a full disk has led to an error; writers in C++ and Rust tell it in their ways."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in _FULL or _FULL_WORDS.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < _ROOM


def process_lives(pid: int) -> bool:
    """Whether there is a process of that number on this computer; a zombie does not count.

    Args:
        pid: Its number.
    """
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_parts(folder: Path) -> None:
    """Remove what processes that are gone have left half-written in a folder and those in it.

    Args:
        folder: Which nobody but this process writes, and it has not begun to.
    """
    for file in folder.rglob("*.part*"):
        found = _PART.search(file.name)
        if found and file.is_file() and not file.is_symlink():
            pid = int(found[1])
            if pid == os.getpid() or not process_lives(pid):
                file.unlink(missing_ok=True)


def replace_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new one, never a part.

    Args:
        path: The file.
        content: What it shall hold.
    """
    with written_whole(path) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def reading(file: Path, advice: str) -> Iterator[None]:
    """Say in a sentence that a file is not what was written, whatever its bytes lead readers to.

    Args:
        file: The file that is read inside the block.
        advice: What to do about it.

    Raises:
        ValueError: If it is damaged, or a folder, a pipe or a device, which may have no end.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is damaged (it is no file); {advice}")
    try:
        yield
    except OSError:
        raise
    except RecursionError as error:
        raise ValueError(f"{file} is damaged (it is nested too deeply); {advice}") from error
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{file} is damaged ({kind}{one_line(error)[:200]}); {advice}") from error


def read_json(file: Path, advice: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        advice: What to do if it is another.

    Raises:
        ValueError: If it holds none, or no JSON.
    """
    with reading(file, advice):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, expected an object of fields")
        return found


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


def memory_size() -> int:
    """Bytes of memory that this computer has; a very large number where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


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
