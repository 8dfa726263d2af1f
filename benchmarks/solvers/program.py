"""A program as arrays, and the points that a peer yields on it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

TARGETS = (1e-2, 1e-4, 1e-6)  # relative gaps
GOAL = TARGETS[-1]
Point = tuple[Any, Any, dict[str, Any]]  # weight (C, P), bias (C,), and what else to keep of it
Run = Generator[Point, float, None]  # a peer's points; it is sent the gap of each


@dataclass(frozen=True)
class Program:
    """Minimise ``(1/n) sum loss(W phi + b, y) + strength * penalty(W)`` over W and b; loss and penalty by name."""

    features: np.ndarray  # (n, P), float32 or uint8
    labels: np.ndarray  # (n,) int64
    loss: str
    penalty: str
    strength: float
    outputs: int
    threads: int = 1  # of the process
    limit: float = 300.0  # seconds
