"""Solvers of readout programs, one algorithm a file; a new one is a class in its file, and an entry here."""

from .augmented_lagrangian import AugmentedLagrangian
from .cvxpy import Cvxpy
from .fista import Fista
from .highs import Highs
from .newton import Newton
from .solver import Outcome, Progress, Solution, Solver, Start, Statistics, TracePoint

__all__ = ["SOLVERS", "Outcome", "Progress", "Solution", "Solver", "Start", "Statistics", "TracePoint"]

_ALL: tuple[Solver, ...] = (Newton(), Fista(), AugmentedLagrangian(), Highs(), Cvxpy("clarabel"), Cvxpy("scs"))
SOLVERS: dict[str, Solver] = {solver.name: solver for solver in _ALL}
