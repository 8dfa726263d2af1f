"""Readouts judged on captured spikes: scaled, shifted or refined, and what the network itself makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..convex import Solution
from ..networks.readout.maximum import REFINE_BLOCKS, MaximumObjective, Refined, refine_maximum
from ..networks.readout.output_neuron import Calibration, LabelledCurrents, calibrate, mark_running, own_scores, readout_currents
from ..networks.readout.readout import Readout
from ..networks.readout.readouts import SPIKE_READOUTS, rows_of_outputs
from ..networks.structure.layers import ReadoutLayer
from .collect import ProgramData
from .fit import Fit, HeldOut, HeldOutScores, weighted_mean
from .task import Task

_DIVERSITY = 0.03  # spread of a class's outputs, relative to the rows: with 0.3 those of wrong classes spike as well

Point: TypeAlias = tuple[Tensor, Tensor | None]


def of_outputs(readout: Readout, layer: ReadoutLayer, weight: Tensor, bias: Tensor) -> Point:
    """Return weight and bias of all outputs, from those of the classes; no bias for a layer without one."""
    weight = rows_of_outputs(weight, readout.per_class, layer.weight.detach(), _DIVERSITY)
    return weight, None if layer.bias is None else bias.repeat_interleave(readout.per_class)


def offset_of(readout: Readout, layer: ReadoutLayer) -> float | Tensor:
    """Return the part of the program's bias that is the neuron's resting value, on the layer's device."""
    rest = readout.rest_bias
    if layer.bias is None:
        return 0.0
    return rest.to(layer.bias.device) if isinstance(rest, Tensor) else rest


class Calibrator:
    """Calibration and judgement of readouts on captured spikes ``[T, m, P]``."""

    def __init__(self, task: Task, data: ProgramData, fit: Fit, known: int) -> None:
        captured, spikes = data.captured, data.captured.spikes
        assert spikes is not None
        self.task, self.data, self.known = task, data, known
        self.spikes, self.labels, self.lengths, self.weights = spikes, captured.targets, captured.lengths, data.weights
        self.layer, self.loss, self.fit = task.net_map.readout, task.loss, fit
        self.readout = task.readout if captured.lengths is None else task.readout.at(captured.num_steps)
        self.offset = offset_of(self.readout, self.layer)
        steps = self.readout.bias_steps
        self.steps = steps.to(spikes.device) if isinstance(steps, Tensor) else steps
        self.targets = task.loss.prepare(captured.targets, self.readout.classes(self.layer.out_features))

    @property
    def can_refine(self) -> bool:
        """True for a maximum over time whose true objective is the program's: one loss, equal weights, one number of steps.

        A sparse penalty is left out, since refining would lose its zeros.
        """
        problem = self.fit.problem
        same = type(problem.loss) is type(self.loss) and self.readout.per_class == 1 and not problem.penalty.sparse
        return self.readout.exactness == "majorised" and same and self.weights is None and self.lengths is None

    def centred(self, solution: Solution) -> Point:
        """Return weight and bias of all outputs; biases have zero mean if the loss leaves it open, so that one shift suits all."""
        bias = solution.bias - self.offset - self.level(solution) * self.steps
        return of_outputs(self.readout, self.layer, solution.weight, bias)

    def level(self, solution: Solution) -> float:
        """Return the mean of the biases if the loss leaves it open, else 0."""
        return float((solution.bias - self.offset).mean()) if self.fit.problem.loss.softmax else 0.0

    def setting(self, point: Point, rows: Tensor) -> Calibration:
        """Find scale and shift on the samples ``rows``."""
        lengths = None if self.lengths is None else self.lengths[rows]
        samples = LabelledCurrents(self.currents(point, rows), self.labels[rows], lengths)
        return calibrate(self.readout, self.layer.neuron, samples, with_bias=point[1] is not None, cost=self.cost(rows))

    def currents(self, point: Point, rows: Tensor) -> Tensor:
        """Return the currents of the samples ``rows``; zero before the first step of a sample."""
        currents = readout_currents(self.spikes[:, rows], *point)
        return currents if self.lengths is None else currents * mark_running(len(currents), self.lengths[rows])

    def by_length(self, point: Point, rows: Tensor, scores: Callable[[Readout, Tensor], Tensor]) -> Tensor:
        """Return the scores of the samples ``rows``, computed for one number of steps at a time."""
        currents = self.currents(point, rows)
        if self.lengths is None:
            return scores(self.readout, currents)
        lengths, found = self.lengths[rows], currents.new_empty(currents.shape[1:])  # unequal lengths imply one output a class
        for steps in torch.unique(lengths).tolist():
            alike = lengths == steps
            found[alike] = scores(self.readout.at(steps), currents[-steps:, alike]).to(found)
        return found

    def cost(self, rows: Tensor) -> Callable[[Tensor], float] | None:
        """Return the training loss as a function of scores, or None if it is not of counts, of a population or of one output."""
        layer_of_classes = self.readout.per_class == 1 and self.layer.out_features > 1
        if self.readout.kind not in SPIKE_READOUTS or (layer_of_classes and not self.loss.fits_values):
            return None
        targets, weights = self.targets[rows], None if self.weights is None else self.weights[rows]

        def mean(scores: Tensor) -> float:
            values = self.loss.value(scores.double(), targets[: len(scores)])
            return weighted_mean(values, None if weights is None else weights[: len(scores)])

        return mean

    def scaled(self, point: Point, setting: Calibration) -> Point:
        """Apply scale and shift."""
        weight, bias = point
        return setting.scale * weight, None if bias is None else setting.scale * bias + setting.shift * self.steps

    def refine(self, point: Point, rows: Tensor, factor: float, held: Tensor | None = None, blocks: int = REFINE_BLOCKS) -> Refined:
        """Lower a maximum over time on its true objective, on the samples ``rows``, with a factor on the strength.

        With samples ``held`` the loss on them decides when to stop.
        """
        penalty, strength = self.fit.problem.penalty, factor * self.fit.problem.strength
        spikes, targets = self.spikes[:, rows].float(), self.targets[rows]
        objective = MaximumObjective(spikes, targets, self.readout, self.loss, penalty, strength)
        loss = None if held is None else lambda weight, bias: self.judge((weight, bias), held).loss
        return refine_maximum(objective, *point, blocks, loss)

    def own(self, point: Point, rows: Tensor) -> Tensor:
        """Simulate the network's own scores of the samples ``rows``."""
        return self.by_length(point, rows, lambda readout, currents: own_scores(readout, self.layer.neuron, currents))

    def judge_all(self, points: list[Point], rows: list[Tensor]) -> HeldOut:
        """Return the results of each point on its own samples, averaged."""
        parts = [self.judge(point, some) for point, some in zip(points, rows, strict=True)]
        return parts[0] if len(parts) == 1 else HeldOut.of_parts(parts)

    def judge(self, point: Point, rows: Tensor) -> HeldOut:
        """Return loss and accuracies on the samples ``rows``; the linear score comes from the solution without them."""
        if len(rows) == 0:
            return HeldOut()
        linear = self.by_length(self.centred(self.fit.path.chosen.solution), rows, Readout.linear_scores)
        known = int((rows < self.known).sum()) or None
        own, other = (
            HeldOutScores(self.task, self.data, scores.double(), rows).results(compared=known)
            for scores in (self.own(point, rows), linear)
        )
        return replace(own, linear_accuracy=other.accuracy)
