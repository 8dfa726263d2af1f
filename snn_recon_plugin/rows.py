"""The rows of the program that a sample is, and their targets: one row, or one a step with the sample's target or its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .convex import Loss
from .errors import DataError

__all__ = ["Rows", "rows_of"]


@dataclass(frozen=True)
class Rows:
    """What a sample is in the program.

    Args:
        each: rows a sample: 1, or T where every step has scores.
        stepwise: whether every step has a target of its own, (n, T) or (n, T, C); else a sample's target holds at all of its steps.
    """

    each: int = 1
    stepwise: bool = False

    def targets(self, targets: Tensor) -> Tensor:
        """Of every row, the steps of a sample in a row."""
        return targets.flatten(0, 1) if self.stepwise else _repeated(targets, self.each)

    def weights(self, weights: Tensor | None) -> Tensor | None:
        """Of every row, of weights (n,) or, where steps have targets, (n, T)."""
        if weights is None:
            return None
        return weights.flatten() if weights.dim() == 2 else _repeated(weights, self.each)

    def decisions(self, scores: Tensor) -> Tensor:
        """The scores (k, C) that decide: each sample's, their mean over steps, or each step's where it has a target."""
        if scores.dim() == 2:
            return scores
        return scores.flatten(0, 1) if self.stepwise else scores.mean(1)

    def decided(self, prepared: Tensor) -> Tensor:
        """The targets of these decisions, of prepared targets of all rows."""
        return prepared if self.stepwise else prepared[:: self.each]


def rows_of(loss: Loss, targets: Tensor, num_outputs: int, num_steps: int, per_step: bool) -> Rows:
    """Tells what a sample is, and checks the targets.

    Targets that the loss takes as they are hold for whole samples; what it takes only step by step is meant so.  Where there are
    as many steps as outputs, one-hot labels are refused as they are elsewhere.

    Args:
        loss: of a row of scores.
        targets: of some samples, in the user's form.
        num_outputs: C.
        num_steps: T.
        per_step: whether every step has scores.

    Raises:
        DataError: targets that fit in neither way.
    """
    whole = Rows(num_steps if per_step else 1)
    over_time = targets.dim() in (2, 3) and targets.shape[1] == num_steps
    try:
        loss.prepare(targets, num_outputs)
    except DataError as error:
        if not over_time or _is_one_hot(targets, num_outputs) or _takes_indicators(loss, targets, num_outputs):
            raise
        if not (per_step or targets.dim() == 3 or not targets.is_floating_point()):
            raise
        if not per_step:
            raise DataError(
                f"targets of shape {tuple(targets.shape)}, as of {num_steps} steps, for one score a sample",
                "one target a sample, or scores at every step",
                "pass readout='membrane_per_step' or 'linear_per_step'; or class indices for one-hot labels, labels.argmax(1)",
            ) from error
        loss.prepare(targets.flatten(0, 1), num_outputs)
        return Rows(num_steps, stepwise=True)
    return whole


def _is_one_hot(targets: Tensor, num_outputs: int) -> bool:
    """Whether (n, C) are labels in a form that no loss takes, rather than a class at each of as many steps."""
    if targets.dim() != 2 or targets.shape[1] != num_outputs or targets.is_floating_point():
        return False
    return bool(((targets == 0) | (targets == 1)).all() & (targets.sum(1) == 1).all())


def _takes_indicators(loss: Loss, targets: Tensor, num_outputs: int) -> bool:
    """Whether targets have the shape of 0 or 1 for each output, and the loss takes such."""
    if targets.dim() != 2 or targets.shape[1] != num_outputs:
        return False
    try:
        loss.prepare(torch.zeros_like(targets[:1]), num_outputs)
    except DataError:
        return False
    return True


def _repeated(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat_interleave(times, 0)
