"""Held-out results: loss and accuracies of samples that took no part in a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex.distributed import ALONE, Alone

__all__ = ["HeldOut", "average", "weighted_mean"]


@dataclass(frozen=True)
class HeldOut:
    """Loss and accuracies on held-out samples.

    Args:
        loss: mean training loss.
        accuracy: of the network's own scores, 0 to 1; NaN for regression.
        linear_accuracy: of the program's linear score.
        samples: number of samples.
    """

    loss: float
    accuracy: float
    linear_accuracy: float
    samples: int


def average(parts: Sequence[HeldOut]) -> HeldOut:
    """Return the results of several sets of samples together."""
    if len(parts) == 1:
        return parts[0]
    count = sum(part.samples for part in parts)
    loss, accuracy, linear = (
        sum(getattr(part, name) * part.samples for part in parts) / count for name in ("loss", "accuracy", "linear_accuracy")
    )
    return HeldOut(loss, accuracy, linear, count)


def weighted_mean(values: Tensor, weights: Tensor | None, shards: Alone = ALONE) -> float:
    """Return the mean of values ``[m]`` with weights ``[m]``, if any, over all processes that share the samples."""
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    return shards.decided(float(shards.total(weights @ values) / shards.total(weights.sum())))
