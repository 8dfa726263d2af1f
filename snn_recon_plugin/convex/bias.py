"""The free bias of a readout, solved exactly for given weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import OptionError
from .features import Features
from .loss import Loss

_FEW_STEPS = 20  # then the loss's own exact method is tried, if it has one
_STEPS = 200  # a dozen are usual; a distant start in a flat region begins with steps of the curvature bound
_FEASIBLE = 1e-12  # slope over the mean size of the bias column: small enough for the dual point


def solve_bias(loss: Loss, features: Features, targets: Tensor, scores: Tensor, start: Tensor) -> Tensor:
    """Return the bias b (C,) that minimises ``sum_i w_i loss(scores_i + c_i b, y_i)``; zeros if there is no bias.

    ``scores`` (n, C) are without the bias, and ``start`` (C,) is a first guess, both float64.
    """
    if not float(features.bias_sizes[0].max()):
        return torch.zeros_like(start)
    if loss.smooth:
        bias, left = _newton_bias(loss, features, targets, scores, start, _FEW_STEPS)
        if left <= _FEASIBLE:
            return bias
        exact = _exact_bias(loss, features, targets, scores) if features.is_whole else None
        other, still = _newton_bias(loss, features, targets, scores, bias if exact is None else exact, _STEPS)
        return other if still < left else bias
    exact = _exact_bias(loss, features, targets, scores)
    if exact is None:
        needed = "an exact_bias method, such as Hinge.exact_bias; for outputs that differ in their bias column a separable loss"
        fix = "implement it, or pass bias_column=None to Features"
        raise OptionError(f"loss {loss.name!r} with kinks and without an exact bias", needed, fix)
    return exact


def _exact_bias(loss: Loss, features: Features, targets: Tensor, scores: Tensor) -> Tensor | None:
    """Return the bias by the loss's own method, or None if it has none that suits the features' bias columns."""
    columns = features.bias_column.unbind(1)
    if len(columns) == 1:
        return loss.exact_bias(columns[0], features.row_weights, scores, targets)
    if not loss.separable:
        return None
    found = [loss.exact_bias(column, features.row_weights, scores, targets) for column in columns]
    kept = [bias[k] for k, bias in enumerate(found) if bias is not None]
    return torch.stack(kept) if len(kept) == len(found) else None


def _newton_bias(
    loss: Loss, features: Features, targets: Tensor, scores: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, float]:
    """Return the bias of a smooth loss by safeguarded Newton steps, and the remaining slope over the bias column's mean size."""
    shards, column = features.shards, features.bias_column

    def at(bias: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        shifted = scores + column * bias
        both = torch.cat([column * loss.gradient(shifted, targets), loss.value(shifted, targets)[:, None]], 1)
        means = features.row_mean(both)
        return bias, shifted, means[:-1], float(means[-1])

    # A guess worse than zero, e.g. from other data, may lie in a flat region.
    point, origin = at(start), at(torch.zeros_like(start))
    bias, shifted, slope, level = origin if origin[3] < point[3] else point
    mean, square, largest = features.bias_sizes
    size, tiny, reach = float(mean.min()), torch.finfo(torch.float64).tiny, 2 * largest
    safe = 1 / (loss.max_curvature * square.clamp_min(tiny))
    for _ in range(steps):
        if float(slope.abs().max()) <= 1e-15 * size:
            break
        bends = loss.curvature(shifted, targets).weighted_sum(features.row_weights, column)
        curvature = shards.sum(bends)  # second derivative in b, (C, C)
        if not bool(torch.isfinite(curvature).all() & torch.isfinite(slope).all()):
            break  # the scores overflowed: the caller sees an objective that is not finite
        # Softmax is invariant to a shift of all scores: the pseudo-inverse picks the smallest of the equivalent steps.  Its cutoff
        # lies above rounding errors, which would otherwise be inverted along that shift and swamp the scores.
        step = -(torch.linalg.pinv(curvature, rtol=1e-14, hermitian=True) @ slope)
        # log(1 + d) / d of a step of length d lowers every loss made of exponentials (they are generalised self-concordant).
        length = float(step.norm()) * reach
        damped = math.log1p(length) / max(length, 1e-300)
        for move in (step, step / 4, damped * step, -safe * slope):  # the last always lowers the loss, even where it is nearly flat
            trial = at(bias + move)
            falls = trial[3] <= level + 1e-4 * float(move @ slope) and trial[3] < level
            # Near the optimum the objective is flat to rounding: only the slope can compare two points.
            flat = trial[3] <= level + 1e-14 * abs(level) and float(trial[2].norm()) < 0.9 * float(slope.norm())
            if shards.broadcast_number(falls or flat):
                bias, shifted, slope, level = trial
                break
        else:  # rounding: no step lowers objective or slope any more
            break
    return bias, float(slope.abs().max()) / max(size, tiny)
