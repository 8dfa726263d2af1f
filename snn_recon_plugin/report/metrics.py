"""Metrics of held-out scores.  They are made of sums over rows, so those of halves of the samples add up.

To add one: its value in the function of its kind of targets, its entry in ``METRICS``, and its case in test_metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..convex import Loss
from ..text_table import percent, rate

_CONSTANT = 1e-12  # variance over mean square of targets that are constant but for rounding

Sums: TypeAlias = Mapping[str, Tensor]


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


@dataclass(frozen=True)
class Tally:
    """Sums over rows of scores and targets, (C,) float64 each, and the function that makes metrics of them."""

    sums: Sums
    of: Callable[[Sums], dict[str, Tensor]]

    def __add__(self, other: Tally) -> Tally:
        return Tally({name: value + other.sums[name] for name, value in self.sums.items()}, self.of)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of this kind of targets by name."""
        return {name: float(value) for name, value in self.of(self.sums).items()}


def count_rows(loss: Loss, scores: Tensor, targets: Tensor, classifies: bool) -> Tally | None:
    """Return the sums over rows of scores (n, C) and prepared targets, class indices if ``classifies``; None for another loss."""
    targets = targets.to(scores.device)
    if classifies:
        classes, count = loss.predictions(targets) if targets.dim() == 2 else targets, max(2, scores.shape[1])
        right = classes[loss.predictions(scores) == classes]
        sums, of = {"rows": torch.bincount(classes, minlength=count), "right": torch.bincount(right, minlength=count)}, _of_classes
    elif loss.fits_values:
        sums, of = _count_values(scores, targets.to(scores)), _of_values
    elif loss.binary:
        sums, of = _count_labels(scores > 0, targets > 0), _of_labels
    else:
        return None
    total = torch.stack([value.double() for value in sums.values()]).cpu()
    return Tally(dict(zip(sums, total, strict=True)), of)


def _of_classes(sums: Sums) -> dict[str, Tensor]:
    """Return the mean over classes of the share that is decided right; classes without a row are left out."""
    present = sums["rows"] > 0
    return {"balanced_accuracy": (sums["right"][present] / sums["rows"][present]).mean()}


def _count_labels(found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    right = (found == wanted).all(1)
    rows = torch.full((wanted.shape[1],), len(wanted), device=wanted.device)
    hits, wrong = (found & wanted).sum(0), (found != wanted).sum(0)
    return {"rows": rows, "hits": hits, "wrong": wrong, "all_right": right.sum().expand_as(rows)}


def _of_labels(sums: Sums) -> dict[str, Tensor]:
    """Return mean F1 over outputs, 0 without labels and predictions as in scikit-learn, and the share of rows all right."""
    doubled = 2 * sums["hits"]
    f1 = (doubled / (doubled + sums["wrong"]).clamp_min(1)).mean()
    return {"macro_f1": f1, "subset_accuracy": (sums["all_right"] / sums["rows"]).mean()}


def _count_values(scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
    errors = scores - targets
    return {
        "rows": torch.ones_like(scores).sum(0),
        "targets": targets.sum(0),
        "target_squares": targets.square().sum(0),
        "errors": errors.abs().sum(0),
        "error_squares": errors.square().sum(0),
    }


def _of_values(sums: Sums) -> dict[str, Tensor]:
    """Return means over outputs of R² (constant targets: 1 or 0, as in scikit-learn), RMSE and MAE."""
    rows, errors = sums["rows"], sums["error_squares"]
    spread = sums["target_squares"] - sums["targets"].square() / rows
    constant = spread <= _CONSTANT * sums["target_squares"]
    r2 = torch.where(constant, (errors == 0).double(), 1 - errors / spread)
    return {"r2": r2.mean(), "rmse": (errors / rows).sqrt().mean(), "mae": (sums["errors"] / rows).mean()}
