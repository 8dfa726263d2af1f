"""One cell of the solver benchmark, a process of its own: one peer on one program.  Started by solvers.py, in either environment.

The two talk in lines of json.  The peer's clock stands still while solvers.py certifies a point, so no peer pays for that; the
reply is the point's gap, on which the peer stops.  Packages are imported inside the peers: no environment holds all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MAPPINGS", "PEERS", "TARGETS", "refusal"]

TARGETS = (1e-2, 1e-4, 1e-6)
_GOAL = TARGETS[-1]
_OWN_DUAL = 25  # iterations between the dual points of FISTA: each costs about two products in float64, so 10 % of the time


class Cell:
    """The program as arrays, and the line to solvers.py.

    Args:
        spec: what solvers.py wrote down.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.loss, self.penalty, self.strength = spec["loss"], spec["penalty"], float(spec["strength"])
        self.limit, self.threads, self.seed = float(spec["limit"]), int(spec["threads"]), int(spec["seed"])
        self.outputs, self.folder, self.sent = int(spec["outputs"]), Path(spec["folder"]), 0
        stored = np.load(spec["features"], mmap_mode="r")
        self.features = np.array(stored[: spec["rows"], : spec["columns"]], order="C")
        self.labels = np.load(spec["labels"])[: spec["rows"]]
        # What libraries print must not fall between the lines of json.
        self.line = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began, self.paused, self.baseline = time.perf_counter(), 0.0, 0.0

    def ready(self, packages: Sequence[str]) -> None:
        """All is imported, loaded and compiled: from here on memory counts."""
        with contextlib.suppress(OSError):  # Linux: starts the high-water mark anew; elsewhere what came before hides in it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.baseline = _peak_mib()
        self._ask({"event": "ready", "versions": {name: importlib.metadata.version(name) for name in packages}})

    def begin(self) -> None:
        """Starts the clock; a peer that solves from scratch again starts it again."""
        self._ask({"event": "begin"})
        self.began, self.paused = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.began - self.paused

    def report(self, weight: Any, bias: Any, *, setting: str = "", seconds: float | None = None, **more: Any) -> float:
        """Hands over a point, W (C, P) and b (C,), and waits for its relative gap."""
        now = self.seconds()
        stopped = time.perf_counter()
        self.sent += 1
        path = self.folder / f"{self.sent}.npz"
        np.savez(path, weight=np.asarray(weight, dtype=np.float64), bias=np.asarray(bias, dtype=np.float64))
        seconds = now if seconds is None else seconds
        point = {"event": "point", "file": path.name, "seconds": seconds, "setting": setting, "peak_mib": self.peak(), **more}
        gap = float(self._ask(point)["gap"])
        self.paused += time.perf_counter() - stopped
        return gap

    def peak(self) -> float:
        return max(_peak_mib() - self.baseline, 0.0)

    def end(self, reason: str) -> None:
        print(json.dumps({"event": "end", "reason": reason, "peak_mib": self.peak()}), file=self.line, flush=True)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(message), file=self.line, flush=True)
        answer: dict[str, Any] = json.loads(sys.stdin.readline())
        return answer

    def problem(self) -> Any:
        """The program as the package states it."""
        import torch

        from snn_recon_plugin.convex import Design, Problem

        return Problem(
            Design(torch.from_numpy(self.features)),
            torch.from_numpy(self.labels),
            loss=self.loss,
            penalty=self.penalty,
            strength=self.strength,
            num_outputs=self.outputs,
        )

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features in float64, Fortran order, without their means and constant columns; means of all; which columns are left.

        With a free bias this is the same program, better conditioned, and constant columns have no weight at the optimum.
        """
        mean = self.features.mean(0, dtype=np.float64)
        kept = np.flatnonzero(np.ptp(self.features, axis=0) > 0)
        return np.asfortranarray(self.features[:, kept] - mean[kept]), mean, kept

    def full(self, weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Weights (C, P) from those of the columns that were left."""
        whole = np.zeros((self.outputs, self.features.shape[1]))
        whole[:, kept] = weight
        return whole


def _peak_mib() -> float:
    """High-water mark of resident memory.  On Linux getrusage begins with that of the process which started this one: no use."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = [line.split()[1] for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024


def native(cell: Cell) -> str:
    from snn_recon_plugin.convex import solve

    cell.ready(("torch", "numpy"))
    cell.begin()
    problem = cell.problem()  # centring is part of the method
    first = cell.seconds()
    found = solve(problem, tol=_GOAL, time_limit=cell.limit - first)
    trace = [(first + point.seconds, point.relative_gap, point.objective) for point in found.trace]
    seconds = first + found.seconds
    cell.report(found.weight, found.bias, seconds=seconds, trace=trace, known=found.certificate.dual, products=found.products)
    return found.outcome.name.lower()


def fista(cell: Cell, dual: bool = False, restart: bool = False) -> str:
    """FISTA with the step 1/L from power iterations, in float32 down to a gap of 1e-4 and in float64 from there.

    Without ``restart`` as the paper has it: features as they are, one step for weights and bias.  With it on centred features, a
    step each for weights and bias, and a restart whenever the step turns against the last one.  A loss with a kink is smoothed,
    ever less: width 1 / (1 + k / 100) at iteration k, the step shrinking with it.
    """
    import dataclasses

    import torch

    problem = cell.problem()
    cell.ready(("torch", "numpy"))
    cell.begin()

    def columns_in(dtype: torch.dtype) -> Any:
        made = problem.design.columns(None, dtype)
        return made if restart else dataclasses.replace(made, mean=torch.zeros_like(made.mean))

    columns = columns_in(torch.float32)
    bends = _largest_curvatures(columns, joint=not restart)
    weight, shift = (part.float() for part in problem.zero_point())
    point = previous = (weight, shift)
    momentum, trace, due, count, gap, lower = 1.0, [], 0.0, 0, math.inf, -math.inf
    while True:
        if gap <= 1e-4 and columns.matrix.dtype is torch.float32:
            columns = columns_in(torch.float64)
            point, previous = (tuple(part.double() for part in pair) for pair in (point, previous))
        width = 1 / (1 + count / 100)
        loss = problem.loss if problem.loss.smooth else problem.loss.smoothed(width)
        slope, slope_shift = columns.adjoint(loss.gradient(columns.scores(*point), problem.targets))
        step, step_shift = (1 / (loss.bound * bend) for bend in bends)
        moved = problem.penalty.prox(point[0] - step * slope, step * cell.strength), point[1] - step_shift * slope_shift
        turns = sum(float(((point[k] - moved[k]) * (moved[k] - previous[k])).sum()) for k in range(2))
        if restart and turns > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        point = tuple(torch.lerp(previous[k], moved[k], 1 + (momentum - 1) / following) for k in range(2))
        previous, momentum, count = moved, following, count + 1
        bias = moved[1] - moved[0] @ columns.mean
        late = cell.seconds() > 0.98 * cell.limit
        if dual and (count % _OWN_DUAL == 0 or late):
            if problem.loss.smooth:
                found = problem.evaluate(moved[0], bias)
                objective, at, lower = found.objective, (found.weight, found.bias), max(lower, found.dual)
            else:  # at a kink the residual tells no dual point; the smoothing's own one does
                objective, *at = problem.primal(moved[0], bias)
                rows = loss.gradient(columns.scores(*moved), problem.targets)
                lower = max(lower, problem.lower_bound(rows.double(), *at))
            gap = (objective - lower) / problem.zero_loss
            trace.append((cell.seconds(), gap, objective))
            if gap <= _GOAL or late:
                cell.report(*at, setting=f"{count} iterations", trace=trace, known=lower)
                return "late" if late else "own certificate"
        elif not dual and (cell.seconds() >= due or late):
            gap = cell.report(moved[0], bias, setting=f"{count} iterations")
            due = 1.1 * cell.seconds()
            if gap <= _GOAL or late:
                return "late" if late else "stopped by the benchmark: it has no certificate of its own"


def _largest_curvatures(columns: Any, joint: bool) -> tuple[float, float]:
    """Largest eigenvalues of the second moments of features and bias column, of both together where ``joint``."""
    import torch

    weight = torch.randn(1, columns.matrix.shape[1], generator=torch.Generator().manual_seed(0))
    shift, top = torch.ones(1) if joint else torch.zeros(1), 1.0
    for _ in range(30):
        size = (weight.square().sum() + shift.square().sum()).sqrt()
        weight, new_shift = columns.adjoint(columns.scores(weight / size, shift / size))
        shift = new_shift if joint else torch.zeros(1)
        top = float((weight.square().sum() + shift.square().sum()).sqrt())
    top *= 1.02  # power iterations come from below
    return top, top if joint else float(columns.row_weights @ columns.bias_column.square())


def reference(cell: Cell, backend: str) -> str:
    importlib.import_module("cvxpy")  # an import is no part of a solve
    from snn_recon_plugin.convex.reference import solve_reference

    problem = cell.problem()
    cell.ready(("cvxpy", "scs", "clarabel", "scipy", "numpy"))

    def solve(tol: float) -> tuple[Any, Any, dict[str, Any]]:
        found = solve_reference(problem, backend, tol=tol, time_limit=cell.limit)
        return found.weight, found.bias, {"known": found.certificate.dual}

    return _ladder(cell, "tolerance", [1e-2, 1e-4, 1e-6, 1e-8], solve)


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
        if cell.report(weight, model.intercept_ - weight @ mean, seconds=seconds, setting=f"{epochs} epochs") <= _GOAL:
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
    return _ladder(cell, "tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], solve)


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

    return _ladder(cell, "tolerance", [10.0**-k for k in range(1, 11)], solve)


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

    return _ladder(cell, "tolerance", [10.0**-k for k in range(4, 19, 2)], solve)


def _first_strength(matrix: np.ndarray, hot: np.ndarray, penalty: str) -> float:
    """The critical strength: for cross-entropy and squared loss alike the residual at zero weights is the centred targets."""
    slope = matrix.T @ (hot - hot.mean(0)) / len(matrix)
    return float(np.linalg.norm(slope, axis=1).max() if penalty == "group_l1" else np.abs(slope).max())


def _ladder(cell: Cell, name: str, tols: Sequence[float], solve: Callable[[float], tuple[Any, Any, dict[str, Any]]]) -> str:
    """Solves from scratch to one tolerance after another, until the gap is there or the tolerances end."""
    for tol in tols:
        cell.begin()
        weight, bias, more = solve(tol)
        if cell.report(weight, bias, setting=f"{name} {tol:g}", **more) <= _GOAL:
            return "reached"
    return "the last tolerance was not enough"


# Cheap ones first.  The second entry: whether it runs in the peers' environment.
PEERS: dict[str, tuple[Callable[[Cell], str], bool]] = {
    "native": (native, False),
    "adelie": (lambda cell: adelie(cell, 1), True),
    "adelie_path": (lambda cell: adelie(cell, 10), True),
    "skglm": (skglm, True),
    "celer": (celer, True),
    "highs": (lambda cell: reference(cell, "highs"), False),
    "fista_restart": (lambda cell: fista(cell, dual=True, restart=True), False),
    "fista_dual": (lambda cell: fista(cell, dual=True), False),
    "fista": (fista, False),
    "saga": (saga, False),
    "clarabel": (lambda cell: reference(cell, "clarabel"), False),
    "scs": (lambda cell: reference(cell, "scs"), False),
}

# How each peer's own parameters state (1/n) sum loss + strength * penalty(W) with a free bias.
_CVXPY = "the package's statement in CVXPY on centred features; its tolerances a tenth (hinge: a hundredth) of the gap asked for"
_CENTRED = "features centred in float64, which the free bias makes exact"
_ADELIE = (
    f"{_CENTRED}; grpnet, groups of C coefficients a feature, penalty factors 1, lambda = strength / C (multinomial and "
    "multigaussian carry 1/C); l1 with squared loss: gaussian, an output by itself, lambda = strength"
)
MAPPINGS: dict[str, str] = {
    "native": "solve() to 1e-6, default options; seconds include the design's; the trace is its own, by the same routines",
    "adelie": _ADELIE,
    "adelie_path": f"{_ADELIE}; warm-started along ten strengths",
    "skglm": f"{_CENTRED}, targets too; MultiTaskBCD with L2_1(strength), or AndersonCD with L1(strength) an output",
    "celer": f"{_CENTRED}, targets too; mtl_path or celer_path, alpha = strength",
    "highs": "the linear program of hinge and l1, through SciPy, with HiGHS's own tolerances",
    "fista_restart": "our own FISTA on centred features, gradient restart, float64 dual point every 25 iterations",
    "fista_dual": "our own FISTA as the paper has it, float64 dual point every 25 iterations",
    "fista": "our own FISTA as the paper has it, no dual: the benchmark's gap, which costs it nothing, stops it",
    "saga": f"{_CENTRED}; LogisticRegression(solver='saga', l1_ratio=1, C=1/(n strength)), whose intercept is not penalised, tol=0",
    "clarabel": _CVXPY,
    "scs": _CVXPY,
}


def refusal(peer: str, loss: str, penalty: str, outputs: int) -> str | None:
    """Why a peer does not apply to a program, or None where it does."""
    if penalty == "group_l1" and outputs == 1:
        return "with one output group_l1 is l1"
    if peer == "highs" and (loss, penalty) != ("hinge", "l1"):
        return "not a linear program"
    if peer == "saga" and (loss, penalty) != ("cross_entropy", "l1"):
        return "saga has logistic losses only, and no groups"
    if peer in ("skglm", "celer") and loss != "squared":
        return "no multinomial loss" if loss == "cross_entropy" else "no hinge loss"
    if peer.startswith("adelie") and loss == "hinge":
        return "no hinge loss"
    if peer.startswith("adelie") and (loss, penalty) == ("cross_entropy", "l1"):
        return "its groups of a multi-response loss hold all responses of a feature"
    return None


def main() -> None:
    """Runs the cell that the json file on the command line describes."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if spec["memory_gib"]:
        size = int(spec["memory_gib"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    cell = Cell(spec)
    try:
        reason = PEERS[spec["peer"]][0](cell)
    except MemoryError:
        reason = "out of memory"
    except Exception as error:  # whatever a peer raises is a result
        traceback.print_exc()
        reason = f"failed: {type(error).__name__}: {error}"[:300]
    cell.end(reason)


if __name__ == "__main__":
    main()
