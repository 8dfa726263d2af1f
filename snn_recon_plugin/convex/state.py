"""Where the native solver's iteration stands, and the precision that it works in."""

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

DAMPING = 0.3  # at first, per unit of relative gap and curvature: vanishes at the solution, where steps converge fast
_FLOAT32_RANGE = 1e6  # larger features would overflow or lose all precision when squared in float32
_FLOAT32_BOUND = 1e2  # a loss that bends more sharply tells scores apart that float32 does not


@dataclass
class State:
    """Where the iteration stands."""

    point: Evaluation
    dtype: torch.dtype
    tol: float
    work: Work
    whole: list[Columns] = field(default_factory=list)  # all columns, filled on first use: a warm start often needs none
    scale: float | None = None  # step length of the proximal steps
    moments: Tensor | None = None  # curvature of every weight, and the gap at which it was computed
    moments_gap: float = math.inf
    damping: Tensor | float = DAMPING  # of each output where they are apart
    each: bool = False  # whether each output has a preconditioner of its own
    stalled: int = 0
    lost: bool = False  # conjugate gradients did not get to the end of a step, and the step brought nothing
    deadline: float = math.inf  # of time.perf_counter
    lower: float = -math.inf  # the best dual value of all points so far: it bounds the optimum, whatever point it came from

    @property
    def gap(self) -> float:
        """How far the current point can be from optimal."""
        return self.point.objective - max(self.lower, self.point.dual)

    def move_to(self, point: Evaluation, kept: Tensor | None = None) -> Evaluation:
        """Goes on from the same point in a program of the features ``kept`` (K,) alone; None: of all of them."""
        self.point = point
        if kept is None or self.moments is None:
            self.moments, self.moments_gap = None, math.inf
        else:
            self.moments = self.moments[..., kept]
        self.whole.clear()
        return point

    def trace_point(self, problem: Problem, began: float) -> TracePoint:
        """The point as a solution's trace has it."""
        point = self.point
        active = int((problem.penalty.neuron_sizes(point.weight) > 0).sum())
        return TracePoint(time.perf_counter() - began, point.objective, self.gap / problem.zero_loss, active)


def working_dtype(problem: Problem) -> torch.dtype:
    """float32 for the inner iterations, unless the features are too large or the loss too sharp for it."""
    largest = float((problem.design.variance + problem.design.mean.square()).max()) ** 0.5
    return torch.float32 if largest < _FLOAT32_RANGE and problem.loss.bound < _FLOAT32_BOUND else torch.float64
