"""Solve: the program by held-out loss, within a budget, and its scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..convex import Path, Problem, Solution
from ..convex.solvers.solver import PRICE
from ..networks.readout.readout import block_mean
from ..networks.structure.layers import HiddenLayer, ReadoutLayer
from .collect import ProgramData
from .run import Initialisation
from .scores import HeldOut, Judge, finite_or_highest
from .strength import Samples, choose_strength
from .task import Task

_ROUNDING = 5e-6  # of the relative gap, left for rounding to the network's precision: the largest seen is 5.5e-6
_ACCURATE = 0.9  # accuracy above which the squared hinge needs no comparison
_BATCH = 256  # samples scored at once: in double precision all steps of all of them would fill the memory
_PASSES = 3  # of a training step: forward, and backward to inputs and to weights
_MIN_WORK = 2e10  # multiply-adds that every solve may take: half a second on one core


@dataclass(frozen=True)
class Fit:
    """Solved program and its scale."""

    problem: Problem  # on all samples, at the strength used
    path: Path  # on the fitted part; its chosen point has the same strength
    solution: Solution
    scale: float  # factor on all scores with the least held-out training loss; 1 if that loss itself was solved
    judge: Judge  # of the reported samples of all processes: held-out ones, or validation samples that judged no hidden layer
    heldout_scores: Tensor  # of these, over ``scale``; of held-out samples by the path's chosen point, of validation by ``trials``
    compared: Tensor  # (k,), which of these samples the network was run on before
    before: HeldOut  # of the network as it was, on those samples; NaN without any
    trials: tuple[JudgedHalf, ...] = ()  # of validation samples, each half of the reported ones


@dataclass(frozen=True)
class JudgedHalf:
    """Half of the reported validation samples, and the point that the other validation samples choose."""

    rows: Tensor  # (m,), the half, among the validation samples of all processes in their common order
    chosen_by: Tensor  # (k,), the others
    solution: Solution
    scores: Tensor  # of all validation samples, by the solution


def solve_best(run: Initialisation, task: Task, data: ProgramData) -> Fit:
    """Solve the first program with 90 % held-out accuracy, else the one with the least held-out loss."""
    options = run.options
    samples, device = data.samples(task), data.captured.features.device
    max_products = options.max_cost * epoch_products(task, data)
    judge, tried = task.judge(data.labels_of(data.split.heldout)), []
    for program in task.programs:
        # A trained readout is near the solution of the loss that it was trained with, and of no other.
        warm = run.mode.trained and type(program) is type(task.loss)
        problem, path, finish = choose_strength(
            samples,
            data.split,
            program,
            replace(options, tol=max(0.5 * options.tol, options.tol - _ROUNDING)),
            readout=task.net_map.readout.name,
            max_products=max_products,
            start=_own_point(task.net_map.readout, task.readout.per_class) if warm else None,
            progress=lambda point: run.timer.note(f"strength {point.strength:.1e}, held-out loss {point.heldout_loss:.4f}"),
        )
        scores = score_heldout(data, samples, problem, path.chosen.solution)
        scaled = type(program) is not type(task.loss)
        scale = run.processes.broadcast_number(judge.best_scale(scores) if scaled else 1.0)
        heldout = run.processes.broadcast_object(judge(scores, scale), device)
        tried.append((heldout.loss, scores, scale, problem, path, finish))
        if heldout.accuracy >= _ACCURATE:
            break
    else:
        tried.sort(key=lambda each: finite_or_highest(each[0]), reverse=True)
    _, scores, scale, problem, path, finish = tried[-1]
    held, report, trials = data.split.heldout, torch.arange(len(scores)), tuple[JudgedHalf, ...]()
    if data.split.judged is not None:
        report, scaled = report[data.split.judged :], type(problem.loss) is not type(task.loss)
        each = [score_heldout(data, samples, problem, point.solution) for point in path.points]
        trials = _choose_by_halves(judge, each, path, report)
        for trial in trials:
            factor = judge.best_scale(trial.scores, trial.chosen_by) / scale if scaled else 1.0
            scores[trial.rows] = run.processes.broadcast_number(factor) * trial.scores[trial.rows]
        judge, scores = task.judge(data.labels_of(held).part(report)), scores[report]
    known = data.everywhere(held < len(data.scores_before), held)[report]
    before = run.processes.broadcast_object(_results_before(task, data, report), device)
    return Fit(problem, path, finish(), scale, judge, scores, known.nonzero()[:, 0], before, trials)


def _choose_by_halves(judge: Judge, scores: Sequence[Tensor], path: Path, report: Tensor) -> tuple[JudgedHalf, ...]:
    """Return two trials: each half of the reported validation samples gets the point that all others choose.

    ``scores`` are those of all validation samples at each point of the path.
    """
    trials = []
    for half in (report[::2], report[1::2]):
        others = torch.ones(len(scores[0]), dtype=torch.bool).index_fill(0, half, False).nonzero()[:, 0]
        losses = [finite_or_highest(judge.compare(each, 1.0, others)) for each in scores]
        best = min(range(len(losses)), key=losses.__getitem__)
        trials.append(JudgedHalf(half, others, path.points[best].solution, scores[best]))
    return tuple(trials)


def _own_point(layer: ReadoutLayer, per_class: int) -> tuple[Tensor, Tensor]:
    weight = block_mean(layer.weight.detach().double(), per_class)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else block_mean(layer.bias.detach().double(), per_class)


def epoch_products(task: Task, data: ProgramData) -> float:
    """Return the products with all features that cost as much as the matrix products of an epoch, the same on every machine."""
    readout, each = task.net_map.readout, task.rows.each
    step = float(readout.out_features * readout.in_features)
    step += sum(_multiply_adds(layer, data.layers[layer.name].neurons) for layer in task.net_map.hidden)
    product = readout.in_features * max(readout.out_features, PRICE)  # of one row
    return max(_PASSES * task.net_map.num_steps * step / (each * product), _MIN_WORK / (len(data.targets) * each * product))


def _multiply_adds(layer: HiddenLayer, neurons: int) -> float:
    """Return the multiply-adds of one sample's step in a hidden layer, recurrent weights included."""
    weights = {id(value): value for module in (layer.synapse, layer.neuron) for value in module.parameters() if value.dim() > 1}
    return float(sum(neurons * value[0].numel() for value in weights.values()))


def _results_before(task: Task, data: ProgramData, report: Tensor) -> HeldOut:
    """Return the results of the network as it was, on those of the reported samples that it was run on; NaN without any."""
    scores, held = data.scores_before, data.split.heldout
    known = data.everywhere(held < len(scores), held)
    places = known.cumsum(0)[report] - 1  # of the reported samples among those that it was run on
    places = places[known[report]]
    held = held[held < len(scores)]
    labels, scores = data.labels_of(held).part(places), data.everywhere(scores[held.to(scores.device)].double(), held)[places]
    return task.judge(labels)(scores) if len(labels) else HeldOut()


def score_heldout(data: ProgramData, samples: Samples, program: Problem, point: Solution) -> Tensor:
    """Return the scores of the held-out samples of all processes at a point of the program, which was fitted without them."""
    held, parts = data.split.heldout.to(samples.features.device), []
    for some in torch.split(held, _BATCH):
        part = samples.part(some)
        parts.append(program.features.scores_of(part.flat(), part.column(), point.weight, point.bias))
    scores = torch.cat(parts)
    scores = scores.reshape(len(held), samples.rows.each, scores.shape[-1]) if samples.rows.each > 1 else scores
    return data.everywhere(scores, data.split.heldout)
