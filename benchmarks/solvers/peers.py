"""The peers of the solver study: how each states the program, and which programs it takes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .cell import TARGETS, Cell, ladder
from .libraries import adelie, celer, saga, skglm

__all__ = ["PEERS", "Peer", "refusal"]

_SPARSE, _BOTH = ("l1", "group_l1"), ("cross_entropy", "squared")


@dataclass(frozen=True)
class Peer:
    """A solver at settings of its own.

    Args:
        run: runs it in a cell, and returns why it ended.
        mapping: how its parameters state (1/n) sum loss + strength * penalty(W) with a free bias.
        programs: losses that it takes, each with its penalties; None means all.
        one_run: a run passes all gaps, where others solve from scratch for each.
        elsewhere: runs in the environment with numpy < 2.
    """

    run: Callable[[Cell], str]
    mapping: str
    programs: dict[str, tuple[str, ...]] | None = None
    one_run: bool = False
    elsewhere: bool = False


def ours(cell: Cell) -> str:
    """Centring is part of the method, so the clocks include it."""
    from . import api

    cell.ready(("torch", "numpy"))
    options = {"loss": cell.loss, "penalty": cell.penalty, "strength": cell.strength, "num_outputs": cell.outputs}

    def run(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        problem = api.make_problem(cell.features, cell.labels, **options)
        found = api.solve(problem, tol=tol, time_limit=cell.limit)
        return found.weight, found.bias, {"known": found.certificate.dual, "choice": found.statistics.reason}

    return ladder(cell, TARGETS, run)


def reference(cell: Cell, backend: str) -> str:
    """The package's statement of the program in CVXPY."""
    importlib.import_module("cvxpy")  # an import is no part of a solve
    from . import api

    options = {"loss": cell.loss, "penalty": cell.penalty, "strength": cell.strength, "num_outputs": cell.outputs}
    problem = api.make_problem(cell.features, cell.labels, **options)
    cell.ready(("cvxpy", "scs", "clarabel", "scipy", "numpy"))

    def run(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        found = api.solve(problem, solver=backend, tol=tol, time_limit=cell.limit)
        return found.weight, found.bias, {"known": found.certificate.dual}

    return ladder(cell, [1e-2, 1e-4, 1e-6, 1e-8], run)


def linear_svc(cell: Cell) -> str:
    """The larger intercept_scaling, the nearer its objective is to a free bias, and the slower it gets: several are tried."""
    from sklearn.svm import LinearSVC

    cell.ready(("scikit-learn", "numpy"))

    def make(setting: tuple[float, float]) -> Any:
        scaling, tol = setting
        options = {"dual": False, "intercept_scaling": scaling, "tol": tol, "max_iter": 100_000}
        return LinearSVC(C=1 / (2 * len(cell.labels) * cell.strength), **options)

    return _scikit(cell, make, [(scaling, 10.0**-k) for scaling in (10, 30, 100) for k in range(2, 7)], centre=False)


def logistic(cell: Cell, solver: str, centre: bool) -> str:
    """By its own tolerance."""
    from sklearn.linear_model import LogisticRegression

    cell.ready(("scikit-learn", "numpy"))

    def make(tol: float) -> Any:
        return LogisticRegression(solver=solver, C=1 / (len(cell.labels) * cell.strength), tol=tol, max_iter=100_000)

    return _scikit(cell, make, [10.0**-k for k in range(3, 9)], centre)


def _scikit(cell: Cell, make: Callable[[Any], Any], settings: Iterable[Any], centre: bool) -> str:
    warnings.filterwarnings("ignore")

    def fit(setting: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        features, mean = cell.centred() if centre else (cell.features.astype(np.float64), np.zeros(cell.features.shape[1]))
        model = make(setting).fit(features, cell.labels)
        return model.coef_, model.intercept_ - model.coef_ @ mean, {}

    return ladder(cell, list(settings), fit)


def fista(cell: Cell, restart: bool) -> str:
    """FISTA of the study's own, see first_order.py; torch is not in every environment."""
    from .first_order import fista as run

    return run(cell, restart)


def torch_lbfgs(cell: Cell, dtype: str, centre: bool, history: int) -> str:
    """torch.optim.LBFGS on the same objective, see first_order.py."""
    import torch

    from .first_order import torch_lbfgs as run

    return run(cell, getattr(torch, dtype), centre, history)


def _lbfgs(dtype: str, centre: bool, history: int) -> Peer:
    about = f"{'centred' if centre else 'raw'} features in {dtype}"
    mapping = f"torch.optim.LBFGS, strong Wolfe, history {history}, {about}; stopped by the benchmark's gap, which costs it nothing"
    programs = dict.fromkeys(("squared_hinge", "cross_entropy"), ("ridge",))
    return Peer(partial(torch_lbfgs, dtype=dtype, centre=centre, history=history), mapping, programs, one_run=True)


_CENTRED = "features centred in float64, which the free bias makes exact"
_ADELIE = (
    f"{_CENTRED}; grpnet, groups of C coefficients a feature, penalty factors 1, lambda = strength / C (multinomial and "
    "multigaussian carry 1/C); l1 with squared loss: gaussian, an output by itself, lambda = strength"
)
_ADELIE_TAKES = {"cross_entropy": ("group_l1",), "squared": _SPARSE}
_FISTA = "our own FISTA, stopped by the benchmark's gap, which costs it nothing"
_CVXPY = "the package's statement in CVXPY on centred features; its tolerances a tenth (hinge: a hundredth) of the gap asked for"
_CVXPY_TAKES = dict.fromkeys(("cross_entropy", "squared", "hinge"), _SPARSE)
_LOGISTIC = "LogisticRegression, C = 1/(n strength), whose intercept is not penalised, float64"
_SVC = (
    "LinearSVC(dual=False), C = 1/(2 n strength) since this package's squared hinge has a factor 1/2, raw features in float64; "
    "liblinear penalises the bias by strength b^2 / (2 s^2) with s = intercept_scaling 10, 30 and 100; its bias is taken as it is"
)
_RIDGE = {"cross_entropy": ("ridge",)}

# Cheap ones first.
PEERS: dict[str, Peer] = {
    "ours": Peer(ours, "solve(), default options, once for each gap; the clocks include centring"),
    "adelie": Peer(partial(adelie, strengths=1), _ADELIE, _ADELIE_TAKES, elsewhere=True),
    "adelie_path": Peer(
        partial(adelie, strengths=10), f"{_ADELIE}; warm-started along ten strengths", _ADELIE_TAKES, elsewhere=True
    ),
    "skglm": Peer(
        skglm,
        f"{_CENTRED}, targets too; MultiTaskBCD with L2_1(strength), or AndersonCD with L1(strength) an output",
        {"squared": _SPARSE},
        elsewhere=True,
    ),
    "celer": Peer(
        celer, f"{_CENTRED}, targets too; mtl_path or celer_path, alpha = strength", {"squared": _SPARSE}, elsewhere=True
    ),
    "highs": Peer(
        partial(reference, backend="highs"),
        "the linear program of hinge and l1, through SciPy, with HiGHS's own tolerances",
        {"hinge": ("l1",)},
    ),
    "fista_restart": Peer(
        partial(fista, restart=True), f"{_FISTA}; centred features, gradient restart", dict.fromkeys(_BOTH, _SPARSE), one_run=True
    ),
    "fista": Peer(partial(fista, restart=False), f"{_FISTA}; as the paper has it", dict.fromkeys(_BOTH, _SPARSE), one_run=True),
    "saga": Peer(
        saga,
        f"{_CENTRED}; LogisticRegression(solver='saga', l1_ratio=1, C=1/(n strength)), whose intercept is not penalised, tol=0",
        {"cross_entropy": ("l1",)},
    ),
    "clarabel": Peer(partial(reference, backend="clarabel"), _CVXPY, _CVXPY_TAKES),
    "scs": Peer(partial(reference, backend="scs"), _CVXPY, _CVXPY_TAKES),
    "linear_svc": Peer(linear_svc, _SVC, {"squared_hinge": ("ridge",)}),
    "torch_lbfgs_raw": _lbfgs("float32", centre=False, history=100),
    "torch_lbfgs_10": _lbfgs("float32", centre=True, history=10),
    "torch_lbfgs_100": _lbfgs("float32", centre=True, history=100),
    "torch_lbfgs_64": _lbfgs("float64", centre=True, history=100),
    "lbfgs": Peer(partial(logistic, solver="lbfgs", centre=False), f"{_LOGISTIC}, raw features", _RIDGE),
    "lbfgs_centred": Peer(partial(logistic, solver="lbfgs", centre=True), f"{_LOGISTIC}, centred features", _RIDGE),
    "newton_cholesky": Peer(
        partial(logistic, solver="newton-cholesky", centre=True), f"{_LOGISTIC}, solver='newton-cholesky', centred features", _RIDGE
    ),
}


def refusal(peer: str, loss: str, penalty: str, outputs: int) -> str | None:
    """Return why a peer does not apply to a program, or None if it does."""
    if penalty == "group_l1" and outputs == 1:
        return "with one output group_l1 is l1"
    takes = PEERS[peer].programs
    if takes is None or penalty in takes.get(loss, ()):
        return None
    return f"no {loss} loss" if loss not in takes else f"no {penalty} with {loss}"
