"""Convex programs of readouts: tensors in, tensors out.  This package knows nothing about networks."""

from ..distributed import Shards
from ..tables import Tables
from .features import Features
from .loss import Curvature, Loss
from .losses import LOSSES, CrossEntropy, Hinge, Huber, Logistic, Squared, SquaredHinge, make_loss
from .path import HeldOutRows, Path, PathPoint, solve_path, strengths_below
from .penalties import L1, PENALTIES, GroupL1, Penalty, Ridge, make_penalty
from .problem import Certificate, Problem, accuracy_of
from .solve import SOLVERS, check_solver, solve
from .solvers.solver import Outcome, Solution, Start, TracePoint

__all__ = [
    "L1",
    "LOSSES",
    "PENALTIES",
    "SOLVERS",
    "Certificate",
    "CrossEntropy",
    "Curvature",
    "Features",
    "GroupL1",
    "HeldOutRows",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "Outcome",
    "Path",
    "PathPoint",
    "Penalty",
    "Problem",
    "Ridge",
    "Shards",
    "Solution",
    "Squared",
    "SquaredHinge",
    "Start",
    "Tables",
    "TracePoint",
    "accuracy_of",
    "check_solver",
    "make_loss",
    "make_penalty",
    "solve",
    "solve_path",
    "strengths_below",
]
