"""Processes that read images for another."""

from __future__ import annotations

import multiprocessing
import os
from threading import Thread


def end_with_reader(number: int) -> None:
    """Have a loader's process end when the one that reads from it has; a ``worker_init_fn``.

    PyTorch's watchdog asks whether the process has another parent than at first. Where a fork
    server starts them (on Linux the default since Python 3.14) that server is their parent. It
    ends with the reader only when it has no child left, so that both would stay forever.

    Args:
        number: Of the process among the loader's.
    """
    reader = multiprocessing.parent_process()
    if reader is not None and reader.pid != os.getppid():
        Thread(target=_end_after, args=(reader,), daemon=True).start()


def _end_after(reader: multiprocessing.process.BaseProcess) -> None:
    reader.join()
    os._exit(1)
