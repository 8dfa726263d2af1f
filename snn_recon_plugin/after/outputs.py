"""Outputs of a readout, solved from mean and covariance of each class's rows, and judged on the rows that statistics keep.

The loss is the squared hinge, as if the scores of a class were normal.  A score sums many spikes, so that its distribution over a
class's samples is near normal.  The expected squared hinge of a normal score has a closed form in its mean and variance, convex in
the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..convex import make_loss
from ..convex.checks import positive_number
from ..errors import SolverError
from ..stages.scores import Judge, RowsPerSample
from .statistics import RowSource, Statistics

_STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the mean square of a row's features
_USUAL = 1e-4  # the same without rows to judge it on
_WORTH = 1e-3  # relative gain in loss that a smaller strength must bring, as in convex/path.py
_STEPS, _HISTORY = 60, 20  # of L-BFGS, from the solution at the last strength: more do not change held-out accuracies
_TINY = 1e-12  # of a variance, whose root has no slope at zero


def expected_hinge(mean: Tensor, variance: Tensor, sign: Tensor) -> Tensor:
    """Return the mean of ``1/2 max(0, 1 - sign z)^2`` over normal scores z."""
    spread, lack = (variance + _TINY).sqrt(), 1 - sign * mean
    reach = lack / spread
    below = 0.5 * torch.erfc(-reach / math.sqrt(2))
    density = torch.exp(-0.5 * reach.square()) / math.sqrt(2 * math.pi)
    return 0.5 * ((lack.square() + variance) * below + lack * spread * density)


@dataclass(frozen=True)
class ClassMoments:
    """Mean and covariance of the rows of each class, in float64; all classes weigh alike."""

    means: Tensor  # (C, P + 1); a row's last value is what one unit of bias adds
    covariances: Tensor  # (C, P + 1, P + 1)

    @staticmethod
    def of(statistics: Statistics) -> ClassMoments:
        """Return the moments of the rows that were summed up."""
        gram, sums, counts = statistics.gram, statistics.sums, torch.tensor(statistics.counts).double()
        means = sums.T / counts[:, None]
        scatter = gram - counts[:, None, None] * means[:, :, None] * means[:, None, :]
        return ClassMoments(means, scatter / counts[:, None, None])

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each feature's coefficient on the bias's feature (P,); eigenvalues and eigenvectors of the residual products of rows."""
        products = self.covariances.mean(0) + self.means.T @ self.means / len(self.means)  # all classes weigh alike
        own = products[-1, -1]
        share = products[:-1, -1] / own if float(own) > 0 else torch.zeros_like(products[:-1, -1])
        values, vectors = torch.linalg.eigh(products[:-1, :-1] - own * torch.outer(share, share))
        return share, values.clamp_min(0), vectors

    @property
    def scale(self) -> float:
        """Mean square of a row's features, centred: the unit of strengths."""
        return float(self._basis[1].sum()) or 1.0

    def solve(self, strength: float, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return weight (C, P) and bias (C,), one class against the rest, with ridge on the weight.

        ``start`` is a solution at another strength.
        """
        share, values, vectors = self._basis
        scale = 1 / (values + strength).sqrt()  # the ridge has the curvature of all directions near one
        change = torch.eye(len(share) + 1, dtype=torch.float64)  # from points to weight and bias
        change[:-1, :-1] = vectors * scale
        change[-1, :-1] = -share @ change[:-1, :-1]
        return self._descend(strength, change, scale, start)

    def _descend(
        self, strength: float, change: Tensor, scale: Tensor, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Minimise over points A in the basis; weight and bias are ``A change'``."""
        means, spread = self.means @ change, change.T @ self.covariances @ change
        signs = 2.0 * torch.eye(len(means)).double() - 1
        point = torch.zeros(len(means), len(change)).double()
        if start is not None:
            point = torch.linalg.solve(change, torch.cat([start[0], start[1][:, None]], 1).T).T.contiguous()
        point.requires_grad_(True)
        search = torch.optim.LBFGS([point], max_iter=_STEPS, history_size=_HISTORY, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            search.zero_grad()
            variance = ((point @ spread) * point).sum(-1).T  # [C, C], of each output on each class
            loss = expected_hinge(point @ means.T, variance, signs).mean(1).sum()
            loss = loss + 0.5 * strength * (point[:, :-1] * scale).square().sum()
            torch.autograd.backward(loss)
            return loss

        with torch.enable_grad():
            search.step(objective)  # type: ignore[no-untyped-call]
        found = point.detach() @ change.T
        if not bool(torch.isfinite(found).all()):
            needed = "features and a strength that give finite weights"
            raise SolverError(f"weights that are not finite at strength {strength:.1e}", needed, "pass a larger strength=")
        return found[:, :-1], found[:, -1]


@dataclass(frozen=True)
class Outputs:
    """Outputs of a readout in the program's terms."""

    weight: Tensor  # (C, P) float64
    bias: Tensor  # (C,) float64; the output neuron's resting value is part of it

    @staticmethod
    def of(source: RowSource) -> Outputs:
        """Return the outputs that a network has."""
        layer = source.net_map.readout
        weight = layer.weight.detach().cpu().double()
        bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().cpu().double()
        return Outputs(weight, bias + source.rest)

    def scores(self, values: Tensor) -> Tensor:
        """Return the scores of rows (m, P + 1), (m, C)."""
        return values @ torch.cat([self.weight, self.bias[:, None]], 1).T

    def accuracy(self, values: Tensor, labels: Tensor) -> float:
        """Return the share of rows whose largest score is their class's; NaN without rows."""
        return float((self.scores(values).argmax(1) == labels).double().mean()) if len(labels) else math.nan


def checked_strength(strength: float | str) -> float | None:
    """Return a given strength, None for "auto"; refuse others."""
    if strength == "auto":
        return None
    return positive_number("strength", strength, "pass strength='auto'", "a positive number or 'auto'")


def solve_outputs(statistics: Statistics, strength: float | None) -> tuple[Outputs, float]:
    """Return the outputs of all classes, one class against the rest, and their strength; all classes weigh alike.

    The loss is the squared hinge of normal scores, with ridge.  Without a strength the best one on kept rows is taken.
    """
    classes, features = statistics.classes, statistics.gram.shape[-1] - 1
    outputs = Outputs(torch.zeros(classes, features).double(), torch.zeros(classes).double())
    if strength is None:
        outputs, strength = _best_on_kept(statistics, outputs)
    return _solved(ClassMoments.of(statistics), outputs, strength), strength


def _solved(moments: ClassMoments, outputs: Outputs, strength: float) -> Outputs:
    return Outputs(*moments.solve(strength, (outputs.weight, outputs.bias)))


def _best_on_kept(statistics: Statistics, outputs: Outputs) -> tuple[Outputs, float]:
    """Return the outputs with the least cross-entropy on kept rows, which are not fitted, and their strength.

    It is that at the best temperature, all classes alike: the squared hinge prefers too large strengths here.
    """
    labels = statistics.kept_labels
    weights = 1 / torch.bincount(labels, minlength=statistics.classes).double()
    judge = Judge(make_loss("cross_entropy"), labels, rows=RowsPerSample(), weights=weights[labels])
    fitted, scale = ClassMoments.of(statistics.without_kept()), ClassMoments.of(statistics).scale
    best, chosen = math.inf, (outputs, _USUAL * scale)
    for factor in _STRENGTHS if len(labels) else ():
        outputs = _solved(fitted, outputs, factor * scale)
        loss = judge.compare(outputs.scores(statistics.kept))
        if not loss < best * (1 - _WORTH):
            break
        best, chosen = loss, (outputs, factor * scale)
    return chosen
