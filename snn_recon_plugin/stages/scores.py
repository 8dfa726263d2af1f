"""Scores of samples: their rows in the program, and the judge of a batch of them.

Four losses meet in a solve.  The *training loss* is the user's.  The *program's loss* is solved, and may be a substitute for it.
The *comparing loss* decides between weights: the training loss, or cross-entropy where margins and squares grow with the scores.
The *scaled loss* is the comparing one at the scale of the scores that makes it least: temperature scaling (Guo et al. 2017,
arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from ..convex import Loss, accuracy_of, make_loss
from ..errors import DataError

_MIDDLE, _FIRST_STEP = 1.0, 2.5  # octaves of the scale, which ends in -4 to 6: margins of 1 become 64 at most
_CONSTANT = 1e-12  # variance over mean square of targets that are constant but for rounding
_HALVINGS = 12  # of the step: to a thousandth of an octave

RowLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # losses (N,) of rows of scores (N, C) and their targets


@dataclass(frozen=True)
class RowsPerSample:
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


def rows_of(loss: Loss, targets: Tensor, num_outputs: int, num_steps: int, per_step: bool) -> RowsPerSample:
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
            found = f"targets of shape {tuple(targets.shape)}, as of {num_steps} steps, for one score a sample"
            fix = "pass readout='spike_per_step', 'membrane_per_step', or 'linear_per_step' without an output neuron; or class "
            fix += "indices for one-hot labels, labels.argmax(-1)"
            raise DataError(found, "one target a sample, or scores at every step", fix) from error
        loss.prepare(targets.flatten(0, 1), num_outputs)
        return RowsPerSample(num_steps, stepwise=True)
    return RowsPerSample(num_steps if per_step else 1)


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


@dataclass(frozen=True)
class HeldOut:
    """Results on samples that took no part in a fit.

    Example:
        >>> HeldOut(loss=0.5, accuracy=0.9, samples=100).metrics
        {}
    """

    loss: float = math.nan
    """Mean training loss, weighted by class if the loss is.  If batches differ in time steps, targets that grow with the steps are
    those of the first batch."""
    accuracy: float = math.nan
    """Accuracy of the network's own scores, 0 to 1; NaN for regression."""
    linear_accuracy: float = math.nan
    """Accuracy of the program's linear score."""
    samples: int = 0
    """Number of samples."""
    compared: float = math.nan
    """Mean loss at the best scale, by ``Report.compared_by``, on those of them that the network was run on before."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the network's own scores by name: "balanced_accuracy" for classes, "macro_f1" and "subset_accuracy" for several
    labels, "r2", "rmse" and "mae" for regression (means over outputs, as in scikit-learn)."""


def is_lower(loss: float, other: float) -> bool:
    """Return whether a loss is lower than another one; a loss that is not finite is higher than any finite one."""
    return math.isfinite(loss) and not loss >= other


def comparing_loss(loss: Loss, targets: Tensor, classifies: bool) -> tuple[Loss, Tensor]:
    """Return the loss that decides between weights, and its targets (N,), from the training loss and its targets."""
    if classifies and not loss.has_temperature and (targets.dim() == 1 or targets.shape[1] > 1):
        # Margins and squares of spike counts are large whatever they decide: cross-entropy compares decisions.
        return make_loss("cross_entropy"), loss.predictions(targets) if targets.dim() == 2 else targets
    return loss, targets


class Judge:
    """Judge of the scores of some samples, (m, C), or (m, T, C) at every step, in float64.

    The training loss also decides.  Targets (N, ...) of all rows have its form.  ``weights`` (N,) weigh the rows; ``counted`` (N,)
    are those whose decisions count.  ``classifies`` is True if the user's targets are class indices.
    """

    def __init__(
        self,
        loss: Loss,
        targets: Tensor,
        *,
        rows: RowsPerSample,
        weights: Tensor | None = None,
        counted: Tensor | None = None,
        classifies: bool = True,
    ) -> None:
        self._loss, self._targets, self._rows, self._weights = loss, targets, rows, weights
        self._counted, self._classifies = counted, classifies
        compares, compared = comparing_loss(loss, targets, classifies)
        self.compared_by = "" if compares is loss else compares.name  # the comparing loss, if it is not the training loss
        self.has_temperature = compares.has_temperature
        self._trains: tuple[RowLoss, Tensor] = (loss.value, targets)
        self._compares: tuple[RowLoss, Tensor] = (compares.value, compared)

    def __call__(self, scores: Tensor, scale: float = 1.0, compared: Tensor | None = None) -> HeldOut:
        """Return the results of scores times a scale, which changes no decision.

        The samples ``compared`` (k,), default all, are compared: at their best scale if that has a meaning.
        """
        least, accuracy = self.compare(scores, scale, compared), self.accuracy(scores)
        metrics = measure_metrics(self._loss, *self._scores_that_decide(scores), self._classifies)
        return HeldOut(self.loss(scores, scale), accuracy, accuracy, len(self._targets) // self._rows.each, least, metrics)

    def compare(self, scores: Tensor, scale: float = 1.0, samples: Tensor | None = None) -> float:
        """Return the mean comparing loss of all samples or some: at the best scale, or at a given one if that has no meaning."""
        best = self.best_scale(scores, samples) if self.has_temperature else scale
        return self._mean(self._compares, scores, best, samples)

    def loss(self, scores: Tensor, scale: float = 1.0) -> float:
        """Return the mean training loss of scores times a scale; the scores may be those of the first samples alone."""
        return self._mean(self._trains, scores, scale)

    def best_scale(self, scores: Tensor, samples: Tensor | None = None) -> float:
        """Return the scale with the least comparing loss, on all samples or some; 1 if that loss is not finite."""
        return best_scale(lambda scale: self._mean(self._compares, scores, scale, samples))

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the class of each decision."""
        return self._loss.predictions(self._rows.decisions(scores))

    def accuracy(self, scores: Tensor) -> float:
        """Return the share of decisions that are right; NaN if the targets are no classes."""
        return accuracy_of(self._loss, *self._scores_that_decide(scores)) if self._classifies else math.nan

    def _scores_that_decide(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and targets of the decisions that count; values are compared at every step, as by the loss."""
        if not self._classifies and self._loss.fits_values:
            return scores.flatten(0, -2), self._targets
        decided, wanted = self._rows.decisions(scores), self._rows.decided(self._targets)
        if self._counted is None:
            return decided, wanted
        return decided[self._counted.to(decided.device)], wanted[self._counted.to(wanted.device)]

    def _mean(self, judged: tuple[RowLoss, Tensor], scores: Tensor, scale: float, samples: Tensor | None = None) -> float:
        """Return the mean loss of some samples; by default of all, or of the first ones if there are no more scores."""
        (loss, targets), each = judged, self._rows.each
        rows: slice | Tensor = slice(len(scores) * each)
        if samples is not None:
            rows = (samples.to(scores.device)[:, None] * each + torch.arange(each, device=scores.device)).flatten()
        values = loss(scale * scores.flatten(0, -2)[rows], targets[rows])
        weights = torch.ones_like(values) if self._weights is None else self._weights[rows].to(values)
        total = float(weights.sum())
        return float(weights @ values) / total if total else math.nan


def measure_metrics(loss: Loss, scores: Tensor, targets: Tensor, classifies: bool) -> dict[str, float]:
    """Return the metrics of scores (n, C) for prepared targets, class indices if ``classifies``; none for another loss."""
    if not len(scores):
        return {}
    targets = targets.to(scores.device)
    if classifies:
        found = _of_classes(loss.predictions(scores), loss.predictions(targets) if targets.dim() == 2 else targets)
    elif loss.fits_values:
        found = _of_values(scores, targets.to(scores))
    elif loss.binary:
        found = _of_labels(scores > 0, targets > 0)
    else:
        return {}
    return {name: float(value) for name, value in found.items()}


def _of_classes(found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the mean over classes of the share that is decided right; classes without a row are left out."""
    rows = torch.bincount(wanted)
    right = torch.bincount(wanted[found == wanted], minlength=len(rows))
    return {"balanced_accuracy": (right[rows > 0] / rows[rows > 0].double()).mean()}


def _of_labels(found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return mean F1 over outputs, 0 without labels and predictions as in scikit-learn, and the share of rows all right."""
    doubled, wrong = 2 * (found & wanted).sum(0).double(), (found != wanted).sum(0)
    f1 = doubled / (doubled + wrong).clamp_min(1)
    return {"macro_f1": f1.mean(), "subset_accuracy": (found == wanted).all(1).double().mean()}


def _of_values(scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return means over outputs of R² (constant targets: 1 or 0, as in scikit-learn), RMSE and MAE."""
    errors, spread = (scores - targets).square().mean(0), targets.var(0, correction=0)
    constant = spread <= _CONSTANT * targets.square().mean(0)
    r2 = torch.where(constant, (errors == 0).double(), 1 - errors / spread)
    return {"r2": r2.mean(), "rmse": errors.sqrt().mean(), "mae": (scores - targets).abs().mean()}


def best_scale(loss: Callable[[float], float]) -> float:
    """Return the scale of the least loss, from 1/16 to 64; 1 if the loss is not finite, as for samples without weight.

    The loss is convex in the scale, so the minimum is within two steps of the best point so far, and halving them closes in on it.
    A part of the samples without an error would have no minimum.
    """
    octave, at = _MIDDLE, cache(lambda octave: finite_or_highest(loss(2.0**octave)))
    for halving in range(_HALVINGS):
        step = _FIRST_STEP / 2**halving
        octave = min((octave, octave - step, octave + step), key=at)
    return 2.0**octave if math.isfinite(at(octave)) else 1.0


def finite_or_highest(loss: float) -> float:
    """Return the loss, infinite if it is NaN, as for samples without weight."""
    return math.inf if math.isnan(loss) else loss
