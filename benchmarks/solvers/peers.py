"""The peers of the solver study, and which programs each takes.  A peer yields its points, from scratch for each unless said.

A peer is a generator: it starts the meter when its imports and set-up are done, and is sent the gap of each point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.process import Meter
from benchmarks.solvers.first_order import fista, torch_lbfgs
from benchmarks.solvers.program import TARGETS, Point, Program
from snn_recon_plugin.convex import Features, Problem, solve

_SPARSE, _BOTH = ("l1", "group_l1"), ("cross_entropy", "squared")


def make_problem(program: Program) -> Problem:
    """Return the package's problem on a program."""
    features, labels = (torch.from_numpy(part) for part in (program.features, program.labels))
    options = {"loss": program.loss, "penalty": program.penalty, "strength": program.strength, "num_outputs": program.outputs}
    return Problem(Features(features), labels, **options)


def ours(program: Program, meter: Meter) -> Iterator[Point]:
    """solve() with default options, once for each gap; centring is part of the method, so the clocks include it."""
    for tol in TARGETS:
        meter.begin()
        found = solve(make_problem(program), tol=tol, time_limit=program.limit)
        yield found.weight, found.bias, {"known": found.certificate.dual}


def reference(program: Program, meter: Meter, solver: str) -> Iterator[Point]:
    """The package's statement of the program in CVXPY."""
    import cvxpy  # noqa: F401  an import is no part of a solve

    problem = make_problem(program)
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        meter.begin()
        found = solve(problem, solver=solver, tol=tol, time_limit=program.limit)
        yield found.weight, found.bias, {"known": found.certificate.dual}


def linear_svc(program: Program, meter: Meter) -> Iterator[Point]:
    """LinearSVC(dual=False), raw float64 features, C = 1/(2 n strength) since our squared hinge has a factor 1/2.

    liblinear penalises the bias, too.  The larger intercept_scaling, the nearer its objective is to a free bias, and the slower it
    gets: several are tried.
    """
    from sklearn.svm import LinearSVC

    for scaling in (10, 30, 100):
        for tol in (10.0**-k for k in range(2, 7)):
            meter.begin()
            options = {"dual": False, "intercept_scaling": scaling, "tol": tol, "max_iter": 100_000}
            model = LinearSVC(C=1 / (2 * len(program.labels) * program.strength), **options)
            model.fit(program.features.astype(np.float64), program.labels)
            yield model.coef_, model.intercept_, {"setting": f"{scaling}, {tol:g}"}


def logistic(program: Program, meter: Meter, settings: Iterable[dict[str, Any]], **options: Any) -> Iterator[Point]:
    """LogisticRegression on centred float64 features, C = 1/(n strength); its intercept is not penalised."""
    from sklearn.linear_model import LogisticRegression

    def fit(matrix: np.ndarray, setting: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=1 / (len(matrix) * program.strength), **options, **setting)
        model.fit(matrix, program.labels)
        return model.coef_, model.intercept_

    for setting in settings:
        meter.begin()
        yield centred_fit(program, fit, setting)


def centred_fit(program: Program, fit: Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]], setting: Any) -> Point:
    """Fit centred float64 features without constant columns, whose weights are zero at the optimum.

    With a free bias this is the same program, better conditioned: b = b' - W mean.
    """
    mean = program.features.mean(0, dtype=np.float64)
    matrix = program.features - mean
    kept = np.flatnonzero(np.ptp(matrix, axis=0) > 0)
    weight = np.zeros((program.outputs, len(mean)))
    weight[:, kept], bias = fit(np.ascontiguousarray(matrix[:, kept]), setting)
    return weight, bias - weight @ mean, {"setting": str(setting)}


@dataclass(frozen=True)
class Peer:
    """A solver at settings of its own."""

    run: Callable[..., Iterator[Point]] | None  # yields its points; None for a peer of which only results are kept
    programs: dict[str, tuple[str, ...]] | None = None  # losses that it takes, each with its penalties; None means all
    one_run: bool = False  # a run passes all gaps, where others solve from scratch for each


_CVXPY = dict.fromkeys(("cross_entropy", "squared"), _SPARSE)
_RIDGE = {"cross_entropy": ("ridge",)}
_SMOOTH = dict.fromkeys(("squared_hinge", "cross_entropy"), ("ridge",))
_TOLS = [{"tol": 10.0**-k, "max_iter": 100_000} for k in range(3, 9)]
_EPOCHS = [{"max_iter": round(2 * 1.5**k)} for k in range(24)]  # saga's own tolerance says little of the gap

# Cheap ones first.  adelie, skglm and celer need numpy < 2; commit 2050fd49 has the file that ran them in such an environment.
PEERS: dict[str, Peer] = {
    "ours": Peer(ours),
    "adelie": Peer(None, {"cross_entropy": ("group_l1",), "squared": _SPARSE}),
    "skglm": Peer(None, {"squared": _SPARSE}),
    "celer": Peer(None, {"squared": _SPARSE}),
    "fista_restart": Peer(partial(fista, restart=True), dict.fromkeys(_BOTH, _SPARSE), one_run=True),
    "fista": Peer(partial(fista, restart=False), dict.fromkeys(_BOTH, _SPARSE), one_run=True),
    "saga": Peer(
        partial(logistic, settings=_EPOCHS, solver="saga", l1_ratio=1.0, tol=0.0, random_state=0), {"cross_entropy": ("l1",)}
    ),
    "clarabel": Peer(partial(reference, solver="clarabel"), _CVXPY),
    "scs": Peer(partial(reference, solver="scs"), _CVXPY),
    "linear_svc": Peer(linear_svc, {"squared_hinge": ("ridge",)}),
    "torch_lbfgs_100": Peer(partial(torch_lbfgs, dtype=torch.float32, history=100), _SMOOTH, one_run=True),
    "torch_lbfgs_64": Peer(partial(torch_lbfgs, dtype=torch.float64, history=100), _SMOOTH, one_run=True),
    "lbfgs_centred": Peer(partial(logistic, settings=_TOLS, solver="lbfgs"), _RIDGE),
    "newton_cholesky": Peer(partial(logistic, settings=_TOLS, solver="newton-cholesky"), _RIDGE),
}


def takes(peer: str, loss: str, penalty: str, outputs: int) -> bool:
    """Return whether a peer applies to a program; with one output "group_l1" is "l1"."""
    programs = PEERS[peer].programs
    known = programs is None or penalty in programs.get(loss, ())
    return known and not (penalty == "group_l1" and outputs == 1)
