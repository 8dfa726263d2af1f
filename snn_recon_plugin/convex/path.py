"""The strength path: warm-started solves from the critical strength down, with held-out samples to choose by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from .problem import Problem, accuracy_of
from .solution import Solution
from .solve import solve

__all__ = ["Path", "PathPoint", "solve_path", "strengths_below"]

_PATIENCE = 2  # the held-out loss is smooth along the path: two rises in a row mean that the best is behind


@dataclass(frozen=True)
class PathPoint:
    """One strength of the path.

    Args:
        strength: the penalty's factor.
        solution: certified on the fitted samples, to the path's tolerance.
        heldout_loss: mean loss on the held-out samples.
        heldout_accuracy: share predicted right, 0 to 1; NaN for regression.
        active: hidden neurons in use.
    """

    strength: float
    solution: Solution
    heldout_loss: float
    heldout_accuracy: float
    active: int


@dataclass(frozen=True)
class Path:
    """Points in order of falling strength, and which has the least held-out loss."""

    points: tuple[PathPoint, ...]
    best: int

    @property
    def chosen(self) -> PathPoint:
        """The point with the least held-out loss."""
        return self.points[self.best]


def strengths_below(problem: Problem, count: int = 12) -> list[float]:
    """``count`` strengths in equal ratios, falling from where the penalty begins to rule.

    For a sparse penalty from half the critical strength down to 1e-4 of it.  Ridge shrinks but never zeroes: there the range ends
    lower, at 1e-6 of the largest strength worth trying.
    """
    top = problem.critical_strength()
    first, last = (math.log(0.5), math.log(1e-4)) if problem.penalty.sparse else (math.log(0.02), math.log(1e-6))
    return [top * math.exp(first + (last - first) * k / max(1, count - 1)) for k in range(count)]


def solve_path(
    problem: Problem,
    heldout_features: Tensor,
    heldout_targets: Tensor,
    *,
    strengths: list[float] | None = None,
    tol: float = 1e-4,
    solver: str = "auto",
    bias_column: float | Tensor = 1.0,
    progress: Callable[[PathPoint], None] | None = None,
) -> Path:
    """Solves along falling strengths until the held-out loss has risen twice in a row.

    Args:
        problem: program on the samples to fit; its own strength plays no part.
        heldout_features: (m, P) features of samples that are not fitted.
        heldout_targets: their targets, in the user's form.
        strengths: in falling order; default: 12 from half the critical strength down to 1e-4 of it.
        tol: relative gap of every solve.  A choice between strengths needs no more than the held-out loss can resolve.
        solver: as for ``solve``.
        bias_column: of the held-out samples.
        progress: called with each point.
    """
    targets = problem.loss.prepare(heldout_targets.to(problem.design.device), problem.num_outputs)
    column = torch.as_tensor(bias_column, dtype=torch.float64, device=problem.design.device)
    if len(targets) != len(heldout_features):
        raise DataError(
            f"{len(targets)} held-out targets for {len(heldout_features)} samples",
            "one target a sample",
            "pass the targets of the held-out samples",
        )
    points: list[PathPoint] = []
    start: tuple[Tensor, Tensor] | None = None
    best, rises = 0, 0
    for strength in strengths if strengths is not None else strengths_below(problem):
        solution = solve(problem.with_strength(strength), solver=solver, tol=tol, start=start)
        start = (solution.weight, solution.bias)
        scores = _scores(heldout_features, *start, column)
        points.append(
            PathPoint(
                strength,
                solution,
                float(problem.loss.value(scores, targets).mean()),
                accuracy_of(problem.loss, scores, targets) if problem.classifies else math.nan,
                solution.trace[-1].active,
            )
        )
        if progress is not None:
            progress(points[-1])
        now, before = points[-1].heldout_loss, points[max(0, len(points) - 2)].heldout_loss
        if now < points[best].heldout_loss or math.isnan(points[best].heldout_loss):
            best = len(points) - 1
        rises = rises + 1 if now > before else 0
        if rises >= _PATIENCE:
            break
    return Path(tuple(points), best)


def _scores(features: Tensor, weight: Tensor, bias: Tensor, column: Tensor) -> Tensor:
    """Scores of held-out samples, block by block in float64."""
    if not bool(torch.isfinite(weight).all()):
        return torch.full((len(features), len(weight)), math.nan, dtype=torch.float64)
    blocks = [features[i : i + 4096].double() @ weight.T for i in range(0, len(features), 4096)]
    return torch.cat(blocks) + (column[:, None] if column.dim() else column) * bias
