"""Programs of many outputs, solved a block of outputs at a time: no more scores than those of a block are held in memory.

One class against the rest, with a penalty of single weights, is a separate program for each output.  Objectives, bounds and gaps of
the blocks add up to those of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from .budget import PRICE, Budget
from .penalties import column_norms
from .problem import Problem
from .solvers import Outcome, Solution, Start, Statistics, TracePoint
from .solvers.solver import Run

_SCORES = 2**25  # of all rows and outputs at once, 256 MiB in float64; a solve holds several such arrays; not tuned

SolveBlock = Callable[[Problem, Start | None, Budget], Solution]


def output_blocks(problem: Problem) -> list[slice]:
    """Return the outputs of each block; a single one if all scores fit, or if outputs are coupled."""
    outputs, rows = problem.num_outputs, max(1, problem.features.num_samples)
    count = -(-outputs * rows // _SCORES)
    features = problem.features
    if count == 1 or not features.shared or features.shards.is_distributed or not problem.separate:
        return [slice(0, outputs)]
    size = -(-outputs // min(count, outputs))
    return [slice(start, min(start + size, outputs)) for start in range(0, outputs, size)]


def solve_blocks(run: Run, outputs: list[slice], solve: SolveBlock) -> Solution:
    """Solve the blocks one after another, and return the joined solution with the certificate of the whole.

    Progress is reported after each block; outputs yet to be solved count as zero weights, with the bound zero.
    """
    problem, budget, start = run.problem, run.budget, run.start
    weight, bias = problem.zero_point()
    found: list[Solution] = []
    trace: list[TracePoint] = []
    primal, dual = problem.loss_of_zero(), 0.0
    for own in outputs:
        part = problem.of_outputs(own)
        share = max(part.num_outputs, PRICE) / max(problem.num_outputs, PRICE)  # of a product with all outputs
        limit, seconds = budget.left / share / (len(outputs) - len(found)), budget.deadline - time.perf_counter()
        allowed = Budget(part, limit, max(0.0, seconds))
        begin = None if start is None else Start(start.weight[own], start.bias[own], start.step)
        found.append(solve(part, begin, allowed))
        budget.add(allowed.done * share)
        certificate = found[-1].certificate
        weight[own], bias[own] = found[-1].weight, found[-1].bias
        primal, dual = primal + certificate.primal - part.loss_of_zero(), dual + certificate.dual
        active = int((column_norms(weight) > 0).sum())
        trace.append(TracePoint(time.perf_counter() - budget.began, primal, (primal - dual) / problem.zero_loss, active))
        if run.progress is not None:
            run.progress(trace[-1])
    whole = problem.certificate(primal, dual, run.tol)
    first_failure = next((each.outcome for each in found if not each.certificate.reached), Outcome.STALLED)
    outcome = Outcome.CONVERGED if whole.reached else first_failure
    return Solution(weight, bias, whole, outcome, _joined(found, trace, budget))


def _joined(found: list[Solution], trace: list[TracePoint], budget: Budget) -> Statistics:
    first = found[0].statistics
    return replace(
        first,
        iterations=max(each.statistics.iterations for each in found),
        seconds=trace[-1].seconds,
        trace=tuple(trace),
        products=budget.done,
        reason=f"{first.reason}; outputs in {len(found)} blocks".removeprefix("; "),
    )
