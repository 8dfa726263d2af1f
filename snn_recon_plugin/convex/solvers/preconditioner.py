"""Preconditioners of the Newton systems: inverses of ``diagonal + X'X`` with X the active features, weighted by the curvature.

One matrix serves all outputs, weighted by their mean curvature; or each output has its own, if that costs little more or if outputs
have different active sets.  Only the rows that carry 97 % of the curvature enter: often a small part, as most samples of a fitted
classifier have almost none.  With few rows for the features a matrix of rows is inverted instead, by Woodbury's identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..features import Features

Preconditioner = Callable[[Tensor], Tensor]

_MASS = 0.97  # share of the curvature whose rows enter
# Trials of the next three: docs/evidence/decisions.md.
_ENOUGH_ROWS = 10_000  # of more, a part enters
_FEW_ROWS = 0.3  # rows over features, up to which a matrix of rows costs less, although it needs float64
_FAVOUR = 2.0  # work of a matrix for each output over that of a shared one, up to which conjugate gradients repay it
_MAX_ENTRIES = 2**27  # of all matrices, half a GB in float32: with many outputs and neurons they would fill the memory


def preconditioner(columns: Features, weights: Tensor, diagonal: Tensor, mask: Tensor | None) -> Preconditioner:
    """Return a function that multiplies a residual (C, A) by about the inverse of the system.

    ``weights`` (n, C) are the curvature of each output, ``diagonal`` (C, A) is added to the Gram matrices, and ``mask`` (C, A) is
    True for active entries; None if all are.
    """
    rows = [_leading_rows(columns, each) for each in weights.unbind(1)]
    if mask is None and not _separate(columns, weights, rows):
        mean = weights.mean(1)
        return _inverse(columns, mean, _leading_rows(columns, mean), diagonal.mean(0), None)
    # With equal weights, as for the squared loss, one matrix contains those of all outputs.
    same = columns.shared and not bool(columns.shards.max((weights != weights[:, :1]).any().to(weights.dtype)))
    whole = _gram(columns, weights[:, 0], rows[0], None) if same else None
    parts = []
    for k, entries in enumerate(diagonal):
        active = torch.arange(len(entries), device=entries.device) if mask is None else mask[k].nonzero()[:, 0]
        if whole is not None:
            parts.append((active, _inverse_of(whole[active][:, active], entries[active])))
        else:
            parts.append((active, _inverse(columns.of_output(k), weights[:, k], rows[k], entries[active], active)))

    def solve(residual: Tensor) -> Tensor:
        solved = torch.zeros_like(residual)
        for k, (active, apply) in enumerate(parts):
            solved[k, active] = apply(residual[k, active])
        return solved

    return solve


def heaviest_rows(weights: Tensor, mass: float) -> Tensor | None:
    """Return the rows (m,), in order, of the largest weights that together carry ``mass``; None if those are most rows anyway."""
    if not len(weights):  # a process without rows
        return None
    falling, order = weights.sort(descending=True, stable=True)
    total = falling.cumsum(0)
    # Rows within a tenth of the largest weight always enter: weights that are equal, as at kinks, are equally important.
    count = max(int(torch.searchsorted(total, mass * total[-1])) + 1, int((falling >= 0.1 * falling[0]).sum()))
    return None if mass >= 1 or count > 0.7 * len(weights) else order[:count].sort().values


def _leading_rows(columns: Features, weights: Tensor) -> Tensor:
    """Return the rows (m,) with most of the curvature, or a regular part of them if there are many."""
    rows = heaviest_rows(columns.row_weights * weights, _MASS)
    rows = torch.arange(len(weights), device=weights.device) if rows is None else rows
    return rows[:: max(1, len(rows) // _ENOUGH_ROWS)]


def _separate(columns: Features, weights: Tensor, rows: list[Tensor]) -> bool:
    """Return True if each output gets its own matrix although all features are active."""
    width = columns.num_features
    if not columns.shared:
        return len(rows) * width**2 <= _MAX_ENTRIES
    if columns.shards.is_distributed:  # rows of other processes are not here
        return False
    entries = sum(_size(len(each), width) * width for each in rows)
    shared = _work(len(_leading_rows(columns, weights.mean(1))), width)
    return entries <= _MAX_ENTRIES and sum(_work(len(each), width) for each in rows) <= _FAVOUR * shared


def _size(rows: int, width: int) -> int:
    """Return the size of the matrix that is inverted."""
    return rows if rows <= _FEW_ROWS * width else width


def _work(rows: int, width: int) -> int:
    """Return the multiply-adds of making and inverting that matrix."""
    return rows * width * _size(rows, width) + _size(rows, width) ** 3


def _gram(columns: Features, weights: Tensor, rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the Gram matrix of some rows, scaled to the weight of all, its diagonal raised by the share that was left out."""
    scaled, complete, shards = columns.row_weights * weights, len(rows) == len(weights), columns.shards
    gram = columns.gram(weights, None if complete else rows, index)
    if not shards.broadcast_number(complete):
        gram.diagonal().mul_(2 - _MASS)
    return gram * (shards.sum(scaled.sum()) / shards.sum(scaled[rows].sum()).clamp_min(torch.finfo(gram.dtype).tiny))


def _inverse(columns: Features, weights: Tensor, rows: Tensor, diagonal: Tensor, index: Tensor | None) -> Preconditioner:
    """Return the product with ``(diagonal + X'X)^-1`` of residuals (..., A), from a matrix of features or one of rows."""
    # Filtered features have a matrix of rows for each output, but one mean Gram matrix.
    if not columns.shared or columns.shards.is_distributed or _size(len(rows), len(diagonal)) == len(diagonal):
        return _inverse_of(_gram(columns, weights, rows, index), diagonal)
    # In float64: with a small diagonal the two terms below cancel.
    matrix = columns.centred_rows(rows, index).double() * (columns.row_weights * weights)[rows].double().sqrt()[:, None]
    scaled = matrix / diagonal.double().clamp_min(torch.finfo(diagonal.dtype).tiny)
    gram = scaled @ matrix.T
    gram.diagonal().add_(1)
    factor = torch.cholesky_inverse(cholesky(gram))
    return lambda residual: (residual / diagonal - ((residual.double() @ scaled.T) @ factor) @ scaled).to(residual.dtype)


def _inverse_of(gram: Tensor, diagonal: Tensor) -> Preconditioner:
    """Return the product with the inverse of gram + diagonal; ``gram`` is changed."""
    gram.diagonal().add_(diagonal)
    inverse = torch.cholesky_inverse(cholesky(gram))  # two triangular solves of a batch took ten times as long as a product with it
    return lambda residual: residual @ inverse


def cholesky(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor with the smallest ridge that makes the matrix numerically positive definite."""
    ridge = torch.finfo(matrix.dtype).eps * max(float(matrix.diagonal().mean()) if len(matrix) else 0.0, 1e-30)
    for _ in range(12):
        damped = matrix.clone()
        damped.diagonal().add_(ridge)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return factor
        ridge *= 10
    return torch.diag(matrix.diagonal().clamp_min(ridge).sqrt())
