"""Fit a solved readout to the net's own scores: scale and shift by simulations of the output neuron, a maximum by L-BFGS.

The convex program solves the linear score of the output neuron's subthreshold response.  The net's own scores come from the same
neuron with its threshold and reset, and depend on a scale of weight and bias and on a shift of all biases.  Neither changes the
linear decision.  A maximum over time is no linear score: its true objective is lowered from the solution of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..libraries import library_of
from ..libraries.library import Trace
from .readout import Readout, block_mean

if TYPE_CHECKING:
    from ...convex import Loss, Penalty

_SCALES = tuple(2.0 ** (k / 2) for k in range(-6, 13))  # of the scale at which the largest membranes reach the threshold
_SHIFTS = (0.0, *(sign * 2.0**k for k in range(-3, 4) for sign in (-1, 1)))  # of the threshold, or of the membranes' spread
_ROUNDS = 4  # of refinement, each halving the steps of the grid
_TIE = 2e-3  # settings closer than this are a tie: a thousand samples resolve no less
_TIE_OF_COSTS = 5e-3  # the same if the training loss decides: a few samples are worth a lower loss
# Share of the decisions that a shift upwards must gain: outputs spike more, and training that goes on from there loses accuracy.
_RAISE_GAIN = 5e-3  # docs/evidence/decisions.md
_ROWS = 4000  # samples times settings simulated in one run
_COARSE = 1000  # samples on which the grid is searched, divided by the outputs of a class
_LEAST = 250  # but no fewer than these
_HISTORY = 10  # pairs of steps that L-BFGS keeps, each as large as the weight
_STEPS = 10  # of a block of L-BFGS, after which held-out samples decide whether to go on
_PATIENCE = 3  # blocks in a row that do not lower the loss on held-out samples
REFINE_BLOCKS = 20  # bounds the work; held-out samples mostly end it before (benchmarks/studies/maximum.py has its cost)


@dataclass(frozen=True)
class Calibration:
    """The readout to write: ``scale * weight`` and ``scale * bias + shift``."""

    scale: float  # above 0
    shift: float  # 0 without a bias
    # Root mean square difference between the net's own scores and the linear ones, each less its mean over the classes, relative to
    # the latter; 0 if the two give the same softmax.
    difference: float


def readout_currents(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the currents ``[T, m, C]`` float32 that a readout gives its neuron for spikes ``[T, m, P]`` of any dtype."""
    weight, bias = weight.detach().float(), None if bias is None else bias.detach().float()
    return torch.stack([nn.functional.linear(step.float(), weight, bias) for step in spikes])


def mark_running(steps: int, lengths: Tensor) -> Tensor:
    """Mark the last ``lengths`` ``[m]`` of so many steps by 1, the steps before by 0: ``[T, m, 1]`` float32."""
    left = torch.arange(steps, 0, -1, device=lengths.device)
    return (left[:, None] <= lengths).float()[..., None]


def own_scores(readout: Readout, neuron: nn.Module | None, currents: Tensor) -> Tensor:
    """Run the output neuron alone on currents ``[T, m, C]``; return the net's own scores, ``[m, K]`` or ``[m, T, K]``."""
    return _scores_of(readout, _run(readout, neuron, currents))


def _run(readout: Readout, neuron: nn.Module | None, currents: Tensor) -> Trace:
    if neuron is None:
        return Trace(currents, currents)
    return library_of(neuron).run(neuron, currents if readout.factors is None else currents * readout.factors.to(currents))


def _scores_of(readout: Readout, trace: Trace) -> Tensor:
    return readout.own_scores(trace.spikes if readout.of_spikes else trace.membranes)


def _of_two(scores: Tensor) -> Tensor:
    """Return the scores ``[*, 1]`` of class 1 as those of classes 0 and 1; others as they are."""
    return torch.cat([torch.zeros_like(scores), scores], -1) if scores.shape[-1] == 1 else scores


def calibrate(
    readout: Readout,
    neuron: nn.Module | None,
    currents: Tensor,
    *,
    targets: Tensor,
    sets: Sequence[Tensor],
    lengths: Tensor | None = None,
    with_bias: bool = True,
    costs: Sequence[Callable[[Tensor], float]] = (),
) -> list[Calibration]:
    """Find scale and shift such that the net's own decisions agree with the linear score's and with the targets.

    Each of some sets of samples ``[k]``, ascending, has its own two numbers; one grid of them is simulated for all.

    Ties are broken.  Membranes: least distance to the linear scores, up to a number common to all classes.  Spikes: least cost;
    without ``costs``, least cross-entropy of the membranes, averaged over steps, since membranes resolve scales that counts do not.

    Currents ``[T, m, C]`` are of the solved weight and bias, and targets class indices ``[m]``, or ``[m, T]`` of steps.  A sample's
    steps, ``lengths`` ``[m]``, are at the end of its currents, which are 0 before.  ``costs`` are the training losses of the sets
    as functions of the net's own scores of their first samples, ``[k, C]``, if they are of counts.
    """
    first = max(_LEAST, _COARSE // readout.per_class)
    some = None if lengths is None else lengths[:first]
    first_sets = [samples[samples < first] for samples in sets]
    search = _ScaleSearch(readout, neuron, currents[:, :first], targets[:first], first_sets, lengths=some, costs=costs)
    found = search.best(*_units(readout, neuron, currents), with_bias=with_bias)
    everything = _ScaleSearch(readout, neuron, currents, targets, sets, lengths=lengths)
    return [Calibration(best.scale, best.shift, everything.difference(best, number)) for number, best in enumerate(found)]


class _Rating(NamedTuple):
    """Rating of a scale and shift; the larger value wins, then the larger tie."""

    value: float
    tie: float
    scale: float
    shift: float


class _ScaleSearch:
    """Simulation of the output neuron on scaled and shifted currents, and the rating of its decisions on sets of samples."""

    def __init__(
        self,
        readout: Readout,
        neuron: nn.Module | None,
        currents: Tensor,
        targets: Tensor,
        sets: Sequence[Tensor],
        *,
        lengths: Tensor | None,
        costs: Sequence[Callable[[Tensor], float]] = (),
    ) -> None:
        self.readout, self.neuron, self.currents = readout, neuron, currents
        self.stepwise, self.targets = targets.dim() == 2, targets.flatten().long()
        self.sets, self.costs = [samples.to(currents.device) for samples in sets], costs
        each = torch.arange(targets[0].numel(), device=currents.device)
        self._rows = [(samples[:, None] * len(each) + each).flatten() for samples in self.sets]  # of decisions
        self.tie = _TIE_OF_COSTS if costs else _TIE
        self.of_spikes = readout.of_spikes
        self.linear = self._decisive(readout.linear_scores(currents.float()))
        self.wanted = self.linear.argmax(1)
        self._runs = 1.0 if lengths is None else mark_running(len(currents), lengths.to(currents.device))
        # The best value of each set so far, without and with a shift upwards.
        self._top = {(number, raised): -math.inf for number in range(len(sets)) for raised in (False, True)}

    def best(self, unit_scale: float, unit_shift: float, *, with_bias: bool) -> list[_Rating]:
        """Search a grid of scales and shifts in these units, then for each set around its best; unit scale 0 keeps scale 1."""
        scales = {scale * unit_scale for scale in _SCALES} | {1.0} if unit_scale > 0 else {1.0}
        shifts = [shift * unit_shift for shift in _SHIFTS] if with_bias else [0.0]

        def refined(number: int, tried: list[_Rating]) -> _Rating:
            best = self._best(tried)
            factor, step = 2.0**0.25, 0.5 * max(abs(best.shift), 0.25 * unit_shift)
            for _ in range(_ROUNDS):
                close = [(best.scale * f, best.shift) for f in (1 / factor, factor)] if unit_scale > 0 else []
                close += [(best.scale, best.shift + d) for d in (-step, step)] if with_bias else []
                tried += self.rate(close, [number])[0]
                best = self._best(tried)
                factor, step = math.sqrt(factor), step / 2
            return best

        grid = [(scale, shift) for scale in sorted(scales) for shift in shifts]
        return [refined(number, tried) for number, tried in enumerate(self.rate(grid, range(len(self.sets))))]

    def _best(self, ratings: Sequence[_Rating]) -> _Rating:
        """Return the best rating; of ties on spikes the clearest membranes, otherwise the closest to the linear scores."""
        others = [rating for rating in ratings if rating.shift <= 0]
        top, least = (max((rating.value for rating in some), default=-math.inf) for some in (ratings, others))
        if self.of_spikes and not self.costs and top <= least + _RAISE_GAIN:
            ratings, top = others, least
        tied = [rating for rating in ratings if rating.value >= top - self.tie]
        if self.of_spikes:
            return max(tied, key=lambda rating: (rating.tie, rating.value))
        # Below one percent all differences are alike: the smallest change of the solution is taken then.
        return max(tied, key=lambda rating: (round(rating.tie, 2), rating.scale == 1.0, -abs(rating.shift), rating.tie))

    def traces(self, settings: Sequence[tuple[float, float]]) -> Iterator[Trace]:
        at_once = max(1, _ROWS // (self.currents.shape[1] * self.readout.per_class))
        for start in range(0, len(settings), at_once):
            part = settings[start : start + at_once]
            currents = torch.cat([self.currents * scale + shift * self._runs for scale, shift in part], dim=1)
            trace = _run(self.readout, self.neuron, currents)
            yield from map(Trace, trace.spikes.chunk(len(part), 1), trace.membranes.chunk(len(part), 1))

    def rate(self, settings: Sequence[tuple[float, float]], numbers: Sequence[int]) -> list[list[_Rating]]:
        """Rate settings for some sets by the share of decisions wanted; a tie of k classes counts 1/k, NaN and infinity nothing."""
        found = [self._rate(trace, *setting, numbers) for trace, setting in zip(self.traces(settings), settings, strict=True)]
        return [[ratings[place] for ratings in found] for place in range(len(numbers))]

    def _rate(self, trace: Trace, scale: float, shift: float, numbers: Sequence[int]) -> list[_Rating]:
        own = _scores_of(self.readout, trace)
        scores = self._decisive(own)
        if not bool(torch.isfinite(scores).all()):
            return [_Rating(-1.0, -torch.inf, scale, shift)] * len(numbers)
        top = scores == scores.amax(1, keepdim=True)
        right = torch.stack([top.gather(1, labels[:, None])[:, 0] for labels in (self.wanted, self.targets)]).float().mean(0)
        right, losses = right / top.sum(1), cache(lambda: self._losses(trace))

        def rating(number: int) -> _Rating:
            value, place = float(right[self._rows[number]].mean()), (number, shift > 0)
            self._top[place] = max(self._top[place], value)
            if not self.of_spikes:
                tie = -self._difference(scores, number)
            elif self.costs:
                tie = -self.costs[number](own[self.sets[number]])
            else:  # losses take about as long as the neuron; below the tie with the best so far nothing ties with a better one
                near = value >= self._top[place] - _TIE
                tie = float(losses()[self._rows[number]].mean().neg().nan_to_num(-math.inf)) if near else -math.inf
            return _Rating(value, tie, scale, shift)

        return [rating(number) for number in numbers]

    def difference(self, rating: _Rating, number: int) -> float:
        trace = next(self.traces([(rating.scale, rating.shift)]))
        return self._difference(self._decisive(_scores_of(self.readout, trace)), number)

    def _decisive(self, scores: Tensor) -> Tensor:
        """Return the scores that decide: of scores at every step each one with a target, else their mean."""
        if scores.dim() == 3:
            scores = scores.flatten(0, 1) if self.stepwise else scores.mean(1)
        return _of_two(scores)

    def _difference(self, scores: Tensor, number: int) -> float:
        """Return the relative difference of a set's scores from the linear ones, beyond a number common to all classes."""
        own, linear = ((some := each[self._rows[number]]) - some.mean(1, keepdim=True) for each in (scores, self.linear))
        return float((own - linear).norm() / linear.norm().clamp_min(1e-12))

    def _losses(self, trace: Trace) -> Tensor:
        """Return the cross-entropy of the membranes of each decision, averaged over steps that share a target."""
        membranes = _of_two(block_mean(trace.membranes, self.readout.per_class, -1)).float()
        membranes = membranes.movedim(0, 1).flatten(0, 1)[None] if self.stepwise else membranes
        right = membranes.gather(2, self.targets[None, :, None].expand(len(membranes), -1, 1))[..., 0]
        return (membranes.logsumexp(2) - right).mean(0)  # torch's cross_entropy takes four times as long for a few classes


def _units(readout: Readout, neuron: nn.Module | None, currents: Tensor) -> tuple[float, float]:
    """Return the scale and the bias that lift the largest linear membranes to the threshold; without one, 0 and their spread."""
    some = currents[:, :_COARSE].float()
    membranes = readout.response.membranes(some) - readout.response.membranes(torch.zeros_like(some[:, :1]))
    spread = max(float(membranes.abs().amax(0).flatten().quantile(0.95)), 1e-12)
    lift = max(readout.response.lift, 1e-12)
    thresholds = None if neuron is None else library_of(neuron).threshold(neuron)
    if thresholds is None or readout.exactness == "majorised":
        return 0.0, spread / lift
    threshold = max(thresholds[1] - float(readout.response.rest.max()), 1e-6)
    return threshold / spread, max(threshold, 0.0 if readout.of_spikes else spread) / lift


# -- a maximum over time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaximumObjective:
    """True objective of a majorised readout: ``mean loss(max over time) + strength * penalty``.

    If the net puts a ``log_softmax`` on the maxima, they enter the loss without it: cross-entropy is the same for both.
    """

    spikes: Tensor  # [T, m, P] float32, the values that enter the readout, see ActivityRecorder.spikes
    targets: Tensor  # [m, ...], prepared by the loss
    readout: Readout
    loss: Loss
    penalty: Penalty  # not sparse: its zeros would be lost
    strength: float

    def value(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the objective of a weight ``[C, P]`` and a bias ``[C]``."""
        scores = self.readout.response.membranes(nn.functional.linear(self.spikes, weight, bias)).amax(0)
        return self.loss.value(scores.double(), self.targets).mean() + self.strength * self.penalty.value(weight.double())


class Refined(NamedTuple):
    """A refined readout and the number of blocks of steps that it took."""

    point: tuple[Tensor, Tensor | None]  # weight [C, P] and bias [C], float32
    blocks: int


def refine_maximum(
    objective: MaximumObjective,
    weight: Tensor,
    bias: Tensor | None,
    *,
    blocks: int = REFINE_BLOCKS,
    loss: Callable[[Tensor, Tensor | None], float] | None = None,
) -> Refined:
    """Lower an objective, which is not convex, from a start by L-BFGS, in blocks of 10 steps.

    The line search accepts no point with a larger objective.  ``loss`` gives the loss of a readout on samples that the objective
    does not have: with it the blocks end after a few that do not lower it, and the best readout is returned.
    """
    starts = [start.detach().float() for start in (weight, bias) if start is not None]
    # CVXPY's weights lie column by column, and torch's L-BFGS refuses such gradients.
    variables = [start.clone(memory_format=torch.contiguous_format).requires_grad_() for start in starts]
    optimizer = torch.optim.LBFGS(variables, max_iter=_STEPS, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = objective.value(variables[0], None if bias is None else variables[1])
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def refined(taken: int) -> Refined:
        found = [value.detach().clone() for value in variables]
        return Refined((found[0], None if bias is None else found[1]), taken)

    best = refined(0)
    least = math.inf if loss is None else loss(*best.point)
    for taken in range(1, blocks + 1):
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        now = refined(taken)
        value = least if loss is None else loss(*now.point)
        if loss is None or value < least:
            best, least = now, value
        elif taken - best.blocks == _PATIENCE:
            break
    return best
