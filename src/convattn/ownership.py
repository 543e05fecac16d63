"""One process at a time writes a folder or a file; what a dead one has left is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from convattn.files import process_lives, remove_parts

_SECONDS_TO_WRITE = 1.0  # what a file system without links leaves empty until then


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that writes something."""

    host: str
    """Name of its computer."""
    pid: int
    """Its number there."""
    start: str | None
    """When it began, in the kernel's words, which no later process of its number shares; None where
    the kernel tells nothing."""
    since: str
    """When it began to write, for people."""
    job: str | None = None
    """The job of SLURM or torchrun that it is of, whose first process is one at a time."""

    @classmethod
    def of_this_process(cls) -> Owner:
        """The process that asks."""
        pid = os.getpid()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        start, job = _start_of(pid), _job()
        return cls(host=socket.gethostname(), pid=pid, start=start, since=now, job=job)

    def has_died(self) -> bool:
        """Whether it is known to be gone; of another computer only what was of the same job is."""
        if self.host != socket.gethostname():
            return self.job is not None and self.job == _job()
        return not process_lives(self.pid) or _start_of(self.pid) != self.start


def lock_of(place: Path) -> Path:
    """The file that names the owner of a folder, in it, or of a file, beside it.

    Args:
        place: The folder, or the file, which need not exist yet.
    """
    return place / ".lock" if place.is_dir() else place.with_name(f"{place.name}.lock")


@contextlib.contextmanager
def owned(place: Path) -> Iterator[None]:
    """Keep other processes from writing a folder, or a file, inside the block.

    The lock is a file that is made whole or not at all, which network file systems do as well. One
    of a process of this computer that has died is taken over, and what such have left half-written
    in the folder is removed.

    Args:
        place: The folder, or the file, which need not exist yet.

    Raises:
        ValueError: If another process writes it, or might.
        OSError: If nothing can be written there.
    """
    lock = lock_of(place)
    own = (json.dumps(asdict(Owner.of_this_process())) + "\n").encode()
    while not _made(lock, own):
        _check_dead(lock, place)
    try:
        if place.is_dir():
            remove_parts(place)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if lock.read_bytes() == own:
                lock.unlink()


def _made(lock: Path, content: bytes) -> bool:
    """Whether the lock was free, and is ours now."""
    part = lock.with_name(f"{lock.name}-{threading.get_ident()}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        try:
            os.link(part, lock)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with lock.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        part.unlink(missing_ok=True)


def _check_dead(lock: Path, place: Path) -> None:
    """Remove the lock of a process that is gone.

    Raises:
        ValueError: If its owner lives, or might.
    """
    content = _read(lock)
    if content is None:
        return
    try:
        owner = Owner(**json.loads(content))
        dead = owner.has_died()
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(
            f"{place} may be being written by another process: {lock} does not tell by which; if "
            "there is none, remove that file"
        ) from None
    if dead:
        _remove(lock, content)
        return
    if owner.host == socket.gethostname():
        raise ValueError(
            f"{place} is being written by process {owner.pid} since {owner.since}; wait for it, or "
            "stop it first"
        )
    raise ValueError(
        f"{place} is being written by process {owner.pid} of {owner.host} since {owner.since}; "
        f"wait for it, or, if it is gone, remove {lock}"
    )


def _read(lock: Path) -> bytes | None:
    """What the lock holds, once it holds something; None if it is gone, nothing of what is no file.

    A link or a pipe of its name is nobody's lock, and reading it might never end.
    """
    deadline = time.monotonic() + _SECONDS_TO_WRITE
    while True:
        try:
            if not stat.S_ISREG(lock.lstat().st_mode):
                return b""
            content = lock.read_bytes()
        except FileNotFoundError:
            return None
        if content or time.monotonic() > deadline:
            return content
        time.sleep(0.05)


def _remove(lock: Path, content: bytes) -> None:
    """Remove a dead owner's lock, unless another process has been faster and has one of its own."""
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        _wait_for(file.fileno())
        if file.read() == content and os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
            lock.unlink()


def _wait_for(descriptor: int) -> None:
    """Have those who would remove the same file do so one after the other, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _job() -> str | None:
    """The job that this process is of, by a name that no other has; None: of none."""
    slurm, torchrun = (os.environ.get(name) for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"))
    if slurm is not None:
        return f"SLURM {slurm}"
    return None if torchrun in (None, "none") else f"torchrun {torchrun}"


def _start_of(pid: int) -> str | None:
    """When a process began, in ticks of the kernel; None where it is not told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]
