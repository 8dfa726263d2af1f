"""Work and time that a solve may take.

Work is counted in products with all features, so that a bound on it means the same on every machine.  One product is ``n x P x C``
multiply-adds in float32.  With few outputs it is limited by reading the features from memory, which takes as long as 64
multiply-adds a feature: their minimum price.  Products on a part of the features count by that part; float64 counts twice.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from .distributed import ALONE, Alone
from .problem import Problem

__all__ = ["PRICE", "Budget", "rows_of_all"]

PRICE = 64  # multiply-adds a feature: 40 GB/s from memory against 10 (P = 1000, C = 10: 8 ms a product, 1 core, n = 8000)
_EIGH = 15.0  # an eigendecomposition of P features over P^3 multiply-adds: 20 s for 5,000 of them on 2 cores
_INVERSE = 1.5  # the same for a Cholesky factor and the inverse from it


@dataclass
class Budget:
    """Products that a solve has taken, its limit, and its deadline."""

    rows: int  # n, of all processes
    features: int  # P
    outputs: int  # C
    limit: float = math.inf  # products after which to stop
    began: float = field(default_factory=time.perf_counter)
    deadline: float = math.inf  # value of time.perf_counter, as is ``began``
    done: float = 0.0  # products taken
    shards: Alone = ALONE  # processes that share the rows, and stop together

    @classmethod
    def of(cls, problem: Problem, products: float = math.inf, seconds: float = math.inf) -> Budget:
        """Return the budget of a program from now on."""
        features = problem.features
        rows = rows_of_all(features.num_samples, features.device, features.shards)
        now = time.perf_counter()
        return cls(rows, features.num_features, problem.num_outputs, products, now, now + seconds, shards=features.shards)

    @property
    def late(self) -> bool:
        """True after the deadline, by the clock of the first process."""
        return bool(self.shards.decided(time.perf_counter() > self.deadline))

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


def rows_of_all(count: int, device: torch.device, shards: Alone) -> int:
    """Return the number of rows of all processes, of which this one has ``count``."""
    return int(shards.total(torch.tensor(count, device=device)))
