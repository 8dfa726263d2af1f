"""Strength path: warm-started solves from the critical strength down, of which the best on held-out samples is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .features import Features
from .problem import Problem, accuracy_of
from .solve import solve
from .solvers.solver import Solution

PATIENCE = 2  # the held-out loss is smooth along the path: if two points together gain nothing, the best is behind
_RESOLVED = 0.03  # gap of a solve over the held-out loss's standard error: strengths are compared on the same samples
_WORTH = 0.1  # required gain in that error: on a plateau smaller strengths cost solves and move weights far
_FINEST, _COARSEST = 1e-4, 1e-3


@dataclass(frozen=True)
class PathPoint:
    """One strength of the path.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, HeldOutRows, Problem, solve_path
        >>> matrix, labels = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> problem, heldout = Problem(Features(matrix), labels), HeldOutRows(matrix, labels)
        >>> point = solve_path(problem, heldout, strengths=(0.1,)).points[0]
        >>> point.strength, point.solution.certificate.reached
        (0.1, True)
    """

    strength: float  # factor of the penalty
    solution: Solution  # certified on the fitted samples, to the path's tolerance
    heldout_loss: float  # mean on the held-out samples
    heldout_error: float  # standard error of that mean over the held-out samples; NaN for a single sample
    heldout_accuracy: float  # share of correct predictions, 0 to 1; NaN for regression
    active: int  # number of hidden neurons in use


@dataclass(frozen=True)
class Path:
    """Points in order of falling strength, and the best of them.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, HeldOutRows, Problem, solve_path
        >>> matrix, labels = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> path = solve_path(Problem(Features(matrix), labels), HeldOutRows(matrix, labels))
        >>> path.chosen is path.points[path.best]
        True
    """

    points: tuple[PathPoint, ...]
    best: int  # index of the point with the least held-out loss; no later point is lower by a tenth of its standard error

    @property
    def chosen(self) -> PathPoint:
        """Best point."""
        return self.points[self.best]


def strengths_below(problem: Problem, count: int = 12) -> list[float]:
    """Return ``count`` strengths in equal ratios: 0.5 to 1e-4 of the critical one, for ridge 0.02 to 1e-6 of the largest."""
    top = problem.critical_strength() or 1.0  # without any information in the features all weights are zero at every strength
    first, last = (math.log(0.5), math.log(1e-4)) if problem.penalty.sparse else (math.log(0.02), math.log(1e-6))
    return [top * math.exp(first + (last - first) * k / max(1, count - 1)) for k in range(count)]


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that are not fitted, by which a path chooses.

    Args:
        features: (m, P), or in the form that the problem's features have.
        targets: in the form that ``Problem`` takes.
        bias_column: as for the problem's features; default 1.0.
        weights: (m,) weights of the rows; None (default) weighs all equally.
        rows_per_sample: number of consecutive rows that are one sample's steps; default 1.  The standard error is over samples.

    Example:
        >>> HeldOutRows(torch.eye(2), torch.tensor([0, 1])).rows_per_sample
        1
    """

    features: Tensor
    targets: Tensor
    bias_column: float | Tensor | None = 1.0
    weights: Tensor | None = None
    rows_per_sample: int = 1

    def prepared(self, problem: Problem) -> Tensor:
        """Return the targets in the form of the problem's loss; raise a DataError for rows that don't fit the problem."""
        targets = problem.loss.prepare(self.targets.to(problem.features.device), problem.num_outputs)
        if len(targets) != len(self.features):
            found = f"{len(targets)} held-out targets for {len(self.features)} samples"
            raise DataError(found, "one target a sample", "pass the targets of the held-out samples")
        zeros = problem.features.scores_of(self.features, self.bias_column, *problem.zero_point())
        if not bool(torch.isfinite(zeros).all()):
            raise DataError("held-out features that are NaN or infinite", "finite features", "clean the held-out samples")
        weights, rows = self.weights, self.rows_per_sample
        if (weights is not None and weights.shape != (len(targets),)) or rows < 1 or len(targets) % rows:
            shape = None if weights is None else tuple(weights.shape)
            found = f"weights of shape {shape} and {rows} rows a sample for {len(targets)} held-out rows"
            raise DataError(found, "one weight a row, and as many rows of every sample", "check weights and rows_per_sample")
        return targets


def solve_path(
    problem: Problem,
    heldout: HeldOutRows,
    *,
    strengths: Sequence[float] | None = None,
    tol: float | None = None,
    solver: str = "auto",
    patience: float = PATIENCE,
    max_products: float = math.inf,
    start: tuple[Tensor, Tensor] | None = None,
    progress: Callable[[PathPoint], None] | None = None,
) -> Path:
    """Solve along falling strengths, until the held-out loss no longer falls.

    Args:
        problem: program on the samples to fit; its own strength is not used.
        heldout: rows that are not fitted.
        strengths: in falling order; default: 12 in equal ratios, from 0.5 to 1e-4 of the critical strength, for ridge from 0.02 to
            1e-6 of it.
        tol: relative gap of every solve.  Default: 1e-4 for the first, then a few hundredths of the standard error of the
            held-out loss, from 1e-4 to 1e-3.  A choice between strengths needs no more accuracy than that loss resolves.
        solver: as for ``solve``; default "auto".
        patience: the path ends unless so many strengths together lower the loss by a tenth of its standard error; default 2.
        max_products: bound on the work of all solves together, as for ``solve``; default none.  The path ends when it is reached.
        start: (W, b) warm start of the first solve, (C, P) and (C,); default zero.
        progress: called with each point.

    Returns:
        The points of the path, and the best of them.

    Raises:
        DataError: held-out targets that don't fit the loss or the features; features of another number, or that are not finite.
        OptionError: no strengths, or one that is not positive.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, HeldOutRows, Problem, solve_path
        >>> matrix, labels = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> path = solve_path(Problem(Features(matrix), labels), HeldOutRows(matrix, labels), strengths=(0.1, 0.01))
        >>> path.chosen.strength, path.chosen.solution.certificate.reached
        (0.01, True)
    """
    strengths = strengths_below(problem) if strengths is None else strengths
    if not len(strengths):
        raise OptionError("strengths=[]", "at least one strength", "pass strengths=None for the default ones")
    targets, features = heldout.prepared(problem), problem.features
    points: list[PathPoint] = []
    best, accuracy = 0, _FINEST if tol is None else tol
    for strength in strengths:
        here = problem.with_strength(strength)
        begin = points[-1].solution.as_start() if points else start
        solution = solve(here, solver=solver, tol=accuracy, start=begin, max_products=max_products)
        scores = features.scores_of(heldout.features, heldout.bias_column, solution.weight, solution.bias)
        mean, error = _mean(problem.loss.value(scores, targets), heldout.weights, heldout.rows_per_sample, features)
        counted = None if heldout.weights is None else heldout.weights > 0
        right = accuracy_of(problem.loss, scores, targets, features, counted) if problem.classifies else math.nan
        points.append(PathPoint(strength, solution, mean, error, right, solution.statistics.trace[-1].active))
        if progress is not None:
            progress(points[-1])
        if _falls(points[-1], points[best]):
            best = len(points) - 1
        max_products -= solution.statistics.products
        if max_products <= 0 or (len(points) > patience and not _falls(points[-1], points[-1 - int(patience)])):
            break
        if tol is None and error > 0:  # NaN for a single sample
            accuracy = max(_FINEST, min(_COARSEST, _RESOLVED * error / problem.zero_loss))
    return Path(tuple(points), best)


def _falls(now: PathPoint, before: PathPoint) -> bool:
    # Python's max takes 0.0 over NaN, the error of a single sample.
    return math.isnan(before.heldout_loss) or now.heldout_loss < before.heldout_loss - _WORTH * max(0.0, now.heldout_error)


def _mean(values: Tensor, weights: Tensor | None, rows: int, features: Features) -> tuple[float, float]:
    """Return the weighted mean of values (m,) and its standard error; ``rows`` consecutive values are one sample."""
    weights = (torch.ones_like(values) if weights is None else weights.to(values)).reshape(-1, rows)
    values = values.reshape(-1, rows)
    own = torch.stack([weights.sum(), (weights * values).sum(), (weights.sum(1) > 0).sum().to(values)])
    total, summed, count = features.shards.sum(own).tolist()
    if not total:
        return math.nan, math.nan
    apart = (weights * (values - summed / total)).sum(1)
    squares = float(features.shards.sum(apart.square().sum()))
    return summed / total, math.sqrt(squares * count / (count - 1)) / total if count > 1 else math.nan
