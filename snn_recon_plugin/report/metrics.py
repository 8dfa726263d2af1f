"""Metrics of held-out scores.

To add one: its value in the function of its kind of targets, its entry in ``METRICS``, and its case in test_metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..convex import Loss
from ..text_table import percent, rate

_CONSTANT = 1e-12  # variance over mean square of targets that are constant but for rounding


class Metric(NamedTuple):
    """Metric as the report shows it."""

    title: str
    show: Callable[[float, int], str]  # text of a value on so many samples


def _number(value: float, samples: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4g}"


METRICS = {
    "balanced_accuracy": Metric("balanced accuracy", lambda value, samples: percent(value)),
    "macro_f1": Metric("macro F1", _number),
    "subset_accuracy": Metric("subset accuracy", rate),
    "r2": Metric("R²", _number),
    "rmse": Metric("RMSE", _number),
    "mae": Metric("MAE", _number),
}


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
