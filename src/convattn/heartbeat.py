"""Processes that see when one of them is gone: each counts up in the store where they met."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from convattn.exceptions import INTERRUPTED, Interrupted, NonFiniteError
from convattn.text import one_line, report

_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_TO_BEAT = 3.5  # a process that lives counts up at least twice in them
_SECONDS_OF_SILENCE = 20.0
_SECONDS_TO_END = 5.0  # of a process that may find out by itself that another is gone


def is_lost_process(error: BaseException) -> bool:
    """Whether gloo or NCCL says that the one at the other end is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    lost = "gloo" in str(error).lower() and any(word in str(error) for word in words)
    return isinstance(error, RuntimeError) and lost


class Heartbeat:
    """Has every process of several end, and tell why, soon after one of them is gone.

    Each counts up a number of its own in the store where they met, from a thread. Who loses a
    connection sees by the numbers whose it was; who waits for one that says nothing any more is
    ended by its thread.

    Args:
        advice: How to go on, in words, for a process that its thread ends.
    """

    def __init__(self, advice: Callable[[], str]) -> None:
        self.advice = advice
        self.told: str | None = None
        self._store: Any = None
        self._rank, self._count = 0, 1
        self._heard = 0.0
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, store: Any, rank: int, count: int) -> None:
        """Count up in a store of all processes, from a thread.

        Args:
            store: This thread's own connection to it.
            rank: Of this process.
            count: Number of processes.
        """
        self._store, self._rank, self._count = store, rank, count
        self._heard = time.monotonic()
        for target in (self._watch, self._guard):
            thread = threading.Thread(target=target, name="heartbeat", daemon=True)
            self._threads.append(thread)
            thread.start()

    def failed(self, error: BaseException) -> None:
        """Find out whose connection was lost, or tell the others why this process ends.

        Args:
            error: What ends it.
        """
        if self._store is None:
            return
        if is_lost_process(error):
            self.told = self.who()
        elif not isinstance(error, Interrupted | NonFiniteError):  # which all meet together
            words = one_line(error) or type(error).__name__
            self._tell(f"stopped, as process {self._rank} failed: {words}")
        self.end()

    def end(self) -> None:
        """Stop counting."""
        self._over.set()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        self._threads, self._store = [], None

    def _counts(self) -> list[int]:
        return [self._store.add(f"convattn/beat/{rank}", 0) for rank in range(self._count)]

    def said(self) -> str | None:
        """What one of the processes has told all."""
        found = self._store.check(["convattn/lost"])
        return self._store.get("convattn/lost").decode() if found else None

    def _tell(self, words: str) -> str:
        """Tell all, if nobody has before; what was told."""
        try:
            said: bytes = self._store.compare_set("convattn/lost", "", words)
        except RuntimeError:
            return self._lost([0])
        return said.decode()

    def _lost(self, ranks: list[int]) -> str:
        """Of process 0 there is nothing to be found out once its store is gone."""
        one = len(ranks) == 1
        named = f"process {ranks[0]}" if one else f"processes {', '.join(map(str, ranks))}"
        return f"lost {named}, which {'was' if one else 'were'} killed or ended"

    def who(self) -> str | None:
        """Whose connection was lost, in words; None if all live."""
        try:
            before, end = self._counts(), time.monotonic() + _SECONDS_TO_BEAT
            while self.said() is None and time.monotonic() < end:
                time.sleep(0.2)
            said = self.said()
            if said is not None:
                return said
            after = self._counts()
        except RuntimeError:
            return self._lost([0])
        silent = [rank for rank in range(self._count) if before[rank] == after[rank]]
        return self._tell(self._lost(silent)) if silent else None

    def _watch(self) -> None:
        counts, since = [-1] * self._count, [0.0] * self._count
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            try:
                self._store.add(f"convattn/beat/{self._rank}", 1)
                fresh, words = self._counts(), self.said()
            except RuntimeError:
                self._end_process(self._lost([0]))
                return
            self._heard = now = time.monotonic()
            since = [
                then if old == new else now
                for then, old, new in zip(since, counts, fresh, strict=True)
            ]
            counts = fresh
            silent = [rank for rank, then in enumerate(since) if now - then > _SECONDS_OF_SILENCE]
            if words is None and silent:
                words = self._tell(self._lost(silent))
            if words is not None:
                self._end_process(words)
                return

    def _guard(self) -> None:
        """End this process if the store answers no more, which ``_watch`` waits for in vain."""
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            if time.monotonic() - self._heard > _SECONDS_OF_SILENCE:
                self._end_process(self._lost([0]))
                return

    def _end_process(self, words: str) -> None:
        """End this process, unless it finds out by itself; it may hang where nothing else helps."""
        if self._over.wait(_SECONDS_TO_END):
            return
        report(f"process {self._rank} of {self._count} {words}; {self.advice()}", by_each=True)
        os._exit(INTERRUPTED)
