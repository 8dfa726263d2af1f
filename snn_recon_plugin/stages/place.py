"""Readout in the private network: the write on the copy, its certificate, a run that verifies its scores, and the report of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import Certificate, Path, Problem
from ..convex.penalties import column_norms
from ..errors import WriteError, warn_user
from ..hidden.gains import TIE_LOSS_RATIO
from ..hidden.hidden_task import LayerDecision, LayerWitnesses
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.capture import ActivityRecorder
from ..networks.private.parameters import Values
from ..networks.private.quiet import autocast_rounding
from ..networks.readout.readout import Source, block_mean
from ..networks.structure.layers import ReadoutLayer
from ..networks.write import Transaction
from ..options import IF_BETTER
from ..report.content import Report
from ..report.hints import Hint, InputScale, find_hints
from ..report.rows import Exactness, LayerReport, Live, OtherReadout, ProgramReport, ReadoutReport, StrengthPoint
from ..text_table import rate
from .build import HiddenResult
from .calibrate import CalibratedReadout, relative_size
from .collect import ProgramData, decode_batches
from .fit import Fit
from .run import Initialisation
from .scores import Judge, is_lower
from .task import Task

_DRAWS = 5  # passes whose mean accuracy is reported if forward draws random numbers
# Share of samples with a current so close to the threshold that another order of sums, or half precision, changes a spike.
_FLIPPED, _FLIPPED_HALF = 0.01, 0.1
_ROUNDING = 1e-5  # of features, relative to the largest


@dataclass(frozen=True)
class SolvedStages:
    """Results of the stages up to the solution of the program."""

    run: Initialisation
    origin: nn.Module  # the user's network
    first: Sequence[tuple[Any, Tensor]]  # first samples, for later training
    task: Task
    scale: InputScale | None  # None: not measured
    hidden: HiddenResult
    data: ProgramData
    fit: Fit


@dataclass(frozen=True)
class Placed:
    """Measurements of the written network."""

    certificate: Certificate
    exactness: Exactness
    accuracy: float  # on stored samples, 0 to 1; NaN for regression
    others: tuple[OtherReadout, ...]  # decisions of other items of its output
    values: Values  # of the readout, to write


def place(solved: SolvedStages, calibrated: CalibratedReadout) -> Placed:
    """Write the readout into the private network, certify it, and verify the network's own scores."""
    run, fit, layer, options = solved.run, solved.fit, solved.task.net_map.readout, solved.run.options
    values = {(layer.module, name): value for name, value in layer.parameters(calibrated.weight, calibrated.bias).items()}
    with run.processes.share_errors():
        writes = Transaction(run.net, allow_tied=options.allow_tied)
        for (module, name), value in values.items():
            writes.write(module, name, value)
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    # A refined readout is no point of the program any more: the program's solution is certified instead.
    point = (fit.solution.weight, fit.solution.bias) if calibrated.refined else calibrated.in_program(weight, bias)
    # The solver's dual value bounds every point of the program; the written point's own one may be lower.
    certificate = fit.problem.certify(*point, options.tol, fit.solution.certificate.dual)
    return Placed(certificate, *_verify(solved, calibrated), values)


def _verify(stages: SolvedStages, calibrated: CalibratedReadout) -> tuple[Exactness, float, tuple[OtherReadout, ...]]:
    """Compare the written network's scores with those promised; return agreement, accuracy, and decisions of other outputs."""
    run, task, data, problem = stages.run, stages.task, stages.data, stages.fit.problem
    layer, processes, net, options, batches = task.net_map.readout, run.processes, run.net, run.options, data.captured.batches
    sources = task.readout.others if problem.classifies and not task.rows.stepwise else ()
    roundings = [0.0]  # of the autocast that the readout runs in
    taps = Taps(calls={layer.module: lambda arguments, output: roundings.append(autocast_rounding(layer.weight.device))})

    def redraw(number: int, some: Sequence[StoredBatch]) -> Tensor:
        return decode_batches(lambda batch: record(net, batch, options.call, draw=number), some, [task.readout.scores])[0]

    with processes.share_errors():
        decoders = [task.readout.scores, *(source.scores for source in sources)]
        own, *others = decode_batches(partial(record, net, forward=options.call, taps=taps), batches, decoders)
        again = redraw(1, batches[:1])
        draws = not torch.equal(again, own[: len(again)])
        linear, solved = _linear_scores(own, task, calibrated, problem)
        tolerance = max(layer.tolerance, 8 * max(roundings))
        _check_promise(own, linear, stages, calibrated, tolerance)
    draws = any(processes.gather(draws))
    with processes.share_errors():
        # Accuracy is that under random numbers which the readout was not fitted on.
        redrawn = [redraw(number, batches) for number in range(1, _DRAWS + 1)] if draws else []
    first = torch.arange(len(own))
    held = data.everywhere(torch.isin(first, data.split.heldout), first).nonzero()[:, 0].to(own.device)
    labels = data.labels_of(first)
    own, linear, solved, *scores = (data.everywhere(each, first) for each in (own, linear, solved, *others, *redrawn))
    judge, redrawn = task.judge(labels), scores[len(others) :] or [own]
    scale = float(linear.abs().max())
    agree = judge.predictions(own) == judge.predictions(solved)
    exactness = Exactness(
        label=task.readout.exactness,
        max_difference=float((own - linear).abs().max()),
        scale=scale,
        tolerance=tolerance * max(1.0, scale),
        samples=len(own),
        agreement=float(agree.double().mean()) if problem.classifies else math.nan,
        linear_accuracy=judge.accuracy(solved),
        weight_scale=calibrated.scale,
        bias_shift=float(torch.as_tensor(calibrated.shift).mean()),
        refined=calibrated.refined,
    )
    held = held if len(held) else torch.arange(len(own), device=own.device)
    compared = [(source, values[held]) for source, values in zip(sources, scores, strict=False)]
    decisions = _compare_decisions(task.judge(labels.part(held)), own[held], compared) if compared else ()
    found = exactness, fmean(judge.accuracy(each) for each in redrawn), decisions
    return processes.broadcast_object(found, own.device)


def _compare_decisions(judge: Judge, own: Tensor, others: Sequence[tuple[Source, Tensor]]) -> tuple[OtherReadout, ...]:
    """Compare the decisions of other items of the output with those of the network's own scores."""
    decided, accuracy, compared = judge.predictions(own), judge.accuracy(own), []
    for source, scores in others:
        differing = int((judge.predictions(scores) != decided).sum()) / len(decided)
        compared.append(OtherReadout(str(source), source.kind, differing, judge.accuracy(scores), accuracy, len(own)))
    return tuple(compared)


def _linear_scores(own: Tensor, task: Task, calibrated: CalibratedReadout, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the linear scores of the samples that ``own`` are of, ``[m, C]`` or ``[m, T, C]``, of the written readout and solved.

    They decide alike, unless a shift for a single spiking output moved its boundary; of several outputs it moves none.
    """
    readout, layer = task.readout, task.net_map.readout
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    first = torch.arange(own.shape[:-1].numel(), device=own.device)

    def scores(weight: Tensor, bias: Tensor) -> Tensor:
        return readout.linked(problem.features.scores(weight, bias)[first]).reshape(own.shape)

    of_classes = block_mean(weight.double(), readout.per_class)
    own_bias = weight.new_zeros(len(of_classes))
    if bias is not None:
        own_bias = block_mean(bias.double(), readout.per_class) + torch.as_tensor(calibrated.offset).to(weight.device)
    linear = scores(of_classes, own_bias)
    moved = task.classes == 1 and calibrated.scores is not None
    return linear, scores(*calibrated.in_program(weight, bias)) if moved else linear


def _check_promise(own: Tensor, linear: Tensor, stages: SolvedStages, calibrated: CalibratedReadout, tolerance: float) -> None:
    """Refuse scores that are not those promised; ``tolerance``, relative to the largest score, is what rounding explains.

    In few samples rounding may change a spike.  Before an exact readout their features must show it, and one sample may differ.
    """
    promised, exact, readout = calibrated.scores, calibrated.scores is None, stages.task.readout
    promised = linear if promised is None else promised[: len(own)].double()
    limit, most = tolerance * max(1.0, float(promised.abs().max())), _FLIPPED if tolerance <= 1e-4 else _FLIPPED_HALF
    differences = (own[: len(promised)] - promised).abs().flatten(1).amax(1)
    wrong = ~(differences <= limit)
    share = float(wrong.double().mean())
    if share > (max(most, 1 / len(wrong)) if exact else most) or (share and exact and not _changed_features(stages)[wrong].all()):
        raise WriteError(
            f"scores of the written network that differ from those promised by up to {float(differences.max()):.3g}, "
            f"in {int(wrong.sum())} of {len(wrong)} samples",
            f"agreement to {limit:.1e}, as the readout {readout.kind} is {readout.exactness}",
            "make forward(net, inputs) deterministic and let it reset the membranes; pass readout= if it decodes differently",
        )


def _changed_features(stages: SolvedStages) -> Tensor:
    """Return whether features of the samples (m,) of stored batches, captured by plans, differ in the net's own passes."""
    run, task, captured = stages.run, stages.task, stages.data.captured
    recorder, call = ActivityRecorder(task.net_map, task.readout), run.options.call
    (own,) = decode_batches(lambda batch: recorder.run(run.net, batch, call)[1], captured.batches, [lambda rows, _: rows])
    before = captured.features[: len(own)].double()
    return (own - before).abs().flatten(1).amax(1) > _ROUNDING * max(1.0, float(before.abs().max()))


# -- the report, and warnings of what it says ------------------------------------------------------------------------------------

_KNOWN = 0.75  # held-out accuracy before the call of a network that was trained on these samples
_ABOVE_CHANCE = 1.5  # the same, relative to chance, of a network whose parameters an optimizer has changed
_OUT_OF_REACH = 1e4  # relative size of a readout of spikes, above that of any user net


def keeps_old(solved: SolvedStages, calibrated: CalibratedReadout) -> bool:
    """Return True if the option ``write`` leaves the old weights: the held-out loss is known and does not fall.

    A tie is written if the readout was solved on the validation samples too: it gains by them.
    """
    before, after = solved.fit.before, calibrated.heldout_solved
    known = min(before.samples, after.samples) > 0
    most = before.compared * (TIE_LOSS_RATIO if solved.run.validation is not None and solved.run.fit_val else 1.0)
    return solved.run.options.write == IF_BETTER and known and not is_lower(after.compared, most)


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
        judged_on=run.judged_on,
        fit_val=run.validation is not None and run.fit_val,
        trained_on=_is_trained_on(stages),
        compared_by=fit.judge.compared_by,
        exactness=placed.exactness,
        factor=calibrated.factor,
        program=ProgramReport(
            problem.loss.name,
            options.penalty,
            problem.strength,
            len(data.targets) - (run.processes.total_rows(len(data.split.heldout)) if data.split.excludes else 0),
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
            kept_old,
            net_map.readout.name,
            solved=_readout_values(net_map.readout, *calibrated.solved),
            smaller=_readout_values(net_map.readout, calibrated.weight, calibrated.bias),
        ),
    )
    _warn_of_others(report, run)
    _warn_of_reach(report, task, calibrated)
    return report


def _is_trained_on(stages: SolvedStages) -> bool:
    """Return True if the network was plainly trained before, on samples that judge it: no second pass is needed to see that."""
    accuracy = stages.fit.before.accuracy
    if stages.run.validation is not None:
        return False
    if not stages.run.was_trained:
        return accuracy >= _KNOWN  # of a loaded network there is no other sign
    return math.isnan(accuracy) or accuracy >= min(_KNOWN, _ABOVE_CHANCE / stages.task.classes)


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
    _, counts = torch.unique(data.targets, return_counts=True)
    return int(counts.max()) / int(counts.min())


def _hints(stages: SolvedStages) -> tuple[Hint, ...]:
    """Return the hints for a first initialisation; none for a refit, whose options are those of the first."""
    run, data = stages.run, stages.data
    if run.mode.trained:
        return ()
    available = 0 if run.options.max_samples is None else data.available
    changing = [decision.name for decision in stages.hidden.decisions if decision.offers_leaks]
    return find_hints(run.options, stages.scale, changing, len(data.targets), available)


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
