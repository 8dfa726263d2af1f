"""Summary: the report of a finished initialisation, from the results of its stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..convex import accuracy_of
from ..convex.penalties import column_norms
from ..networks import Transaction
from ..networks.population import block_mean
from ..report import LayerReport, Report
from ..witnesses import LayerDecision, LayerWitnesses
from .alternatives import other_decisions
from .calibrate import CalibratedReadout
from .capture import ProgramData
from .fit import Fit
from .heldout import HeldOut, weighted_mean
from .options import Options
from .task import Task
from .write import Written

__all__ = ["make_report"]


def make_report(
    network: str,
    task: Task,
    decisions: Sequence[LayerDecision],
    data: ProgramData,
    fit: Fit,
    calibrated: CalibratedReadout,
    written: Written,
    options: Options,
    seconds: dict[str, float],
    transaction: Transaction,
) -> Report:
    """Build the report.

    Args:
        network: class of the network.
        task: the program's task.
        decisions: decisions on the hidden layers.
        data: captured samples.
        fit: the solved program.
        calibrated: the written readout.
        written: measurements of the written network.
        options: options of the run.
        seconds: wall-clock of each stage.
        transaction: undoes the write.
    """
    net_map = task.net_map
    captured = data.captured
    problem = fit.problem
    sizes = column_norms(block_mean(net_map.readout.weight.detach(), task.readout.per_class))
    before, after = _results_before(task, data, fit), calibrated.heldout
    return Report(
        network=f"{network} ({net_map.library})",
        readout=net_map.readout.name,
        readout_kind=task.readout.kind,
        decided_by=str(task.readout.source),
        others=other_decisions(task, data, written.scores, written.other_scores),
        exactness=written.exactness,
        loss=options.criterion.name,
        fit_loss=problem.loss.name,
        penalty=options.penalty,
        strength=problem.strength,
        solver=fit.solution.statistics.solver,
        outcome=fit.solution.outcome.value,
        certificate=written.certificate,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        linear_accuracy=after.linear_accuracy,
        accuracy_written=written.accuracy,
        loss_before=before.loss,
        loss_after=after.loss,
        samples=_count_all(fit, len(captured.targets)),
        heldout=after.samples,
        heldout_before=before.samples,
        num_steps=captured.num_steps,
        active_neurons=int((sizes > 0).sum()),
        hidden_neurons=problem.features.num_features,
        layers=_layer_reports(task, decisions, data),
        path=fit.path,
        trace=fit.solution.statistics.trace,
        neuron_sizes=tuple(sizes.tolist()),
        seconds=seconds,
        seed=options.seed,
        _transaction=transaction,
        least_steps=0 if captured.lengths is None else int(captured.lengths.min()),
    )


def _layer_reports(task: Task, decisions: Sequence[LayerDecision], data: ProgramData) -> tuple[LayerReport, ...]:
    reports = []
    for layer, decision in zip(task.net_map.hidden, decisions, strict=True):
        rebuilt = decision if isinstance(decision, LayerWitnesses) else None
        gain = None if isinstance(decision, LayerWitnesses) else decision
        reports.append(
            LayerReport(
                name=layer.name,
                neuron=type(layer.neuron).__name__,
                gain=1.0 if gain is None else gain.gain,
                before=data.layers_before[layer.name],
                stats=data.captured.layers[layer.name],
                reason="" if gain is None else gain.reason,
                witnesses=rebuilt,
                draw=0 if gain is None else gain.draw,
            )
        )
    return tuple(reports)


def _results_before(task: Task, data: ProgramData, fit: Fit) -> HeldOut:
    """Return the results of the network as it was, on the held-out samples that it was run on; NaN without any."""
    shards, scores_before = fit.problem.features.shards, data.scores_before
    held = data.split.heldout[data.split.heldout < len(scores_before)].to(scores_before.device)
    count = _count_all(fit, len(held))
    if count == 0:
        return HeldOut(math.nan, math.nan, math.nan, 0)
    scores = scores_before[held].double()
    targets = data.prepared(task, held)
    rows = task.rows
    values = task.loss.value(scores.flatten(0, -2), targets)
    loss = weighted_mean(values, None if data.weights is None else rows.weights(data.weights[held]), shards)
    decided, accuracy = rows.decided(targets), math.nan
    if fit.problem.classifies:
        accuracy = accuracy_of(task.loss, rows.decisions(scores), decided, shards)
    return HeldOut(loss, accuracy, math.nan, count)


def _count_all(fit: Fit, count: int) -> int:
    """Return the number of samples of all processes."""
    features = fit.problem.features
    return int(features.shards.total(torch.tensor(count, device=features.device)))
