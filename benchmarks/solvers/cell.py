"""A process of the solver study: one peer on one program, with its clocks and its line to measure.py.

Run by measure.py: python -m solvers.cell SPEC.json, in either environment. The two exchange lines of json. The clocks stand still
while measure.py certifies a point; its reply is the point's gap, on which the peer stops.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["GOAL", "TARGETS", "Cell", "ladder"]

TARGETS = (1e-2, 1e-4, 1e-6)
GOAL = TARGETS[-1]


class Cell:
    """The program as arrays, the clocks, and the line to measure.py.

    Args:
        spec: written by measure.py.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.loss, self.penalty, self.strength = spec["loss"], spec["penalty"], float(spec["strength"])
        self.limit, self.threads, self.seed = float(spec["limit"]), int(spec["threads"]), int(spec["seed"])
        self.outputs, self.folder, self.sent = int(spec["outputs"]), Path(spec["folder"]), 0
        stored = np.load(f"{spec['stem']}-features.npy", mmap_mode="r")
        self.features = np.array(stored[: spec["rows"], : spec["columns"]], order="C")
        self.labels = np.load(f"{spec['stem']}-labels.npy")[: spec["rows"]]
        # Text that libraries print must not fall between the lines of json.
        self.line = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began, self.baseline = _clocks(), 0.0

    def ready(self, packages: Sequence[str]) -> None:
        """Report that all is imported, loaded and compiled; memory counts from here on."""
        with contextlib.suppress(OSError):  # Linux: starts the high-water mark anew; elsewhere the mark includes the setup
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.baseline = _peak_mib()
        self._ask({"event": "ready", "versions": {name: importlib.metadata.version(name) for name in packages}})

    def begin(self) -> None:
        """Start the clocks; a peer that solves from scratch again starts them again."""
        self._ask({"event": "begin"})
        self.began = _clocks()

    def spent(self) -> np.ndarray:
        """Wall-clock and CPU seconds since ``begin``, without those of certificates, (2,)."""
        return _clocks() - self.began

    def late(self) -> bool:
        return bool(self.spent()[0] > 0.98 * self.limit)

    def report(self, weight: Any, bias: Any, *, setting: str = "", **more: Any) -> float:
        """Hand over a point, W (C, P) and b (C,), and return its relative gap."""
        stopped = _clocks()
        seconds, cpu = stopped - self.began
        self.sent += 1
        path = self.folder / f"{self.sent}.npz"
        np.savez(path, weight=np.asarray(weight, dtype=np.float64), bias=np.asarray(bias, dtype=np.float64))
        point = {"event": "point", "file": path.name, "seconds": seconds, "cpu": cpu, "setting": setting, "peak_mib": self.peak()}
        gap = float(self._ask({**point, **more})["gap"])
        self.began += _clocks() - stopped
        return gap

    def peak(self) -> float:
        return max(_peak_mib() - self.baseline, 0.0)

    def end(self, reason: str) -> None:
        print(json.dumps({"event": "end", "reason": reason, "peak_mib": self.peak()}), file=self.line, flush=True)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(message), file=self.line, flush=True)
        answer: dict[str, Any] = json.loads(sys.stdin.readline())
        return answer

    def centred(self, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
        """Features without their means, (n, P), and the means (P,).

        With a free bias this is the same program, better conditioned: b = b' - W mean.
        """
        mean = self.features.mean(0, dtype=np.float64)
        return (self.features - mean).astype(dtype, copy=False), mean


def ladder(cell: Cell, settings: Sequence[Any], solve: Callable[[Any], tuple[Any, Any, dict[str, Any]]]) -> str:
    """Solve from scratch with one setting after another, until the gap is reached or the settings end."""
    for setting in settings:
        cell.begin()
        weight, bias, more = solve(setting)
        if cell.report(weight, bias, setting=str(setting), **more) <= GOAL:
            return "reached"
    return "the last setting was not enough"


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _peak_mib() -> float:
    """High-water mark of resident memory.  On Linux getrusage begins with that of the parent process: no use."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = [line.split()[1] for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024


def main() -> None:
    """Run the cell that the json file on the command line describes."""
    from benchmarks.solvers.peers import PEERS

    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if spec["memory_gib"]:
        size = int(spec["memory_gib"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    cell = Cell(spec)
    try:
        reason = PEERS[spec["peer"]].run(cell)
    except MemoryError:
        reason = "out of memory"
    except Exception as error:  # whatever a peer raises is a result
        traceback.print_exc()
        reason = f"failed: {type(error).__name__}: {error}"[:300]
    cell.end(reason)


if __name__ == "__main__":
    main()
