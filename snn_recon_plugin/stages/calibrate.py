"""Calibration: the readout to write for a solution of the program.

If the network's scores are the program's, the solution is written times its scale.  If they come from a spiking or resetting
output neuron, that neuron is simulated on captured spikes.  Weight and bias are scaled and shifted until it decides as the linear
score does.  A maximum over time is then refined on its true objective if held-out samples confirm the gain.

Training goes on from 1, 1/2 or 1/4 of the solved readout, which is several times larger than a fresh one.  Steps of an optimizer
like Adam have the length of the learning rate, so a large readout hardly turns while hidden layers change below it, and it
multiplies their changes.  A smaller readout decides alike, and training improves on it (docs/evidence/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from ..convex import Solution
from ..networks.readout.output_neuron import (
    REFINE_BLOCKS,
    Calibration,
    MaximumObjective,
    Refined,
    calibrate,
    mark_running,
    own_scores,
    readout_currents,
    refine_maximum,
)
from ..networks.readout.readout import Readout, block_mean, rows_of_outputs
from ..networks.structure.layers import ReadoutLayer
from .collect import ProgramData, gather_spikes
from .fit import Fit
from .run import Initialisation
from .scores import HeldOut
from .task import Task

_SAME = 0.02  # a maximum over time that differs from the linear score by less has nothing to refine
_FACTORS = (1.0, 8.0)  # on the strength: the maximum of many values fits more closely than their mean
_MIN_HELDOUT = 20  # held-out samples, of which each half chooses two numbers for the other
_DIVERSITY = 0.03  # spread of a class's outputs, relative to the rows: with 0.3 those of wrong classes spike as well
LARGEST = 3.0  # relative size from which no smaller readout trains better (docs/evidence/training.md)
_HALVINGS = 2  # at most; with 1/8 the first epoch of Adam loses 4 points at the median of nets with spiking outputs
_TOLERANCE = 5e-3  # of an accuracy that still counts as alike (docs/evidence/decisions.md)

Point: TypeAlias = tuple[Tensor, Tensor | None]  # weight (C, P) and bias (C,)


@dataclass(frozen=True)
class CalibratedReadout:
    """Readout to write, a fraction of the solved one that decides alike."""

    weight: Tensor  # [C, P]
    bias: Tensor | None  # [C]
    heldout: HeldOut  # of a readout fitted, calibrated and scaled in the same way without these samples
    solved: Point
    heldout_solved: HeldOut  # of a readout fitted and calibrated in the same way without these samples
    factor: float  # of the solved readout in the written one
    scale: float  # factor of the solution's weight and bias, above 0
    shift: float  # added to every bias afterwards
    offset: float  # part of the program's bias that is the resting value of the neuron, not the layer's bias
    per_class: int  # outputs of a class
    refined: bool = False  # a maximum over time was refined beyond the solution
    scores: Tensor | None = None  # [m, K], which the network must return for the first samples; None if they are the program's

    def in_program(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the point of the program for a written weight and bias, scale and shift taken back, float64."""
        weight = block_mean(weight.double(), self.per_class) / self.scale
        if bias is None:
            return weight, weight.new_zeros(len(weight))
        return weight, (block_mean(bias.double(), self.per_class) - self.shift) / self.scale + self.offset


def calibrate_readout(run: Initialisation, task: Task, data: ProgramData, fit: Fit, *, refines: bool = True) -> CalibratedReadout:
    """Return the readout to write; samples have spikes at every step unless the readout is exact.

    If training goes on from it, it may be a fraction of the solved one; not if the readout is tied: a factor would change other
    modules too.  Rank 0 calibrates for all processes that share the samples, on those with spikes of all of them.
    """
    trains_on = run.mode.trains_on and not (run.options.names_program or run.options.allow_tied)
    with_spikes = gather_spikes(data)

    def calibrated_alone() -> CalibratedReadout:
        if with_spikes is None:
            return _calibrate_exactly(task, fit, trains_on)
        return _calibrate_on_spikes(SimulatedOutputs(task, with_spikes, fit), trains_on, refines)

    calibrated = run.processes.on_first(calibrated_alone, data.labels.targets.device)
    if calibrated.scores is None or with_spikes is None or with_spikes is data:
        return calibrated
    own = torch.isin(with_spikes.places, data.places)  # samples of this process
    return replace(calibrated, scores=calibrated.scores[own.to(calibrated.scores.device)])


def _calibrate_exactly(task: Task, fit: Fit, trains_on: bool) -> CalibratedReadout:
    readout, layer = task.readout, task.net_map.readout
    offset = offset_of(readout, layer)

    def scaled(scale: float) -> Point:
        return of_outputs(readout, layer, scale * fit.solution.weight, scale * fit.solution.bias - offset)

    @cache
    def heldout(factor: float) -> HeldOut:
        return fit.judge(fit.heldout_scores, factor * fit.scale, fit.compared)

    solved = scaled(fit.scale)
    fraction = trains_on and task.loss.has_temperature
    factor = choose_factor(relative_size(*solved), lambda factor: [heldout(factor).accuracy]) if fraction else 1.0
    scale = factor * fit.scale
    weight, bias = solved if factor == 1.0 else scaled(scale)
    shift = 0.0 if bias is None else (scale - 1) * offset
    results = heldout(factor), solved, heldout(1.0), factor
    return CalibratedReadout(weight, bias, *results, scale, shift, offset, readout.per_class)


def move_to(task: Task, data: ProgramData, fit: Fit, calibrated: CalibratedReadout, point: Point) -> CalibratedReadout:
    """Return a calibrated readout with a weight and bias near its own, and the scores that the network must return for them."""
    calibrated = replace(calibrated, weight=point[0], bias=point[1], solved=point, factor=1.0)
    if calibrated.scores is None:
        return calibrated
    outputs = SimulatedOutputs(task, data, fit)
    return replace(calibrated, scores=outputs.own(point, outputs.everything))


def _calibrate_on_spikes(outputs: SimulatedOutputs, trains_on: bool, refines: bool) -> CalibratedReadout:
    """Scale and shift the solution, and refine a maximum over time if wanted.

    ``trials`` are readouts that were fitted on the fitted samples alone, each with the samples that it is judged on.
    """
    split, fit, everything = outputs.data.split, outputs.fit, outputs.everything
    fitted, held = outputs.with_spikes(split.fitted), outputs.with_spikes(split.heldout)
    trial, final = outputs.centred(fit.path.chosen.solution), outputs.centred(fit.solution)
    # Each half of the held-out samples is judged with the two numbers chosen on the other half.  Too few held-out samples are all
    # judged with numbers chosen on fitted ones.
    enough, chosen_point = len(held) >= _MIN_HELDOUT, fit.path.chosen.solution
    chosen = held if enough else (fitted if len(fitted) else everything)
    whole = torch.arange(len(chosen), device=chosen.device)
    parts = [(chosen_point, whole[::2], held[1::2]), (chosen_point, whole[1::2], held[::2])] if enough else []
    if fit.trials:
        choosing = [outputs.find(each.chosen_by) if enough else whole for each in fit.trials]
        parts = [(each.solution, own, outputs.find(each.rows)) for each, own in zip(fit.trials, choosing, strict=True)]
    setting, *same = outputs.settings(trial, chosen, [whole, *(some for point, some, _ in parts if point is chosen_point)])
    settings, trials = iter(same), []
    for solution, some, rows in parts or [(chosen_point, whole, held)]:
        point = outputs.centred(solution)
        if solution is not chosen_point:
            settings = chain(outputs.settings(point, chosen[some], [torch.arange(len(some), device=some.device)]), settings)
        trials.append((outputs.scaled(point, next(settings, setting)), rows))
    judged = torch.cat([rows for _, rows in trials]) if fit.trials else held
    trial, final, refined = outputs.scaled(trial, setting), outputs.scaled(final, setting), False
    if refines and len(held) and len(fitted) and outputs.can_refine and setting.difference > _SAME:
        found = {each: outputs.refine(trial, fitted, each, held) for each in (_FACTORS if len(fit.path.points) > 1 else (1.0,))}
        losses = {each: outputs.judge((better.point, judged)).loss for each, better in found.items()}
        best = min(losses, key=losses.__getitem__)
        refined = losses[best] < outputs.judge(*trials).loss
        if refined:
            final = outputs.refine(final, fitted if split.excludes else everything, best, blocks=found[best].blocks).point
            trials = [(found[best].point, judged)]

    @cache
    def heldout(factor: float) -> HeldOut:
        return outputs.judge(*((_times(factor, point), rows) for point, rows in trials))

    def accuracies(factor: float) -> list[float]:
        return [heldout(factor).accuracy, outputs.judge((_times(factor, final), everything)).accuracy]

    factor = choose_factor(relative_size(*final), accuracies) if trains_on and outputs.task.loss.has_temperature else 1.0
    written = _times(factor, final)
    shift = 0.0 if written[1] is None else setting.shift - setting.scale * outputs.level(fit.solution)
    return CalibratedReadout(
        *written,
        heldout(factor),
        final,
        heldout(1.0),
        factor,
        factor * setting.scale,
        factor * shift,
        outputs.offset,
        outputs.readout.per_class,
        refined,
        outputs.own(written, everything),
    )


class SimulatedOutputs:
    """Output neurons simulated on captured spikes ``[T, m, P]``."""

    def __init__(self, task: Task, data: ProgramData, fit: Fit) -> None:
        captured, spikes = data.captured, data.captured.spikes
        assert spikes is not None
        self.task, self.data, self.fit, self.spikes = task, data, fit, spikes
        self.layer, self.lengths = task.net_map.readout, captured.lengths
        self.readout = task.readout if captured.lengths is None else task.readout.for_steps(captured.num_steps)
        self.offset = offset_of(self.readout, self.layer)
        self.targets = task.prepare(data.labels.targets)
        self.everything = torch.arange(spikes.shape[1], device=spikes.device)

    @property
    def can_refine(self) -> bool:
        """True for a maximum over time whose true objective is the program's: one loss, equal weights and steps, not sparse."""
        problem = self.fit.problem
        same = type(problem.loss) is type(self.task.loss) and self.readout.per_class == 1 and not problem.penalty.sparse
        return self.readout.exactness == "majorised" and same and self.data.labels.weights is None and self.lengths is None

    def with_spikes(self, samples: Tensor) -> Tensor:
        """Return those of some samples whose spikes are kept, on their device."""
        return samples[samples < len(self.everything)].to(self.spikes.device)

    def find(self, places: Tensor) -> Tensor:
        """Return the samples with spikes that have some of the places among the samples of all processes."""
        known = self.data.places[: len(self.everything)]
        return torch.isin(known, places.to(known.device)).nonzero()[:, 0].to(self.spikes.device)

    def centred(self, solution: Solution) -> Point:
        """Return weight and bias of all outputs; biases have zero mean if the loss leaves it open, so that one shift suits all."""
        bias = solution.bias - self.offset - self.level(solution)
        return of_outputs(self.readout, self.layer, solution.weight, bias)

    def level(self, solution: Solution) -> float:
        """Return the mean of the biases if the loss leaves it open, else 0."""
        return float((solution.bias - self.offset).mean()) if self.fit.problem.loss.softmax else 0.0

    def settings(self, point: Point, rows: Tensor, sets: Sequence[Tensor]) -> list[Calibration]:
        """Find scale and shift on each of some sets of the samples ``rows``."""
        costs = [self._cost(rows[samples]) for samples in sets]
        return calibrate(
            self.readout,
            self.layer.neuron,
            self._currents(point, rows),
            targets=self.data.labels.targets[rows],
            sets=sets,
            lengths=None if self.lengths is None else self.lengths[rows],
            with_bias=point[1] is not None,
            costs=[cost for cost in costs if cost is not None],
        )

    def _currents(self, point: Point, rows: Tensor) -> Tensor:
        """Return the currents of the samples ``rows``; zero before the first step of a sample."""
        currents = readout_currents(self.spikes[:, rows], *point)
        return currents if self.lengths is None else currents * mark_running(len(currents), self.lengths[rows])

    def _cost(self, rows: Tensor) -> Callable[[Tensor], float] | None:
        """Return the training loss as a function of scores; None if it is not of counts, of a population or of one output."""
        layer_of_classes = self.readout.per_class == 1 and self.layer.out_features > 1
        if not self.readout.of_spikes or (layer_of_classes and not self.task.loss.fits_values):
            return None
        judge = self.task.judge(self.data.labels.part(rows))
        return lambda scores: judge.loss(scores.double())

    def scaled(self, point: Point, setting: Calibration) -> Point:
        """Apply scale and shift."""
        weight, bias = point
        return setting.scale * weight, None if bias is None else setting.scale * bias + setting.shift

    def refine(self, point: Point, rows: Tensor, factor: float, held: Tensor | None = None, blocks: int = REFINE_BLOCKS) -> Refined:
        """Lower a maximum over time on its true objective, on ``rows``, at a factor of the strength; ``held`` decide the end."""
        problem, spikes = self.fit.problem, self.spikes[:, rows].float()
        strength = factor * problem.strength
        objective = MaximumObjective(spikes, self.targets[rows], self.readout, self.task.loss, problem.penalty, strength)
        loss = None if held is None else lambda weight, bias: self.judge(((weight, bias), held)).loss
        return refine_maximum(objective, *point, blocks=blocks, loss=loss)

    def own(self, point: Point, rows: Tensor) -> Tensor:
        """Simulate the network's own scores of the samples ``rows``."""
        return self._by_length(point, rows, lambda readout, currents: own_scores(readout, self.layer.neuron, currents))

    def _by_length(self, point: Point, rows: Tensor, scores: Callable[[Readout, Tensor], Tensor]) -> Tensor:
        """Return the scores of the samples ``rows``, computed for one number of steps at a time."""
        currents = self._currents(point, rows)
        if self.lengths is None:
            return scores(self.readout, currents)
        lengths, found = self.lengths[rows], currents.new_empty(currents.shape[1:])  # unequal lengths imply one output a class
        for steps in torch.unique(lengths).tolist():
            alike = lengths == steps
            found[alike] = scores(self.readout.for_steps(steps), currents[-steps:, alike]).to(found)
        return found

    def judge(self, *trials: tuple[Point, Tensor]) -> HeldOut:
        """Return loss and accuracies on the samples of all trials, each with its own readout and its own best scale.

        The linear score comes from the solution without held-out samples.
        """
        rows = torch.cat([rows for _, rows in trials])
        if len(rows) == 0:
            return HeldOut()
        judge, scores = self.task.judge(self.data.labels.part(rows)), [self.own(*trial).double() for trial in trials]
        linear = self._by_length(self.centred(self.fit.path.chosen.solution), rows, Readout.linear_scores)
        compared = sum(len(some) * self._compare(own, some) for own, (_, some) in zip(scores, trials, strict=True))
        found = judge(torch.cat(scores))
        return replace(found, linear_accuracy=judge.accuracy(linear.double()), compared=compared / len(rows))

    def _compare(self, scores: Tensor, rows: Tensor) -> float:
        """Return the comparing loss of the scores of samples, of those that the network was run on before if there are any."""
        known = (rows < len(self.data.scores_before)).nonzero()[:, 0]
        return self.task.judge(self.data.labels.part(rows)).compare(scores, samples=known if len(known) else None)


def of_outputs(readout: Readout, layer: ReadoutLayer, weight: Tensor, bias: Tensor) -> Point:
    """Return weight and bias of all outputs, from those of the classes; no bias for a layer without one."""
    weight = rows_of_outputs(weight, readout.per_class, layer.weight.detach(), share=_DIVERSITY)
    return weight, None if layer.bias is None else bias.repeat_interleave(readout.per_class)


def offset_of(readout: Readout, layer: ReadoutLayer) -> float:
    """Return the part of the program's bias that is the neuron's resting value."""
    return 0.0 if layer.bias is None else readout.rest_bias


def choose_factor(size: float, accuracies: Callable[[float], Sequence[float]]) -> float:
    """Return the power of two, from 1 to 1/4, that a solved readout of a relative size is written with.

    The readout is halved while it is larger than ``LARGEST`` and decides as well: no accuracy falls by more than half a point.
    ``accuracies`` gives those of the readout times a factor, on the same samples for all factors.
    """
    solved, factor = accuracies(1.0), 1.0
    for _ in range(_HALVINGS):
        smaller = accuracies(factor / 2) if factor * size > LARGEST else []
        if not smaller or any(not now >= before - _TOLERANCE for now, before in zip(smaller, solved, strict=True)):
            break
        factor /= 2
    return factor


def relative_size(weight: Tensor, bias: Tensor | None) -> float:
    """Return the norm of a weight (C, P) and a bias, relative to the norm of a fresh ``nn.Linear``'s weight."""
    squares = sum(float(value.detach().double().square().sum()) for value in (weight, bias) if value is not None)
    return math.sqrt(squares / (len(weight) / 3))  # a fresh weight is uniform, of variance 1 / (3 P)


def _times(factor: float, point: Point) -> Point:
    return factor * point[0], None if point[1] is None else factor * point[1]
