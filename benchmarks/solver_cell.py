"""What a process of the solver benchmark holds: one program as arrays, its clock, and the line to solvers.py."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["GOAL", "TARGETS", "Cell", "ladder"]

TARGETS = (1e-2, 1e-4, 1e-6)
GOAL = TARGETS[-1]


class Cell:
    """The program as arrays, and the line to solvers.py.

    Args:
        spec: what solvers.py wrote down.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.loss, self.penalty, self.strength = spec["loss"], spec["penalty"], float(spec["strength"])
        self.limit, self.threads, self.seed = float(spec["limit"]), int(spec["threads"]), int(spec["seed"])
        self.outputs, self.folder, self.sent = int(spec["outputs"]), Path(spec["folder"]), 0
        stored = np.load(spec["features"], mmap_mode="r")
        self.features = np.array(stored[: spec["rows"], : spec["columns"]], order="C")
        self.labels = np.load(spec["labels"])[: spec["rows"]]
        # What libraries print must not fall between the lines of json.
        self.line = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began, self.paused, self.baseline = time.perf_counter(), 0.0, 0.0

    def ready(self, packages: Sequence[str]) -> None:
        """All is imported, loaded and compiled: from here on memory counts."""
        with contextlib.suppress(OSError):  # Linux: starts the high-water mark anew; elsewhere what came before hides in it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.baseline = _peak_mib()
        self._ask({"event": "ready", "versions": {name: importlib.metadata.version(name) for name in packages}})

    def begin(self) -> None:
        """Starts the clock; a peer that solves from scratch again starts it again."""
        self._ask({"event": "begin"})
        self.began, self.paused = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.began - self.paused

    def report(self, weight: Any, bias: Any, *, setting: str = "", seconds: float | None = None, **more: Any) -> float:
        """Hands over a point, W (C, P) and b (C,), and waits for its relative gap."""
        now = self.seconds()
        stopped = time.perf_counter()
        self.sent += 1
        path = self.folder / f"{self.sent}.npz"
        np.savez(path, weight=np.asarray(weight, dtype=np.float64), bias=np.asarray(bias, dtype=np.float64))
        seconds = now if seconds is None else seconds
        point = {"event": "point", "file": path.name, "seconds": seconds, "setting": setting, "peak_mib": self.peak(), **more}
        gap = float(self._ask(point)["gap"])
        self.paused += time.perf_counter() - stopped
        return gap

    def peak(self) -> float:
        return max(_peak_mib() - self.baseline, 0.0)

    def end(self, reason: str) -> None:
        print(json.dumps({"event": "end", "reason": reason, "peak_mib": self.peak()}), file=self.line, flush=True)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(message), file=self.line, flush=True)
        answer: dict[str, Any] = json.loads(sys.stdin.readline())
        return answer

    def problem(self) -> Any:
        """The program as the package states it."""
        import torch

        from snn_recon_plugin.convex import Design, Problem

        return Problem(
            Design(torch.from_numpy(self.features)),
            torch.from_numpy(self.labels),
            loss=self.loss,
            penalty=self.penalty,
            strength=self.strength,
            num_outputs=self.outputs,
        )

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features in float64, Fortran order, without their means and constant columns; means of all; which columns are left.

        With a free bias this is the same program, better conditioned, and constant columns have no weight at the optimum.
        """
        mean = self.features.mean(0, dtype=np.float64)
        kept = np.flatnonzero(np.ptp(self.features, axis=0) > 0)
        return np.asfortranarray(self.features[:, kept] - mean[kept]), mean, kept

    def full(self, weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Weights (C, P) from those of the columns that were left."""
        whole = np.zeros((self.outputs, self.features.shape[1]))
        whole[:, kept] = weight
        return whole


def _peak_mib() -> float:
    """High-water mark of resident memory.  On Linux getrusage begins with that of the process which started this one: no use."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = [line.split()[1] for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024


def ladder(cell: Cell, name: str, tols: Sequence[float], solve: Callable[[float], tuple[Any, Any, dict[str, Any]]]) -> str:
    """Solves from scratch to one tolerance after another, until the gap is there or the tolerances end."""
    for tol in tols:
        cell.begin()
        weight, bias, more = solve(tol)
        if cell.report(weight, bias, setting=f"{name} {tol:g}", **more) <= GOAL:
            return "reached"
    return "the last tolerance was not enough"
