"""The default program along strengths with held-out choice: solve_path against scikit-learn's classes for it.

A fifth of the samples is held out and chooses the strength.  All samples are solved at it, from the path's solution if possible.
The peers get the strengths that solve_path visited.  The certificate is of each method's final point, at its chosen strength.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import run_all

from . import api
from .problems import Task

__all__ = ["measure_choices"]

_TOLS = (1e-4, 1e-6)  # relative gap of the final solve, and the tolerances of LogisticRegressionCV
_HELD_OUT = 0.2
_REPEATS = 3  # the fastest counts
_LONG = 60.0  # seconds of a run that is not repeated

Chosen = tuple[float, np.ndarray, np.ndarray]


class Split:
    """A task's samples and the held-out part, the same for all methods."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, (self.features, self.labels) = task, task.load()
        order = np.random.default_rng(seed).permutation(task.rows)
        count = int(_HELD_OUT * task.rows)
        self.held_out, self.fitted = np.sort(order[:count]), np.sort(order[count:])
        self.wide = self.features.astype(np.float64)
        self.strengths = [point.strength for point in self.path().points]

    def problem(self, rows: np.ndarray | slice, strength: float = 1.0) -> api.Problem:
        options = {"loss": self.task.loss, "penalty": "ridge", "strength": strength, "num_outputs": self.task.outputs}
        return api.make_problem(self.features[rows], self.labels[rows], **options)

    def path(self) -> Any:
        held_out = torch.from_numpy(self.features[self.held_out]), torch.from_numpy(self.labels[self.held_out])
        return api.solve_path(self.problem(self.fitted), api.HeldOutRows(*held_out))


def solve_path(split: Split, tol: float) -> Chosen:
    """The package's path, and its solve on all samples."""
    best = split.path().chosen
    start = best.solution.weight, best.solution.bias
    found = api.solve(split.problem(slice(None), best.strength), tol=tol, start=start)
    return best.strength, found.weight.numpy(), found.bias.numpy()


def logistic_cv(split: Split, tol: float) -> Chosen:
    """LogisticRegressionCV with lbfgs, which warm-starts along its strengths."""
    from sklearn.linear_model import LogisticRegressionCV

    fitted = len(split.fitted)
    model = LogisticRegressionCV(
        Cs=[1 / (fitted * strength) for strength in split.strengths],
        cv=[(split.fitted, split.held_out)],
        l1_ratios=(0,),
        scoring="neg_log_loss",
        use_legacy_attributes=False,
        tol=tol,
        max_iter=100_000,
    ).fit(split.wide, split.labels)
    # Its refit on all samples keeps C, so the strength shrinks with the number of samples.
    return 1 / (len(split.labels) * float(model.C_)), model.coef_, model.intercept_


def linear_svc(split: Split, tol: float) -> Chosen:
    """LinearSVC strength by strength, without warm starts, which it does not have."""
    from sklearn.svm import LinearSVC

    def fit(rows: np.ndarray | slice, strength: float) -> Any:
        labels = split.labels[rows]
        options = {"dual": False, "intercept_scaling": 100, "tol": tol, "max_iter": 100_000}
        return LinearSVC(C=1 / (2 * len(labels) * strength), **options).fit(split.wide[rows], labels)

    def lack(strength: float) -> float:
        scores = fit(split.fitted, strength).decision_function(split.wide[split.held_out])
        signs = 2 * np.eye(split.task.outputs)[split.labels[split.held_out]] - 1
        return float(np.square(np.maximum(0, 1 - signs * scores)).sum())

    best = min(split.strengths, key=lack)
    model = fit(slice(None), best)
    return best, model.coef_, model.intercept_


def ridge_cv(split: Split, tol: float) -> Chosen:
    """RidgeClassifierCV: squared loss on +-1 and leave-one-out choice, another program, so its gap means nothing."""
    from sklearn.linear_model import RidgeClassifierCV

    del tol
    rows = len(split.labels)
    model = RidgeClassifierCV(alphas=[rows * strength for strength in split.strengths]).fit(split.wide, split.labels)
    return float(model.alpha_) / rows, model.coef_, model.intercept_


METHODS: dict[str, tuple[Callable[[Split, float], Chosen], tuple[str, ...], tuple[float, ...]]] = {
    "ours": (solve_path, ("squared_hinge", "cross_entropy"), _TOLS),
    "logistic_cv": (logistic_cv, ("cross_entropy",), _TOLS),
    "linear_svc": (linear_svc, ("squared_hinge",), (1e-4, 1e-5)),
    "ridge_cv": (ridge_cv, ("squared_hinge",), _TOLS[:1]),
}


def measure_choices(path: Path, head: dict[str, Any], tasks: list[Task]) -> None:
    """Time every method on every default program; the methods of a program follow each other."""
    cases = {}
    for task, name in itertools.product(tasks, METHODS):
        method, losses, tols = METHODS[name]
        if "ridge" in task.penalties and task.loss in losses:
            for tol in tols:
                cases[f"{task.name}/{name}/{tol:g}"] = lambda task=task, method=method, tol=tol: _measure(task, method, tol, head)
    run_all(path, head, cases)


def _measure(task: Task, method: Callable[[Split, float], Chosen], tol: float, head: dict[str, Any]) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    warnings.filterwarnings("ignore")
    split, spent = Split(task, head["seed"]), []
    with threadpool_limits(head["threads"]):
        for _ in range(_REPEATS):
            clocks = np.array([time.perf_counter(), time.process_time()])
            strength, weight, bias = method(split, tol)
            spent.append(np.array([time.perf_counter(), time.process_time()]) - clocks)
            if spent[-1][0] > _LONG:
                break
    problem = split.problem(slice(None), strength)
    point = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    seconds, cpu = np.min(spent, axis=0).tolist()
    return {
        **{"n": task.rows, "P": task.columns, "C": task.outputs, "loss": task.loss, "about": task.about},
        **{"seconds": seconds, "cpu": cpu, "strength": strength, "strengths": len(split.strengths)},
        "relative_gap": problem.certify(*point, tol).relative_gap,
        "accuracy": problem.accuracy(*point),
    }
