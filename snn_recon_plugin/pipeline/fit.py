"""Readout weights from captured features: choose a strength on held-out samples, then solve on all samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..convex import Features, FilteredFeatures, Loss, Path, PathPoint, Problem, Solution, solve, solve_path
from ..convex.distributed import ALONE, Alone
from ..convex.path import strengths_below
from ..errors import DataError
from .data import Split
from .rows import Rows

__all__ = ["Chosen", "Fit", "choose_strength", "fit_readout"]

_MANY, _SOME = 20_000, 8_000  # above the first number of samples, the strength is first sought on the second
_PATH_SHARE = 0.5  # of the products, for the path; the solve on all samples takes the rest
_STEPS_ABOVE = 2  # steps of a path from its start to the previous best strength


@dataclass(frozen=True)
class Fit:
    """Readout fitted on all samples.

    Args:
        problem: the program on all samples, at the strength used.
        solution: its certified solution.
        path: strength path on the fitted part, None for a given strength.
        trial: point fitted without the held-out samples, at the same strength.
    """

    problem: Problem
    solution: Solution
    path: Path | None
    trial: PathPoint


@dataclass(frozen=True)
class Chosen:
    """Program with a chosen strength, before the solve on all samples.

    Args:
        problem: the program on all samples, at that strength.
        path: strength path on the fitted part, None for a given strength.
        trial: point fitted without the held-out samples, at that strength.
        start: (W, b) to start from.
        solver: name.
        tol: relative gap.
        max_products: bound on the work.
    """

    problem: Problem
    path: Path | None
    trial: PathPoint
    start: tuple[Tensor, Tensor]
    solver: str
    tol: float
    max_products: float

    def solve(self) -> Fit:
        """Solve it on all samples."""
        solution = solve(self.problem, solver=self.solver, tol=self.tol, start=self.start, max_products=self.max_products)
        return Fit(self.problem, solution, self.path, self.trial)


def fit_readout(features: Tensor, targets: Tensor, split: Split, **options: Any) -> Fit:
    """Fit a readout; arguments as for ``choose_strength``."""
    return choose_strength(features, targets, split, **options).solve()


def choose_strength(
    features: Tensor,
    targets: Tensor,
    split: Split,
    *,
    num_outputs: int,
    bias_column: float | Tensor | None,
    loss: str | Loss,
    penalty: str,
    strength: float | str,
    solver: str,
    tol: float,
    rows: Rows | None = None,
    filters: Tensor | None = None,
    weights: Tensor | None = None,
    shards: Alone = ALONE,
    start: tuple[Tensor, Tensor] | None = None,
    previous: float | None = None,
    progress: Callable[[PathPoint], None] | None = None,
    max_products: float = math.inf,
) -> Chosen:
    """Choose a readout's strength by held-out samples.

    Args:
        features: (n, P), or (n, T, P) if every step is a row; with ``filters`` (n, K, P) or (n, T, K, P).
        targets: of the n samples, in the user's form.
        split: of the samples.
        num_outputs: C.
        bias_column: change of a score by one unit of bias: a number, (T,) if every step is a row, (n,) if samples differ in
            it, with ``filters`` (1, C) or (T, C); None for a readout without a bias.
        loss: name, or the loss itself.
        penalty: name.
        strength: factor of the penalty; "auto" and "one_se" choose it by the held-out loss along a path, see ``Path``.
        solver: name.
        tol: relative gap of the final solve.
        rows: rows of a sample; by default its target holds for all of its rows.
        filters: (C,), index of the feature that each output sees; None if all see the same one.
        weights: (n,) weights of the samples, (n, T) if steps have targets, or None.
        shards: processes that share the samples; by default this one has all of them.
        start: (W, b) to start from, e.g. the network's own; default zero.
        previous: best strength of an earlier solve: with "auto" the path begins a little above it.
        progress: called with each point of the path.
        max_products: bound on the work of path and final solve together, as for ``solve``.

    Raises:
        DataError: labels don't fit, a single class, or features that are the same for all samples.
    """
    rows = rows or Rows(features.shape[1] if features.dim() == 3 else 1)
    _check_classes(rows.targets(targets), shards)
    samples = _Samples(features, targets, bias_column, weights, rows, shards, filters)
    fitted, heldout = samples.part(split.fitted), samples.part(split.heldout)
    full = samples.problem(loss, penalty, num_outputs)
    if float(full.features.variance.max()) == 0.0:
        found = "features that are the same for every sample"
        raise DataError(found, "spikes that differ between samples", "check the inputs and the hidden layers")
    part, column = fitted.problem(loss, penalty, num_outputs), heldout.column()

    def follow(problem: Problem, strengths: list[float] | None, start: tuple[Tensor, Tensor] | None, **options: Any) -> Path:
        return solve_path(
            problem,
            heldout.flat(),
            rows.targets(heldout.targets),
            strengths=strengths,
            choice=strength if isinstance(strength, str) else "auto",
            rows_per_sample=rows.each,
            solver=solver,
            bias_column=0.0 if column is None else column,
            weights=rows.weights(heldout.weights),
            start=start,
            max_products=_PATH_SHARE * max_products,
            **options,
        )

    fewer = fitted.fewer() if strength == "auto" and previous is None else None
    if not isinstance(strength, str):
        path = follow(part, [strength], start, progress=progress)
    elif previous is not None and strength == "auto":
        grid = strengths_below(part)
        strengths = [previous * each / grid[_STEPS_ABOVE] for each in grid]
        path = follow(part, strengths, start, patience=1, progress=progress)
    elif fewer is None:
        path = follow(part, None, start, progress=progress)
    else:
        # The best strength falls as samples grow in number: the path on all begins one step below the best of the part.
        begin = follow(fewer.problem(loss, penalty, num_outputs), None, start).chosen
        grid = strengths_below(part)
        strengths = [begin.strength * grid[k] / grid[0] for k in range(1, len(grid))]
        path = follow(part, strengths, (begin.solution.weight, begin.solution.bias), patience=1, progress=progress)
    trial = path.chosen
    problem = full.with_strength(trial.strength)
    known = trial.solution.weight, trial.solution.bias
    if start is not None and problem.primal(*start)[0] < problem.primal(*known)[0]:
        known = start  # e.g. a readout that was trained on the held-out samples, too
    taken = sum(point.solution.statistics.products for point in path.points)
    left = max(max_products - taken, (1 - _PATH_SHARE) * max_products)
    return Chosen(problem, path if isinstance(strength, str) else None, trial, known, solver, tol, left)


@dataclass(frozen=True)
class _Samples:
    """Samples with their rows in the program."""

    features: Tensor
    targets: Tensor
    bias_column: float | Tensor | None
    weights: Tensor | None
    rows: Rows
    shards: Alone
    filters: Tensor | None = None

    def part(self, index: Tensor) -> _Samples:
        index = index.to(self.features.device)
        weights, column = None if self.weights is None else self.weights[index], self.bias_column
        if isinstance(column, Tensor) and self._each_sample:
            column = column.to(index.device)[index]
        # Indexing would lay out the features of a sample's filters beside each other.
        kept = self.features[index] if self.filters is None else self.features.movedim(-2, 0)[:, index].movedim(0, -2)
        return _Samples(kept, self.targets[index], column, weights, self.rows, self.shards, self.filters)

    @property
    def _each_sample(self) -> bool:
        """True for a bias column of samples, not of steps or outputs."""
        return self.filters is None and self.features.dim() == 2

    def fewer(self) -> _Samples | None:
        """Return a random part if there are more samples than a strength needs; None if not, or if a class would be missing."""
        count = len(self.targets)
        shards = self.shards
        device = self.features.device
        total = int(shards.total(torch.tensor(count, device=device)))
        if total <= _MANY:
            return None
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        some = self.part(order[: -(-count * _SOME // total)].sort().values)
        missing = _values(some.targets) < _values(self.targets)
        return None if shards.total(torch.tensor(float(missing), device=device)) > 0 else some

    def column(self) -> float | Tensor | None:
        if not isinstance(self.bias_column, Tensor):
            return self.bias_column
        column = self.bias_column.to(self.features.device)
        if self._each_sample:
            return column
        return column.repeat(len(self.features)) if column.dim() == 1 else column.repeat(len(self.features), 1)

    def flat(self) -> Tensor:
        """Return the features of all rows, (N, P), or (N, K, P) with filters."""
        return self.features.reshape(-1, *self.features.shape[-1 if self.filters is None else -2 :])

    def problem(self, loss: str | Loss, penalty: str, num_outputs: int) -> Problem:
        weights = self.rows.weights(self.weights)
        if self.filters is None:
            design = Features(self.flat(), self.column(), weights, shards=self.shards)
        else:
            design = FilteredFeatures(self.flat(), self.filters, self.column(), weights, shards=self.shards)
        return Problem(design, self.rows.targets(self.targets), loss=loss, penalty=penalty, num_outputs=num_outputs)


def _values(targets: Tensor) -> int:
    """Return the number of classes, or of outputs with both labels 0 and 1; 0 if targets are no labels."""
    if targets.dim() >= 2 and bool(((targets == 0) | (targets == 1)).all()):
        flat = targets.flatten(0, -2)
        return int((flat.amax(0) != flat.amin(0)).sum())
    return 0 if targets.is_floating_point() else len(torch.unique(targets))


def _check_classes(targets: Tensor, shards: Alone) -> None:
    """Refuse labels of a single class, for which the best bias is infinite."""
    if targets.dim() != 1 or targets.is_floating_point():
        return
    ends = torch.stack([targets.long().max(), -targets.long().min()])
    if int(shards.largest(ends).sum()) == 0:
        found = f"a single class, {int(targets[0])}, in all {len(targets)} labels"
        raise DataError(found, "at least two classes", "pass a loader over all classes")
