"""Work that the processes share which torchrun or srun has started: they meet, and end together."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from convattn.exceptions import LostProcess
from convattn.heartbeat import Heartbeat, is_lost_process
from convattn.launching import local_rank, rank_and_count
from convattn.text import list_names, one_line, report

_SECONDS_TO_COME = 300.0
_SECONDS_TO_SAY_WHO = 30.0  # has not come, and as often again
_SECONDS_TO_LEAVE = 10.0
_SECONDS_TO_READ = 2.0  # of one that looks every second
_SECONDS_BETWEEN_LOOKS = 0.1
_HERE, _IN_VAIN = "convattn/here/", "convattn/in_vain"


class World:
    """The processes that share a work; without a launcher, this one alone.

    Whatever a process does here, all of them have to do, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        count: How many there are.
        advice: How to go on, in words, should one of them be gone.

    Examples:
        >>> alone = World()
        >>> alone.share(10, 4), alone.all_say("here")
        (range(0, 10), ['here'])
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.advice = "the same command again goes on"
        self._heartbeat = Heartbeat(lambda: self.advice)
        self._store: Any = None
        self._met = 0
        self._terminated = False
        self._handler: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is there once."""
        return self.rank == 0

    def share(self, total: int, batch_size: int) -> range:
        """This process's part of images: whole batches, so that none has others than alone.

        Args:
            total: Images.
            batch_size: Of a batch; the last may have fewer.
        """
        return share(self.rank, self.count, total, batch_size)

    def all_say(self, words: str) -> list[str]:
        """Wait for all processes: what each says, by rank.

        Args:
            words: What this one says.

        Raises:
            LostProcess: If one of them is gone.
        """
        if self._store is None:
            return [words]
        keys = [self._key(rank) for rank in range(self.count)]
        self._store.set(keys[self.rank], words)
        return self._heard_of(keys)

    def first_says(self, words: Callable[[], str]) -> str:
        """Wait for the first process: what it says.

        Args:
            words: Called in the first process alone.

        Raises:
            LostProcess: If one of them is gone.
        """
        if self._store is None:
            return words()
        key = self._key(0)
        if self.is_first:
            self._store.set(key, words())
        return self._heard_of([key])[0]

    def leave(self) -> None:
        """Wait for all; from now on this process works alone, and may end."""
        if self._store is None:
            return
        self.all_say("")
        self._heartbeat.end()
        left = self._store.add("convattn/left", 1)
        end = time.monotonic() + _SECONDS_TO_LEAVE
        while self.is_first and left < self.count and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # whose store it may be
            left = self._store.add("convattn/left", 0)
        self._end()

    def _key(self, rank: int) -> str:
        if rank == 0:
            self._met += 1
        return f"convattn/said/{self._met}/{rank}"

    def _heard_of(self, keys: list[str]) -> list[str]:
        while not self._store.check(keys):
            told = self._heartbeat.said()
            if told is not None:
                raise self._lost(told)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return [self._store.get(key).decode() for key in keys]

    def _lost(self, told: str) -> LostProcess:
        return LostProcess(f"process {self.rank} of {self.count} {told}; {self.advice}")

    def _begin(self) -> None:
        """Meet the others in a store."""
        local = local_rank()
        if torch.cuda.is_available() and local is not None:
            torch.cuda.set_device(local % torch.cuda.device_count())
        self._store = meet(self.rank, self.count, self.advice)
        self._heartbeat.begin(self._store.clone(), self.rank, self.count)
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """A launcher ends all once one has ended: find out which, and tell."""
        self._terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    def _fail(self, error: BaseException) -> BaseException:
        """Tell the others, or find out which of them is gone: the error to end with."""
        if isinstance(error, LostProcess):
            return error
        told = self._heartbeat.who() if self._terminated else None
        if told is None:
            self._heartbeat.failed(error)
            told = self._heartbeat.told
        if self.is_first and not self._terminated:
            time.sleep(_SECONDS_TO_READ)  # in which the others read it
        return error if told is None else self._lost(told)

    def _end(self) -> None:
        with suppress(RuntimeError):
            self._heartbeat.end()
        self._store = None
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None


def share(rank: int, count: int, total: int, batch_size: int) -> range:
    """The part of images that one of several processes takes: whole batches.

    Args:
        rank: Of the process.
        count: Number of processes.
        total: Images.
        batch_size: Of a batch; the last may have fewer.

    Examples:
        >>> share(0, 2, 10, 4), share(1, 2, 10, 4)
        (range(0, 4), range(4, 10))
    """
    batches = -(-total // batch_size)
    first, end = (batches * one // count * batch_size for one in (rank, rank + 1))
    return range(min(first, total), min(end, total))


@contextmanager
def shared_work() -> Iterator[World]:
    """The processes that share the work in the block; they have met, and leave it together.

    If one of them fails or is gone, all others end within 30 seconds with a sentence that names it.

    Raises:
        LostProcess: If another one is gone, or does not come within five minutes.
        ValueError: If the port where they meet is taken.
    """
    rank, count = rank_and_count()
    world = World(rank, count)
    if count == 1:
        yield world
        return
    world._begin()
    try:
        yield world
        world.leave()
    except BaseException as error:
        if world._store is None:
            raise
        found = world._fail(error)
        if found is error:
            raise
        raise found from None
    finally:
        world._end()


def meet(rank: int, count: int, advice: str) -> Any:
    """Wait for all processes of a job; who has not come is told, every half minute.

    Args:
        rank: Of this process.
        count: How many there are.
        advice: How to go on, in words, should one not come.

    Returns:
        The store that they share. Process 0 holds it: whoever opens another at the same address in
        that process gets the same.

    Raises:
        LostProcess: If one does not come within five minutes, or process 0 has gone meanwhile.
        ValueError: If the port where they meet is taken.
    """
    _set_address()
    waiting = _Waiting(rank, count, advice)
    try:
        store = _store(waiting)
        store.set(f"{_HERE}{rank}", "")
        while not store.check([f"{_HERE}{one}" for one in range(count)]):
            if store.check([_IN_VAIN]):
                raise waiting.lost(store.get(_IN_VAIN).decode())
            if rank == 0:
                _see_who_lacks(store, waiting)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise waiting.lost("lost process 0, which was killed or ended") from None
    return store


def _see_who_lacks(store: Any, waiting: _Waiting) -> None:
    """What process 0, which holds the store, does for all: tell who has not come, and give up."""
    if waiting.is_due:
        lacking = [one for one in range(waiting.count) if not store.check([f"{_HERE}{one}"])]
        told = waiting.in_vain(lacking)
        if lacking and told is not None:
            store.set(_IN_VAIN, told)
            time.sleep(_SECONDS_TO_READ)  # in which the others read it
            raise waiting.lost(told)


class _Waiting:
    """How long a process has waited for others to come."""

    def __init__(self, rank: int, count: int, advice: str) -> None:
        self.rank, self.count, self.advice = rank, count, advice
        self._began = time.monotonic()
        self._next = min(_SECONDS_TO_SAY_WHO, _SECONDS_TO_COME)

    @property
    def left(self) -> float:
        """Seconds until something is to be said."""
        return max(self._next - (time.monotonic() - self._began), 0.0)

    @property
    def is_due(self) -> bool:
        """Whether something is to be said."""
        return self.left == 0.0

    def in_vain(self, lacking: Sequence[int]) -> str | None:
        """Tell who has not come; the words to give up with, once it is time for that.

        Args:
            lacking: Numbers of those processes.
        """
        seconds = time.monotonic() - self._began
        self._next = min(seconds + _SECONDS_TO_SAY_WHO, _SECONDS_TO_COME)
        who = f"process{'' if len(lacking) == 1 else 'es'} {list_names([*map(str, lacking)], 8)}"
        if seconds >= _SECONDS_TO_COME:
            return f"has waited {_SECONDS_TO_COME:.0f} seconds for {who} in vain"
        if lacking:
            report(
                f"process {self.rank} of {self.count} has waited {seconds:.0f} seconds for {who}, "
                f"and gives up after {_SECONDS_TO_COME:.0f}",
                by_each=True,
            )
        return None

    def lost(self, told: str) -> LostProcess:
        """The error of a process that does not go on.

        Args:
            told: Why.
        """
        return LostProcess(f"process {self.rank} of {self.count} {told}; {self.advice}")


def _store(waiting: _Waiting) -> Any:
    """The store of the launcher, or that of process 0, as soon as it holds one."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        wait = timedelta(seconds=_SECONDS_TO_COME)
        store, _, _ = next(rendezvous("env://", waiting.rank, waiting.count, timeout=wait))
        return store
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        try:
            return torch.distributed.TCPStore(  # type: ignore[attr-defined]
                host,
                port,
                waiting.count,
                is_master=waiting.rank == 0,
                timeout=timedelta(seconds=max(waiting.left, 1.0)),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except torch.distributed.DistError as error:
            if waiting.rank == 0:
                raise ValueError(
                    f"the processes of this job are to meet at port {port} of {host}, which cannot "
                    f"be listened on ({one_line(error)}); set MASTER_PORT to one that is free"
                ) from None
            told = waiting.in_vain([0])
            if told is not None:
                raise waiting.lost(told) from None


def _set_address() -> None:
    """Where the processes of a job meet, unless it is told: on its first machine.

    By the same rule as Lightning's, by which trainings meet.
    """
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_NODELIST", "127.0.0.1")
        first = re.sub(r"\[(.*?)[,-].*\]", r"\1", nodes)
        os.environ["MASTER_ADDR"] = re.split("[ ,]", re.sub(r"\[(.*?)\]", r"\1", first))[0]
    if "MASTER_PORT" not in os.environ:
        job = os.environ.get("SLURM_JOB_ID", "")[-4:]
        os.environ["MASTER_PORT"] = str(15_000 + int(job or 0))
