"""Summary: the report of a finished initialisation, from the results of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..convex import accuracy_of
from ..convex.penalties import column_norms
from ..distributed import SingleProcess
from ..errors import warn_user
from ..hidden import LayerDecision, LayerWitnesses
from ..networks import ReadoutLayer, Transaction
from ..networks.readouts import block_mean
from .build import HiddenResult
from .calibrate import CalibratedReadout
from .collect import ProgramData
from .fit import Fit, HeldOut, HeldOutScores
from .place import Placed
from .report_content import ReportContent
from .report_parts import LayerReport, OtherReadout, Sample
from .run import Run
from .task import Task


@dataclass(frozen=True)
class Results:
    """Results of all stages, in their order."""

    task: Task
    hidden: HiddenResult
    data: ProgramData
    fit: Fit
    calibrated: CalibratedReadout
    placed: Placed


def make_report(run: Run, results: Results, transaction: Transaction, sample: Sample) -> ReportContent:
    """Build the report of a finished initialisation."""
    task, data, fit, calibrated, placed = results.task, results.data, results.fit, results.calibrated, results.placed
    net_map, captured, problem, options, shards = task.net_map, data.captured, fit.problem, sample.options, run.processes
    longest, shortest = zip(*shards.gather(captured.range_of_steps), strict=True)
    sizes = column_norms(block_mean(net_map.readout.weight.detach(), task.readout.per_class))
    before, after, solved = results_before(task, data, fit), calibrated.heldout, calibrated.solved
    return ReportContent(
        network=f"{type(sample.net).__name__} ({net_map.library})",
        readout=net_map.readout.name,
        readout_kind=task.readout.kind,
        decided_by=str(task.readout.source),
        others=_other_decisions(task, data, placed, shards),
        exactness=placed.exactness,
        loss=options.criterion.name,
        fit_loss=problem.loss.name,
        penalty=options.penalty,
        strength=problem.strength,
        solver=fit.solution.statistics.solver,
        solver_reason=fit.solution.statistics.reason,
        outcome=fit.solution.outcome.value,
        certificate=placed.certificate,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        linear_accuracy=after.linear_accuracy,
        accuracy_written=placed.accuracy,
        loss_before=before.loss,
        loss_after=after.loss,
        factor=solved.factor,
        solved_accuracy=solved.heldout.accuracy,
        solved_loss=solved.heldout.loss,
        samples=shards.total_rows(len(captured.targets) - (len(data.split.heldout) if data.split.excludes else 0)),
        heldout=after.samples,
        heldout_before=before.samples,
        num_steps=max(longest),
        active_neurons=int((sizes > 0).sum()),
        hidden_neurons=problem.features.num_features,
        layers=_layer_reports(task, results.hidden.decisions, data),
        path=fit.path if isinstance(options.strength, str) else None,
        trace=fit.solution.statistics.trace,
        neuron_sizes=tuple(sizes.tolist()),
        seconds=run.progress.seconds,
        seed=options.seed,
        _transaction=transaction,
        _sample=sample,
        _hardness=_hardness(task, data, fit),
        _solved=_readout_values(net_map.readout, solved.weight, solved.bias),
        _smaller=_readout_values(net_map.readout, calibrated.weight, calibrated.bias),
        least_steps=min(shortest) if min(shortest) < max(longest) else 0,
    )


def _hardness(task: Task, data: ProgramData, fit: Fit) -> tuple[Tensor, Tensor] | None:
    """Return label and hardness of each sample in the order read, (n,) each: 1 - p(label) by the solution's scores.

    None for regression, for scores at every step, and for several processes, each of which has a part of the samples.
    """
    problem, targets = fit.problem, data.captured.targets
    shared = problem.features.shards.is_distributed
    if shared or task.rows.each > 1 or targets.dim() != 1 or targets.is_floating_point() or not task.loss.softmax:
        return None
    scores = fit.temperature * problem.features.scores(fit.solution.weight, fit.solution.bias)
    labels = targets.to(scores.device, torch.int64)
    right = scores.log_softmax(1).gather(1, labels[:, None])[:, 0].exp()
    return labels.cpu(), (1 - right).float().cpu()


def _readout_values(layer: ReadoutLayer, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Return a readout by the names of the layer's parameters."""
    return {name: value.to(layer.weight) for name, value in layer.parameters(weight, bias).items()}


def _layer_reports(task: Task, decisions: Sequence[LayerDecision], data: ProgramData) -> tuple[LayerReport, ...]:
    reports = []
    for layer, decision in zip(task.net_map.hidden, decisions, strict=True):
        before, after = data.layers_before[layer.name], data.layers[layer.name]
        report = partial(LayerReport, layer.name, type(layer.neuron).__name__, before=before, stats=after)
        if isinstance(decision, LayerWitnesses):
            reports.append(report(gain=1.0, witnesses=decision))
        else:
            reports.append(report(gain=decision.gain, reason=decision.reason, draw=decision.draw))
    return tuple(reports)


def results_before(task: Task, data: ProgramData, fit: Fit) -> HeldOut:
    """Return the results of the network as it was, on the held-out samples that it was run on; NaN without any."""
    scores_before, shards = data.scores_before, fit.problem.features.shards
    held = data.split.heldout[data.split.heldout < len(scores_before)].to(scores_before.device)
    if shards.total_rows(len(held)) == 0:
        return HeldOut()
    return HeldOutScores(task, data, scores_before[held].double(), held, shards).results()


def _other_decisions(task: Task, data: ProgramData, placed: Placed, shards: SingleProcess) -> tuple[OtherReadout, ...]:
    """Compare the decisions of other items of the output with the written network's own, on held-out samples."""
    if not placed.other_scores:
        return ()
    own = placed.scores
    held = data.split.heldout[data.split.heldout < len(own)].to(own.device)
    held = held if shards.total_rows(len(held)) else torch.arange(len(own), device=own.device)
    targets = task.rows.decided(data.prepared(task, held))
    scores = task.rows.decisions(own[held])
    decided, accuracy = task.loss.predictions(scores), accuracy_of(task.loss, scores, targets, shards)
    count, compared = shards.total_rows(len(held)), []
    for source, values in placed.other_scores.items():
        there = values[held]
        differing = shards.total_rows(int((task.loss.predictions(there) != decided).sum())) / shards.total_rows(len(decided))
        right = accuracy_of(task.loss, there, targets, shards)
        compared.append(OtherReadout(str(source), source.kind, differing, right, accuracy, count))
    return tuple(compared)


def warn_of_others(report: ReportContent, run: Run) -> None:
    """Warn of another returned value that decides differently, unless an option or the loss determines what decides."""
    if run.options.names_readout or run.context.warm_start:
        return
    for other in report.others:
        if other.notable:
            warn_user(
                f"Classes are decided by the {report.decided_by}. The {other.source} decides {100 * other.differing:.1f} % of "
                f"{other.samples} held-out samples differently, {100 * other.accuracy:.1f} % right against "
                f"{100 * other.own_accuracy:.1f} %. Pass readout={other.option!r} if your test reads it, "
                f"readout={report.readout_kind!r} if not."
            )
