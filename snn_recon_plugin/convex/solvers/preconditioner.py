"""Preconditioners of the Newton systems: inverses of the curvature-weighted Gram matrix of the active features.

If all classes share one active set, one matrix serves them all, weighted by the mean curvature over the classes.  Otherwise each
class has its own matrix.  Most samples of a fitted classifier have almost no curvature: the rows that carry 97 % of it are often a
small part of all.  The rest would add little, and a preconditioner need not be exact.  The saving is largest with one matrix a
class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..features import Features

__all__ = ["Preconditioner", "cholesky", "preconditioner"]

Preconditioner = Callable[[Tensor], Tensor]

_MASS = 0.97  # share of the curvature whose rows enter


def preconditioner(columns: Features, weights: Tensor, diagonal: Tensor, mask: Tensor | None) -> Preconditioner:
    """Return a function that multiplies a residual (C, A) by about the inverse of the system.

    Args:
        columns: the active features.
        weights: (n, C), curvature of each class.
        diagonal: (C, A), added to the Gram matrices: the penalty's curvature and the damping.
        mask: (C, A), active entries; None if all are active.
    """
    if mask is not None:
        return _by_class(columns, weights, diagonal, mask)
    inverse = _inverse(columns.gram(weights.mean(1), _MASS), diagonal.mean(0))
    return lambda residual: residual @ inverse


def _by_class(columns: Features, weights: Tensor, diagonal: Tensor, mask: Tensor) -> Preconditioner:
    """Return the preconditioner of all classes in one batch, padded to the largest active set by rows of the identity."""
    counts = mask.sum(1)
    width = int(counts.max())
    order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :width]
    valid = torch.arange(width, device=order.device) < counts[:, None]
    # With equal weights, as for the squared loss, one matrix contains those of all classes.
    unlike = columns.shards.largest((weights != weights[:, :1]).any().to(weights.dtype))
    same = columns.shared and not bool(unlike)
    whole = columns.gram(weights[:, 0], _MASS) if same else None
    inverses = torch.eye(width, dtype=diagonal.dtype, device=order.device).repeat(len(order), 1, 1)
    for k, count in enumerate(counts.tolist()):
        active = order[k, :count]
        gram = columns.of_output(k).gram(weights[:, k], _MASS, active) if whole is None else whole[active][:, active]
        inverses[k, :count, :count] = _inverse(gram, diagonal[k, active])

    def solve(residual: Tensor) -> Tensor:
        packed = torch.where(valid, residual.gather(1, order), 0.0)
        solved = (inverses @ packed[:, :, None])[:, :, 0]
        return torch.zeros_like(residual).scatter_(1, order, torch.where(valid, solved, 0.0))

    return solve


def _inverse(gram: Tensor, diagonal: Tensor) -> Tensor:
    """Return the inverse of gram + diagonal; ``gram`` is changed.

    A product with the inverse reads the matrix once; two triangular solves of a batch took ten times as long.
    """
    gram.diagonal().add_(diagonal)
    inverse: Tensor = torch.cholesky_inverse(cholesky(gram))
    return inverse


def cholesky(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor with the smallest ridge that makes the matrix numerically positive definite."""
    ridge = torch.finfo(matrix.dtype).eps * max(float(matrix.diagonal().mean()) if len(matrix) else 0.0, 1e-30)
    for _ in range(12):
        damped = matrix.clone()
        damped.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            found: Tensor = factor
            return found
        ridge *= 10
    return torch.diag(matrix.diagonal().clamp_min(ridge).sqrt())
