"""Refine readouts that take the maximum over time on the net's true objective, by majorise-minimise.

A score ``max_s m_k(s)`` of membranes affine in weight and bias is convex in them.  So is a loss in the scores of all classes but
the target's, which has a minus sign.  Reading the target's score at the step at which it is largest now can only lower it: the
loss lies above the true one and touches it at the current point (difference-of-convex programming).

The other classes' maxima have kinks at which gradient steps get stuck.  They are replaced by ``t log sum exp(m / t)``, which lies
above them by at most ``t log T``; ``t`` falls when a majoriser brings nothing.  The true objective, measured after each
majoriser, decides which point is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .filters import Response
from .output_neuron import readout_currents
from .readout import Readout

if TYPE_CHECKING:
    from ..convex import Loss, Penalty

_INNER = 15  # steps on one majoriser before the target's steps are chosen again
_BACKTRACKS = 12
_GAIN = 1e-4  # a majoriser that lowers the objective by less than this share brings nothing
_SOFTNESS = (0.1, 0.3, 0.001)  # first t, its factor when a majoriser brings nothing, and the last, of the spread over time


def refine_maximum(
    spikes: Tensor,
    targets: Tensor,
    readout: Readout,
    weight: Tensor,
    bias: Tensor | None,
    *,
    loss: Loss,
    penalty: Penalty,
    strength: float,
    max_steps: int,
) -> tuple[Tensor, Tensor | None]:
    """Lower the true objective ``mean loss(max over time) + strength * penalty``; return the best weight and bias seen.

    If the net puts a ``log_softmax`` on the maxima, they enter the loss without it: cross-entropy is the same for both.

    Args:
        spikes: ``[T, m, P]``, the values that enter the readout, see ``keep_spikes`` of :func:`~.capture.capture`.
        targets: ``[m]``, class indices prepared by the loss.  Other targets have no class whose score could be frozen; the steps
            then follow the objective itself.
        readout: a majorised readout.
        weight: ``[C, P]``, the start.
        bias: ``[C]``, the start.
        loss: of the scores.
        penalty: of the weight.
        strength: the penalty's factor.
        max_steps: maximum number of majorisers.
    """
    program = _Program(spikes, targets, readout.response, loss, penalty, strength)
    point = _Point(weight.detach().float(), None if bias is None else bias.detach().float())
    best = program.objective(point)
    rate = 1.0 / program.bound()
    softness = _SOFTNESS[0]
    for _ in range(max_steps):
        moved, rate = program.minimise(point, rate, softness)
        value = program.objective(moved)
        if not value < best - _GAIN * abs(best):
            softness, rate = softness * _SOFTNESS[1], max(rate, 1e-3 / program.bound())
        if value < best:
            point, best = moved, value
        if softness < _SOFTNESS[2]:
            break
    return point.weight, point.bias


@dataclass(frozen=True)
class _Point:
    """A weight ``[C, P]`` and a bias ``[C]``."""

    weight: Tensor
    bias: Tensor | None


def _beyond(point: _Point, before: _Point, share: float) -> _Point:
    """Extrapolate from a point in the direction that led to it."""
    bias = None if point.bias is None or before.bias is None else point.bias + share * (point.bias - before.bias)
    return _Point(point.weight + share * (point.weight - before.weight), bias)


@dataclass(frozen=True)
class _Program:
    """The true objective and its majorisers."""

    spikes: Tensor
    targets: Tensor
    response: Response
    loss: Loss
    penalty: Penalty
    strength: float

    def bound(self) -> float:
        """Estimate a bound of the curvature from a sample's features at the last step and the bias."""
        last = self.response.matrix[-1] if self.response.units is None else self.response.units.matrices[:, -1].abs().amax(0)
        share = torch.einsum("t,tmp->mp", last.to(self.spikes.device, torch.float32), self.spikes[:, :64].float())
        return 0.5 * (float(share.square().sum(1).mean()) + float(last.sum()) ** 2) + 1e-12

    def membranes(self, point: _Point) -> Tensor:
        """Compute the membranes ``[T, m, C]`` of all steps."""
        return self.response.membranes(readout_currents(self.spikes, point.weight, point.bias))

    def objective(self, point: _Point) -> float:
        """Return the true objective."""
        return self._value(self.membranes(point).amax(0), point)

    def minimise(self, start: _Point, rate: float, softness: float) -> tuple[_Point, float]:
        """Take a few proximal gradient steps on the majoriser at ``start``; return the point and the last step size."""
        membranes = self.membranes(start)
        frozen = membranes.argmax(0)  # the step at which each score is largest now; only the target's stays frozen
        softness *= max(float(membranes.std(0).mean()), 1e-6)
        point = start
        value = self._value(self._read(membranes, frozen, softness)[0], start)
        before = (start, membranes)
        pace = 1.0
        for _ in range(_INNER):
            faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            ahead = (pace - 1) / faster
            # Membranes are affine in the point: those of the extrapolated point cost nothing.
            base = _beyond(point, before[0], ahead)
            gradient = self._gradient(*self._read(membranes + ahead * (membranes - before[1]), frozen, softness))
            for _ in range(_BACKTRACKS):
                moved = self._move(base, gradient, rate)
                there = self.membranes(moved)
                new = self._value(self._read(there, frozen, softness)[0], moved)
                if new < value:
                    before = (point, membranes)
                    point, membranes, value = moved, there, new
                    pace, rate = faster, 1.2 * rate
                    break
                rate /= 2
            else:
                if ahead == 0:
                    break
                before = (point, membranes)
                pace = 1.0
                rate = rate * 2.0 ** (_BACKTRACKS - 1)
        return point, rate

    def _value(self, scores: Tensor, point: _Point) -> float:
        mean = self.loss.value(scores.double(), self.targets).mean()
        return float(mean) + self.strength * float(self.penalty.value(point.weight.double()))

    def _read(self, membranes: Tensor, frozen: Tensor, softness: float) -> tuple[Tensor, Tensor]:
        """Return the scores of the majoriser, ``[m, C]``, and the weight of each step in them, ``[T, m, C]``."""
        scores, weights = softness * (membranes / softness).logsumexp(0), (membranes / softness).softmax(0)
        if self.targets.ndim == 1 and not self.targets.is_floating_point():
            rows = torch.arange(len(frozen), device=frozen.device)
            times = frozen[rows, self.targets]
            scores[rows, self.targets] = membranes[times, rows, self.targets]
            weights[:, rows, self.targets] = nn.functional.one_hot(times, len(membranes)).T.to(weights)
        return scores, weights

    def _gradient(self, scores: Tensor, weights: Tensor) -> _Point:
        """Return the gradient of the mean loss in weight and bias."""
        rows = self.loss.gradient(scores.double(), self.targets).float() / len(scores)
        currents = self.response.pulled_back(weights * rows)
        weight = sum((step.T @ spikes.float() for step, spikes in zip(currents, self.spikes, strict=True)), currents.new_zeros(()))
        return _Point(weight, currents.sum((0, 1)))

    def _move(self, point: _Point, gradient: _Point, rate: float) -> _Point:
        """Take a proximal gradient step."""
        weight = self.penalty.prox(point.weight - rate * gradient.weight, rate * self.strength)
        bias = None if point.bias is None or gradient.bias is None else point.bias - rate * gradient.bias
        return _Point(weight, bias)
