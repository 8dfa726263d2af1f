"""Summary of an initialisation: its report, and the warnings of what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..convex import Path
from ..convex.penalties import column_norms
from ..errors import warn_user
from ..hidden.hidden_task import LayerDecision, LayerWitnesses
from ..networks.readout.readout import block_mean
from ..networks.structure.layers import ReadoutLayer
from ..networks.write import Transaction
from ..options import IF_BETTER
from ..report.content import Report
from ..report.hints import Hint, find_hints
from ..report.rows import LayerReport, Live, ProgramReport, ReadoutReport, StrengthPoint
from ..text_table import rate
from .calibrate import CalibratedReadout, relative_size
from .collect import ProgramData
from .fit import Fit
from .place import Placed, SolvedStages
from .run import Initialisation
from .scores import is_lower
from .task import Task

_OUT_OF_REACH = 1e4  # relative size of a readout of spikes, above that of any user net


def keeps_old(solved: SolvedStages, calibrated: CalibratedReadout) -> bool:
    """Return True if the option ``write`` leaves the old weights: the held-out loss is known and does not fall."""
    before, after = solved.fit.before, calibrated.heldout_solved
    known = min(before.samples, after.samples) > 0
    return solved.run.options.write == IF_BETTER and known and not is_lower(after.compared, before.compared)


def make_report(stages: SolvedStages, calibrated: CalibratedReadout, placed: Placed, transaction: Transaction) -> Report:
    """Build the report of a finished initialisation, and warn of what it says."""
    run, task, data, fit = stages.run, stages.task, stages.data, stages.fit
    net_map, problem, options, (longest, shortest) = task.net_map, fit.problem, run.options, data.range_of_steps
    sizes = column_norms(block_mean(net_map.readout.weight.detach(), task.readout.per_class))
    statistics, kept_old = fit.solution.statistics, keeps_old(stages, calibrated)
    report = Report(
        network=f"{type(stages.origin).__name__} ({net_map.library})",
        readout=ReadoutReport(net_map.readout.name, task.readout.kind, str(task.readout), options.names_readout, placed.others),
        loss=options.criterion.name,
        before=fit.before,
        after=calibrated.heldout,
        solved=calibrated.heldout_solved,
        accuracy_written=placed.accuracy,
        kept_old=kept_old,
        compared_by=fit.judge.compared_by,
        exactness=placed.exactness,
        factor=calibrated.factor,
        program=ProgramReport(
            problem.loss.name,
            options.penalty,
            problem.strength,
            len(data.targets) - (len(data.split.heldout) if data.split.excludes else 0),
            statistics.solver,
            statistics.reason,
            fit.solution.outcome.value,
            int((sizes > 0).sum()),
            problem.features.num_features,
            tuple(sizes.tolist()),
            _strength_points(fit.path) if isinstance(options.strength, str) else None,
            statistics.trace,
        ),
        certificate=placed.certificate,
        layers=_layer_reports(task, stages.hidden.decisions, data),
        hints=_hints(stages),
        num_steps=longest,
        least_steps=shortest if shortest < longest else 0,
        imbalance=_imbalance(task, data),
        seconds=run.timer.seconds,
        seed=options.seed,
        _live=Live(
            transaction,
            stages.origin,
            options,
            stages.first,
            run.processes,
            _hardness(task, data, fit),
            kept_old,
            net_map.readout.name,
            solved=_readout_values(net_map.readout, *calibrated.solved),
            smaller=_readout_values(net_map.readout, calibrated.weight, calibrated.bias),
        ),
    )
    _warn_of_others(report, run)
    _warn_of_reach(report, task, calibrated)
    return report


def _strength_points(path: Path) -> tuple[StrengthPoint, ...]:
    points = []
    for point in path.points:
        heldout, gap = (point.heldout_loss, point.heldout_error, point.heldout_accuracy), point.solution.certificate.relative_gap
        points.append(StrengthPoint(point.strength, *heldout, gap, point.active, chosen=point is path.chosen))
    return tuple(points)


def _imbalance(task: Task, data: ProgramData) -> float:
    """Return the largest class's number of targets over the smallest one's that occurs; NaN if they are no classes."""
    if task.rows.targets(data.targets).dim() != 1 or data.targets.is_floating_point():
        return math.nan
    counts = torch.bincount(data.targets.flatten().long())
    counts = counts[counts > 0]
    return int(counts.max()) / int(counts.min())


def _hints(stages: SolvedStages) -> tuple[Hint, ...]:
    """Return the hints for a first initialisation; none for a refit, whose options are those of the first."""
    run, data = stages.run, stages.data
    if run.mode.trained:
        return ()
    available = 0 if run.options.max_samples is None else data.available
    changing = [decision.name for decision in stages.hidden.decisions if decision.offers_leaks]
    return find_hints(run.options, stages.scale, changing, len(data.targets), available)


def _hardness(task: Task, data: ProgramData, fit: Fit) -> tuple[Tensor, Tensor] | None:
    """Return label and 1 - p(label), (n,) each in the order read; None without one class a sample, or for several processes."""
    problem, targets = fit.problem, data.captured.targets
    shared = data.processes.is_distributed
    if shared or task.rows.each > 1 or targets.dim() != 1 or targets.is_floating_point() or not task.loss.softmax:
        return None
    scores = fit.scale * problem.features.scores(fit.solution.weight, fit.solution.bias)
    labels = targets.to(scores.device, torch.int64)
    right = scores.log_softmax(1).gather(1, labels[:, None])[:, 0].exp()
    return labels.cpu(), (1 - right).float().cpu()


def _readout_values(layer: ReadoutLayer, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {name: value.to(layer.weight) for name, value in layer.parameters(weight, bias).items()}


def _layer_reports(task: Task, decisions: Sequence[LayerDecision], data: ProgramData) -> tuple[LayerReport, ...]:
    reports = []
    for layer, decision in zip(task.net_map.hidden, decisions, strict=True):
        before, after = data.layers_before[layer.name], data.layers[layer.name]
        report = partial(LayerReport, layer.name, type(layer.neuron).__name__, before=before, stats=after)
        if isinstance(decision, LayerWitnesses):
            reports.append(report(gain=1.0, witnesses=decision))
        else:
            reports.append(report(gain=decision.gain, reason=decision.reason))
    return tuple(reports)


def _warn_of_others(report: Report, run: Initialisation) -> None:
    """Warn of another returned value that decides differently, unless an option or the loss determines what decides."""
    if run.options.names_readout or run.mode.trained:
        return
    for other in report.readout.others:
        if other.notable:
            warn_user(
                f"Classes are decided by the {report.readout.decided_by}. The {other.source} decides "
                f"{rate(other.differing, other.samples)} of {other.samples} held-out samples differently, "
                f"{rate(other.accuracy, other.samples)} right against {rate(other.own_accuracy, other.samples)}. "
                f"Pass readout={other.option!r} if your test reads it, "
                f"readout={report.readout.kind!r} if not."
            )


def _warn_of_reach(report: Report, task: Task, calibrated: CalibratedReadout) -> None:
    """Warn of a spiking output whose threshold only a readout of enormous weights reaches."""
    size, readout = relative_size(*calibrated.solved), task.readout
    if readout.of_spikes and size > _OUT_OF_REACH and not report.kept_old:
        warn_user(
            f"The solved readout {report.readout.name!r} is {size:.0e} times as large as a fresh one: its output neuron spikes for "
            "no smaller currents. Lower that neuron's threshold, or return its membranes: training fails from such weights."
        )
