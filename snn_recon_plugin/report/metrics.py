"""Metrics of held-out scores.  They are made of sums over rows, so those of halves of the samples add up.

To add one: a function of a tally's sums, its entry in ``METRICS``, and its case in tests/stages/test_metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..convex import Loss
from ..stages.rates import percent, rate

CLASSES, LABELS, VALUES = "classes", "labels", "values"  # one class a row; 0 or 1 for each output; numbers
_CONSTANT = 1e-12  # variance over mean square of targets that are constant but for rounding

Sums: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tally:
    """Sums over rows of scores and targets, (C,) float64 each."""

    kind: str  # CLASSES, LABELS or VALUES
    sums: Sums

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.kind, {name: value + other.sums[name] for name, value in self.sums.items()})

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of this kind of targets by name."""
        return {name: float(metric.of(self.sums)) for name, metric in METRICS.items() if metric.kind == self.kind}


def count_rows(loss: Loss, scores: Tensor, targets: Tensor, classifies: bool) -> Tally | None:
    """Return the sums over rows; None for a loss of other targets.

    Args:
        loss: training loss.
        scores: (n, C).
        targets: prepared by the loss.
        classifies: True if the user's targets are class indices.
    """
    if classifies:
        kind, sums = CLASSES, _count_classes(loss, scores, targets)
    elif loss.fits_values:
        kind, sums = VALUES, _count_values(scores, targets)
    elif loss.binary:
        kind, sums = LABELS, _count_labels(scores, targets)
    else:
        return None
    total = torch.stack([value.double() for value in sums.values()]).cpu()
    return Tally(kind, dict(zip(sums, total, strict=True)))


def _count_classes(loss: Loss, scores: Tensor, targets: Tensor) -> Sums:
    classes = (loss.predictions(targets) if targets.dim() == 2 else targets).to(scores.device)
    right, count = loss.predictions(scores) == classes, max(2, scores.shape[1])
    return {"rows": torch.bincount(classes, minlength=count), "right": torch.bincount(classes[right], minlength=count)}


def _count_labels(scores: Tensor, targets: Tensor) -> Sums:
    found, wanted = scores > 0, targets.to(scores.device) > 0
    rows = torch.ones_like(scores)
    return {
        "rows": rows.sum(0),
        "hits": (found & wanted).sum(0),
        "wrong": (found != wanted).sum(0),
        "all_right": rows[(found == wanted).all(1)].sum(0),
    }


def _count_values(scores: Tensor, targets: Tensor) -> Sums:
    targets = targets.to(scores)
    errors = scores - targets
    return {
        "rows": torch.ones_like(scores).sum(0),
        "targets": targets.sum(0),
        "target_squares": targets.square().sum(0),
        "errors": errors.abs().sum(0),
        "error_squares": errors.square().sum(0),
    }


def _balanced_accuracy(sums: Sums) -> Tensor:
    """Return the mean over classes of the share that is decided right; classes without a row are left out."""
    present = sums["rows"] > 0
    return (sums["right"][present] / sums["rows"][present]).mean()


def _macro_f1(sums: Sums) -> Tensor:
    """Return the mean F1 over outputs; an output with no label and no prediction counts as 0, as in scikit-learn."""
    doubled = 2 * sums["hits"]
    return (doubled / (doubled + sums["wrong"]).clamp_min(1)).mean()


def _subset_accuracy(sums: Sums) -> Tensor:
    """Return the share of rows with all labels right."""
    return (sums["all_right"] / sums["rows"]).mean()


def _r2(sums: Sums) -> Tensor:
    """Return the mean R² over outputs; constant targets count as 1 without an error and as 0 with one, as in scikit-learn."""
    spread = sums["target_squares"] - sums["targets"].square() / sums["rows"]
    constant = spread <= _CONSTANT * sums["target_squares"]
    usual = 1 - sums["error_squares"] / spread
    return torch.where(constant, (sums["error_squares"] == 0).double(), usual).mean()


def _rmse(sums: Sums) -> Tensor:
    """Return the root of the mean squared error, averaged over outputs."""
    return (sums["error_squares"] / sums["rows"]).sqrt().mean()


def _mae(sums: Sums) -> Tensor:
    """Return the mean absolute error, averaged over outputs."""
    return (sums["errors"] / sums["rows"]).mean()


def _number(value: float, samples: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4g}"


@dataclass(frozen=True)
class Metric:
    """Metric of held-out scores."""

    kind: str  # of the targets that it is of
    title: str  # in the report
    of: Callable[[Sums], Tensor]
    show: Callable[[float, int], str]  # of a value on so many samples


METRICS: dict[str, Metric] = {
    "balanced_accuracy": Metric(CLASSES, "balanced accuracy", _balanced_accuracy, lambda value, samples: percent(value)),
    "macro_f1": Metric(LABELS, "macro F1", _macro_f1, _number),
    "subset_accuracy": Metric(LABELS, "subset accuracy", _subset_accuracy, rate),
    "r2": Metric(VALUES, "R²", _r2, _number),
    "rmse": Metric(VALUES, "RMSE", _rmse, _number),
    "mae": Metric(VALUES, "MAE", _mae, _number),
}
