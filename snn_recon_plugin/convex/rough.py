"""Columns in bfloat16, for products whose errors are corrected later, if the processor multiplies bfloat16 natively.

Products with the features are limited by memory.  Half the bytes, and the processor's dot products of bfloat16, make them three to
four times as fast.  Three digits are enough for conjugate gradients: each Newton step begins from a float64 gradient, which
corrects the errors of the last one.  It takes as many steps as in float32 (tests/convex/test_rough.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .columns import Columns, totals
from .shards import ALONE, Alone

__all__ = ["RoughColumns", "is_native", "rough"]

_LEAST = 2**16  # elements: smaller matrices stay in the cache, and call overhead dominates


@dataclass(frozen=True)
class RoughColumns:
    """Centred columns in bfloat16, with the products of ``Columns``, whose inputs and results are float32.

    Args:
        matrix: (n, A), centred, bfloat16.
        bias_column: (n,).
        row_weights: (n,).
        shards: processes that share the rows.
    """

    matrix: Tensor
    bias_column: Tensor
    row_weights: Tensor
    shards: Alone = ALONE

    def scores(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Return the scores (n, C) of weights (C, A) and a bias (C,)."""
        return torch.outer(self.bias_column, shift).add_(self.matrix @ weight.T.to(self.matrix.dtype))

    def adjoint(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient in (W, b) of ``sum_i w_i <U_i, z_i>``: (C, A) and (C,)."""
        weighted = dual * self.row_weights[:, None]
        slope = (weighted.T.to(self.matrix.dtype) @ self.matrix).to(dual.dtype)
        return totals(self.shards, slope, weighted.T @ self.bias_column)

    def part(self, rows: Tensor, share: float) -> RoughColumns:
        """Return a sample of the rows (m,) that represents all: sums over it are divided by ``share``."""
        return RoughColumns(self.matrix[rows], self.bias_column[rows], self.row_weights[rows] / share, self.shards)


def rough(columns: Columns) -> Columns | RoughColumns:
    """Return the columns in bfloat16 if that is faster, else as they are."""
    elements = columns.matrix.numel()
    if columns.dtype is not torch.float32 or elements < _LEAST or columns.matrix.device.type != "cpu" or not is_native():
        return columns
    matrix = torch.empty(columns.matrix.shape, dtype=torch.bfloat16)
    for rows, block in columns.blocks():
        matrix[rows] = block.addr_(columns.bias_column[rows], columns.mean, alpha=-1)
    return RoughColumns(matrix, columns.bias_column, columns.row_weights, columns.shards)


def is_native() -> bool:
    """Return True if this processor has bfloat16 instructions; False if torch can't detect them."""
    tests: list[Callable[[], bool] | None] = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(test() for test in tests if test is not None)
