"""Targets of a loss among the tensors of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..networks.private.workbench import same_values


class FoundTargets(NamedTuple):
    """Source of the targets of a loss."""

    place: int | None  # among the tensors of a batch; None if the step makes them
    dtype: torch.dtype  # as which they are taken from it
    levels: tuple[float, float] | None = None  # of the wrong and the right class, in rows that mark classes


def find_targets(targets: Tensor, leaves: list[Tensor], *, squared: bool) -> FoundTargets:
    """Find the tensor of a batch that targets are, whose values they have in another type or shape, or whose classes they mark.

    A squared loss can fit any two levels, others 0 and 1.
    """
    for number, leaf in enumerate(leaves):
        if leaf.dim() > 0 and leaf.numel() == targets.numel() and same_values(leaf.flatten(), targets.flatten()):
            return FoundTargets(number, targets.dtype)
    for number, leaf in enumerate(leaves):
        levels = _levels(targets, leaf) if leaf.dim() == 1 and not leaf.is_floating_point() else None
        if levels is not None and (squared or levels == (0.0, 1.0)):
            return FoundTargets(number, leaf.dtype, levels)
    return FoundTargets(None, targets.dtype)


def _levels(rows: Tensor, classes: Tensor) -> tuple[float, float] | None:
    """Return the low and the high value of rows that mark class indices, one in each; None for others."""
    if rows.dim() != 2 or len(rows) != len(classes) or len(levels := torch.unique(rows)) != 2:
        return None
    high = rows == levels[1]
    marked = bool((high.sum(1) == 1).all()) and torch.equal(high.long().argmax(1), classes.long())
    return (float(levels[0]), float(levels[1])) if marked else None
