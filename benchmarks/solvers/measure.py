"""One cell of the solver study: a peer runs in a process of its own, and every point of it is certified here."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import api
from .cell import GOAL, TARGETS
from .peers import PEERS
from .problems import Task

__all__ = ["Judge", "run_cell", "times_to"]

_SETUP = 300.0  # seconds for imports and compilation, which don't count
_SLACK = 1.02  # a solver that stops itself at the time limit is not killed for the last step
_ROUNDING = 1 + 1e-4  # a solver stops on the gap of its own point; ours, of the point it wrote, differs in the last digits


class Judge:
    """Certifies a peer's points of one program by one routine: Problem.certify, in float64.

    A lower bound holds for every point, so each gap is against the best bound of the peer's run so far.
    """

    def __init__(self, task: Task, penalty: str, strength: float) -> None:
        options = {"loss": task.loss, "penalty": penalty, "strength": strength, "num_outputs": task.outputs}
        self.problem = api.make_problem(*task.load(), **options)
        self.bound = -math.inf

    def __call__(self, path: Path, known: float) -> dict[str, float]:
        """Return gap, objective and lower bound of a point; ``known`` is a bound from a solver's own dual point."""
        with np.load(path) as point:
            weight, bias = torch.from_numpy(point["weight"]), torch.from_numpy(point["bias"])
        if not bool(torch.isfinite(weight).all() & torch.isfinite(bias).all()):
            return {"relative_gap": math.inf, "objective": math.inf, "dual": -math.inf}
        found = self.problem.certify(weight, bias, GOAL, max(known, self.bound))
        self.bound = max(self.bound, found.dual)
        return {"relative_gap": found.relative_gap, "objective": found.primal, "dual": found.dual}


def run_cell(task: Task, penalty: str, strength: float, peer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a peer, answer its questions, and end it when its time is over."""
    judge = Judge(task, penalty, strength)
    with tempfile.TemporaryDirectory() as folder:
        spec = {"peer": peer, "loss": task.loss, "penalty": penalty, "strength": strength, "outputs": task.outputs}
        spec |= {"stem": str(Path(task.stem).resolve()), "rows": task.rows, "columns": task.columns, "folder": folder}
        spec |= {"limit": options.limit, "threads": options.threads, "seed": options.seed, "memory_gib": options.memory}
        path, errors = Path(folder) / "spec.json", Path(folder) / "errors.txt"
        path.write_text(json.dumps(spec), encoding="utf-8")
        python = options.peer_python if PEERS[peer].elsewhere else sys.executable
        command = [python, "-m", f"{__package__}.cell", str(path)]
        with errors.open("wb") as sink:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": sink, "text": True}
            here = Path(__file__).resolve().parents[1]
            child = subprocess.Popen(command, cwd=here, env=_environment(options.threads), **pipes)
            try:
                result = _converse(child, judge, Path(folder), options.limit)
            finally:
                child.kill()
                child.wait()
        if result["reason"].startswith(("failed", "died")):
            text = errors.read_text(encoding="utf-8", errors="replace")
            result["errors"] = re.sub(r"(/[^\s\"':/]+)+/", "", text)[-1000:]  # no folders of this machine
    return {"zero_loss": judge.problem.zero_loss, **result}


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    # A kernel chosen for an old OpenBLAS would slow down the peers that bring a current one.
    rest = {key: value for key, value in os.environ.items() if key not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    return {**rest, **dict.fromkeys(names, str(threads))}


def _converse(child: subprocess.Popen[str], judge: Judge, folder: Path, limit: float) -> dict[str, Any]:
    """Read the peer's lines until it ends, dies or runs out of time."""
    lines: queue.Queue[str] = queue.Queue()
    stream, sink = child.stdout, child.stdin
    assert stream is not None
    assert sink is not None
    threading.Thread(target=lambda: [lines.put(line) for line in itertools.chain(stream, [""])], daemon=True).start()
    trajectory: list[dict[str, Any]] = []
    result: dict[str, Any] = {"reason": "died", "peak_mib": None, "versions": {}}
    end, working = time.perf_counter() + _SETUP, False
    while True:
        try:
            line = lines.get(timeout=max(end - time.perf_counter(), 0.0))
        except queue.Empty:
            result["reason"] = "killed at the time limit" if working else "killed during setup"
            break
        if not line:
            break
        said, answer = json.loads(line), {}
        result["peak_mib"] = said.get("peak_mib", result["peak_mib"])
        if said["event"] == "end":
            result["reason"] = said["reason"]
            break
        if said["event"] == "ready":
            result["versions"] = said["versions"]
        elif said["event"] == "begin":
            end, working = time.perf_counter() + _SLACK * limit + 5, True
        else:
            began = time.perf_counter()
            verdict = judge(folder / said["file"], said.get("known", -math.inf))
            end += time.perf_counter() - began
            kept = {key: said[key] for key in ("seconds", "cpu", "setting", "choice") if key in said}
            trajectory.append({**kept, **verdict})
            answer = {"gap": verdict["relative_gap"]}
        print(json.dumps(answer), file=sink, flush=True)
    times = times_to(trajectory, limit)
    return {"outcome": _outcome(times, result["reason"]), **result, **times, "trajectory": trajectory}


def _outcome(times: dict[str, Any], reason: str) -> str:
    if times["seconds_to"][f"{GOAL:g}"] is not None:
        return "reached"
    if reason.startswith(("failed", "died", "out of memory", "killed during")):
        return reason.split(":", maxsplit=1)[0]
    return "not reached"


def times_to(trajectory: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """Return wall-clock and CPU seconds of the fastest point within each gap, and the least that finer settings could have shown.

    The least interpolates the gap's logarithm in time between that point and the one before; ratios use it, in the peers' favour.
    """
    times: dict[str, dict[str, float | None]] = {"seconds_to": {}, "seconds_to_least": {}, "cpu_to": {}}
    for target in TARGETS:
        hits = [k for k, p in enumerate(trajectory) if p["relative_gap"] <= _ROUNDING * target and p["seconds"] <= _SLACK * limit]
        k = min(hits, key=lambda hit: trajectory[hit]["seconds"], default=None)
        name = f"{target:g}"
        times["seconds_to"][name] = None if k is None else trajectory[k]["seconds"]
        times["cpu_to"][name] = min((trajectory[hit]["cpu"] for hit in hits), default=None)
        times["seconds_to_least"][name] = (
            _interpolated(trajectory[k - 1], trajectory[k], target) if k else times["seconds_to"][name]
        )
    return times


def _interpolated(before: dict[str, Any], after: dict[str, Any], target: float) -> float:
    """Return the seconds at which the gap crosses the target, if the first point is earlier and above it; else the second's."""
    first, last = (math.log(max(point["relative_gap"], 1e-16)) for point in (before, after))
    began, ended = float(before["seconds"]), float(after["seconds"])
    if not math.isfinite(first) or first <= math.log(target) or began >= ended:
        return ended
    return began + min(1.0, (first - math.log(target)) / max(first - last, 1e-300)) * (ended - began)
