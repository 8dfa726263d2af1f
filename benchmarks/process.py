"""Work in a process of its own, and the seconds and peak memory of a piece of work.

Memory is resident memory: the high-water mark that Linux keeps, started anew, minus what was resident before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

Report = Callable[[dict[str, Any]], object]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def in_process(work: Callable[..., None], *arguments: Any, threads: int, limit: float) -> tuple[list[dict[str, Any]], str]:
    """Run ``work(*arguments, report)`` in a new process.

    Args:
        work: a function of a module, whose last argument takes what it found so far.
        arguments: for it; they are pickled.
        threads: of the process.
        limit: seconds until it is killed, with its setup.

    Returns:
        What it reported, and why it ended early; empty if it did not.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, threads, work, arguments))
    with _environment(threads):
        process.start()
    sender.close()
    found: list[dict[str, Any]] = []
    reason, end = "died, mostly for lack of memory", time.perf_counter() + limit
    while True:
        if not receiver.poll(max(0.0, end - time.perf_counter())):
            reason = "killed at the time limit"
            break
        try:
            message = receiver.recv()
        except EOFError:
            break
        if isinstance(message, str):  # the last one
            reason = message
            break
        found.append(message)
    process.kill()
    process.join()
    return found, reason


def _run(sender: Any, threads: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch  # not above: the environment of some peers has none

    torch.set_num_threads(threads)
    reason = ""
    try:
        work(*arguments, sender.send)
    except MemoryError:
        reason = "out of memory"
    except Exception as error:  # whatever a peer raises is a result
        traceback.print_exc()
        reason = f"failed: {type(error).__name__}: {error}"[:300]
    sender.send(reason)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set the numbers of threads that libraries read when they are imported."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Meter:
    """Context in which seconds and peak memory are counted, but for what runs between ``pause`` and ``resume``."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.before = self.peak = 0
        self._began = (0.0, 0.0)

    @property
    def added(self) -> int:
        """Bytes at the peak, above those before."""
        return max(0, self.peak - self.before)

    @property
    def elapsed(self) -> float:
        """Seconds so far, while the clocks run."""
        return self.seconds + time.perf_counter() - self._began[0]

    def pause(self) -> None:
        """Stop clocks and memory."""
        wall, cpu = self._began
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        self.peak = max(self.peak, _resident("VmHWM"))

    def resume(self) -> None:
        """Go on with clocks and memory."""
        with contextlib.suppress(OSError):  # not on Linux: the mark includes all that the process did before
            _CLEAR.write_text("5", encoding="ascii")
        self._began = (time.perf_counter(), time.process_time())

    def begin(self) -> None:
        """Set the clocks to zero and go on; the first time memory counts from here."""
        if not self.before:
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):  # freed memory goes back to the system: it would hide new memory
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            self.before = _resident("VmRSS")
        self.seconds = self.cpu_seconds = 0.0
        self.resume()

    def __enter__(self) -> Meter:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pause()


def _resident(name: str) -> int:
    """Return bytes of this process's memory: VmRSS now, VmHWM at most since the mark was started anew."""
    if not _STATUS.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
