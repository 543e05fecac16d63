"""Files that are written whole or not at all, and the hashes that they are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
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


def sha256_of(file: Path) -> str:
    """A file's SHA-256, in hexadecimal digits.

    Args:
        file: The file.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_file(file: Path) -> Path:
    """Where the hash of a file is kept: beside it.

    Args:
        file: The file.
    """
    return file.with_name(f"{file.name}.sha256")


def record_hash(file: Path) -> None:
    """Keep the hash of a file that has none yet, as ``sha256sum --check`` reads it.

    Args:
        file: The file.
    """
    if not hash_file(file).exists():
        replace_atomically(hash_file(file), f"{sha256_of(file)}  {file.name}\n".encode())


def check_hash(file: Path) -> None:
    """Compare a file with the hash that is kept of it, if one is.

    Args:
        file: The file.

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
