"""Convex programs of readouts: tensors in, tensors out.  This package knows nothing about networks."""

from ..distributed import Shards
from ..tables import Tables
from .certificate import Certificate
from .curvature import Curvature
from .descent import descend_on_grid
from .features import Features
from .filtered import FilteredFeatures
from .grid import Grid, GridPoint, round_columns
from .loss import Loss
from .losses import CrossEntropy, Logistic
from .margins import Hinge, SquaredHinge
from .path import HeldOutRows, Path, PathPoint, PathSettings, solve_path, strengths_below
from .penalties import L1, GroupL1, NewtonPenalty, Penalty, Ridge
from .problem import Problem, accuracy_of
from .registry import LOSSES, PENALTIES, make_loss, make_penalty
from .residuals import Huber, Squared
from .solve import SOLVER_NAMES, check_solver, solve
from .solvers import SOLVERS, Outcome, Solution, Solver, Start, Statistics, TracePoint

__all__ = [
    "L1",
    "LOSSES",
    "PENALTIES",
    "SOLVERS",
    "SOLVER_NAMES",
    "Certificate",
    "CrossEntropy",
    "Curvature",
    "Features",
    "FilteredFeatures",
    "Grid",
    "GridPoint",
    "GroupL1",
    "HeldOutRows",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "NewtonPenalty",
    "Outcome",
    "Path",
    "PathPoint",
    "PathSettings",
    "Penalty",
    "Problem",
    "Ridge",
    "Shards",
    "Solution",
    "Solver",
    "Squared",
    "SquaredHinge",
    "Start",
    "Statistics",
    "Tables",
    "TracePoint",
    "accuracy_of",
    "check_solver",
    "descend_on_grid",
    "make_loss",
    "make_penalty",
    "round_columns",
    "solve",
    "solve_path",
    "strengths_below",
]
