"""From a solution of the program to the readout that is written: as it is, or placed so that the net's own scores follow it.

Where the net's scores are the program's, the solution is written as it is.  Where they come from a spiking or resetting output
neuron, weight and bias are scaled and shifted until that neuron, simulated on spikes kept from the capture, decides as the linear
score does.  A maximum over time is lowered further on its true objective, where samples that took no part say that it helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .convex import CrossEntropy, Loss, MultiMargin, Solution, Squared, accuracy_of
from .convex.shards import ALONE, Alone
from .fit import Fit, Split
from .networks import SPIKE_READOUTS, Calibration, Readout, ReadoutLayer, calibrate, own_scores, readout_currents, refine_maximum
from .networks.population import block_mean, spread
from .networks.surrogate import running

__all__ = ["FEW", "HeldOut", "Placement", "place", "place_scaled", "weighted_mean"]

_ALIKE = 0.02  # a maximum over time that differs from the linear score by less has nothing to refine
_REFINE_STEPS = 5
_DIVERSITY = 0.03  # of the rows' size, by how much the outputs of a class differ: with 0.3 those of wrong classes spike as well
FEW = 20  # held-out samples, of which each half chooses two numbers for the other

_Point: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class HeldOut:
    """How the net decides samples that took no part in the fit, by its own scores.

    Args:
        loss: mean loss.
        accuracy: share predicted right, 0 to 1; NaN for regression.
        linear_accuracy: the same for the program's linear score.
        samples: how many samples these are.
    """

    loss: float
    accuracy: float
    linear_accuracy: float
    samples: int


@dataclass(frozen=True)
class Placement:
    """The readout to write.

    Args:
        weight: ``[C, P]``.
        bias: ``[C]``, or None without a bias.
        heldout: of a readout fitted and placed in the same way without the held-out samples.
        scale: factor of the solution's weight and bias, above 0.
        shift: what was then added to every bias, (C,) where outputs have filters of their own.
        offset: what the program's bias holds beyond the layer's, for a neuron that rests above zero; (C,) likewise.
        refined: whether a maximum over time was lowered beyond the solution.
        per_class: how many outputs stand for a class of the program.
        scores: ``[m, K]``, what the net must then return for the first samples; None where that is the program's own score.
    """

    weight: Tensor
    bias: Tensor | None
    heldout: HeldOut
    scale: float = 1.0
    shift: float | Tensor = 0.0
    offset: float | Tensor = 0.0
    refined: bool = False
    per_class: int = 1
    scores: Tensor | None = None

    def in_program(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The point of the program that a written weight and bias are, scale and shift taken back, float64."""
        weight = block_mean(weight.double(), self.per_class) / self.scale
        if bias is None:
            return weight, weight.new_zeros(len(weight))
        shift, offset = (torch.as_tensor(value).to(weight) for value in (self.shift, self.offset))
        return weight, (block_mean(bias.double(), self.per_class) - shift) / self.scale + offset


def place_scaled(readout: Readout, layer: ReadoutLayer, fit: Fit, scale: float, heldout: HeldOut) -> Placement:
    """The solution times a factor, for a readout whose scores are the program's, and then are so many times these.

    Args:
        readout: an exact readout.
        layer: its layer.
        fit: the solved program.
        scale: the factor; 1 writes the solution as it is.
        heldout: what held-out samples say of a fit without them that is scaled so.
    """
    offset = _offset(readout, layer)
    weight, bias = _of_outputs(readout, layer, scale * fit.solution.weight, scale * fit.solution.bias - offset)
    shift: float | Tensor = 0.0 if bias is None else (scale - 1) * offset
    return Placement(weight, bias, heldout, scale, shift, offset, per_class=readout.per_class)


def place(
    readout: Readout,
    layer: ReadoutLayer,
    fit: Fit,
    split: Split,
    spikes: Tensor,
    targets: Tensor,
    loss: Loss,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Placement:
    """Scale, shift and, for a maximum over time, refine a solution.

    Args:
        readout: a readout that is not exact.
        layer: its layer.
        fit: the solved program.
        split: which samples were held out while the strength was chosen.
        spikes: ``[T, m, P]``, what enters the readout for the first m samples.
        targets: class indices of the n samples.
        loss: of the scores.
        weights: of the n samples, or None.
        lengths: time steps of the n samples, at the end of the spikes; None where they have all.

    Raises:
        DataError: a single output, for which there is no decision to follow.
        UnsupportedModuleError: the output neuron can't be simulated alone.
    """
    placer = _Placer(readout, layer, fit, spikes, targets, loss, weights, lengths)
    count = spikes.shape[1]
    fitted, held = (rows[rows < count].to(spikes.device) for rows in (split.fitted, split.heldout))
    everything = torch.arange(count, device=spikes.device)
    trial, solution = placer.centred(fit.trial.solution), placer.centred(fit.solution)
    # Two numbers are chosen on one half of the held-out samples, so the other half judges them, and the other way round; of too
    # few held-out samples all are judged, by numbers chosen on those that were fitted.
    enough = len(held) >= FEW
    halves = [(held[::2], held[1::2]), (held[1::2], held[::2])] if enough else [(fitted, held)]
    settings = [placer.setting(trial, chosen if len(chosen) else everything) for chosen, _ in halves]
    judged = [rows for _, rows in halves]
    outcome = _mean([placer.judge(placer.scaled(trial, setting), rows) for setting, rows in zip(settings, judged, strict=True)])
    setting = placer.setting(trial, held) if enough else settings[0]
    final, refined = placer.scaled(solution, setting), False
    # The true objective that is refined weighs all samples alike, over as many steps; its penalty is of the loss that was solved.
    same = type(fit.problem.loss) is type(loss) and readout.per_class == 1
    plain = weights is None and lengths is None
    if readout.exactness == "majorised" and same and setting.difference > _ALIKE and enough and plain:
        tried = [placer.refined(placer.scaled(trial, setting), fitted) for setting in settings]
        again = _mean([placer.judge(point, rows) for point, rows in zip(tried, judged, strict=True)])
        refined = again.loss < outcome.loss
        if refined:
            final, outcome = placer.refined(final, everything), again
    scores = placer.own(final, everything)
    shift = 0.0 if final[1] is None else (setting.shift - setting.scale * placer.level(fit.solution)) * placer.steps
    return Placement(*final, outcome, setting.scale, shift, placer.offset, refined, readout.per_class, scores)


def _of_outputs(readout: Readout, layer: ReadoutLayer, weight: Tensor, bias: Tensor) -> _Point:
    """Weight and bias of all outputs, from those of the classes; no bias for a layer without one."""
    weight = spread(weight, readout.per_class, layer.weight.detach(), _DIVERSITY)
    return weight, None if layer.bias is None else bias.repeat_interleave(readout.per_class)


def _offset(readout: Readout, layer: ReadoutLayer) -> float | Tensor:
    """What of the program's bias is the neuron's rest, on the layer's device."""
    rest = readout.rest_bias
    if layer.bias is None:
        return 0.0
    return rest.to(layer.bias.device) if isinstance(rest, Tensor) else rest


class _Placer:
    """Places readouts on kept spikes, and judges them there."""

    def __init__(
        self,
        readout: Readout,
        layer: ReadoutLayer,
        fit: Fit,
        spikes: Tensor,
        targets: Tensor,
        loss: Loss,
        weights: Tensor | None,
        lengths: Tensor | None,
    ) -> None:
        self.lengths = lengths
        self.readout, self.layer, self.fit, self.spikes, self.loss = readout, layer, fit, spikes, loss
        self.offset, self.labels, self.weights = _offset(readout, layer), targets, weights
        steps = readout.bias_steps
        self.steps = steps.to(spikes.device) if isinstance(steps, Tensor) else steps
        self.targets = loss.prepare(targets, readout.classes(layer.out_features))

    def centred(self, solution: Solution) -> _Point:
        """Weight and bias of all outputs, as the layer holds them.

        A loss of differences leaves the biases' mean open: it is set to zero, so that one shift suits all solutions.
        """
        bias = solution.bias - self.offset - self.level(solution) * self.steps
        return _of_outputs(self.readout, self.layer, solution.weight, bias)

    def level(self, solution: Solution) -> float:
        """The biases' mean where the loss leaves it open, 0 elsewhere."""
        return float((solution.bias - self.offset).mean()) if isinstance(self.fit.problem.loss, CrossEntropy | MultiMargin) else 0.0

    def setting(self, point: _Point, rows: Tensor) -> Calibration:
        """Scale and shift found on the samples ``rows``."""
        return calibrate(
            self.readout,
            self.layer.neuron,
            self.currents(point, rows),
            targets=self.labels[rows],
            with_bias=point[1] is not None,
            lengths=None if self.lengths is None else self.lengths[rows],
            cost=self.cost(rows),
        )

    def currents(self, point: _Point, rows: Tensor) -> Tensor:
        """What a readout gives its neuron on the samples ``rows``; nothing before the first step of a sample."""
        currents = readout_currents(self.spikes[:, rows], *point)
        return currents if self.lengths is None else currents * running(len(currents), self.lengths[rows])

    def by_length(self, point: _Point, rows: Tensor, scores: Callable[[Readout, Tensor], Tensor]) -> Tensor:
        """Scores of the samples ``rows``, those of one number of steps at a time."""
        currents = self.currents(point, rows)
        if self.lengths is None:
            return scores(self.readout, currents)
        lengths, found = self.lengths[rows], currents.new_empty(currents.shape[1:])  # batches differ in steps: one output a class
        for steps in torch.unique(lengths).tolist():
            alike = lengths == steps
            found[alike] = scores(self.readout.at(steps), currents[-steps:, alike]).to(found)
        return found

    def cost(self, rows: Tensor) -> Callable[[Tensor], float] | None:
        """The training loss of the net's own scores, of the first of some samples; None where that loss is not of counts."""
        if self.readout.kind not in SPIKE_READOUTS or not (isinstance(self.loss, Squared) or self.readout.per_class > 1):
            return None
        targets, weights = self.targets[rows], None if self.weights is None else self.weights[rows]

        def mean(scores: Tensor) -> float:
            count = len(scores)
            values = self.loss.value(scores.double(), targets[:count])
            return weighted_mean(values, None if weights is None else weights[:count])

        return mean

    def scaled(self, point: _Point, setting: Calibration) -> _Point:
        """A weight and bias with scale and shift."""
        weight, bias = point
        return setting.scale * weight, None if bias is None else setting.scale * bias + setting.shift * self.steps

    def refined(self, point: _Point, rows: Tensor) -> _Point:
        """A maximum over time lowered on its true objective, on the samples ``rows``."""
        problem = self.fit.problem
        result = refine_maximum(
            self.spikes[:, rows],
            self.targets[rows],
            self.readout,
            *point,
            loss=self.loss,
            penalty=problem.penalty,
            strength=problem.strength,
            max_steps=_REFINE_STEPS,
        )
        return result.weight, result.bias

    def own(self, point: _Point, rows: Tensor) -> Tensor:
        """The net's own scores, simulated on the samples ``rows``."""
        return self.by_length(point, rows, lambda readout, currents: own_scores(readout, self.layer.neuron, currents))

    def judge(self, point: _Point, rows: Tensor) -> HeldOut:
        """Loss and accuracies on the samples ``rows``, the linear score being that of the solution without them."""
        if len(rows) == 0:
            return HeldOut(math.nan, math.nan, math.nan, 0)
        scores, targets = self.own(point, rows).double(), self.targets[rows]
        value = weighted_mean(self.loss.value(scores, targets), None if self.weights is None else self.weights[rows])
        linear = self.by_length(self.centred(self.fit.trial.solution), rows, Readout.linear_scores).double()
        own, promised = accuracy_of(self.loss, scores, targets), accuracy_of(self.loss, linear, targets)
        return HeldOut(value, own, promised, len(rows))


def weighted_mean(values: Tensor, weights: Tensor | None, shards: Alone = ALONE) -> float:
    """Mean of ``[m]`` values, by weights ``[m]`` where there are any, over all processes where samples are spread."""
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    return shards.decided(float(shards.total(weights @ values) / shards.total(weights.sum())))


def _mean(parts: list[HeldOut]) -> HeldOut:
    """What was seen on several sets of samples together."""
    if len(parts) == 1:
        return parts[0]
    count = sum(part.samples for part in parts)
    loss, accuracy, linear = (
        sum(getattr(part, name) * part.samples for part in parts) / count for name in ("loss", "accuracy", "linear_accuracy")
    )
    return HeldOut(loss, accuracy, linear, count)
