"""Convex programs of readouts: tensors in, tensors out.  This package knows nothing about networks."""

from .certificate import Certificate
from .choices import LOSSES, PENALTIES, make_loss, make_penalty
from .design import Design
from .filtered import FilteredDesign
from .losses import CrossEntropy, Logistic, Loss, Squared
from .margin import Hinge, SquaredHinge
from .memory import memory_bound
from .multi_margin import MultiMargin, SquaredMultiMargin
from .path import Path, PathPoint, solve_path, strengths_below
from .penalties import L1, GroupL1, Penalty, Ridge
from .problem import Problem, accuracy_of
from .shards import Shards
from .solution import Outcome, Solution, TracePoint
from .solve import SOLVERS, solve
from .sums import Elastic

__all__ = [
    "L1",
    "LOSSES",
    "PENALTIES",
    "SOLVERS",
    "Certificate",
    "CrossEntropy",
    "Design",
    "Elastic",
    "FilteredDesign",
    "GroupL1",
    "Hinge",
    "Logistic",
    "Loss",
    "MultiMargin",
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
    "SquaredMultiMargin",
    "TracePoint",
    "accuracy_of",
    "make_loss",
    "make_penalty",
    "memory_bound",
    "solve",
    "solve_path",
    "strengths_below",
]
