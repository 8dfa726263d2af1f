"""Native solver: accelerated proximal steps, then semismooth Newton steps, certified in float64.

It runs on the device of the features.  Every outer iteration ends with a float64 evaluation of objective, gradient and a dual
point.  The duality gap is therefore known at every step, and the solver stops on it.

Two measures make the Newton steps robust while a sparse penalty's active set is still wrong.  The line search is projected: an
entry (or a group) that crosses the penalty's kink stays at zero, since the second-order model is invalid beyond it.  A step that
had to be shortened much is followed by proximal steps on the working set, which correct the predicted active set.  With nearly
collinear features neither helps, and the iteration continues by splitting.

One class against the rest, with a separable penalty, is a separate program for each output.  The outputs share every pass over the
features.  Each has its own conjugate gradient steps, step length and damping, so no output waits for the hardest.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from .continuation import descend, is_flat
from .curvature import Curvature
from .first_order import accelerate
from .line_search import search
from .newton import Direction, curvature_moments, newton_direction, prox_point
from .problem import Problem
from .screening import Screen
from .solution import Outcome, Progress, Solution, TracePoint
from .splitting import MOST_FEATURES, split_steps
from .state import DAMPING, State, working_dtype
from .work import Work, work_of

__all__ = ["solve_native"]

# Proximal steps from zero, until 10 of them lower the objective by less than a share.  Newton steps before that would be shortened
# much by the line search.
_START_STEPS = 250
_START_SETTLED = 1e-3
# Proximal steps from a warm start.  Its residual predicts several times as many weights as the solution has, and a Newton step that
# admits them all is cut to a hundredth.  These steps move only the features that might get a weight.
_WARM_STEPS = 60
_MANY = 1.2  # predicted weights over current ones
_REPAIR_STEPS = 30  # proximal steps after a Newton step that had to be shortened
_REPAIR_SETTLED = 1e-3
_CG_PRODUCTS = 500  # early steps stop sooner; at P=4096 a limit of 150 made the last steps gain a digit in six instead of one
_MOST_DAMPING = 1e3
_FLOAT32_ITERATIONS = 40  # well-posed programs need half as many; longer solves suffer from float32's rounding
_STALLS = 4
_EVALUATION = 4  # cost of an evaluation in products: two passes in float64
_SEARCH = 8  # cost of a Newton step besides conjugate gradients: moments, right-hand side, line search and evaluation
_NEARLY = 10.0  # times the tolerance: within it one more step suffices, and a smaller program costs as much as it saves
# Slow Newton steps: after 20 of them the gap is more than half of the gap 10 steps before.
_CREEP_AFTER = 20
_CREEP_OVER = 10
_CREEP_SHARE = 0.5


def solve_native(
    problem: Problem,
    *,
    tol: float = 1e-6,
    start: tuple[Tensor, Tensor] | None = None,
    max_iterations: int = 200,
    time_limit: float = math.inf,
    progress: Progress | None = None,
    escape: bool = True,
    step: float | None = None,
    work: Work | None = None,
) -> Solution:
    """Solve the program to a relative gap of ``tol``.

    Args:
        problem: the program.
        tol: relative duality gap at which to stop.
        start: (W, b) warm start, e.g. the solution for a neighbouring strength; default zero.
        max_iterations: maximum number of outer (Newton) iterations.
        time_limit: seconds after which to stop with the best point so far.
        progress: called with every certified point.
        escape: continue from the solution for a larger strength if the loss is flat, and by splitting if Newton steps are slow;
            each once.
        step: initial length of the proximal steps, from the solution for a neighbouring strength; None estimates it.
        work: earlier work on the same program, to which this solve's is added, and its limit; default none, and no limit.

    Returns:
        The best certified point, whatever the outcome.
    """
    began, work = time.perf_counter(), work or work_of(problem)
    before = work.done
    first = problem.evaluate(*(start if start is not None else problem.zero_point()))
    work.add(_EVALUATION)
    if start is not None and not first.objective <= problem.zero_loss:
        start, first = None, problem.evaluate(*problem.zero_point())  # worse than zero, e.g. from other data
    state = State(first, working_dtype(problem), tol, work, scale=step, deadline=began + time_limit, lower=first.dual)
    screen = Screen(problem)
    best, trace = state.point, [state.trace_point(problem, began)]
    outcome = Outcome.ITERATION_LIMIT
    iterations = 0
    detour = 0
    split = escape
    for iterations in range(max_iterations + 1):
        if progress is not None:
            progress(trace[-1])
        if state.gap <= tol * problem.zero_loss and screen.narrowed:
            best = state.move_to(screen.widen(state.point))
            problem = screen.problem
        if state.gap <= tol * problem.zero_loss:
            outcome = Outcome.CONVERGED
            break
        if work.over or problem.design.shards.decided(time.perf_counter() - began > time_limit):
            outcome = Outcome.WORK_LIMIT if work.over else Outcome.TIME_LIMIT
            break
        _take_over(state, iterations)
        if state.stalled >= _STALLS:
            outcome = Outcome.STALLED
            break
        if iterations + detour >= max_iterations:
            break
        if escape and iterations + 1 < max_iterations and (iterations or start) and is_flat(state.point):
            escape = False
            detour = _escape(problem, state, max_iterations - iterations - 1)
        elif split and _creeps(problem, trace) and work.left > work.eigendecomposition():
            split = False
            _split(problem, state)
        else:
            _step(problem, state, begins=iterations == 0, cold=start is None)
        if not math.isfinite(state.point.objective):
            outcome = Outcome.NON_FINITE
            break
        state.lower = max(state.lower, state.point.dual)
        trace.append(state.trace_point(problem, began))
        if state.point.objective < best.objective:
            best = state.point
            if state.gap > _NEARLY * tol * problem.zero_loss and (narrower := screen.narrow(best)) is not None:
                best, problem = state.move_to(*narrower), screen.problem
    best, problem = screen.widen(best), screen.problem
    certificate = problem.certificate(best.objective, max(best.dual, state.lower), tol)
    seconds = time.perf_counter() - began
    iterations += detour
    trail, products = tuple(trace), work.done - before
    return Solution(best.weight, best.bias, certificate, outcome, "native", iterations, seconds, trail, products, state.scale)


def _escape(problem: Problem, state: State, max_iterations: int) -> int:
    """Restart from the solution for a larger strength, if there is such a strength; return the number of iterations."""
    above = descend(problem, solve_native, max_iterations, state.deadline - time.perf_counter(), state.work)
    if above is None:
        return 0
    point, dtype = problem.evaluate(above.weight, above.bias), working_dtype(problem)
    fresh = State(point, dtype, state.tol, state.work, deadline=state.deadline, lower=state.lower)
    state.__dict__.update(fresh.__dict__)
    return above.iterations


def _creeps(problem: Problem, trace: list[TracePoint]) -> bool:
    """Return True if Newton steps are so slow that splitting is worth an eigendecomposition of the Gram matrix of all features."""
    if problem.design.shards.spread or problem.design.num_features > MOST_FEATURES or len(trace) <= _CREEP_AFTER:
        return False
    if not problem.penalty.sparse:  # splitting corrects wrongly predicted zeros, and there are none
        return False
    if not problem.design.shared:  # would need an eigendecomposition for each output
        return False
    return trace[-1].relative_gap > _CREEP_SHARE * trace[-1 - _CREEP_OVER].relative_gap


def _split(problem: Problem, state: State) -> None:
    """Continue by splitting: loss and penalty have separate weights, which converge to each other."""
    found = split_steps(problem, state.point, tol=state.tol, deadline=state.deadline, work=state.work)
    state.lower = max(state.lower, found.lower)
    state.move_to(found.point)
    state.damping, state.stalled = DAMPING, 0


def _take_over(state: State, iterations: int) -> None:
    """Switch to float64 if float32 stalls, takes too long, or loses nearly collinear features in rounding."""
    if state.dtype is torch.float32 and (state.lost or state.stalled >= _STALLS or iterations == _FLOAT32_ITERATIONS):
        state.dtype, state.stalled = torch.float64, 0
        state.whole.clear()


def _first_order(problem: Problem, state: State, steps: int, index: Tensor | None, settled: float = 0.0) -> None:
    """Take proximal steps from the current point on the features ``index``, which must contain the support; None means all."""
    if index is not None:
        columns = problem.design.columns(index, state.dtype)
    else:
        if not state.whole:
            state.whole.append(problem.design.columns(None, state.dtype))
        columns = state.whole[0]
    weight, active = (state.point.weight if index is None else state.point.weight[:, index]), columns.matrix.shape[1]
    run = accelerate(
        problem,
        columns,
        weight.to(state.dtype),
        state.point.bias.to(state.dtype),
        int(min(steps, max(1.0, state.work.fits(active) / 2))),
        scale=state.scale,
        index=index,
        settled=settled,
        deadline=state.deadline,
    )
    state.scale = run.scale
    state.work.add(run.products, active)
    state.work.add(_EVALUATION)
    full = run.weight.double()
    if index is not None:
        full = torch.zeros_like(state.point.weight).index_copy_(1, index, full)
    moved = problem.evaluate(full, run.bias)
    if not moved.objective > state.point.objective:
        state.point = moved


def _moments(problem: Problem, state: State, curvature: Curvature) -> Tensor:
    """Return the curvature of every weight, updated when the gap has fallen."""
    if state.moments is None or state.point.gap < 0.3 * state.moments_gap:
        state.moments, state.moments_gap = curvature_moments(problem, curvature), state.point.gap
    return state.moments


def _step(problem: Problem, state: State, begins: bool, cold: bool) -> None:
    """Take a Newton step, or proximal steps at the beginning, where Newton steps would be shortened much."""
    if begins and cold:
        _first_order(problem, state, _START_STEPS, None, _START_SETTLED)
    elif begins and (working := _admits_many(problem, state)) is not None:
        _first_order(problem, state, _WARM_STEPS, working)
    else:
        _newton(problem, state)


def _admits_many(problem: Problem, state: State) -> Tensor | None:
    """Return the working set of a Newton step if that step would admit many more weights than there are now, else None."""
    moments = _moments(problem, state, problem.loss.curvature(state.point.scores, problem.targets))
    ahead = prox_point(problem, state.point, moments)
    if int((ahead != 0).sum()) <= _MANY * int((state.point.weight != 0).sum()):
        return None
    return _working_set(ahead, state.point.weight)


def _working_set(ahead: Tensor, weight: Tensor) -> Tensor:
    """Return the features with a weight, now or at the proximal point."""
    return ((ahead != 0).any(0) | (weight != 0).any(0)).nonzero()[:, 0]


def _newton(problem: Problem, state: State) -> None:
    """Take a Newton step with a projected line search; much shortened or refused steps are followed by proximal steps."""
    before = state.point
    relative = max(before.gap / problem.zero_loss, 0.0)
    curvature = problem.loss.curvature(before.scores, problem.targets)
    moments = _moments(problem, state, curvature)
    direction = newton_direction(
        problem,
        before,
        prox_point(problem, before, moments),
        curvature,
        _column(state.damping) * min(relative, 1.0) * moments,
        dtype=state.dtype,
        tol=_accuracy(relative, state.tol),
        max_products=int(min(_CG_PRODUCTS, max(1.0, state.work.fits() / 2))),
        each=state.each,
    )
    _count(state, direction)
    state.each = state.each or direction.hard
    sizes, state.point = search(problem, state.point, direction)
    # Levenberg-Marquardt: along flat directions damping alone decides the step, so full steps reduce it.  A group norm has
    # curvature itself, and keeping the initial damping saves products.
    short, factor = sizes < 0.3, torch.ones_like(sizes)
    if problem.penalty.separable:
        factor[sizes == 1] = 0.25
    factor[short] = 4.0
    state.damping = (state.damping * factor).clamp_max(_MOST_DAMPING)
    if bool(short.any()):
        working = _working_set(direction.ahead, state.point.weight)
        _first_order(problem, state, _REPAIR_STEPS, working if len(working) else None, _REPAIR_SETTLED)
    improved = state.point.gap < before.gap or state.point.objective < before.objective - 1e-13 * abs(before.objective)
    state.stalled = 0 if improved else state.stalled + 1
    state.lost = direction.products >= _CG_PRODUCTS and state.point.gap > before.gap


def _count(state: State, direction: Direction) -> None:
    """Add the work of a Newton step: products on the active features, one matrix for all outputs or one for each, and passes."""
    state.work.add(2 * direction.products, max(direction.active, default=0))
    for active in direction.active:
        state.work.add_inverse(active)
    state.work.add(_SEARCH)


def _column(damping: Tensor | float) -> Tensor | float:
    return damping[:, None] if isinstance(damping, Tensor) else damping


def _accuracy(relative: float, tol: float) -> float:
    """Return the factor by which conjugate gradients lower the residual: loose at first, then tied to the gap (Eisenstat-Walker).

    It is never tighter than the tolerance needs: the dual point's error is proportional to the residual.
    """
    schedule = 0.3 * math.sqrt(relative)
    return min(0.1, max(1e-3, schedule, 0.3 * tol / max(relative, tol)))
