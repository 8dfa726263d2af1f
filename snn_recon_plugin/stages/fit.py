"""Solve: the program by held-out loss, within a budget, and temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import add

import torch
from torch import Tensor

from ..convex import Path, Problem, Solution, accuracy_of, make_loss
from ..convex.budget import PRICE
from ..distributed import SINGLE_PROCESS, SingleProcess
from ..networks.readout.readouts import block_mean
from ..networks.structure.layers import HiddenLayer, ReadoutLayer
from ..report.metrics import Tally, count_rows
from .collect import ProgramData
from .run import Run
from .strength import ReadoutProgram, Samples, choose_strength
from .task import Task

_ROUNDING = 5e-6  # of the relative gap, left for rounding to the network's precision: the largest seen is 5.5e-6
_ACCURATE = 0.9  # accuracy above which the squared hinge needs no comparison
_MIDDLE, _FIRST_STEP = 1.0, 2.5  # octaves of the scale, which ends in -4 to 6: margins of 1 become 64 at most
_HALVINGS = 12  # of the step: to a thousandth of an octave
_BATCH = 256  # samples scored at once: in double precision all steps of all of them would fill the memory
_PASSES = 3  # of a training step: forward, and backward to inputs and to weights
_MIN_WORK = 2e10  # multiply-adds that every solve may take: half a second on one core


@dataclass(frozen=True)
class HeldOut:
    """Results on samples that took no part in a fit."""

    loss: float = math.nan
    """Mean training loss, weighted by class if the loss is.  If batches differ in time steps, targets that grow with the steps are
    those of the first batch."""
    accuracy: float = math.nan
    """Accuracy of the network's own scores, 0 to 1; NaN for regression."""
    linear_accuracy: float = math.nan
    """Accuracy of the program's linear score."""
    samples: int = 0
    """Number of samples."""
    compared: float = math.nan
    """Mean loss at the best scale, by ``Report.compared_by``, on those of them that the network was run on before."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the network's own scores by name: "balanced_accuracy" for classes, "macro_f1" and "subset_accuracy" for several
    labels, "r2", "rmse" and "mae" for regression (means over outputs, as in scikit-learn)."""
    tally: Tally | None = field(default=None, compare=False)
    """Sums that these metrics are computed from."""

    @staticmethod
    def of_parts(parts: Sequence[HeldOut]) -> HeldOut:
        """Return the results on all samples from those on parts of them."""
        count = sum(part.samples for part in parts)
        loss, accuracy, linear, compared = (
            sum(getattr(part, name) * part.samples for part in parts) / count
            for name in ("loss", "accuracy", "linear_accuracy", "compared")
        )
        tallies = [part.tally for part in parts if part.tally is not None]
        tally = reduce(add, tallies) if tallies else None
        return HeldOut(loss, accuracy, linear, count, compared, tally.metrics if tally is not None else {}, tally)


def is_lower(loss: float, other: float) -> bool:
    """Return whether a loss is lower than another one; a loss that is not finite is higher than any finite one."""
    return math.isfinite(loss) and not loss >= other


@dataclass(frozen=True)
class Fit:
    """Solved program and its scale."""

    problem: Problem  # on all samples, at the strength used
    path: Path  # on the fitted part; its chosen point has the same strength
    solution: Solution
    scale: float  # factor on all scores with the least held-out training loss; 1 if that loss itself was solved
    heldout: HeldOutScores  # of the path's chosen point; only the scale was fitted on these samples
    before: HeldOut  # of the network as it was, on the held-out samples that it was run on; NaN without any


def solve_best(run: Run, task: Task, data: ProgramData) -> Fit:
    """Solve the first program with 90 % held-out accuracy, else the one with the least held-out loss, as in all refits.

    Only that program is solved on all samples.
    """
    options, context, progress = run.options, run.context, run.progress
    samples = data.samples(task, run.processes)
    max_products = options.max_cost * epoch_products(task, data, run.processes)
    tried = []
    for program in task.programs:
        # A trained readout is near the solution of the loss that it was trained with, and of no other.
        warm = context.warm_start and type(program) is type(task.loss)
        problem, path, finish = choose_strength(
            samples,
            data.split,
            ReadoutProgram(
                task.net_map.readout.name,
                task.classes,
                program,
                options.penalty,
                options.strength,
                options.solver,
                tol=max(0.5 * options.tol, options.tol - _ROUNDING),
                previous=context.previous.get(program.name),
                max_products=max_products,
            ),
            start=_own_point(task.net_map.readout, task.readout.per_class) if warm else None,
            progress=lambda point: progress.note(f"strength {point.strength:.1e}, held-out loss {point.heldout_loss:.4f}"),
        )
        scores = score_heldout(task, data, samples, problem, path.chosen.solution)
        scale = 1.0 if type(program) is type(task.loss) else scores.best_scale()
        heldout = scores.results(scale)
        tried.append((heldout.loss, scores, scale, problem, path, finish))
        if heldout.accuracy >= _ACCURATE and not context.warm_start:
            break
    else:
        tried.sort(key=lambda each: _finite(each[0]), reverse=True)
    _, scores, scale, problem, path, finish = tried[-1]
    return Fit(problem, path, finish(), scale, scores, _results_before(task, data, run.processes))


def _own_point(layer: ReadoutLayer, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the readout's own weight and bias for a warm start."""
    weight = block_mean(layer.weight.detach().double(), per_class)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else block_mean(layer.bias.detach().double(), per_class)


def epoch_products(task: Task, data: ProgramData, shards: SingleProcess) -> float:
    """Return the number of products with all features that cost as much as an epoch of training on the samples.

    It depends on network and data, not on the machine.  Only matrix products count: spikes, other layers and the optimizer make an
    epoch longer than this.
    """
    readout, each = task.net_map.readout, task.rows.each
    step = float(readout.out_features * readout.in_features)
    step += sum(_multiply_adds(layer, data.layers[layer.name].neurons) for layer in task.net_map.hidden)
    product = readout.in_features * max(readout.out_features, PRICE)  # of one row
    rows = shards.total_rows(len(data.captured.targets) * each)
    return max(_PASSES * task.net_map.num_steps * step / (each * product), _MIN_WORK / (rows * product))


def _multiply_adds(layer: HiddenLayer, neurons: int) -> float:
    """Return the multiply-adds of one sample's step in a hidden layer, recurrent weights included."""
    weights = {id(value): value for module in (layer.synapse, layer.neuron) for value in module.parameters() if value.dim() > 1}
    return float(sum(neurons * value[0].numel() for value in weights.values()))


class HeldOutScores:
    """Scores of the samples ``index``, ``[m, C]`` or ``[m, T, C]``, float64; processes may share the samples."""

    def __init__(
        self, task: Task, data: ProgramData, scores: Tensor, index: Tensor, shards: SingleProcess = SINGLE_PROCESS
    ) -> None:
        rows, weights, targets = task.rows, data.weights, data.captured.targets
        self._loss, self._shards, self._scores = task.loss, shards, scores.flatten(0, -2)
        self._targets = data.prepared(task, index)
        self._weights = None if weights is None else rows.weights(weights[index.to(weights.device)])
        self._count, self._each = shards.total_rows(len(index)), rows.each
        self._accuracy, decisions, decided = math.nan, self._scores, self._targets
        classifies = rows.targets(targets).dim() == 1 and not targets.is_floating_point()
        if classifies or not task.loss.fits_values:  # values are compared at every step, as by the loss
            decisions, decided = rows.decisions(scores), rows.decided(self._targets)
        self._judge, self._judged = task.loss, self._targets
        if classifies and not task.loss.has_temperature and self._scores.shape[1] > 1:
            # Margins and squares of spike counts are large whatever they decide: cross-entropy compares decisions.
            self._judge = make_loss("cross_entropy")
            self._judged = task.loss.predictions(self._targets) if self._targets.dim() == 2 else self._targets
        if classifies:
            counted = data.counted(index)
            if counted is not None:
                decisions, decided = decisions[counted.to(decisions.device)], decided[counted.to(decided.device)]
            self._accuracy = accuracy_of(task.loss, decisions, decided, shards)
        self._tally = count_rows(task.loss, decisions, decided, classifies, shards)

    @property
    def compared_by(self) -> str:
        """Name of the loss that compares weights, if it is not the training loss."""
        return "" if self._judge is self._loss else self._judge.name

    def loss_at(self, scale: float, samples: int | None = None) -> float:
        """Return the mean loss of the scores times a scale, on the first ``samples`` of this process; default all."""
        rows = slice(None if samples is None else samples * self._each)
        return self._mean(self._loss.value(scale * self._scores[rows], self._targets[rows]), rows)

    def _judged_at(self, scale: float, samples: int | None) -> float:
        """Return the mean of the loss that compares weights, as ``loss_at``."""
        rows = slice(None if samples is None else samples * self._each)
        return self._mean(self._judge.value(scale * self._scores[rows], self._judged[rows]), rows)

    def _mean(self, values: Tensor, rows: slice) -> float:
        return weighted_mean(values, None if self._weights is None else self._weights[rows], self._shards)

    def best_scale(self, samples: int | None = None) -> float:
        """Return the scale with the least loss that compares weights, on all held-out samples, or the first ones.

        The loss is convex in the scale, so the minimum is within two steps of the best point so far, and halving them closes
        in on it.  A part of the samples without an error would have no minimum.
        """
        octave, loss = _MIDDLE, cache(lambda octave: _finite(self._judged_at(2.0**octave, samples)))
        for halving in range(_HALVINGS):
            step = _FIRST_STEP / 2**halving
            octave = min((octave, octave - step, octave + step), key=loss)
        return 2.0**octave if math.isfinite(loss(octave)) else 1.0

    def results(self, scale: float = 1.0, compared: int | None = None) -> HeldOut:
        """Return loss and accuracy, which no scale changes; the first ``compared`` of this process's samples are compared."""
        best = self.best_scale(compared) if self._judge.has_temperature else scale
        least = self._judged_at(best, compared)
        metrics = self._tally.metrics if self._tally is not None and self._count else {}
        return HeldOut(self.loss_at(scale), self._accuracy, self._accuracy, self._count, least, metrics, self._tally)


def _results_before(task: Task, data: ProgramData, shards: SingleProcess) -> HeldOut:
    """Return the results of the network as it was, on the held-out samples that it was run on; NaN without any."""
    scores, held = data.scores_before, data.compared
    if shards.total_rows(len(held)) == 0:
        return HeldOut()
    return HeldOutScores(task, data, scores[held.to(scores.device)].double(), held, shards).results()


def score_heldout(task: Task, data: ProgramData, samples: Samples, program: Problem, point: Solution) -> HeldOutScores:
    """Return the scores of the held-out samples at a point of the program; one that was fitted without them."""
    held, parts = data.split.heldout.to(samples.features.device), []
    for some in torch.split(held, _BATCH):
        part = samples.part(some)
        parts.append(program.features.scores_of(part.flat(), part.column(), point.weight, point.bias))
    scores = torch.cat(parts)
    scores = scores.reshape(len(held), samples.rows.each, scores.shape[-1]) if samples.rows.each > 1 else scores
    return HeldOutScores(task, data, scores, held, samples.shards)


def weighted_mean(values: Tensor, weights: Tensor | None, shards: SingleProcess = SINGLE_PROCESS) -> float:
    """Return the mean of values ``[m]`` with weights ``[m]``, if any, over all processes that share the samples."""
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    total, weight = shards.sum(torch.stack([weights @ values, weights.sum()])).tolist()
    return total / weight if weight else math.nan


def _finite(loss: float) -> float:
    """Return the loss, infinite if it is NaN, as for samples without weight."""
    return math.inf if math.isnan(loss) else loss
