"""Hinge programs by the augmented Lagrangian method and by Clarabel, at the same gap: do we need a method for kinks?

    cd benchmarks && python -m solvers.kinks --root DIR --cache DIR

The augmented Lagrangian method stays if Clarabel takes more than ten times as long.  Features are the binary spikes of problem G,
labels are digits modulo the number of classes.  Both get one thread.  Writes results/solvers/kinks.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, machine, run_all

from . import api
from .problems import Data, Task, default_tasks

TOL, SEED = 1e-6, 0
_PROGRAMS = {"ridge": (1e-2, 2), "group_l1": (1e-3, 3)}  # strength and classes; a group of one weight would be a linear program
_LIMIT = 600.0  # seconds


def compare(task: Task, penalty: str) -> dict[str, Any]:
    """Solve a program by both."""
    features, labels = task.load()
    strength, classes = _PROGRAMS[penalty]
    outputs = 1 if classes == 2 else classes
    problem = api.make_problem(features, labels % classes, loss="hinge", penalty=penalty, strength=strength, num_outputs=outputs)
    solved = {solver: _solve(problem, solver) for solver in ("augmented_lagrangian", "clarabel")}
    return {"n": task.rows, "P": task.columns, "C": outputs, "strength": strength, **solved}


def _solve(problem: api.Problem, solver: str) -> dict[str, Any]:
    clocks = time.perf_counter(), time.process_time()
    try:
        found = api.solve(problem, solver=solver, tol=TOL, time_limit=_LIMIT)
        result = {
            "relative_gap": found.certificate.relative_gap,
            "objective": found.certificate.primal,
            "outcome": found.outcome.name,
        }
    except api.ReconstructionError as error:
        result = {"relative_gap": None, "objective": None, "outcome": str(error)}
    return {"seconds": time.perf_counter() - clocks[0], "cpu": time.process_time() - clocks[1], **result}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m solvers.kinks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--cache", required=True, type=Path, help="a folder outside the repository for the features")
    parser.add_argument("--results", default=RESULTS / "solvers" / "kinks.json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = default_tasks(Data(options.root, options.cache, SEED))
    spikes = next(task for task in tasks if task.name.startswith("G-spikes-5k"))
    head = {"machine": machine("cvxpy", "clarabel"), "seed": SEED, "tol": TOL, "limit": _LIMIT}
    cases = {f"hinge/{penalty}": lambda penalty=penalty: compare(spikes, penalty) for penalty in _PROGRAMS}
    run_all(options.results, head, cases)


if __name__ == "__main__":
    main()
