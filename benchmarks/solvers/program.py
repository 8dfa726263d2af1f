"""A program as arrays.  No import of torch: adelie, skglm and celer run in an environment without it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["GOAL", "TARGETS", "Point", "Program", "Run"]

TARGETS = (1e-2, 1e-4, 1e-6)  # relative gaps
GOAL = TARGETS[-1]
Point = tuple[Any, Any, dict[str, Any]]  # weight (C, P), bias (C,), and what else to keep of it
Run = Generator[Point, float, None]  # a peer's points; it is sent the gap of each


@dataclass(frozen=True)
class Program:
    """Minimise ``(1/n) sum loss(W phi + b, y) + strength * penalty(W)`` over W and b.

    Args:
        features: (n, P), float32 or uint8.
        labels: (n,) int64.
        loss: name of the loss.
        penalty: name of the penalty.
        strength: of the penalty.
        outputs: C.
        threads: for peers that take a number of them.
        limit: seconds.
        python: interpreter of the environment of adelie, skglm and celer.
    """

    features: np.ndarray
    labels: np.ndarray
    loss: str
    penalty: str
    strength: float
    outputs: int
    threads: int = 1
    limit: float = 300.0
    python: str | None = None

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float64 features without their means, (n, P), and the means (P,).

        With a free bias this is the same program, better conditioned: b = b' - W mean.
        """
        mean = self.features.mean(0, dtype=np.float64)
        return self.features - mean, mean
