"""Memory: what a step needs at its peak, and what tensors are still held."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convattn.bench.steps import OUT_OF_MEMORY, Step, StepError, describe_error


def peak_memory(
    make: Callable[[], Step],
    *,
    device: torch.device | str = "cpu",
    passes: int = 1,
    count_making: bool = False,
) -> int:
    """Bytes that a step needs at its peak beyond what was there before.

    On the CPU it is measured in a process of its own, as ``multiprocessing`` starts them: a script
    that calls this needs ``if __name__ == "__main__":``.

    Args:
        make: Makes the step; can be pickled.
        device: Where the step computes.
        passes: How often the step is run.
        count_making: Whether what ``make`` leaves behind (weights, images) counts as well. On a
            GPU it always does.

    Raises:
        StepError: If the step cannot be made or run; "out of memory" also where the system ended
            the process for it.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _in_fresh_process(make, passes, count_making)
    try:
        step, peak = allocated_memory(make, device, warm_up=passes - 1)
        del step
        return peak
    except Exception as error:
        raise StepError(describe_error(error)) from error
    finally:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def allocated_memory(
    make: Callable[[], Step], device: torch.device, *, warm_up: int = 1
) -> tuple[Step, int]:
    """A step on a GPU, and what it allocates at most, with what making it left.

    Args:
        make: Makes the step.
        device: The GPU.
        warm_up: Passes before: the first alone chooses kernels, compiles and makes the momentum.
    """
    before = torch.cuda.memory_allocated(device)
    step = make()
    for _ in range(warm_up):
        step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return step, torch.cuda.max_memory_allocated(device) - before


def _in_fresh_process(make: Callable[[], Step], passes: int, count_making: bool) -> int:
    """What a process of its own answers, or how it died."""
    # A server that has imported everything starts a process in milliseconds instead of seconds;
    # elsewhere than on Linux, forks and system libraries do not go together.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["convattn.bench"])
    ours, theirs = context.Pipe(duplex=False)
    process = cast(Any, context).Process(
        target=_answer,
        args=(theirs, make, passes, count_making, torch.get_num_threads()),
        daemon=True,
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        # That is how the system ends who takes the last of its memory.
        if process.exitcode == -signal.SIGKILL:
            raise StepError(OUT_OF_MEMORY) from None
        raise StepError(
            f"the process that measures memory ended with status {process.exitcode}"
        ) from None
    finally:
        ours.close()
        process.kill()
        process.join()
    if isinstance(answer, int):
        return answer
    raise StepError(answer)


def _answer(
    pipe: Connection, make: Callable[[], Step], passes: int, count_making: bool, threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    torch.set_num_threads(threads)
    try:
        pipe.send(_resident_growth(make, passes, count_making))
    except Exception as error:
        pipe.send(describe_error(error))


def _resident_growth(make: Callable[[], Step], passes: int, count_making: bool) -> int:
    _release_free_memory()
    before, _ = _resident_memory()
    step = make()
    _release_free_memory()
    if not count_making:
        before, _ = _resident_memory()
    for _ in range(passes):
        step()
    _, peak = _resident_memory()
    return max(mmap.PAGESIZE, peak - before)


def _release_free_memory() -> None:
    """Memory that is free goes to the system, and the peak is forgotten, as far as Linux can.

    Weights are read or converted beside others, which is no part of a step. Other C libraries than
    glibc have no such call, and a sandbox may refuse to lower the peak: then it counts.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _resident_memory() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most; on Linux without those of libraries.

    Of a library more and more is read in as it is used, which is no cost of the network.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        held = {name: 1024 * int(kb) for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
        return held["RssAnon"], held["VmHWM"] - held["RssFile"] - held["RssShmem"]
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


class HeldTensors(TorchDispatchMode):
    """Counts what operations made and something still holds, by the storages of tensors.

    Args:
        tracks_most: Whether ``most`` is kept, which takes a look at all of it at every operation.
    """

    def __init__(self, *, tracks_most: bool = True) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._tracks_most = tracks_most
        self.most = 0
        """The most numbers that were ever held."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                kept = StorageWeakRef(storage)
                self._made[kept.cdata] = kept, storage.nbytes(), leaf.itemsize
        if self._tracks_most:
            self.most = max(self.most, self.held())
        return out

    def held(self) -> int:
        """Numbers."""
        return sum(
            nbytes // itemsize
            for kept, nbytes, itemsize in self._made.values()
            if not kept.expired()
        )

    def held_bytes(self) -> int:
        """Bytes."""
        return sum(nbytes for kept, nbytes, _ in self._made.values() if not kept.expired())
