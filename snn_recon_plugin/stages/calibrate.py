"""Calibration: the readout to write for a solution of the program.

If the network's scores are the program's, the solution is written times its temperature.  If they come from a spiking or resetting
output neuron, that neuron is simulated on captured spikes.  Weight and bias are scaled and shifted until it decides as the linear
score does.  A maximum over time is then refined on its true objective if held-out samples confirm the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..convex import Solution
from ..distributed import SingleProcess
from ..networks import (
    SPIKE_READOUTS,
    Calibration,
    LabelledCurrents,
    MaximumObjective,
    Readout,
    ReadoutLayer,
    calibrate,
    mark_running,
    own_scores,
    readout_currents,
    refine_maximum,
)
from ..networks.readouts import block_mean, spread
from .collect import ProgramData
from .factor import choose_factor, relative_size
from .fit import Fit, HeldOut, HeldOutScores, weighted_mean
from .gather import gather_kept
from .run import Run
from .task import Task

_SAME = 0.02  # a maximum over time that differs from the linear score by less has nothing to refine
_REFINE_STEPS = 10  # of L-BFGS: more of them fit the samples more closely, and held-out ones less
_DIVERSITY = 0.03  # spread of a class's outputs, relative to the rows: with 0.3 those of wrong classes spike as well
_MIN_HELDOUT = 20  # held-out samples, of which each half chooses two numbers for the other

_Point: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class SolvedReadout:
    """Readout of the solution, of which the written one may be a fraction that decides alike."""

    weight: Tensor  # [C, P]
    bias: Tensor | None  # [C]
    heldout: HeldOut  # of a readout fitted and calibrated in the same way without these samples
    factor: float = 1.0  # of the written readout


@dataclass(frozen=True)
class CalibratedReadout:
    """Readout to write; shift and offset are (C,) if outputs have separate filters."""

    weight: Tensor  # [C, P]
    bias: Tensor | None  # [C]
    heldout: HeldOut  # of a readout fitted, calibrated and scaled in the same way without these samples
    solved: SolvedReadout
    scale: float  # factor of the solution's weight and bias, above 0
    shift: float | Tensor  # added to every bias afterwards
    offset: float | Tensor  # part of the program's bias that is the resting value of the neuron, not the layer's bias
    per_class: int  # outputs of a class
    refined: bool = False  # a maximum over time was refined beyond the solution
    scores: Tensor | None = None  # [m, K], which the network must return for the first samples; None if they are the program's

    def in_program(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the point of the program for a written weight and bias, scale and shift taken back, float64."""
        weight = block_mean(weight.double(), self.per_class) / self.scale
        if bias is None:
            return weight, weight.new_zeros(len(weight))
        shift, offset = (torch.as_tensor(value).to(weight) for value in (self.shift, self.offset))
        return weight, (block_mean(bias.double(), self.per_class) - shift) / self.scale + offset


def calibrate_readout(run: Run, task: Task, data: ProgramData, fit: Fit) -> CalibratedReadout:
    """Return the readout to write; samples have spikes at every step unless the readout is exact.

    If training goes on from it, it may be a fraction of the solved one, see ``factor.py``; not if the readout is tied: a factor
    would change other modules too.  Rank 0 calibrates for all ranks that share the samples, on those with spikes of all of them.
    """
    processes, options = run.processes, run.options
    trains_on = run.context.trains_on and not (options.names_program or options.allow_tied)
    if data.captured.spikes is None:
        return _calibrate_exactly(task, fit, processes, trains_on)
    if not processes.is_distributed:
        return _calibrate_on_spikes(task, data, fit, trains_on)
    together, found = gather_kept(data, processes), None
    with processes.share_errors():
        if together is not None:
            found = _calibrate_on_spikes(task, together, fit, trains_on), together.places
    shared = processes.broadcast_object(found, data.captured.spikes.device)
    assert shared is not None
    calibrated, places = shared
    assert calibrated.scores is not None
    own = torch.isin(places.cpu(), data.places)  # scores of this process's samples
    return replace(calibrated, scores=calibrated.scores[own.to(calibrated.scores.device)])


def _calibrate_exactly(task: Task, fit: Fit, processes: SingleProcess, trains_on: bool) -> CalibratedReadout:
    """Multiply the solution by its temperature."""
    readout, layer = task.readout, task.net_map.readout
    offset = _offset(readout, layer)

    def scaled(scale: float) -> _Point:
        weight, bias = _of_outputs(readout, layer, scale * fit.solution.weight, scale * fit.solution.bias - offset)
        return processes.broadcast(weight), None if bias is None else processes.broadcast(bias)

    def heldout(factor: float) -> HeldOut:
        return fit.heldout.results(factor * fit.temperature)

    solved = scaled(fit.temperature)
    factor = choose_factor(relative_size(*solved), heldout) if trains_on and task.loss.has_temperature else 1.0
    scale = factor * fit.temperature
    weight, bias = solved if factor == 1.0 else scaled(scale)
    shift: float | Tensor = 0.0 if bias is None else (scale - 1) * offset
    known = SolvedReadout(*solved, heldout(1.0), factor)
    return CalibratedReadout(weight, bias, heldout(factor), known, scale, shift, offset, readout.per_class)


def _calibrate_on_spikes(task: Task, data: ProgramData, fit: Fit, trains_on: bool) -> CalibratedReadout:
    """Scale and shift the solution, and refine a maximum over time."""
    assert data.captured.spikes is not None
    spikes = data.captured.spikes
    count = spikes.shape[1]
    calibrator = _Calibrator(task, data, fit, spikes)
    fitted, held = (rows[rows < count].to(spikes.device) for rows in (data.split.fitted, data.split.heldout))
    everything = torch.arange(count, device=spikes.device)
    trial, solution = calibrator.centred(fit.path.chosen.solution), calibrator.centred(fit.solution)
    # Each half of the held-out samples is judged with the two numbers chosen on the other half.  Too few held-out samples are all
    # judged with numbers chosen on fitted ones.
    enough = len(held) >= _MIN_HELDOUT
    halves = [(held[::2], held[1::2]), (held[1::2], held[::2])] if enough else [(fitted, held)]
    settings = [calibrator.setting(trial, chosen if len(chosen) else everything) for chosen, _ in halves]
    judged = [rows for _, rows in halves]
    points = [calibrator.scaled(trial, setting) for setting in settings]
    outcome = calibrator.judge_all(points, judged)
    setting = calibrator.setting(trial, held) if enough else settings[0]
    final, refined = calibrator.scaled(solution, setting), False
    if enough and len(fitted) and calibrator.can_refine and setting.difference > _SAME:
        better = [calibrator.refined(point, fitted) for point in points]
        found = calibrator.judge_all(better, judged)
        refined = found.loss < outcome.loss
        if refined:
            final = calibrator.refined(final, fitted if data.split.excludes else everything)
            points, outcome = better, found

    def heldout(factor: float) -> HeldOut:
        return outcome if factor == 1.0 else calibrator.judge_all([_times(factor, point) for point in points], judged)

    factor = choose_factor(relative_size(*final), heldout) if trains_on and task.loss.has_temperature else 1.0
    solved, final = SolvedReadout(*final, outcome, factor), _times(factor, final)
    scores = calibrator.own(final, everything)
    shift = 0.0 if final[1] is None else (setting.shift - setting.scale * calibrator.level(fit.solution)) * calibrator.steps
    return CalibratedReadout(
        *final,
        heldout(factor),
        solved,
        factor * setting.scale,
        factor * shift,
        calibrator.offset,
        task.readout.per_class,
        refined,
        scores,
    )


def _times(factor: float, point: _Point) -> _Point:
    """Return a readout times a factor."""
    weight, bias = point
    return factor * weight, None if bias is None else factor * bias


def _of_outputs(readout: Readout, layer: ReadoutLayer, weight: Tensor, bias: Tensor) -> _Point:
    """Return weight and bias of all outputs, from those of the classes; no bias for a layer without one."""
    weight = spread(weight, readout.per_class, layer.weight.detach(), _DIVERSITY)
    return weight, None if layer.bias is None else bias.repeat_interleave(readout.per_class)


def _offset(readout: Readout, layer: ReadoutLayer) -> float | Tensor:
    """Return the part of the program's bias that is the neuron's resting value, on the layer's device."""
    rest = readout.rest_bias
    if layer.bias is None:
        return 0.0
    return rest.to(layer.bias.device) if isinstance(rest, Tensor) else rest


class _Calibrator:
    """Calibration and judgement of readouts on captured spikes ``[T, m, P]``."""

    def __init__(self, task: Task, data: ProgramData, fit: Fit, spikes: Tensor) -> None:
        captured = data.captured
        self.task, self.data = task, data
        self.spikes, self.labels, self.lengths, self.weights = spikes, captured.targets, captured.lengths, data.weights
        self.layer, self.loss, self.fit = task.net_map.readout, task.loss, fit
        self.readout = task.readout if captured.lengths is None else task.readout.at(captured.num_steps)
        self.offset = _offset(self.readout, self.layer)
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

    def centred(self, solution: Solution) -> _Point:
        """Return weight and bias of all outputs; biases have zero mean if the loss leaves it open, so that one shift suits all."""
        bias = solution.bias - self.offset - self.level(solution) * self.steps
        return _of_outputs(self.readout, self.layer, solution.weight, bias)

    def level(self, solution: Solution) -> float:
        """Return the mean of the biases if the loss leaves it open, else 0."""
        return float((solution.bias - self.offset).mean()) if self.fit.problem.loss.softmax else 0.0

    def setting(self, point: _Point, rows: Tensor) -> Calibration:
        """Find scale and shift on the samples ``rows``."""
        lengths = None if self.lengths is None else self.lengths[rows]
        samples = LabelledCurrents(self.currents(point, rows), self.labels[rows], lengths)
        return calibrate(self.readout, self.layer.neuron, samples, with_bias=point[1] is not None, cost=self.cost(rows))

    def currents(self, point: _Point, rows: Tensor) -> Tensor:
        """Return the currents of the samples ``rows``; zero before the first step of a sample."""
        currents = readout_currents(self.spikes[:, rows], *point)
        return currents if self.lengths is None else currents * mark_running(len(currents), self.lengths[rows])

    def by_length(self, point: _Point, rows: Tensor, scores: Callable[[Readout, Tensor], Tensor]) -> Tensor:
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
            count = len(scores)
            values = self.loss.value(scores.double(), targets[:count])
            return weighted_mean(values, None if weights is None else weights[:count])

        return mean

    def scaled(self, point: _Point, setting: Calibration) -> _Point:
        """Apply scale and shift."""
        weight, bias = point
        return setting.scale * weight, None if bias is None else setting.scale * bias + setting.shift * self.steps

    def refined(self, point: _Point, rows: Tensor) -> _Point:
        """Lower a maximum over time on its true objective, on the samples ``rows``."""
        penalty, strength = self.fit.problem.penalty, self.fit.problem.strength
        spikes, targets = self.spikes[:, rows].float(), self.targets[rows]
        objective = MaximumObjective(spikes, targets, self.readout, self.loss, penalty, strength)
        return refine_maximum(objective, *point, max_steps=_REFINE_STEPS)

    def own(self, point: _Point, rows: Tensor) -> Tensor:
        """Simulate the network's own scores of the samples ``rows``."""
        return self.by_length(point, rows, lambda readout, currents: own_scores(readout, self.layer.neuron, currents))

    def judge_all(self, points: list[_Point], rows: list[Tensor]) -> HeldOut:
        """Return the results of each point on its own samples, averaged."""
        parts = [self.judge(point, some) for point, some in zip(points, rows, strict=True)]
        if len(parts) == 1:
            return parts[0]
        count = sum(part.samples for part in parts)
        loss, accuracy, linear = (
            sum(getattr(part, name) * part.samples for part in parts) / count for name in ("loss", "accuracy", "linear_accuracy")
        )
        return HeldOut(loss, accuracy, linear, count)

    def judge(self, point: _Point, rows: Tensor) -> HeldOut:
        """Return loss and accuracies on the samples ``rows``; the linear score comes from the solution without them."""
        if len(rows) == 0:
            return HeldOut()
        linear = self.by_length(self.centred(self.fit.path.chosen.solution), rows, Readout.linear_scores)
        own, other = (
            HeldOutScores(self.task, self.data, scores.double(), rows).results() for scores in (self.own(point, rows), linear)
        )
        return replace(own, linear_accuracy=other.accuracy)
