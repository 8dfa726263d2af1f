"""Peers for sparse penalties that are libraries of their own, each at the settings that served it best.

Packages are imported inside the peers: no environment holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .cell import Cell, ladder

__all__ = ["adelie", "celer", "saga", "skglm"]

Point = tuple[np.ndarray, np.ndarray, dict[str, Any]]


def saga(cell: Cell) -> str:
    """By epochs, since its own tolerance says little of the gap."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    cell.ready(("scikit-learn", "numpy"))
    warnings.filterwarnings("ignore")  # it warns of every solve that its own tolerance did not end
    options = {"solver": "saga", "l1_ratio": 1.0, "tol": 0.0, "random_state": cell.seed}

    def fit(matrix: np.ndarray, epochs: int) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=1 / (len(matrix) * cell.strength), max_iter=epochs, **options)
        model.fit(np.ascontiguousarray(matrix), cell.labels)
        return model.coef_, model.intercept_

    return ladder(cell, [round(2 * 1.5**k) for k in range(24)], lambda epochs: _on_centred(cell, fit, epochs))


def skglm(cell: Cell) -> str:
    """Tolerances are of the optimality conditions, so they scale with the strength."""
    from skglm.datafits import Quadratic, QuadraticMultiTask
    from skglm.penalties import L1, L2_1
    from skglm.solvers import AndersonCD, MultiTaskBCD

    def solve(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        options = {"max_iter": 1000, "tol": tol * cell.strength, "fit_intercept": False}
        if cell.penalty == "group_l1":
            return MultiTaskBCD(**options).solve(matrix, targets, QuadraticMultiTask(), L2_1(cell.strength))[0].T
        solver = AndersonCD(**options)
        return np.stack([solver.solve(matrix, column, Quadratic(), L1(cell.strength))[0] for column in targets.T])

    generator = np.random.default_rng(0)
    solve(np.asfortranarray(generator.normal(size=(20, 8))), np.asfortranarray(generator.normal(size=(20, 3))), 1e-3)  # compiles
    cell.ready(("skglm", "numba", "numpy"))
    return ladder(cell, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], lambda tol: _on_centred(cell, _squared(cell, solve), tol))


def celer(cell: Cell) -> str:
    """Its own tolerance is a gap over the mean square of the targets."""
    from celer.homotopy import celer_path, mtl_path

    cell.ready(("celer", "scikit-learn", "numpy"))

    def solve(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        options: dict[str, Any] = {"alphas": [cell.strength], "tol": tol, "max_iter": 1000}
        if cell.penalty == "group_l1":
            return mtl_path(matrix, targets, **options)[1][..., 0]
        return np.stack([celer_path(matrix, column, "lasso", prune=True, **options)[1][:, 0] for column in targets.T])

    return ladder(cell, [10.0**-k for k in range(1, 11)], lambda tol: _on_centred(cell, _squared(cell, solve), tol))


def adelie(cell: Cell, strengths: int) -> str:
    """Its multi-response losses carry a factor 1 / C, hence a strength divided by C; a path of ``strengths`` leads to the last.

    For cross-entropy the tolerance of its outer loop decides; an inner one of a tenth of its root was fastest of those tried.
    """
    import adelie as ad

    cell.ready(("adelie", "numpy"))
    hot = np.asfortranarray(np.eye(cell.outputs)[cell.labels])
    options = {"intercept": True, "early_exit": False, "progress_bar": False, "n_threads": cell.threads}

    def losses() -> list[tuple[Any, float]]:
        if cell.penalty == "l1":  # squared: an output by itself, without the factor
            return [(ad.glm.gaussian(np.ascontiguousarray(column)), cell.strength) for column in hot.T]
        make = ad.glm.multinomial if cell.loss == "cross_entropy" else ad.glm.multigaussian
        return [(make(np.ascontiguousarray(hot)), cell.strength / cell.outputs)]

    def fit(matrix: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
        dense = ad.matrix.dense(matrix, method="naive", n_threads=cell.threads)
        inner = 0.1 * tol**0.5 if cell.loss == "cross_entropy" else tol
        weights, biases = [], []
        for glm, strength in losses():
            # The critical strength itself, where all weights are zero, takes its outer loop to the most iterations.
            first = 0.9 * _critical_strength(matrix, hot, cell.penalty) * strength / cell.strength
            path = np.geomspace(first, strength, strengths) if strengths > 1 else np.array([strength])
            penalty = np.ones(matrix.shape[1])
            found = ad.grpnet(dense, glm, lmda_path=path, penalty=penalty, tol=inner, irls_tol=tol, **options)
            weights.append(found.betas[-1].toarray().reshape(matrix.shape[1], -1).T)
            biases.append(np.atleast_1d(found.intercepts[-1]))
        return np.concatenate(weights), np.concatenate(biases)

    return ladder(cell, [10.0**-k for k in range(4, 19, 2)], lambda tol: _on_centred(cell, fit, tol))


def _on_centred(cell: Cell, fit: Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]], setting: Any) -> Point:
    """Fit centred float64 features in Fortran order, without constant columns, whose weights are zero at the optimum."""
    matrix, mean = cell.centred()
    kept = np.flatnonzero(np.ptp(matrix, axis=0) > 0)
    weight = np.zeros((cell.outputs, len(mean)))
    weight[:, kept], bias = fit(np.asfortranarray(matrix[:, kept]), setting)
    return weight, bias - weight @ mean, {}


def _squared(cell: Cell, solve: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Callable[..., Any]:
    """Fit centred targets: with squared loss the free bias makes the means of the residuals zero."""

    def fit(matrix: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
        targets = np.eye(cell.outputs)[cell.labels]
        means = targets.mean(0)
        return solve(matrix, np.asfortranarray(targets - means), tol), means

    return fit


def _critical_strength(matrix: np.ndarray, hot: np.ndarray, penalty: str) -> float:
    """For cross-entropy and squared loss alike the residual at zero weights is the centred targets."""
    slope = matrix.T @ (hot - hot.mean(0)) / len(matrix)
    return float(np.linalg.norm(slope, axis=1).max() if penalty == "group_l1" else np.abs(slope).max())
