"""Several processes of one work, as srun starts them: forked from this one, no launcher's eyes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from convattn.cli import main
from tests.campaign.running import Ended, start, wait

SILENCE = 3.0
"""Seconds after which a silent process counts as gone, in place of twenty."""


def run_ranks(
    count: int,
    words: Sequence[object],
    folder: Path,
    *,
    before: Callable[[int], object] = lambda rank: None,
) -> list[Ended]:
    """Run a command in so many processes: how each ended.

    Args:
        count: Processes.
        words: Of the command line.
        folder: For their current folders and what they say.
        before: Called in each with its rank.
    """
    port = _free_port()

    def action(rank: int) -> int:
        from convattn import heartbeat

        heartbeat._SECONDS_OF_SILENCE = SILENCE
        os.environ.update(_launched(rank, count, port))
        before(rank)
        return main([str(word) for word in words])

    places = [folder / f"rank{rank}" for rank in range(count)]
    children = [start(lambda rank=rank: action(rank), place) for rank, place in enumerate(places)]
    return [wait(*both, seconds=100) for both in zip(children, places, strict=True)]


def run_fresh_ranks(
    count: int, words: Sequence[object], folder: Path, *, before: str = ""
) -> list[Ended]:
    """As ``run_ranks``, for what computes gradients, which a process forked behind some may not.

    Args:
        count: Processes.
        words: Of the command line.
        folder: For their current folders and what they say.
        before: Run in each, as source that knows its ``rank``.
    """
    port = _free_port()

    def action(rank: int, place: Path) -> int:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        source = (
            f"import sys; rank = {rank}\nfrom convattn import heartbeat\n"
            f"heartbeat._SECONDS_OF_SILENCE = {SILENCE}\n{before}\n"
            "from convattn.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        environment = {**os.environ, **_launched(rank, count, port), "PYTHONPATH": paths}
        command = [sys.executable, "-W", "ignore", "-c", source, *map(str, words)]
        os.execve(sys.executable, command, environment)

    places = [folder / f"rank{rank}" for rank in range(count)]
    children = [start(lambda both=both: action(*both), both[1]) for both in enumerate(places)]
    return [wait(*both, seconds=200) for both in zip(children, places, strict=True)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _launched(rank: int, count: int, port: int) -> dict[str, str]:
    """What srun tells a process."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
