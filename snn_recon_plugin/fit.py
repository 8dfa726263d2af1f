"""From captured features to readout weights: split, choose a strength, solve on all samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .convex import Design, Path, PathPoint, Problem, Solution, solve, solve_path, strengths_below
from .errors import DataError

__all__ = ["Fit", "Split", "fit_readout", "split_samples"]

_MIN_SAMPLES = 10


@dataclass(frozen=True)
class Split:
    """Rows to fit and rows held out, int64 indices in ascending order."""

    fitted: Tensor
    heldout: Tensor


@dataclass(frozen=True)
class Fit:
    """A readout fitted on all samples, and what was seen on the way.

    Args:
        problem: the program on all samples, at the strength used.
        solution: its certified solution.
        path: the strength path on the fitted part, or None where the strength was given.
        trial: the point fitted without the held-out samples at the strength used.
    """

    problem: Problem
    solution: Solution
    path: Path | None
    trial: PathPoint


def split_samples(count: int, share: float, seed: int) -> Split:
    """Draws the samples to hold out.

    Args:
        count: number of samples.
        share: share to hold out, 0 to 1; at least one sample.
        seed: of the draw.

    Raises:
        DataError: fewer than 10 samples.
    """
    if count < _MIN_SAMPLES:
        needed = f"at least {_MIN_SAMPLES}, to fit some and compare on others"
        raise DataError(f"{count} samples", needed, "pass a loader with more data")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * count))
    return Split(order[held:].sort().values, order[:held].sort().values)


def fit_readout(
    features: Tensor,
    targets: Tensor,
    split: Split,
    *,
    num_outputs: int,
    bias_column: float | None,
    loss: str,
    penalty: str,
    strength: float | None,
    solver: str,
    tol: float,
    progress: Callable[[PathPoint], None] | None = None,
) -> Fit:
    """Fits a readout.

    Args:
        features: (n, P).
        targets: in the user's form.
        split: which rows are held out.
        num_outputs: C.
        bias_column: what one unit of bias adds to a score; None for a readout without a bias.
        loss: name.
        penalty: name.
        strength: the penalty's factor; None chooses it by the held-out loss along a path.
        solver: name.
        tol: relative gap of the final solve.
        progress: called with each point of the path.

    Raises:
        DataError: labels don't fit, a single class, or features that are the same for all samples.
    """
    device = features.device
    fitted, heldout = split.fitted.to(device), split.heldout.to(device)
    _check_classes(targets)
    full = Problem(Design(features, bias_column), targets, loss=loss, penalty=penalty, num_outputs=num_outputs)
    if float(full.design.variance.max()) == 0.0:
        found = "features that are the same for every sample"
        raise DataError(found, "spikes that differ between samples", "check the inputs and the hidden layers")
    part = Problem(Design(features[fitted], bias_column), targets[fitted], loss=loss, penalty=penalty, num_outputs=num_outputs)
    path = solve_path(
        part,
        features[heldout],
        targets[heldout],
        strengths=strengths_below(part) if strength is None else [strength],
        solver=solver,
        bias_column=bias_column or 0.0,
        progress=progress,
    )
    trial = path.chosen
    problem = full.with_strength(trial.strength)
    solution = solve(problem, solver=solver, tol=tol, start=(trial.solution.weight, trial.solution.bias))
    return Fit(problem, solution, path if strength is None else None, trial)


def _check_classes(targets: Tensor) -> None:
    """A classifier needs two classes; with one, the best bias is infinite."""
    if targets.dim() == 1 and not targets.is_floating_point() and int(targets.min()) == int(targets.max()):
        found = f"a single class, {int(targets[0])}, in all {len(targets)} labels"
        raise DataError(found, "at least two classes", "pass a loader over all classes")
