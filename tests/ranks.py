"""Several processes of one work, as srun starts them: forked from this one, no launcher's eyes."""

from __future__ import annotations

import os
import socket
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def action(rank: int) -> int:
        from convattn import heartbeat

        heartbeat._SECONDS_OF_SILENCE = SILENCE
        os.environ.update(
            SLURM_PROCID=str(rank),
            SLURM_STEP_NUM_TASKS=str(count),
            SLURM_NODELIST="127.0.0.1",
            MASTER_PORT=str(port),
        )
        before(rank)
        return main([str(word) for word in words])

    places = [folder / f"rank{rank}" for rank in range(count)]
    children = [start(lambda rank=rank: action(rank), place) for rank, place in enumerate(places)]
    return [wait(*both, seconds=100) for both in zip(children, places, strict=True)]
