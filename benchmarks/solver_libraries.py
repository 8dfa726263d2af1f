"""The peers of the solver benchmark that are libraries of their own, each at the settings that served it best.

Packages are imported inside the peers: no environment holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from solver_cell import GOAL, Cell, ladder

__all__ = ["adelie", "celer", "saga", "skglm"]


def saga(cell: Cell) -> str:
    """By epochs, doubled from solve to solve; the last solve fits into the time limit."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    cell.ready(("scikit-learn", "numpy"))
    warnings.filterwarnings("ignore")  # it warns of every solve that its own tolerance did not end
    epochs, last = 2, False
    while True:
        cell.begin()
        matrix, mean, kept = cell.centred()
        model = LogisticRegression(
            solver="saga",
            l1_ratio=1.0,
            C=1 / (len(matrix) * cell.strength),
            tol=0.0,
            max_iter=epochs,
            random_state=cell.seed,
        ).fit(np.ascontiguousarray(matrix), cell.labels)
        weight = cell.full(model.coef_, kept)
        seconds = cell.seconds()
        if cell.report(weight, model.intercept_ - weight @ mean, seconds=seconds, setting=f"{epochs} epochs") <= GOAL:
            return "stopped by the benchmark"
        left = cell.limit / seconds
        if last or left < 1.1:
            return "late"
        last, epochs = left < 2.1, int(epochs * min(2.0, 0.95 * left))


def skglm(cell: Cell) -> str:
    """Tolerances are of the optimality conditions, so they scale with the strength."""
    from skglm.datafits import Quadratic, QuadraticMultiTask
    from skglm.penalties import L1, L2_1
    from skglm.solvers import AndersonCD, MultiTaskBCD

    def solve(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        matrix, mean, kept = cell.centred()
        targets = np.asfortranarray(np.eye(cell.outputs)[cell.labels])
        means = targets.mean(0)
        return (*_squared(cell, fit, matrix, targets - means, tol * cell.strength, mean, kept, means), {})

    def fit(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        if cell.penalty == "group_l1":
            solver = MultiTaskBCD(max_iter=1000, tol=tol, fit_intercept=False)
            return solver.solve(matrix, targets, QuadraticMultiTask(), L2_1(cell.strength))[0].T
        solver = AndersonCD(max_iter=1000, tol=tol, fit_intercept=False)
        each = [solver.solve(matrix, targets[:, k], Quadratic(), L1(cell.strength))[0] for k in range(targets.shape[1])]
        return np.stack(each)

    generator = np.random.default_rng(0)
    fit(np.asfortranarray(generator.normal(size=(20, 8))), np.asfortranarray(generator.normal(size=(20, 3))), 1e-3)  # compiles
    cell.ready(("skglm", "numba", "numpy"))
    return ladder(cell, "tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], solve)


def celer(cell: Cell) -> str:
    """Its own tolerance is a gap over the mean square of the targets."""
    from celer.homotopy import celer_path, mtl_path

    cell.ready(("celer", "scikit-learn", "numpy"))

    def solve(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        matrix, mean, kept = cell.centred()
        targets = np.asfortranarray(np.eye(cell.outputs)[cell.labels])
        means = targets.mean(0)
        return (*_squared(cell, fit, matrix, targets - means, tol, mean, kept, means), {})

    def fit(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        alphas = [cell.strength]
        if cell.penalty == "group_l1":
            return mtl_path(matrix, targets, alphas=alphas, tol=tol, max_iter=1000)[1][..., 0]
        options: dict[str, Any] = {"alphas": alphas, "tol": tol, "max_iter": 1000, "prune": True}
        return np.stack([celer_path(matrix, column, "lasso", **options)[1][:, 0] for column in targets.T])

    return ladder(cell, "tolerance", [10.0**-k for k in range(1, 11)], solve)


def _squared(
    cell: Cell,
    fit: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    matrix: np.ndarray,
    targets: np.ndarray,
    tol: float,
    mean: np.ndarray,
    kept: np.ndarray,
    means: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """With squared loss the free bias makes the means of the residuals zero."""
    weight = cell.full(fit(matrix, np.asfortranarray(targets), tol), kept)
    return weight, means - weight @ mean


def adelie(cell: Cell, strengths: int) -> str:
    """Its multi-response losses carry a factor 1 / C, hence a strength divided by C; a path of ``strengths`` leads to the last.

    For cross-entropy the tolerance of its outer loop decides; an inner one of a tenth of its root was fastest of those tried.
    """
    import adelie as ad

    cell.ready(("adelie", "numpy"))
    options = {"intercept": True, "early_exit": False, "progress_bar": False, "n_threads": cell.threads}

    def solve(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        matrix, mean, kept = cell.centred()
        hot = np.asfortranarray(np.eye(cell.outputs)[cell.labels])
        dense = ad.matrix.dense(matrix, method="naive", n_threads=cell.threads)
        if cell.penalty == "l1":  # squared: an output by itself, without the factor
            fits = [(ad.glm.gaussian(np.ascontiguousarray(column)), cell.strength) for column in hot.T]
        else:
            make = ad.glm.multinomial if cell.loss == "cross_entropy" else ad.glm.multigaussian
            fits = [(make(np.ascontiguousarray(hot)), cell.strength / cell.outputs)]
        weights, biases = [], []
        for glm, strength in fits:
            # The critical strength itself, where all weights are zero, takes its outer loop to the most iterations.
            first = 0.9 * _first_strength(matrix, hot, cell.penalty) * strength / cell.strength
            path = np.geomspace(first, strength, strengths) if strengths > 1 else np.array([strength])
            inner = 0.1 * tol**0.5 if cell.loss == "cross_entropy" else tol
            found = ad.grpnet(dense, glm, lmda_path=path, penalty=np.ones(len(kept)), tol=inner, irls_tol=tol, **options)
            weights.append(found.betas[-1].toarray().reshape(len(kept), -1).T)
            biases.append(np.atleast_1d(found.intercepts[-1]))
        weight = cell.full(np.concatenate(weights), kept)
        return weight, np.concatenate(biases) - weight @ mean, {}

    return ladder(cell, "tolerance", [10.0**-k for k in range(4, 19, 2)], solve)


def _first_strength(matrix: np.ndarray, hot: np.ndarray, penalty: str) -> float:
    """The critical strength: for cross-entropy and squared loss alike the residual at zero weights is the centred targets."""
    slope = matrix.T @ (hot - hot.mean(0)) / len(matrix)
    return float(np.linalg.norm(slope, axis=1).max() if penalty == "group_l1" else np.abs(slope).max())
