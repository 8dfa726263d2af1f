"""Seconds and peak memory of a piece of work, in a process that does nothing else.

On a CPU memory is resident memory: the high-water mark that Linux keeps, started anew, minus what was resident before.  On a GPU
it is what PyTorch's allocator handed out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import time
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Meter"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Context in which seconds and peak memory are counted, but for what runs between ``pause`` and ``resume``.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self.seconds = self.cpu_seconds = 0.0
        self.before = self.peak = 0
        self._began = (0.0, 0.0)

    @property
    def added(self) -> int:
        """Bytes at the peak, above those before."""
        return max(0, self.peak - self.before)

    def pause(self) -> None:
        """Stop clocks and memory."""
        if self._cuda:
            torch.cuda.synchronize()
        wall, cpu = self._began
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        self.peak = max(self.peak, torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM"))

    def resume(self) -> None:
        """Go on with clocks and memory."""
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # not on Linux: the mark includes all that the process did before
                _CLEAR.write_text("5", encoding="ascii")
        self._began = (time.perf_counter(), time.process_time())

    def __enter__(self) -> Meter:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # freed memory goes back to the system: it would hide new memory
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = torch.cuda.memory_allocated() if self._cuda else _resident("VmRSS")
        self.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pause()


def _resident(name: str) -> int:
    """Return bytes of this process's memory: VmRSS now, VmHWM at most since the mark was started anew."""
    if not _STATUS.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
