r"""The convex program of a readout, and the certificate of a point of it.

    minimise over W, b    sum_i w_i loss(W phi_i + c_i b, y_i) + strength * penalty(W)

with w_i = 1/n unless samples are weighted.  Its dual, for one variable U_i in R^C a sample, is

    maximise  -sum_i w_i loss*(U_i) - (strength * penalty)*(sum_i w_i U_i phi_i')    subject to  sum_i w_i c_i U_i = 0.

Any feasible U bounds the optimum from below, so ``primal - dual`` bounds how far a point is from optimal.  Here U is the gradient
of the losses at the primal point after b has been solved exactly (which makes the equality hold), shrunk until the penalty's
conjugate is finite.  Source: arXiv 2605.08022, theorem on zero duality gap, extended to a free bias and to sums of penalties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .bias import solve_bias
from .choices import make_loss, make_penalty
from .design import Design
from .losses import Loss
from .margin import Hinge
from .penalties import Penalty

__all__ = ["Certificate", "Evaluation", "Problem"]

_WIDTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # smoothings of the hinge that propose a dual point


@dataclass(frozen=True)
class Certificate:
    """How far a point can be from optimal, all in float64.

    Args:
        primal: objective at the point.
        dual: a lower bound of the optimal objective.
        gap: ``primal - dual``; at least zero up to rounding.
        relative_gap: gap divided by the loss at zero weights and zero bias.
        tol: the relative gap that was asked for.
        reached: whether ``relative_gap <= tol``.
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
    """All that one float64 pass over the features tells of a point whose bias is exact.

    Args:
        weight: (C, P).
        bias: (C,), optimal for ``weight``.
        scores: (n, C).
        gradient: gradient of the loss in W, (C, P); that in b is zero.
        objective: the primal objective.
        dual: objective of the dual point made from this residual.
        gap: ``objective - dual``.
    """

    weight: Tensor
    bias: Tensor
    scores: Tensor
    gradient: Tensor
    objective: float
    dual: float

    @property
    def gap(self) -> float:
        """The duality gap at this point."""
        return self.objective - self.dual


class Problem:
    """A readout program: data, loss, penalty and strength.

    Args:
        design: features and bias column.
        targets: the user's targets; checked and converted by the loss.
        loss: name or Loss.
        penalty: name or Penalty.
        strength: factor of the penalty, positive.
        num_outputs: number C of outputs; default: from the targets.

    Raises:
        DataError: targets don't fit the loss or the features.
        OptionError: unknown names, or a strength that is not positive.
    """

    def __init__(
        self,
        design: Design,
        targets: Tensor,
        *,
        loss: str | Loss = "cross_entropy",
        penalty: str | Penalty = "group_l1",
        strength: float = 1e-3,
        num_outputs: int | None = None,
    ) -> None:
        self.design = design
        self.loss = make_loss(loss)
        self.penalty = make_penalty(penalty)
        self.strength = checked_strength(strength)
        self.num_outputs = num_outputs if num_outputs is not None else _outputs_of(targets)
        if len(targets) != design.num_samples:
            raise DataError(
                f"{len(targets)} targets for {design.num_samples} samples", "one target a sample", "check the data"
            )
        self.classifies = not targets.is_floating_point()
        self.targets = self.loss.prepare(targets.to(design.device), self.num_outputs)
        self.zero_loss = float(design.row_weights @ self.loss.value(self._zero_scores(), self.targets)) or 1.0

    def _zero_scores(self) -> Tensor:
        return torch.zeros(self.design.num_samples, self.num_outputs, dtype=torch.float64, device=self.design.device)

    def with_strength(self, strength: float) -> Problem:
        """The same data with another strength; nothing is copied."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.strength = checked_strength(strength)
        return other

    def with_loss(self, loss: Loss) -> Problem:
        """The same data with another loss of the same kind of targets; nothing is copied."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.loss = loss
        return other

    def zero_point(self) -> tuple[Tensor, Tensor]:
        """W = 0 (C, P) and b = 0 (C,), in float64."""
        weight = torch.zeros(self.num_outputs, self.design.num_features, dtype=torch.float64, device=self.design.device)
        return weight, weight.new_zeros(self.num_outputs)

    def mean_loss(self, scores: Tensor) -> float:
        """Weighted mean of the losses of float64 scores (n, C)."""
        return float(self.design.row_weights @ self.loss.value(scores, self.targets))

    def objective(self, weight: Tensor, bias: Tensor) -> float:
        """The primal objective at (W, b), b as it is."""
        scores = self.design.scores(weight.double(), bias.double())
        return self.mean_loss(scores) + self.strength * float(self.penalty.value(weight.double()))

    def primal(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Objective, weight and bias, after the bias has been solved for the weight; one pass over the features."""
        weight = weight.double()
        raw = self.design.scores(weight, torch.zeros_like(bias, dtype=torch.float64))
        bias = solve_bias(self.loss, self.design, self.targets, raw, bias.double())
        scores = raw + torch.outer(self.design.bias_column, bias)
        return self.mean_loss(scores) + self.strength * float(self.penalty.value(weight)), weight, bias

    def evaluate(self, weight: Tensor, bias: Tensor, raw: Tensor | None = None) -> Evaluation:
        """Solves the bias for ``weight``, then objective, gradient and dual point, in float64.

        Args:
            weight: (C, P).
            bias: (C,) first guess.
            raw: (n, C) float64, the scores without the bias where the caller has them already; saves a pass over the features.
        """
        weight = weight.double()
        if raw is None:
            raw = self.design.scores(weight, torch.zeros_like(bias, dtype=torch.float64))
        bias = solve_bias(self.loss, self.design, self.targets, raw, bias.double())
        scores = raw + torch.outer(self.design.bias_column, bias)
        objective = self.mean_loss(scores) + self.strength * float(self.penalty.value(weight))
        gradient, dual = self._dual_point(raw, scores, bias)
        return Evaluation(weight, bias, scores, gradient, objective, dual)

    def _dual_point(self, raw: Tensor, scores: Tensor, bias: Tensor) -> tuple[Tensor, float]:
        """Gradient (C, P) and dual objective of the dual point that belongs to the scores.

        At the hinge's kink the dual variable may be anything in between: its smoothings, each with its own exact bias, pick one
        each, and the best is kept.
        """
        if not isinstance(self.loss, Hinge):
            dual_rows = self.loss.gradient(scores, self.targets)
            gradient = self.design.adjoint(dual_rows)
            return gradient, self.dual_value(dual_rows, gradient)
        found: list[tuple[Tensor, float]] = []
        for width in _WIDTHS:
            smooth = self.loss.smoothed(width)
            bias = solve_bias(smooth, self.design, self.targets, raw, bias)
            dual_rows = smooth.gradient(raw + torch.outer(self.design.bias_column, bias), self.targets)
            gradient = self.design.adjoint(dual_rows)
            found.append((gradient, self.dual_value(dual_rows, gradient)))
        return max(found, key=lambda pair: pair[1])

    def dual_value(self, dual_rows: Tensor, gradient: Tensor) -> float:
        """Dual objective of ``dual_rows``, shrunk into the domain of the penalty's conjugate."""
        scale = 1.0
        if math.isinf(float(self.penalty.conjugate(gradient, self.strength))):
            scale = self.strength / float(self.penalty.dual_norm(gradient))
        losses = self.loss.conjugate(scale * dual_rows, self.targets)
        return -float(self.design.row_weights @ losses) - float(self.penalty.conjugate(scale * gradient, self.strength))

    def lower_bound(self, dual_rows: Tensor) -> float:
        """Dual objective of any dual point of a margin loss (n, C), e.g. a backend's, after it has been made feasible.

        Entries are clipped to ``-1 <= u y <= 0``; where the bias's equality is missed, the entries of the heavier sign are shrunk
        together until it holds, which keeps them inside.
        """
        signs = self.targets.to(dual_rows.dtype)
        inside = signs * (dual_rows * signs).clamp(-1, 0)
        mass = inside * (self.design.row_weights * self.design.bias_column)[:, None]
        up, down = mass.clamp_min(0).sum(0), -mass.clamp_max(0).sum(0)
        least = torch.minimum(up, down)
        tiny = torch.finfo(mass.dtype).tiny
        if self.design.has_bias:
            inside = inside * torch.where(mass > 0, least / up.clamp_min(tiny), least / down.clamp_min(tiny))
        return self.dual_value(inside, self.design.adjoint(inside))

    def certify(self, weight: Tensor, bias: Tensor, tol: float) -> Certificate:
        """Certificate of exactly the point given: primal at (W, b) as they are, dual from W with its own exact bias."""
        evaluation = self.evaluate(weight, bias)
        return self.certificate(self.objective(weight, bias), evaluation.dual, tol)

    def certificate(self, primal: float, dual: float, tol: float) -> Certificate:
        """Certificate from a primal and a dual value."""
        gap = primal - dual
        relative = gap / self.zero_loss
        return Certificate(primal, dual, gap, relative, tol, relative <= tol)

    def critical_strength(self) -> float:
        """Smallest strength at which W = 0 is optimal.

        For a penalty that never makes the weights zero, the largest curvature of the loss along one feature: beyond it the penalty
        outweighs the data in every single weight, and a path need not begin higher.
        """
        # At the hinge's kink many dual points are optimal for zero weights; that of a fine smoothing gives an upper bound.
        problem = self.with_loss(self.loss.smoothed(_WIDTHS[-1])) if isinstance(self.loss, Hinge) else self
        start = problem.evaluate(*self.zero_point())
        if self.penalty.sparse:
            return float(self.penalty.dual_norm(start.gradient))
        return float(self.design.variance.max()) * min(self.loss.bound, 1.0)

    def accuracy(self, weight: Tensor, bias: Tensor) -> float:
        """Share of samples whose class is predicted, 0 to 1; NaN for regression."""
        if not self.classifies:
            return math.nan
        scores = self.design.scores(weight.double(), bias.double())
        return accuracy_of(self.loss, scores, self.targets)


def accuracy_of(loss: Loss, scores: Tensor, targets: Tensor) -> float:
    """Share of rows predicted right for prepared ``targets``."""
    predicted = loss.predictions(scores)
    if targets.dim() == 2:
        targets = targets.argmax(1) if targets.shape[1] > 1 else (targets[:, 0] > 0).long()
    return float((predicted == targets).double().mean())


def checked_strength(strength: float) -> float:
    """A positive finite number, or an OptionError."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength < math.inf:
        raise OptionError(f"strength={strength!r}", "a positive number or 'auto'", "pass strength='auto'")
    return float(strength)


def _outputs_of(targets: Tensor) -> int:
    if targets.dim() == 2:
        return int(targets.shape[1])
    return 1 if targets.is_floating_point() else max(2, int(targets.max()) + 1)
