"""One cell of the solver benchmark, a process of its own: one peer on one program.  Started by solvers.py, in either environment.

The two talk in lines of json.  The peer's clock stands still while solvers.py certifies a point, so no peer pays for that; the
reply is the point's gap, on which the peer stops.  Packages are imported inside the peers: no environment holds all of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solver_cell import GOAL, TARGETS, Cell, ladder
from solver_libraries import adelie, celer, saga, skglm

__all__ = ["MAPPINGS", "PEERS", "TARGETS", "refusal"]

_STILL = 10  # looks at a gap that brought nothing: rounding, not slowness
_OWN_DUAL = 25  # iterations between the dual points of FISTA: each costs about two products in float64, so 10 % of the time


def native(cell: Cell) -> str:
    from snn_recon_plugin.convex import solve

    cell.ready(("torch", "numpy"))
    cell.begin()
    problem = cell.problem()  # centring is part of the method
    first = cell.seconds()
    found = solve(problem, tol=GOAL, time_limit=cell.limit - first)
    trace = [(first + point.seconds, point.relative_gap, point.objective) for point in found.trace]
    seconds = first + found.seconds
    cell.report(found.weight, found.bias, seconds=seconds, trace=trace, known=found.certificate.dual, products=found.products)
    return found.outcome.name.lower()


def fista(cell: Cell, dual: bool = False, restart: bool = False) -> str:
    """FISTA with the step 1/L from power iterations, in float32 down to a gap of 1e-4 or until it stands still, then in float64.

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
    best, still = math.inf, 0  # the least gap, and how many looks since have brought nothing
    while True:
        if (gap <= 1e-4 or still >= _STILL) and columns.dtype is torch.float32:
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
            best, still = (gap, 0) if gap < 0.9 * best else (best, still + 1)
            trace.append((cell.seconds(), gap, objective))
            if gap <= GOAL or late:
                cell.report(*at, setting=f"{count} iterations", trace=trace, known=lower)
                return "late" if late else "own certificate"
        elif not dual and (cell.seconds() >= due or late):
            gap = cell.report(moved[0], bias, setting=f"{count} iterations")
            best, still = (gap, 0) if gap < 0.9 * best else (best, still + 1)
            due = 1.1 * cell.seconds()
            if gap <= GOAL or late:
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

    return ladder(cell, "tolerance", [1e-2, 1e-4, 1e-6, 1e-8], solve)


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
