"""Choice of a readout's strength on held-out samples, ahead of the solve on all samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..convex import (
    Features,
    HeldOutRows,
    Loss,
    Path,
    PathPoint,
    Problem,
    Solution,
    solve,
    solve_path,
    strengths_below,
)
from ..convex.path import PATIENCE
from ..convex.solvers.newton_step import has_exact_steps
from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import DataError
from ..options import Options
from ..tables import IN_MEMORY, Tables
from .scores import RowsPerSample
from .stream import Split

_SOME = 4_000  # samples of which the strength is sought, if there are more
_MANY_SPARSE, _SOME_SPARSE = 20_000, 8_000  # above the first number, a sparse penalty's is first sought on the second
_PATH_SHARE = 0.5  # of the products, for the path; the solve on all samples takes the rest
_FIRST_TRAINED = 2  # first strength of a path from a trained readout: larger ones take it far from where it is, at twice the work


@dataclass(frozen=True)
class Samples:
    """Samples with their rows in the program."""

    features: Tensor  # (n, P), or (n, T, P) if every step is a row
    targets: Tensor  # in the user's form
    # What one unit of bias adds to a score: a number, or (n,), (n, T) if each step is a row; None for a readout without a bias.
    bias_column: float | Tensor | None
    outputs: int  # scores of a row
    rows: RowsPerSample = field(default_factory=RowsPerSample)
    weights: Tensor | None = None  # (n,), or (n, T) if steps have targets
    shards: SingleProcess = SINGLE_PROCESS  # processes that share the samples
    tables: Tables = IN_MEMORY  # place of copies

    def part(self, index: Tensor) -> Samples:
        """Return some of the samples."""
        index = index.to(self.features.device)
        weights, column = None if self.weights is None else self.weights[index], self.bias_column
        if isinstance(column, Tensor):
            column = column.to(index.device)[index]
        features = self.tables.taken(self.features, index)
        return replace(self, features=features, targets=self.targets[index], bias_column=column, weights=weights)

    def without(self, index: Tensor) -> Samples:
        """Return all samples, some of them with a weight of zero."""
        weights = torch.ones(len(self.targets), dtype=torch.float64, device=self.features.device)
        weights = weights if self.weights is None else self.weights.to(weights)
        return replace(self, weights=weights.index_fill(0, index.to(weights.device), 0.0))

    def random_part(self, sparse: bool, places: Tensor | None = None) -> Samples | None:
        """Return a random part of many samples, with ``places`` (n,) among all; None of few, or if a class would be missing."""
        total, size = self.shards.total_rows(len(self.targets)), _SOME_SPARSE if sparse else _SOME
        if total <= (_MANY_SPARSE if sparse else _SOME):
            return None
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:size]
        taken = torch.zeros(total, dtype=torch.bool).index_fill(0, drawn, True)
        some = self.part((taken if places is None else taken[places]).nonzero()[:, 0])
        missing = _values(some.targets, self.shards) < _values(self.targets, self.shards)
        return None if missing else some

    def column(self) -> float | Tensor | None:
        """Return the bias column of all rows."""
        if not isinstance(self.bias_column, Tensor):
            return self.bias_column
        return self.bias_column.to(self.features.device).flatten()

    def flat(self) -> Tensor:
        """Return the features of all rows, (N, P)."""
        return self.features.reshape(-1, self.features.shape[-1])

    def problem(self, loss: str | Loss, penalty: str) -> Problem:
        """Return the program of a loss and a penalty on these samples."""
        weights = self.rows.weights(self.weights)
        found = Features(self.flat(), self.column(), weights, shards=self.shards, tables=self.tables)
        targets = self.rows.targets(self.targets)
        return Problem(found, targets, loss=loss, penalty=penalty, num_outputs=self.outputs)


def plan_path(strength: float | str, problem: Problem, *, trained: bool) -> tuple[Sequence[float] | None, float]:
    """Return the strengths of a path in falling order, None for all below the critical one, and its patience."""
    if not isinstance(strength, str):
        return [strength], PATIENCE
    return (strengths_below(problem)[_FIRST_TRAINED:], 1) if trained else (None, PATIENCE)


def choose_strength(
    samples: Samples,
    split: Split,
    loss: str | Loss,
    options: Options,
    *,
    readout: str = "",
    max_products: float = math.inf,
    start: tuple[Tensor, Tensor] | None = None,
    progress: Callable[[PathPoint], None] | None = None,
) -> tuple[Problem, Path, Callable[[], Solution]]:
    """Choose a readout's strength by held-out samples, with penalty, strength, solver and tolerance of the options.

    Return the program on all samples at that strength, the path on the fitted part, and a function that solves the program.  The
    path of a number is that one point.  ``max_products`` bounds the work of both.  ``start`` is a point (W, b), the trained
    readout, and ``readout`` its name for messages.
    """
    _check_classes(samples)
    fitted, heldout = samples.part(split.fitted), samples.part(split.heldout)
    full = (samples.without(split.heldout) if split.excludes else samples).problem(loss, options.penalty)
    if float(full.features.variance.max()) == 0.0:
        fix = "check that inputs differ between samples, and are not all zero; if they do, find the layer that never spikes by "
        fix += "print(diagnose(net, loader)), and lower its threshold, or scale its inputs up"
        raise DataError(f"features of {readout!r} that are the same for every sample", "spikes that differ between samples", fix)
    apart = full if split.excludes else samples.without(split.heldout).problem(loss, options.penalty)
    part = apart if has_exact_steps(apart) else fitted.problem(loss, options.penalty)  # Gram matrices go on to the held-out samples

    follow = partial(solve_path, solver=options.solver)
    most = _PATH_SHARE * max_products
    begin, rows = start, samples.rows
    weights = rows.weights(heldout.weights)
    held = HeldOutRows(heldout.flat(), rows.targets(heldout.targets), heldout.column(), weights, rows.each)
    strengths, patience = plan_path(options.strength, part, trained=start is not None)
    searches = options.strength == "auto" and start is None
    some = fitted.random_part(part.penalty.sparse, split.places) if searches else None
    if some is not None:  # of many samples the path begins below the strength that is best on a part
        # The best strength falls as samples grow in number: a ridge's as the root of their number.
        best = follow(some.problem(loss, options.penalty), held, max_products=most, start=start).chosen
        begin = best.solution.weight, best.solution.bias
        share, grid = _SOME / samples.shards.total_rows(len(fitted.targets)), strengths_below(part)
        below = [best.strength * each / grid[0] for each in grid[1:]]
        strengths, patience = below if part.penalty.sparse else [best.strength * share**0.5], 1
    path = follow(part, held, strengths=strengths, patience=patience, max_products=most, start=begin, progress=progress)
    problem = full.with_strength(path.chosen.strength)
    if part is apart and part is not full:
        full.features.continue_from(part.features)
    known = path.chosen.solution.weight, path.chosen.solution.bias
    if start is not None and samples.shards.broadcast_number(problem.primal(*start)[0] < problem.primal(*known)[0]):
        known = start  # e.g. a readout that was trained on the held-out samples, too
    taken = sum(point.solution.statistics.products for point in path.points)
    left = max(max_products - taken, (1 - _PATH_SHARE) * max_products)
    finish = partial(solve, problem, solver=options.solver, tol=options.tol, start=known, max_products=left)
    return problem, path, finish


def _values(targets: Tensor, shards: SingleProcess) -> int:
    """Return the number of classes, or of outputs with both labels 0 and 1, in all processes; 0 if targets are no labels."""
    if targets.dim() >= 2:
        flat = targets.flatten(0, -2)
        seen = torch.stack([(flat == label).any(0) for label in (0, 1)]).cpu()
        parts = shards.gather((bool(((flat == 0) | (flat == 1)).all()), seen))
        return int(torch.stack([part for _, part in parts]).any(0).all(0).sum()) if all(labels for labels, _ in parts) else 0
    if targets.is_floating_point():
        return 0
    return len(set().union(*shards.gather(torch.unique(targets).tolist())))


def _check_classes(samples: Samples) -> None:
    """Refuse labels of a single class, for which the best bias is infinite."""
    targets, shards = samples.rows.targets(samples.targets), samples.shards
    if targets.dim() != 1 or targets.is_floating_point():
        return
    found = set().union(*shards.gather(torch.unique(targets).tolist()))
    if len(found) == 1:
        text = f"a single class, {found.pop()}, in all {shards.total_rows(len(targets))} labels"
        raise DataError(text, "at least two classes", "pass a loader over all classes")
