"""Result of a solver: the point, its certificate, the reason for stopping, and the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from .certificate import Certificate

__all__ = ["Outcome", "Progress", "Solution", "TracePoint"]


class Outcome(Enum):
    """Reason why a solver stopped; each value is a sentence that a person can act on.

    Example:
        >>> Outcome.CONVERGED.value
        'The relative gap is at most the tolerance.'
    """

    CONVERGED = "The relative gap is at most the tolerance."
    ITERATION_LIMIT = "The iteration limit came first: raise max_iterations, or loosen tol."
    TIME_LIMIT = "The time limit came first: raise time_limit, or loosen tol."
    WORK_LIMIT = "The bound on work came first: raise it (max_cost, or max_products of solve), or loosen tol."
    STALLED = "Rounding stopped all progress above the tolerance: loosen tol, or scale the features."
    NON_FINITE = "The iterates stopped being finite: scale the features, or raise the strength."
    BACKEND = "The backend reports an optimum, but its point misses the tolerance: lower its own tolerances, or use 'native'."


@dataclass(frozen=True)
class TracePoint:
    """Certified point during a solve.

    Args:
        seconds: wall-clock since the solve began.
        objective: primal objective.
        relative_gap: certified in float64 at this point.
        active: number of hidden neurons with a non-zero outgoing weight.
    """

    seconds: float
    objective: float
    relative_gap: float
    active: int


Progress = Callable[[TracePoint], None]


@dataclass(frozen=True)
class Solution:
    """Solved program.

    Args:
        weight: (C, P) float64, for features as given.
        bias: (C,) float64.
        certificate: for exactly this point.
        outcome: reason why the solver stopped.
        solver: name of the solver.
        iterations: iterations of the outer loop.
        seconds: wall-clock.
        trace: certified points in order.
        products: work done, in products with all features, see convex/work.py; native solver only.
        step: length of the last proximal steps, for a program that differs in its strength alone; None if there were none.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Design, Problem, solve
        >>> features, labels = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> solution = solve(Problem(Design(features), labels, strength=0.01))
        >>> solution.weight.shape, solution.bias.shape, solution.solver
        (torch.Size([2, 4]), torch.Size([2]), 'native')
    """

    weight: Tensor
    bias: Tensor
    certificate: Certificate
    outcome: Outcome
    solver: str
    iterations: int
    seconds: float
    trace: tuple[TracePoint, ...]
    products: float = 0.0
    step: float | None = None
