r"""Convex program of a readout, and the certificate of a point.

    minimise over W, b    sum_i w_i loss(W phi_i + c_i b, y_i) + strength * penalty(W)

with w_i = 1/n unless samples are weighted.  Its dual, for one variable U_i in R^C a sample, is

    maximise  -sum_i w_i loss*(U_i) - (strength * penalty)*(sum_i w_i U_i phi_i')    subject to  sum_i w_i c_i U_i = 0.

Any feasible U bounds the optimum from below.  Here U is the gradient of the losses at the primal point after b has been solved
exactly, which makes the equality hold.  U is then shrunk until the penalty's conjugate is finite.  Source: arXiv 2605.08022,
theorem on zero duality gap, extended to a free bias and to sums of penalties.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .checks import check_tensor, positive_number
from .features import Features
from .loss import Loss
from .losses import LOSSES, make_loss
from .penalties import Penalty, make_penalty

_EXACT = 1e-8  # largest slope at an exact bias that rounding explains, over the mean size of its column, or of its terms
_BISECTIONS = 60  # as many as a float64 has digits
_FLOAT32_RANGE = 1e6  # larger features would overflow or lose all precision when squared in float32
_POINT = "pass a weight as that of an nn.Linear, and one bias for each output"


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
    """Results of two float64 passes over the features, at a point whose bias is exact; with kinks of the loss, as given."""

    weight: Tensor  # (C, P)
    bias: Tensor  # (C,), optimal for the weight if the loss is smooth
    scores: Tensor  # (n, C)
    gradient: Tensor  # of the loss in W at the dual point, (C, P); the gradient in b is zero
    objective: float
    dual: float  # objective of the dual point made from this residual

    @property
    def gap(self) -> float:
        """Duality gap at this point."""
        return self.objective - self.dual


class Problem:
    """Readout program: data, loss, penalty and strength.

    Args:
        features: of the rows, with the bias column.
        targets: class indices (n,); 0 or 1 for each output (n, C), for a loss that is ``binary``; or floating numbers, (n,) or
            (n, C), for one that ``fits_values``.
        loss, penalty: by name, or a ``Loss`` and a ``Penalty``; default "cross_entropy" and "group_l1".
        strength: factor of the penalty, positive; default 1e-3.
        num_outputs: number C of outputs; default: from the targets.

    Raises:
        DataError: targets don't fit the loss or the features.
        OptionError: unknown names, or a strength that is not positive.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, Problem
        >>> problem = Problem(Features(torch.eye(4)), torch.tensor([0, 1, 1, 0]), loss="cross_entropy", penalty="l1")
        >>> problem.critical_strength()  # from there on all weights are zero
        0.125
    """

    def __init__(
        self,
        features: Features,
        targets: Tensor,
        *,
        loss: str | Loss = "cross_entropy",
        penalty: str | Penalty = "group_l1",
        strength: float = 1e-3,
        num_outputs: int | None = None,
    ) -> None:
        self.features = features
        self.loss = make_loss(loss)
        self.penalty = make_penalty(penalty)
        self.strength = positive_number("strength", strength, "pass strength=1e-3")
        with features.shards.share_errors():
            check_tensor(targets, "targets")
            self.classifies = targets.dim() == 1 and not targets.is_floating_point()
            self.num_outputs = num_outputs if num_outputs is not None else _outputs_of(targets)
        # A process may have no sample of the last class.
        self.num_outputs = int(features.shards.max(torch.tensor(self.num_outputs, device=features.device)))
        with features.shards.share_errors():
            self.targets = self._prepared(targets)
        features.shards.check_equal("targets that are class indices", self.classifies)
        zeros = self.features.mean.new_zeros(features.num_samples, self.num_outputs)
        self.zero_loss = self.mean_loss(zeros) or 1.0  # gaps are relative to it

    def _prepared(self, targets: Tensor) -> Tensor:
        features = self.features
        if len(targets) != features.num_samples:
            raise DataError(f"{len(targets)} targets for {features.num_samples} samples", "one target a sample", "check the data")
        if not (features.is_whole or self.loss.smooth):
            found, fix = "with rows spread over processes", f"pass one of {[name for name, kind in LOSSES.items() if kind.smooth]}"
            raise OptionError(f"the loss {self.loss.name!r}, which has kinks, {found}", "a smooth loss", fix)
        return self.loss.prepare(targets.detach().to(features.device), self.num_outputs)

    def with_strength(self, strength: float) -> Problem:
        """Return the same data with another strength; nothing is copied."""
        other = copy.copy(self)
        other.strength = positive_number("strength", strength, "pass strength=1e-3")
        return other

    @property
    def working_dtype(self) -> torch.dtype:
        """Precision of the solvers' iterations: float32, or float64 if the features are too large for it."""
        largest = float((self.features.variance + self.features.mean.square()).max()) ** 0.5
        return torch.float32 if largest < _FLOAT32_RANGE else torch.float64

    @property
    def independent_outputs(self) -> bool:
        """True if every output is a separate program: neither the loss nor the penalty couples them."""
        return self.loss.separable and self.penalty.separable

    def zero_point(self) -> tuple[Tensor, Tensor]:
        """Return W = 0 (C, P) and b = 0 (C,), in float64."""
        zeros, count = self.features.mean.new_zeros, self.num_outputs
        return zeros(count, self.features.num_features), zeros(count)

    def mean_loss(self, scores: Tensor) -> float:
        """Return the weighted mean of the losses of float64 scores (n, C)."""
        return self.features.mean_value(self.loss.value(scores, self.targets))

    def objective_by_output(self, weight: Tensor, scores: Tensor) -> Tensor:
        """Return the objective of each output, (C,), if outputs are separate programs; else the whole objective, (1,)."""
        if self.independent_outputs:
            losses, penalties = self.loss.by_output(scores, self.targets), self.penalty.by_output(weight)
        else:
            losses, penalties = self.loss.value(scores, self.targets)[:, None], self.penalty.value(weight)[None]
        return self.features.row_mean(losses, self.strength * penalties)

    def checked_point(self, weight: Tensor, bias: Tensor, found: str = "", fix: str = _POINT) -> tuple[Tensor, Tensor]:
        """Return a user's (W, b) in float64, without gradients; refuse other shapes by an OptionError."""
        shapes = ((self.num_outputs, self.features.num_features), (self.num_outputs,))
        if (weight.shape, bias.shape) != shapes:
            found += f"a weight of shape {tuple(weight.shape)} and a bias of shape {tuple(bias.shape)}"
            raise OptionError(found, f"shapes {shapes[0]} and {shapes[1]}, one row for each output", fix)
        return weight.detach().double(), bias.detach().double()

    def objective(self, weight: Tensor, bias: Tensor) -> float:
        """Return the primal objective at (W, b), without solving for b."""
        weight, bias = self.checked_point(weight, bias)
        return self._objective(weight, self.features.scores(weight, bias))

    def primal(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return objective, weight and bias, with the bias solved for the weight; one pass over the features."""
        weight = weight.double()
        bias, scores = self._with_bias(self._raw(weight), bias)
        return self._objective(weight, scores), weight, bias

    def evaluate(self, weight: Tensor, bias: Tensor, raw: Tensor | None = None) -> Evaluation:
        """Evaluate ``weight`` (C, P) with its exact bias, in float64; ``raw``, its scores (n, C) without a bias, saves a pass."""
        weight, shards = self.features.shards.broadcast(weight.double()), self.features.shards
        raw = self._raw(weight) if raw is None else raw
        bias, scores = self._with_bias(raw, bias)
        gradient, dual = self.dual_point(self.loss.gradient(scores, self.targets))
        values = scores.new_tensor([self._objective(weight, scores), dual])
        primal, dual = shards.broadcast(values).tolist()
        return Evaluation(weight, bias, scores, gradient, primal, dual)

    def _objective(self, weight: Tensor, scores: Tensor) -> float:
        return self.mean_loss(scores) + self.strength * float(self.penalty.value(weight))

    def _raw(self, weight: Tensor) -> Tensor:
        """Return the scores (n, C) without a bias, in float64."""
        return self.features.scores(weight, weight.new_zeros(self.num_outputs))

    def _with_bias(self, raw: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact bias (C,), the same in all processes, and the scores (n, C) with it; with kinks the start itself."""
        bias = start.double()
        if self.loss.smooth:
            bias = self.features.shards.broadcast(solve_bias(self.loss, self.features, self.targets, raw, bias))
        return bias, raw + self.features.bias_column * bias

    def dual_point(self, dual_rows: Tensor) -> tuple[Tensor, float]:
        """Return the gradient (C, P) and dual objective of dual rows (n, C); those of a loss with kinks need not be feasible."""
        if not self.loss.smooth:
            dual_rows = self._feasible(dual_rows)
        gradient = self.features.adjoint(dual_rows)[0]
        return gradient, self.dual_value(dual_rows, gradient)

    def _feasible(self, dual_rows: Tensor) -> Tensor:
        """Return rows near those given that are in the domain of the loss's conjugate, and whose slope in the bias is zero.

        They move along the bias column: of centred features the gradient then hardly changes.  Bisection finds by how much.
        """
        column = self.features.bias_column

        def moved(length: Tensor) -> tuple[Tensor, Tensor]:
            rows = self.loss.feasible(dual_rows + length * column, self.targets)
            return rows, self.features.row_mean(column * rows)

        high = dual_rows.new_ones(self.num_outputs)
        for _ in range(_BISECTIONS):
            if bool((moved(high)[1] >= 0).all() & (moved(-high)[1] <= 0).all()):
                break
            high = 2 * high
        low = -high
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = moved(middle)[1] < 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return moved(high)[0]

    def dual_value(self, dual_rows: Tensor, gradient: Tensor) -> float:
        """Return the dual objective of ``dual_rows``, shrunk into the domain of the penalty's conjugate."""
        features, column, scale = self.features, self.features.bias_column, 1.0
        terms, size = column * dual_rows, features.bias_sizes[0]
        slope = features.row_mean(terms).abs()
        if bool((slope > _EXACT * size).any()) and bool((slope > _EXACT * features.row_mean(terms.abs())).any()):
            return -math.inf  # the bias is not exact, and no penalty bounds it
        if math.isinf(float(self.penalty.conjugate(gradient, self.strength))):
            scale = self.strength / float(self.penalty.dual_norm(gradient))
        losses = features.mean_value(self.loss.conjugate(scale * dual_rows, self.targets))
        return -losses - float(self.penalty.conjugate(scale * gradient, self.strength))

    def certify(self, weight: Tensor, bias: Tensor, tol: float, known: float = -math.inf) -> Certificate:
        """Return the certificate of exactly the given point: primal at (W, b) as they are, dual from W with its own exact bias.

        ``known`` is another lower bound of the optimum, e.g. a solver's dual value, which holds for every point.  Without it the
        bound of a loss with kinks is loose: at a kink the dual variable is not known.
        """
        weight, bias = self.checked_point(weight, bias)
        return self.certificate(self.objective(weight, bias), max(self.evaluate(weight, bias).dual, known), tol)

    def certificate(self, primal: float, dual: float, tol: float) -> Certificate:
        """Return the certificate of a primal and a dual value."""
        relative = (primal - dual) / self.zero_loss
        return Certificate(primal, dual, primal - dual, relative, tol, relative <= tol)

    def critical_strength(self) -> float:
        """Return the smallest strength at which W = 0 is optimal.

        For a penalty that never zeroes the weights, return the loss's largest curvature along one feature.  For a loss with kinks
        it is an upper bound, as many dual points are optimal for zero weights, and an estimate if the bias column varies.
        """
        agree = self.features.shards.broadcast_number
        if not self.penalty.sparse:
            return agree(float(self.features.variance.max()) * min(self.loss.max_curvature, 1.0))
        return agree(float(self.penalty.dual_norm(self.evaluate(*self.zero_point()).gradient)))

    def accuracy(self, weight: Tensor, bias: Tensor) -> float:
        """Return the share of samples whose class is predicted, 0 to 1; NaN for regression."""
        if not self.classifies:
            return math.nan
        scores = self.features.scores(*self.checked_point(weight, bias))
        return accuracy_of(self.loss, scores, self.targets, self.features)


def accuracy_of(
    loss: Loss, scores: Tensor, targets: Tensor, features: Features | None = None, counted: Tensor | None = None
) -> float:
    """Return the share of rows, of all processes with ``features``, predicted right; of those ``counted`` (n,), default all."""
    classes = loss.predictions(targets) if targets.dim() == 2 else targets
    right = (loss.predictions(scores) == classes).double()
    right = right if counted is None else right[counted.to(right.device)]
    found = torch.stack([right.sum(), right.new_tensor(float(len(right)))])
    found = found if features is None else features.shards.sum(found)
    return float(found[0] / found[1])


def _outputs_of(targets: Tensor) -> int:
    if targets.dim() == 2:
        return int(targets.shape[1])
    return 1 if targets.is_floating_point() else max(2, int(targets.long().max()) + 1 if len(targets) else 0)


# -- the free bias, solved exactly for given weights ----------------------------------------------------------------------------

_FEW_STEPS = 20  # then the loss's own exact method is tried, if it has one
_STEPS = 200  # a dozen are usual; a distant start in a flat region begins with steps of the curvature bound
_FEASIBLE = 1e-12  # slope over the mean size of the bias column: small enough for the dual point


def solve_bias(loss: Loss, features: Features, targets: Tensor, scores: Tensor, start: Tensor) -> Tensor:
    """Return the bias b (C,) that minimises ``sum_i w_i loss(scores_i + c_i b, y_i)`` of a smooth loss; zeros without a bias.

    ``scores`` (n, C) are without the bias, and ``start`` (C,) is a first guess, both float64.
    """
    if not float(features.bias_sizes[0].max()):
        return torch.zeros_like(start)
    bias, left = _newton_bias(loss, features, targets, scores, start, _FEW_STEPS)
    if left <= _FEASIBLE:
        return bias
    exact = _exact_bias(loss, features, targets, scores) if features.is_whole else None
    other, still = _newton_bias(loss, features, targets, scores, bias if exact is None else exact, _STEPS)
    return other if still < left else bias


def _exact_bias(loss: Loss, features: Features, targets: Tensor, scores: Tensor) -> Tensor | None:
    """Return the bias by the loss's own method, or None if it has none that suits the features' bias columns."""
    columns = features.bias_column.unbind(1)
    if len(columns) == 1:
        return loss.exact_bias(columns[0], features.row_weights, scores, targets)
    if not loss.separable:
        return None
    found = [loss.exact_bias(column, features.row_weights, scores, targets) for column in columns]
    kept = [bias[k] for k, bias in enumerate(found) if bias is not None]
    return torch.stack(kept) if len(kept) == len(found) else None


def _newton_bias(
    loss: Loss, features: Features, targets: Tensor, scores: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, float]:
    """Return the bias of a smooth loss by safeguarded Newton steps, and the remaining slope over the bias column's mean size."""
    shards, column = features.shards, features.bias_column

    def at(bias: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        shifted = scores + column * bias
        both = torch.cat([column * loss.gradient(shifted, targets), loss.value(shifted, targets)[:, None]], 1)
        means = features.row_mean(both)
        return bias, shifted, means[:-1], float(means[-1])

    # A guess worse than zero, e.g. from other data, may lie in a flat region.
    point, origin = at(start), at(torch.zeros_like(start))
    bias, shifted, slope, level = origin if origin[3] < point[3] else point
    mean, square, largest = features.bias_sizes
    size, tiny, reach = float(mean.min()), torch.finfo(torch.float64).tiny, 2 * largest
    safe = 1 / (loss.max_curvature * square.clamp_min(tiny))
    for _ in range(steps):
        if float(slope.abs().max()) <= 1e-15 * size:
            break
        bends = loss.curvature(shifted, targets).weighted_sum(features.row_weights, column)
        curvature = shards.sum(bends)  # second derivative in b, (C, C)
        if not bool(torch.isfinite(curvature).all() & torch.isfinite(slope).all()):
            break  # the scores overflowed: the caller sees an objective that is not finite
        # Softmax is invariant to a shift of all scores: the pseudo-inverse picks the smallest of the equivalent steps.  Its cutoff
        # lies above rounding errors, which would otherwise be inverted along that shift and swamp the scores.
        step = -(torch.linalg.pinv(curvature, rtol=1e-14, hermitian=True) @ slope)
        # log(1 + d) / d of a step of length d lowers every loss made of exponentials (they are generalised self-concordant).
        length = float(step.norm()) * reach
        damped = math.log1p(length) / max(length, 1e-300)
        for move in (step, step / 4, damped * step, -safe * slope):  # the last always lowers the loss, even where it is nearly flat
            trial = at(bias + move)
            falls = trial[3] <= level + 1e-4 * float(move @ slope) and trial[3] < level
            # Near the optimum the objective is flat to rounding: only the slope can compare two points.
            flat = trial[3] <= level + 1e-14 * abs(level) and float(trial[2].norm()) < 0.9 * float(slope.norm())
            if shards.broadcast_number(falls or flat):
                bias, shifted, slope, level = trial
                break
        else:  # rounding: no step lowers objective or slope any more
            break
    return bias, float(slope.abs().max()) / max(size, tiny)
