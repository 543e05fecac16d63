"""The command line in processes forked from this one, which has imported everything."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from convattn.cli import COMMANDS, main
from tests.campaign.counting import REFUSED, RIGHT, Row

SECONDS = 300.0
"""What a command may take at most."""
_CASES_A_PROCESS = 100
_TRACEBACK = "Traceback (most recent call last)"
_LONGEST_SENTENCE = 1_500


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    """As its parent sees it: the number of a signal is negative; None: it took too long."""
    out: str
    errors: str
    folder: Path
    """Where it ran."""

    @property
    def outcome(self) -> str:
        """``RIGHT`` where it succeeded, ``REFUSED`` for a clean sentence, else what is wrong."""
        if self.status is None:
            return f"still running after {SECONDS:.0f} s"
        if _TRACEBACK in self.out + self.errors:
            return f"traceback, exit status {self.status}: {self._last}"
        if self.status == 0:
            return RIGHT
        if self.status == 2 and self._last.startswith("convattn: "):
            return REFUSED if len(self._last) < _LONGEST_SENTENCE else f"wordy: {self._last}"
        return f"exit status {self.status}: {self._last}"

    @property
    def _last(self) -> str:
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else "nothing on stderr"


def preload() -> None:
    """Import what commands import when they run, so that every child has it."""
    for name in (*(f"convattn.cli.{file}" for file in COMMANDS.values()), "convattn.train.run"):
        import_module(name)
    for name in ("classification.figures", "explanation", "export", "inference", "probing.study"):
        import_module(f"convattn.{name}")
    for name in ("matplotlib.pyplot", "tensorboard", "sklearn.metrics"):
        import_module(name)


def start(action: Callable[[], int], folder: Path) -> int:
    """Fork a process that runs an action in a folder; its words go to files there.

    Returns:
        Its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later Pythons warn of forks beside threads
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        _as_a_command()
        with _words_into(folder):
            status = _status_of(action)
    finally:
        os._exit(status)


def _as_a_command() -> None:
    """Leave behind what pytest has set."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _words_into(folder: Path) -> Any:
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, open(number, "w", closefd=False, errors="backslashreplace"))  # noqa: SIM115
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _status_of(action: Callable[[], int]) -> int:
    try:
        return action() or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def wait(child: int, folder: Path, *, seconds: float = SECONDS) -> Ended:
    """Wait for a process; one that takes too long is killed."""
    end = time.monotonic() + seconds
    status: int | None = None
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return _ended(status, folder)


def _ended(status: int | None, folder: Path) -> Ended:
    texts = [
        file.read_text(errors="replace") if file.exists() else ""
        for file in (folder / "stdout", folder / "stderr")
    ]
    return Ended(status, *texts, folder)


def call(
    words: Sequence[object],
    folder: Path,
    *,
    before: Callable[[], object] | None = None,
    seconds: float = SECONDS,
) -> Ended:
    """Run a command in a folder.

    Args:
        words: Of the command line.
        folder: Is made; the command's current folder.
        before: Is called in the process first.
        seconds: That it may take.
    """

    return wait(start_command(words, folder, before=before), folder, seconds=seconds)


def start_command(
    words: Sequence[object], folder: Path, *, before: Callable[[], object] | None = None
) -> int:
    """As ``call``, but for the waiting: the process's number."""

    def action() -> int:
        if before is not None:
            before()
        return main([str(word) for word in words])

    return start(action, folder)


@dataclass(frozen=True)
class Case:
    """A command, what it is run on, and how it is judged."""

    name: str
    words: Callable[[Path], Sequence[object]]
    """Makes what the command takes in a fresh folder, which becomes the current one."""
    judge: Callable[[Ended], str] = lambda ended: ended.outcome


def run_cases(cases: Iterable[Case], row: Row, folder: Path) -> None:
    """Run commands one after the other in few processes; a death counts for the one that died."""
    left = list(cases)
    while left:
        some = left[:_CASES_A_PROCESS]
        left = left[_run_some(some, row, folder) :]


def _run_some(cases: Sequence[Case], row: Row, folder: Path) -> int:
    """How many of the cases were counted."""
    shutil.rmtree(folder, ignore_errors=True)
    told = folder / "outcomes"
    child = start(lambda: _cases_in_turn(cases, folder, told), folder)
    count, last = 0, time.monotonic()
    while True:
        ended, _ = os.waitpid(child, os.WNOHANG)
        lines = told.read_text().split("\n")[:-1] if told.exists() else []
        for line in lines[count:]:
            row.add(*json.loads(line))
            last = time.monotonic()
        count = len(lines)
        late = time.monotonic() - last > SECONDS
        if late and not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if ended or late:
            break
        time.sleep(0.05)
    if count < len(cases):
        row.add(cases[count].name, f"took over {SECONDS:.0f} s" if late else "the process died")
        count += 1
    return count


def _cases_in_turn(cases: Sequence[Case], folder: Path, told: Path) -> int:
    with told.open("w") as file:
        for number, case in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            os.chdir(place)
            words = [str(word) for word in case.words(place)]
            with _words_into(place):
                status = _status_of(lambda words=words: main(words))
            outcome = case.judge(_ended(status, place))
            file.write(json.dumps([case.name, outcome]) + "\n")
            file.flush()
            os.chdir(folder)
            shutil.rmtree(place, ignore_errors=True)
    return 0


def wait_for(condition: Callable[[], bool], child: int, seconds: float = SECONDS) -> bool:
    """Wait until something is so; False if the process ends before, which is not reaped."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        if os.waitid(os.P_PID, child, options) is not None:
            return condition()
        time.sleep(0.002)
    return False
