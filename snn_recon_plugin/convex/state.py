"""State of the native solver's iteration, and its working precision."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .certificate import Evaluation
from .columns import Columns
from .problem import Problem
from .solution import TracePoint
from .work import Work

__all__ = ["DAMPING", "State", "working_dtype"]

DAMPING = 0.3  # initial value, per unit of relative gap and curvature: vanishes at the solution, where steps converge fast
_FLOAT32_RANGE = 1e6  # larger features would overflow or lose all precision when squared in float32
_FLOAT32_BOUND = 1e2  # a loss with larger curvature depends on differences of scores below float32's precision


@dataclass
class State:
    """State of the iteration."""

    point: Evaluation
    dtype: torch.dtype
    tol: float
    work: Work
    whole: list[Columns] = field(default_factory=list)  # all columns, filled on first use: a warm start often needs none
    scale: float | None = None  # step length of the proximal steps
    moments: Tensor | None = None  # curvature of every weight; the next field is the gap at which it was computed
    moments_gap: float = math.inf
    damping: Tensor | float = DAMPING  # one for each output if they are separate
    each: bool = False  # each output has its own preconditioner
    stalled: int = 0
    lost: bool = False  # conjugate gradients did not converge, and their step brought no progress
    deadline: float = math.inf  # value of time.perf_counter
    lower: float = -math.inf  # best dual value of all points so far: a lower bound of the optimum from any point

    @property
    def gap(self) -> float:
        """Bound on the distance of the current objective from the optimum."""
        return self.point.objective - max(self.lower, self.point.dual)

    def move_to(self, point: Evaluation, kept: Tensor | None = None) -> Evaluation:
        """Continue from the same point in a program of the features ``kept`` (K,) alone; None means all features."""
        self.point = point
        if kept is None or self.moments is None:
            self.moments, self.moments_gap = None, math.inf
        else:
            self.moments = self.moments[..., kept]
        self.whole.clear()
        return point

    def trace_point(self, problem: Problem, began: float) -> TracePoint:
        """Return the trace entry of the current point."""
        point = self.point
        active = int((problem.penalty.neuron_sizes(point.weight) > 0).sum())
        return TracePoint(time.perf_counter() - began, point.objective, self.gap / problem.zero_loss, active)


def working_dtype(problem: Problem) -> torch.dtype:
    """Return float32 for the inner iterations; float64 if the features or the loss's curvature are too large for it."""
    largest = float((problem.design.variance + problem.design.mean.square()).max()) ** 0.5
    return torch.float32 if largest < _FLOAT32_RANGE and problem.loss.bound < _FLOAT32_BOUND else torch.float64
