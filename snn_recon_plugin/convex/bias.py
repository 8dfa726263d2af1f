"""The free bias of a readout, solved exactly for given weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .design import Design
from .losses import Loss
from .margin import Hinge, hinge_bias

__all__ = ["solve_bias"]


def solve_bias(loss: Loss, design: Design, targets: Tensor, scores: Tensor, start: Tensor) -> Tensor:
    """The bias b that minimises ``sum_i w_i loss(scores_i + c_i b, y_i)``.

    The hinge is solved by sorting its kinks.  Other losses take Newton steps on the slope in b, and where those fail (far from the
    optimum the loss may be flat to rounding) a step of the loss's curvature bound, which always lowers the objective.

    Args:
        loss: the loss.
        design: bias column and row weights.
        targets: prepared targets.
        scores: (n, C) float64, without the bias.
        start: (C,) float64 first guess.

    Returns:
        (C,) float64; zeros where the design has no bias.  The slope left is at the rounding error of its own sum, which is what
        makes a dual point feasible.
    """
    first = design.row_weights * design.bias_column
    second = first * design.bias_column
    if not design.has_bias or not bool((second > 0).any()):
        return torch.zeros_like(start)
    if isinstance(loss, Hinge):
        return hinge_bias(design.bias_column, design.row_weights, scores, targets)

    def at(bias: Tensor) -> tuple[Tensor, Tensor]:
        shifted = scores + torch.outer(design.bias_column, bias)
        return shifted, loss.gradient(shifted, targets).T @ first

    def value(shifted: Tensor) -> float:
        return float(design.row_weights @ loss.value(shifted, targets))

    bias = start
    shifted, slope = at(bias)
    floor = 1e-15 * float(first.abs().sum())
    safe = 1 / (loss.bound * float(second.sum()))
    for _ in range(200):
        if float(slope.abs().max()) <= floor:
            break
        curvature = loss.curvature(shifted, targets).weighted_sum(second)
        # Softmax does not see a shift of all scores: the pseudo-inverse picks the smallest of the equivalent steps.
        step = -(torch.linalg.pinv(curvature, hermitian=True) @ slope)
        size, improved = 1.0, False
        while size > 1e-4 and not improved:
            trial, trial_slope = at(bias + size * step)
            improved = float(trial_slope.norm()) < (1 - 0.1 * size) * float(slope.norm())
            if improved:
                bias, shifted, slope = bias + size * step, trial, trial_slope
            size /= 2
        if not improved:
            trial, trial_slope = at(bias - safe * slope)
            if not value(trial) < value(shifted):  # rounding: nothing makes the objective smaller any more
                break
            bias, shifted, slope = bias - safe * slope, trial, trial_slope
    return bias
