"""Rows of a sample in the program, and their targets: one row, or one a step with the sample's target or the step's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Loss
from ..errors import DataError


@dataclass(frozen=True)
class Rows:
    """Rows of a sample in the program."""

    each: int = 1  # T if every step has scores
    stepwise: bool = False  # every step has its own target, (n, T) or (n, T, C); else a sample's target holds at all of its steps

    def targets(self, targets: Tensor) -> Tensor:
        """Return the targets of all rows, the steps of a sample next to each other."""
        return targets.flatten(0, 1) if self.stepwise else _repeated(targets, self.each)

    def weights(self, weights: Tensor | None) -> Tensor | None:
        """Return the weights of all rows, from weights (n,), or (n, T) if steps have targets."""
        if weights is None:
            return None
        return weights.flatten() if weights.dim() == 2 else _repeated(weights, self.each)

    def decisions(self, scores: Tensor) -> Tensor:
        """Return the scores (k, C) that decide: one a sample, the mean over its steps, or one a step with a target."""
        if scores.dim() == 2:
            return scores
        return scores.flatten(0, 1) if self.stepwise else scores.mean(1)

    def decided(self, prepared: Tensor) -> Tensor:
        """Return the targets of these decisions, from prepared targets of all rows."""
        return prepared if self.stepwise else prepared[:: self.each]


def rows_of(loss: Loss, targets: Tensor, num_outputs: int, num_steps: int, per_step: bool) -> Rows:
    """Return the rows of a sample, after a check of the targets.

    Targets that the loss accepts as they are hold for whole samples; others are tried as one target a step.  One-hot integer labels
    are refused even if there are as many steps as outputs.  With ``per_step`` every step has scores.
    """
    over_time = targets.dim() in (2, 3) and targets.shape[1] == num_steps
    try:
        loss.prepare(targets, num_outputs)
    except DataError as error:
        if not over_time or _is_one_hot(targets, num_outputs) or _takes_indicators(loss, targets, num_outputs):
            raise
        of_steps = num_steps > 1 and (targets.dim() == 3 or not targets.is_floating_point())
        if not per_step and not of_steps:
            raise
        if not per_step:
            raise DataError(
                f"targets of shape {tuple(targets.shape)}, as of {num_steps} steps, for one score a sample",
                "one target a sample, or scores at every step",
                "pass readout='membrane_per_step' or 'linear_per_step'; or class indices for one-hot labels, labels.argmax(1)",
            ) from error
        loss.prepare(targets.flatten(0, 1), num_outputs)
        return Rows(num_steps, stepwise=True)
    return Rows(num_steps if per_step else 1)


def _is_one_hot(targets: Tensor, num_outputs: int) -> bool:
    """Return True for integer one-hot labels (n, C), which no loss takes."""
    if targets.dim() != 2 or targets.shape[1] != num_outputs or targets.is_floating_point():
        return False
    return bool(((targets == 0) | (targets == 1)).all() & (targets.sum(1) == 1).all())


def _takes_indicators(loss: Loss, targets: Tensor, num_outputs: int) -> bool:
    """Return True if targets have one value an output, and the loss accepts 0 or 1 for each."""
    if targets.dim() != 2 or targets.shape[1] != num_outputs:
        return False
    try:
        loss.prepare(torch.zeros_like(targets[:1]), num_outputs)
    except DataError:
        return False
    return True


def _repeated(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat_interleave(times, 0)
