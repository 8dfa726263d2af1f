"""Work and time that a solve may take.

Work is counted in products with all features, so that a bound on it means the same on every machine.  One product is ``n x P x C``
multiply-adds in float32, and at least 64 a feature, since few outputs wait for the memory.  Float64 counts twice.
"""

from __future__ import annotations

import math
import time

from .problem import Problem

PRICE = 64  # multiply-adds a feature: 40 GB/s from memory against 10 (P = 1000, C = 10: 8 ms a product, 1 core, n = 8000)
EVALUATION = 4  # cost of evaluating a point in products: two passes in float64
_INVERSE = 1.5  # multiply-adds of a Cholesky factor of P features and the inverse from it, over P^3


class Budget:
    """Products that a solve has taken (``done``), their limit, and its deadline, a value of ``time.perf_counter``."""

    def __init__(self, problem: Problem, products: float = math.inf, seconds: float = math.inf) -> None:
        features = problem.features
        self.shards = features.shards
        self.rows = features.shards.total_rows(features.num_samples)
        self.features, self.outputs = features.num_features, problem.num_outputs
        self.limit, self.done = products, 0.0
        self.began = time.perf_counter()
        self.deadline = self.began + seconds

    @property
    def late(self) -> bool:
        """True after the deadline, measured by the first process."""
        return bool(self.shards.broadcast_number(time.perf_counter() > self.deadline))

    @property
    def left(self) -> float:
        """Products that may still be taken."""
        return max(0.0, self.limit - self.done)

    def steps(self, most: int, features: int | None = None) -> int:
        """Return how many steps of two products with ``features`` features, by default all, may still be taken: 1 to ``most``."""
        left = self.left if features is None else self.left * self.features / max(1, features)
        return int(min(most, max(1.0, left / 2)))

    def add(self, products: float, features: int | None = None) -> None:
        """Count products with ``features`` features; default all."""
        self.done += products * (1.0 if features is None else features / self.features)

    def add_inverse(self, features: int) -> None:
        """Count a Gram matrix of ``features`` features and its inverse."""
        multiply_adds = features**2 * (self.rows + _INVERSE * features)
        self.done += multiply_adds / (float(self.rows) * self.features * max(self.outputs, PRICE))
