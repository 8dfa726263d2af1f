"""One peer on one program in a process of its own, every point of it certified by one routine while its clocks stand still."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.process import Meter, Report, in_process
from benchmarks.solvers.peers import PEERS, make_problem
from benchmarks.solvers.program import GOAL, TARGETS, Program

_SETUP = 300.0  # seconds for data, imports and compilation, which don't count
_SLACK = 1.02  # a solver that stops itself at the time limit is not killed for the last step
_ROUNDING = 1 + 1e-4  # a solver stops on the gap of its own point; ours, of the point it wrote, differs in the last digits
_WARM = (200, 20)  # rows and columns of a first run, in which modules are imported


@dataclass(frozen=True)
class Task:
    """A program without penalty and strength."""

    name: str  # of the problem
    loss: str
    outputs: int  # C
    rows: int  # n, from the first
    columns: int  # P, from the first
    source: Callable[[], tuple[Tensor, Tensor]]  # makes features and labels, of which there may be more
    about: str = ""  # one line for the table's caption
    penalties: tuple[str, ...] = ("ridge",)

    def load(self) -> tuple[Tensor, Tensor]:
        """Return features (n, P), float32 or uint8, and labels (n,)."""
        features, labels = self.source()
        return features[: self.rows, : self.columns].contiguous(), labels[: self.rows]


def solve_task(task: Task, penalty: str, strength: float, peer: str, **options: Any) -> dict[str, Any]:
    """Run a peer in a process of its own, with threads and limit as options.

    Return the loss at zero weights, the points in the order of time, and why the run ended early.
    """
    about = {"penalty": penalty, "strength": strength, "threads": 1, "limit": 300.0, **options}
    limit = _SETUP + 1.5 * about["limit"]
    found, reason = in_process(run_peer, task, about, peer, threads=about["threads"], limit=limit)
    head = found[0] if found else {}
    return {**head, "trajectory": found[1:], "reason": reason}


def run_peer(task: Task, about: dict[str, Any], peer: str, report: Report) -> None:
    """Solve, and report every point until one has the smallest gap or the time is over."""
    warnings.filterwarnings("ignore")
    features, labels = (part.numpy() for part in task.load())
    program = Program(features, labels, task.loss, outputs=task.outputs, **about)
    solve, (rows, columns) = PEERS[peer].run, _WARM
    assert solve is not None
    next(solve(replace(program, features=features[:rows, :columns].copy(), labels=labels[:rows]), Meter()))
    problem, meter = make_problem(program), Meter()
    bound, goal = -math.inf, _ROUNDING * GOAL
    report({"zero_loss": problem.zero_loss})
    run, gap = solve(program, meter), None
    while True:
        try:
            weight, bias, more = run.send(gap)
        except StopIteration:
            return
        meter.pause()
        point = (torch.as_tensor(part, dtype=torch.float64) for part in (weight, bias))
        found = problem.certify(*point, goal, max(bound, more.pop("known", -math.inf)))
        bound, gap = max(bound, found.dual), found.relative_gap
        clocks = {"seconds": meter.seconds, "cpu": meter.cpu_seconds, "added_bytes": meter.added}
        verdict = {"relative_gap": gap, "objective": found.primal, "dual": found.dual}
        report({**clocks, **verdict, **more})
        if gap <= goal or clocks["seconds"] > program.limit:
            return
        meter.resume()


def outcome_of(trajectory: list[dict[str, Any]], reason: str, limit: float) -> str:
    """Return "reached", "not reached", or why the process ended."""
    if times_to(trajectory, limit)["seconds_to"][f"{GOAL:g}"] is not None:
        return "reached"
    return reason.split(":", maxsplit=1)[0] or "not reached"


def times_to(trajectory: list[dict[str, Any]], limit: float) -> dict[str, dict[str, Any]]:
    """Return wall-clock and CPU seconds of the fastest point within each gap, and the least that finer settings could have shown.

    The least interpolates the gap's logarithm in time between that point and the one before; ratios use it, in the peers' favour.
    """
    times: dict[str, dict[str, Any]] = {"seconds_to": {}, "seconds_to_least": {}, "cpu_to": {}}
    for target in TARGETS:
        hits = [k for k, p in enumerate(trajectory) if p["relative_gap"] <= _ROUNDING * target and p["seconds"] <= _SLACK * limit]
        k = min(hits, key=lambda hit: trajectory[hit]["seconds"], default=None)
        name = f"{target:g}"
        times["seconds_to"][name] = None if k is None else trajectory[k]["seconds"]
        times["cpu_to"][name] = min((trajectory[hit]["cpu"] for hit in hits if "cpu" in trajectory[hit]), default=None)
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
