"""Shares of a solve's CPU time on the default program: what bounds its seconds."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import run_all

from . import api
from .problems import Task, strengths_of

__all__ = ["PARTS", "measure_shares", "product_seconds"]

# Name of a part, with the ends of the file and the name of the function that does it.  No part contains another.
PARTS = {
    "centring": ("convex/features.py", "__init__"),
    "L-BFGS": ("solvers/newton.py", "_quasi_newton"),
    "preconditioner": ("solvers/preconditioner.py", "preconditioner"),
    "conjugate gradients": ("solvers/newton_step.py", "_conjugate_gradients"),
    "line search": ("solvers/line_search.py", "search"),
}


_ROUNDS = 20  # of a product; the fastest counts


def measure_shares(path: Path, head: dict[str, Any], tasks: list[Task]) -> None:
    """Profile one solve of each default program to the smallest gap, beside the time of its products alone."""
    cases = {
        f"{task.name}/{strength:g}": lambda task=task, strength=strength: _profile(task, strength)
        for task in tasks
        if "ridge" in task.penalties
        for strength in strengths_of("ridge")
    }
    run_all(path, head, cases)


def _profile(task: Task, strength: float) -> dict[str, Any]:
    features, labels = task.load()
    options = {"loss": task.loss, "penalty": "ridge", "strength": strength, "num_outputs": task.outputs}
    began = time.process_time()
    api.solve(api.make_problem(features, labels, **options))
    cpu = time.process_time() - began
    profile = cProfile.Profile(time.process_time)
    solution = profile.runcall(lambda: api.solve(api.make_problem(features, labels, **options)))
    entries = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = max(entry[3] for entry in entries.values())
    shares = {
        part: sum(entry[3] for (file, _, name), entry in entries.items() if file.endswith(end) and name == function) / whole
        for part, (end, function) in PARTS.items()
    }
    alone = solution.statistics.products * product_seconds(torch.from_numpy(features).float(), task.outputs)
    return {
        **{"n": task.rows, "P": task.columns, "C": task.outputs, "cpu": cpu, "products": solution.statistics.products},
        "products_alone": alone,
        **{"steps": solution.statistics.iterations, "relative_gap": solution.certificate.relative_gap, "shares": shares},
    }


def product_seconds(matrix: torch.Tensor, outputs: int) -> float:
    """Return the CPU seconds of a product of float32 features (n, P), the mean of one with weights and one with dual rows.

    Each is the faster of the two orders in which torch can take it.
    """
    weight, dual, turned = torch.randn(outputs, matrix.shape[1]), torch.randn(len(matrix), outputs), matrix.T.contiguous()
    with_weights = min(_fastest(lambda: matrix @ weight.T), _fastest(lambda: weight @ turned))
    with_dual = min(_fastest(lambda: dual.T @ matrix), _fastest(lambda: turned @ dual))
    return (with_weights + with_dual) / 2


def _fastest(action: Callable[[], object]) -> float:
    spent = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        action()
        spent.append(time.process_time() - began)
    return min(spent)
