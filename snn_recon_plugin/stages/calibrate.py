"""Calibration: the readout to write for a solution of the program.

If the network's scores are the program's, the solution is written times its scale.  If they come from a spiking or resetting
output neuron, that neuron is simulated on captured spikes.  Weight and bias are scaled and shifted until it decides as the linear
score does.  A maximum over time is then refined on its true objective if held-out samples confirm the gain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distributed import SingleProcess
from ..networks.readout.readout import block_mean
from .calibrator import Calibrator, Point, of_outputs, offset_of
from .collect import ProgramData
from .factor import choose_factor, relative_size
from .fit import Fit, HeldOut
from .gather import gather_kept
from .run import Run
from .task import Task

_SAME = 0.02  # a maximum over time that differs from the linear score by less has nothing to refine
_FACTORS = (1.0, 8.0)  # on the strength: the maximum of many values fits more closely than their mean
_MIN_HELDOUT = 20  # held-out samples, of which each half chooses two numbers for the other


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
        return _calibrate_exactly(task, data, fit, processes, trains_on)
    known = processes.total_rows(len(data.scores_before))
    if not processes.is_distributed:
        return _calibrate_on_spikes(Calibrator(task, data, fit, known), trains_on, run.context.refines)
    together, found = gather_kept(data, processes), None
    with processes.share_errors():
        if together is not None:
            calibrator = Calibrator(task, together, fit, known)
            found = _calibrate_on_spikes(calibrator, trains_on, run.context.refines), together.places
    shared = processes.broadcast_object(found, data.captured.spikes.device)
    assert shared is not None
    calibrated, places = shared
    assert calibrated.scores is not None
    own = torch.isin(places.cpu(), data.places)  # scores of this process's samples
    return replace(calibrated, scores=calibrated.scores[own.to(calibrated.scores.device)])


def _calibrate_exactly(task: Task, data: ProgramData, fit: Fit, processes: SingleProcess, trains_on: bool) -> CalibratedReadout:
    """Multiply the solution by its scale."""
    readout, layer = task.readout, task.net_map.readout
    offset = offset_of(readout, layer)

    def scaled(scale: float) -> Point:
        weight, bias = of_outputs(readout, layer, scale * fit.solution.weight, scale * fit.solution.bias - offset)
        return processes.broadcast(weight), None if bias is None else processes.broadcast(bias)

    def heldout(factor: float) -> HeldOut:
        return fit.heldout.results(factor * fit.scale, len(data.compared))

    solved = scaled(fit.scale)
    fraction = trains_on and task.loss.has_temperature
    factor = choose_factor(relative_size(*solved), lambda factor: [heldout(factor).accuracy]) if fraction else 1.0
    scale = factor * fit.scale
    weight, bias = solved if factor == 1.0 else scaled(scale)
    shift: float | Tensor = 0.0 if bias is None else (scale - 1) * offset
    known = SolvedReadout(*solved, heldout(1.0), factor)
    return CalibratedReadout(weight, bias, heldout(factor), known, scale, shift, offset, readout.per_class)


def move_to(task: Task, data: ProgramData, fit: Fit, calibrated: CalibratedReadout, point: Point) -> CalibratedReadout:
    """Return a calibrated readout with a weight and bias near its own, and the scores that the network must return for them."""
    solved = replace(calibrated.solved, weight=point[0], bias=point[1], factor=1.0)
    calibrated = replace(calibrated, weight=point[0], bias=point[1], solved=solved)
    if calibrated.scores is None:
        return calibrated
    calibrator = Calibrator(task, data, fit, 0)
    everything = torch.arange(calibrator.spikes.shape[1], device=calibrator.spikes.device)
    return replace(calibrated, scores=calibrator.own(point, everything))


def _calibrate_on_spikes(calibrator: Calibrator, trains_on: bool, refines: bool) -> CalibratedReadout:
    """Scale and shift the solution, and refine a maximum over time if wanted."""
    task, data, fit = calibrator.task, calibrator.data, calibrator.fit
    spikes, count = calibrator.spikes, calibrator.spikes.shape[1]
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
    if refines and len(held) and len(fitted) and calibrator.can_refine and setting.difference > _SAME:
        start, factors = calibrator.scaled(trial, setting), _FACTORS if len(fit.path.points) > 1 else (1.0,)
        tried = {factor: calibrator.refine(start, fitted, factor, held) for factor in factors}
        results = {factor: calibrator.judge(each.point, held) for factor, each in tried.items()}
        factor = min(factors, key=lambda factor: results[factor].loss)
        better, found = tried[factor], results[factor]
        refined = found.loss < outcome.loss
        if refined:
            rows = fitted if data.split.excludes else everything
            final = calibrator.refine(final, rows, factor, blocks=better.blocks).point
            points, judged, outcome = [better.point], [held], found

    def heldout(factor: float) -> HeldOut:
        return outcome if factor == 1.0 else calibrator.judge_all([_times(factor, point) for point in points], judged)

    def accuracies(factor: float) -> list[float]:
        return [heldout(factor).accuracy, calibrator.judge(_times(factor, final), everything).accuracy]

    factor = choose_factor(relative_size(*final), accuracies) if trains_on and task.loss.has_temperature else 1.0
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


def _times(factor: float, point: Point) -> Point:
    """Return a readout times a factor."""
    return factor * point[0], None if point[1] is None else factor * point[1]
