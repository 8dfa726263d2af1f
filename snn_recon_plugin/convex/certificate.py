"""Duality gap of a point, and the results of evaluating one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """Bound on the distance of a point's objective from the optimum, in float64.

    Args:
        primal: objective at the point.
        dual: lower bound of the optimal objective.
        gap: ``primal - dual``; at least zero up to rounding.
        relative_gap: gap divided by the loss at zero weights and zero bias.
        tol: requested relative gap.
        reached: True if ``relative_gap <= tol``.

    Example:
        >>> print(Certificate(primal=0.5, dual=0.25, gap=0.25, relative_gap=0.125, tol=1e-6, reached=False))
        objective 0.5, gap 2.50e-01, relative gap 1.25e-01 (tol 1e-06: NOT reached)
    """

    primal: float
    dual: float
    gap: float
    relative_gap: float
    tol: float
    reached: bool

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "NOT reached"
        gaps = f"gap {self.gap:.2e}, relative gap {self.relative_gap:.2e}"
        return f"objective {self.primal:.8g}, {gaps} (tol {self.tol:g}: {verdict})"


@dataclass(frozen=True)
class Evaluation:
    """Results of two float64 passes over the features, eight for a loss with kinks, at a point whose bias is exact."""

    weight: Tensor  # (C, P)
    bias: Tensor  # (C,), optimal for the weight
    scores: Tensor  # (n, C)
    gradient: Tensor  # of the loss in W, (C, P); the gradient in b is zero
    objective: float
    dual: float  # objective of the dual point made from this residual

    @property
    def gap(self) -> float:
        """Duality gap at this point."""
        return self.objective - self.dual
