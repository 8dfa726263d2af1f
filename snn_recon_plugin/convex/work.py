"""Work of a solve, counted in products with all features, so that a bound on it means the same on every machine.

One product multiplies all features by the weights of all outputs: ``n x P x C`` multiply-adds in float32.  With few outputs it is
limited by reading the features from memory, which takes as long as 64 multiply-adds a feature.  That is the minimum price of a
feature, and the cost of other steps is expressed in it.  Products on a part of the features count by that part; float64 counts
twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .problem import Problem
from .shards import Alone

__all__ = ["PRICE", "Work", "rows_of_all", "work_of"]

PRICE = 64  # multiply-adds a feature: 40 GB/s from memory against 10 (P = 1000, C = 10: 8 ms a product, 1 core, n = 8000)
_EIGH = 15.0  # an eigendecomposition of P features over P^3 multiply-adds: 20 s for 5,000 of them on 2 cores
_INVERSE = 1.5  # the same for a Cholesky factor and the inverse from it


@dataclass
class Work:
    """Products that a solve has taken, and its limit.

    Args:
        rows: n, of all processes.
        features: P.
        outputs: C.
        limit: products after which to stop.
        done: products taken.
    """

    rows: int
    features: int
    outputs: int
    limit: float = math.inf
    done: float = 0.0

    @property
    def over(self) -> bool:
        """True if nothing is left."""
        return self.done >= self.limit

    @property
    def left(self) -> float:
        """Products that may still be taken."""
        return max(0.0, self.limit - self.done)

    def fits(self, features: int | None = None) -> float:
        """Return the number of products with ``features`` features (default all) that may still be taken."""
        return self.left * self.features / max(1, self.features if features is None else features)

    def add(self, products: float, features: int | None = None) -> None:
        """Count products with ``features`` features; default all."""
        self.done += products * (1.0 if features is None else features / self.features)

    def add_inverse(self, features: int) -> None:
        """Count a Gram matrix of ``features`` features and its inverse."""
        self.done += self._priced(features**2 * (self.rows + _INVERSE * features))

    def eigendecomposition(self) -> float:
        """Return the cost in products of a float64 Gram matrix of all features and its eigendecomposition."""
        return self._priced(2.0 * self.features**2 * self.rows + _EIGH * self.features**3)

    def rotation(self) -> float:
        """Return the cost in products of all outputs' weights times a float64 matrix of as many rows and columns as features."""
        return self._priced(2.0 * self.features**2 * max(self.outputs, PRICE))

    def _priced(self, multiply_adds: float) -> float:
        return multiply_adds / (float(self.rows) * self.features * max(self.outputs, PRICE))


def work_of(problem: Problem, limit: float = math.inf) -> Work:
    """Return the work of a program before its solve: none."""
    design = problem.design
    rows = rows_of_all(design.num_samples, design.device, design.shards)
    return Work(rows, design.num_features, problem.num_outputs, limit)


def rows_of_all(count: int, device: torch.device, shards: Alone) -> int:
    """Return the number of rows of all processes, of which this one has ``count``."""
    return int(shards.total(torch.tensor(count, device=device)))
