"""Peers for sparse penalties that need numpy < 2, each at the settings that served it best, and the process that runs one.

    python -m venv DIR && DIR/bin/pip install "numpy<2" adelie skglm celer scikit-learn
    python -m benchmarks.run solvers --root DIR --peer-python DIR/bin/python

``peers.elsewhere`` starts this file in that environment.  After each point it waits for a line, while its clocks stand still.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import Meter
from benchmarks.solvers.program import Point, Program

__all__ = ["LIBRARIES", "centred_fit"]

Fit = Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]]


def skglm(program: Program, meter: Meter) -> Iterator[Point]:
    """MultiTaskBCD with L2_1(strength), or AndersonCD with L1(strength) an output.

    Tolerances are of the optimality conditions, so they scale with the strength.
    """
    from skglm.datafits import Quadratic, QuadraticMultiTask
    from skglm.penalties import L1, L2_1
    from skglm.solvers import AndersonCD, MultiTaskBCD

    def solve(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        options = {"max_iter": 1000, "tol": tol * program.strength, "fit_intercept": False}
        if program.penalty == "group_l1":
            return MultiTaskBCD(**options).solve(matrix, targets, QuadraticMultiTask(), L2_1(program.strength))[0].T
        solver = AndersonCD(**options)
        return np.stack([solver.solve(matrix, column, Quadratic(), L1(program.strength))[0] for column in targets.T])

    generator = np.random.default_rng(0)
    solve(np.asfortranarray(generator.normal(size=(20, 8))), np.asfortranarray(generator.normal(size=(20, 3))), 1e-3)  # compiles
    for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        meter.begin()
        yield centred_fit(program, _squared(program, solve), tol)


def celer(program: Program, meter: Meter) -> Iterator[Point]:
    """mtl_path or celer_path with alpha = strength; its own tolerance is a gap over the mean square of the targets."""
    from celer.homotopy import celer_path, mtl_path

    def solve(matrix: np.ndarray, targets: np.ndarray, tol: float) -> np.ndarray:
        options: dict[str, Any] = {"alphas": [program.strength], "tol": tol, "max_iter": 1000}
        if program.penalty == "group_l1":
            return mtl_path(matrix, targets, **options)[1][..., 0]
        return np.stack([celer_path(matrix, column, "lasso", prune=True, **options)[1][:, 0] for column in targets.T])

    for k in range(1, 11):
        meter.begin()
        yield centred_fit(program, _squared(program, solve), 10.0**-k)


def adelie(program: Program, meter: Meter) -> Iterator[Point]:
    """grpnet, groups of C coefficients a feature; for l1 with squared loss each output alone.

    Its multi-response losses carry a factor 1 / C, hence a strength divided by C.  For cross-entropy the tolerance of its outer
    loop decides; an inner one of a tenth of its root was fastest of those tried.
    """
    import adelie as ad

    hot, entropy = np.asfortranarray(np.eye(program.outputs)[program.labels]), program.loss == "cross_entropy"
    options = {"intercept": True, "early_exit": False, "progress_bar": False, "n_threads": program.threads}
    if program.penalty == "l1":
        losses = [(ad.glm.gaussian(np.ascontiguousarray(column)), program.strength) for column in hot.T]
    else:
        make = ad.glm.multinomial if entropy else ad.glm.multigaussian
        losses = [(make(np.ascontiguousarray(hot)), program.strength / program.outputs)]

    def fit(matrix: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
        dense = ad.matrix.dense(matrix, method="naive", n_threads=program.threads)
        weights, biases = [], []
        for glm, strength in losses:
            inner = 0.1 * tol**0.5 if entropy else tol
            sizes = {"lmda_path": np.array([strength]), "penalty": np.ones(matrix.shape[1])}
            found = ad.grpnet(dense, glm, tol=inner, irls_tol=tol, **sizes, **options)
            weights.append(found.betas[-1].toarray().reshape(matrix.shape[1], -1).T)
            biases.append(np.atleast_1d(found.intercepts[-1]))
        return np.concatenate(weights), np.concatenate(biases)

    for k in range(4, 19, 2):
        meter.begin()
        yield centred_fit(program, fit, 10.0**-k)


def centred_fit(program: Program, fit: Fit, setting: Any) -> Point:
    """Fit centred float64 features in Fortran order, without constant columns, whose weights are zero at the optimum."""
    matrix, mean = program.centred()
    kept = np.flatnonzero(np.ptp(matrix, axis=0) > 0)
    weight = np.zeros((program.outputs, len(mean)))
    weight[:, kept], bias = fit(np.asfortranarray(matrix[:, kept]), setting)
    return weight, bias - weight @ mean, {"setting": str(setting)}


def _squared(program: Program, solve: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Fit:
    """Fit centred targets: with squared loss the free bias makes the means of the residuals zero."""

    def fit(matrix: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
        targets = np.eye(program.outputs)[program.labels]
        means = targets.mean(0)
        return solve(matrix, np.asfortranarray(targets - means), tol), means

    return fit


LIBRARIES: dict[str, Callable[[Program, Meter], Iterator[Point]]] = {"adelie": adelie, "skglm": skglm, "celer": celer}


def main() -> None:
    """Run the peer and the program of the command line; each point is a line of json and a file."""
    peer, folder = sys.argv[1], Path(sys.argv[2])
    with np.load(folder / "program.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    program = Program(**arrays, **json.loads((folder / "program.json").read_text(encoding="utf-8")))
    seconds = int(2 * program.threads * (program.limit + 300))  # if nobody ends this process
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # Text that libraries print must not fall between the lines of json.
    line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    meter = Meter()
    for weight, bias, more in LIBRARIES[peer](program, meter):
        meter.pause()
        np.savez(folder / "point.npz", weight=weight, bias=bias)
        about = {"seconds": meter.seconds, "cpu": meter.cpu_seconds, "added_bytes": meter.added, **more}
        print(json.dumps(about), file=line, flush=True)
        if not sys.stdin.readline():
            return
        meter.resume()


if __name__ == "__main__":
    main()
