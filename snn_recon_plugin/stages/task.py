"""Task of the convex program: the network's map, the readout, the losses to solve, and the rows of a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import Loss, make_loss
from ..errors import DataError, OptionError, UnsupportedModuleError, warn_user
from ..networks.calls.batches import first_samples, lengths_of
from ..networks.calls.forward import without_contexts
from ..networks.calls.record import StoredBatch, carries_over, check_forward, run_forward
from ..networks.libraries import library_of
from ..networks.readout.readout import KINDS, Readout
from ..networks.readout.resolve import resolve_readout
from ..networks.structure.inspect import Inspections, Structure, inspect_network
from ..networks.structure.layers import NetworkMap
from ..options import SAME, Options
from ..read.step import ReadStep
from .criterion import Criterion, Labels
from .run import MEASURE, SolveMode
from .scores import Judge, RowsPerSample, rows_of


@dataclass(frozen=True)
class Task:
    """Convex task of one network and loss, known from the first batch."""

    net_map: NetworkMap
    readout: Readout
    loss: Loss  # training loss of the scores
    programs: tuple[Loss, ...]  # candidate losses to solve, in this order
    rows: RowsPerSample
    carries_over: bool = False  # the net was found to keep its membranes from one call to the next

    @property
    def classes(self) -> int:
        """Number of scores of a row, one a class."""
        return self.readout.classes(self.net_map.readout.out_features)

    def for_steps(self, steps: int, options: Options) -> Task:
        """Return the same task for a first batch of another number of time steps; a CaptureError if the readout has none."""
        if steps == self.net_map.num_steps:
            return self
        loss, readout = options.criterion.loss_for_steps(steps * self.readout.per_score), self.readout.for_steps(steps)
        programs = _candidate_losses(loss, readout, self.rows, options)
        return replace(self, net_map=replace(self.net_map, num_steps=steps), readout=readout, loss=loss, programs=programs)

    def prepare(self, targets: Tensor) -> Tensor:
        """Return targets of all rows of some samples in the form of the training loss."""
        return self.loss.prepare(self.rows.targets(targets), self.classes)

    def judge(self, labels: Labels) -> Judge:
        """Return the judge of the scores of some samples."""
        return Judge(
            self.loss,
            self.prepare(labels.targets),
            rows=self.rows,
            weights=self.rows.weights(labels.weights),
            counted=None if labels.labelled is None else labels.labelled.flatten(),
            classifies=self.rows.targets(labels.targets).dim() == 1 and not labels.targets.is_floating_point(),
        )


def inspect_task(
    net: nn.Module, batch: StoredBatch, targets: Tensor, options: Options, mode: SolveMode, inspections: Inspections | None = None
) -> Task:
    """Inspect a network on the first batch, or find it in ``inspections``; refuse what can't be solved before minutes of work."""
    _check_no_images(targets)
    criterion = options.criterion
    labels = criterion.label(targets)
    targets = labels.targets
    inspect = partial(find_structure, net, batch.inputs, targets, options)
    if inspections is None:
        structure = inspect()
    else:
        structure = inspections.find(net, batch.inputs, len(targets), inspect, only_read=mode is MEASURE)
    net_map, readout = structure.net_map, structure.readout
    if mode is not MEASURE:  # training may have taught a norm an offset
        _check_rest(readout, net_map)
    if readout.per_step:
        _check_padding(lengths_of(batch.inputs), labels.labelled, net_map.num_steps)
    few = batch.inputs if structure.whole else first_samples(batch.inputs, len(targets))[0]
    carries = not mode.trained and warn_of_carried_membranes(net, few, options)
    # A squared loss of counts has the targets of all outputs of a class together.
    loss = criterion.loss_for_steps(net_map.num_steps * readout.per_score)
    rows = rows_of(loss, targets, readout.classes(net_map.readout.out_features), net_map.num_steps, readout.per_step)
    known = isinstance(without_contexts(options.call), ReadStep)
    if rows.stepwise and len(targets) == net_map.num_steps and not (known or mode.trained):
        warn_user(
            f"There are as many samples as time steps, {len(targets)}: targets of shape {tuple(targets.shape)} are taken as "
            "[batch, time]. Pass unpack=lambda batch: (batch[0], batch[1].transpose(0, 1)) if they are [time, batch]."
        )
    _check_targets(readout, net_map, targets, stepwise=rows.stepwise)
    _check_class_weights(criterion, readout.classes(net_map.readout.out_features))
    _check_single_output(readout, net_map, loss)
    return Task(net_map, readout, loss, _candidate_losses(loss, readout, rows, options), rows, carries)


def warn_of_carried_membranes(net: nn.Module, inputs: Any, options: Options) -> bool:
    """Warn of a private network that keeps its membranes from one call to the next; return whether it does."""
    carries = carries_over(net, inputs, options.call)
    if carries:
        warn_user(
            "The net keeps its membranes from one call to the next. It is reset before each batch here, and the report's "
            "accuracies are of a net that is: reset it at the start of forward, or before or after each batch of your own test."
        )
    return carries


def _check_class_weights(criterion: Criterion, classes: int) -> None:
    """Refuse more class weights than classes, as torch does; fewer are refused at the first label without one."""
    if criterion.class_weights is not None and len(criterion.class_weights) > classes:
        found = f"{len(criterion.class_weights)} class weights in {criterion.name} for {classes} classes"
        raise OptionError(found, "one weight for each class", f"pass a loss with {classes} weights, or a readout with more outputs")


def _check_padding(lengths: Tensor | None, labelled: Tensor | None, steps: int) -> None:
    """Refuse padded steps with a label where every step has scores: they would be fitted, and counted in accuracies."""
    if lengths is None:
        return
    padded = torch.arange(steps, device=lengths.device) >= lengths[:, None]
    if bool((padded if labelled is None else padded & labelled.to(padded.device)).any()):
        raise DataError(
            "lengths of padded sequences, scores at every step, and a target at padded steps",
            "class indices (B, T) that are -100 at padded steps; or one score a sample",
            "let unpack give such targets, and pass loss=nn.CrossEntropyLoss(); or pass readout='membrane_mean' or 'membrane_last'",
        )


def find_structure(net: nn.Module, inputs: Any, targets: Tensor, options: Options) -> Structure:
    """Find layers and readout of a network by a few samples of a batch."""
    forward = options.call
    few, count = first_samples(inputs, len(targets), run=lambda inputs: run_forward(net, inputs, forward))
    if few is inputs:
        check_forward(net, few, forward)
    shape = tuple(targets.shape)
    net_map = inspect_network(net, few, forward, readout_layer=options.readout_layer, batch=count, targets=shape)
    readout = _resolve_readout(net, net_map, few, options, stepwise=targets.dim() > 1 and not targets.is_floating_point())
    layer = replace(net_map.readout, scale=readout.scale)
    return Structure(replace(net_map, readout=layer), readout, few is inputs)


def _candidate_losses(loss: Loss, readout: Readout, rows: RowsPerSample, options: Options) -> tuple[Loss, ...]:
    """Return the losses to solve: the training loss, or its substitute ahead of it (docs/evidence/decisions.md)."""
    if options.fit_loss == SAME or loss.substitute is None:
        return (loss,)
    if options.fit_loss == loss.substitute:
        return (make_loss(loss.substitute),)
    # A given strength belongs to the program that its user has in mind, which is the training loss.  A
    # maximum over time is refined on the training loss itself.
    free = isinstance(options.strength, str) and rows.each == 1 and readout.exactness != "majorised"
    return (make_loss(loss.substitute), loss) if free else (loss,)


def _resolve_readout(net: nn.Module, net_map: NetworkMap, inputs: Any, options: Options, *, stepwise: bool) -> Readout:
    """Find the readout of a network, with values over time decoded as the training loss decodes them.

    ``readout="auto"`` leaves the choice to the loss, which also decides between spikes and membranes if the network returns both.
    Spikes are counted.  Membranes that reset keep their own readout, since no step of them is linear.
    """
    criterion = options.criterion
    takes, classes = criterion.takes, options.num_classes
    resolve = partial(resolve_readout, net, net_map, inputs, forward=options.call, signal=takes, classes=classes)
    readout = resolve(kind=options.readout)
    if readout.link != "identity" and not criterion.loss_for_steps(net_map.num_steps).softmax:
        found = f"the loss {criterion.name} for a network that returns {readout.link} of its scores"
        fix = "pass loss=nn.NLLLoss()"
        raise OptionError(found, "a loss of log-probabilities, or a network that returns the scores themselves", fix)
    wanted = _kind_of_loss(readout, criterion, stepwise=stepwise)
    if options.readout != "auto" or wanted in (None, readout.kind):
        return readout
    try:
        return resolve(kind=wanted)
    except OptionError as error:
        raise OptionError(
            f"the loss {criterion.name}, which takes values over time, for a network that returns {readout.kind}",
            f"a network that returns the output layer's values over time, to be read as {wanted}, or a loss of scores",
            "return the recorded membranes from forward, or pass loss='cross_entropy' or a loss of torch.nn",
        ) from error


def _kind_of_loss(readout: Readout, criterion: Criterion, *, stepwise: bool) -> str | None:
    if criterion.decoding is None or readout.kind not in KINDS:
        return None
    as_it_is = criterion.decoding == "first" or (criterion.decoding == "per_step" and stepwise)
    if not as_it_is and (readout.of_spikes or (criterion.decoding == "per_step" and readout.exactness == "surrogate")):
        return None
    return KINDS[readout.kind].decoded_by(criterion.decoding).name


def _check_no_images(targets: Tensor) -> None:
    if targets.dim() > 3:
        needed = "one class index, or a row of values, a sample or a step: readouts are solved, not decoders of an autoencoder"
        fix = "pass labels and the part of the net that classifies; or targets.flatten(1), for a net that returns flat values"
        raise DataError(f"targets that are images or volumes, of shape {tuple(targets.shape[1:])} each", needed, fix)


def _check_targets(readout: Readout, net_map: NetworkMap, targets: Tensor, *, stepwise: bool) -> None:
    """Refuse targets without one class a sample for a readout that is calibrated on decisions."""
    if readout.exactness != "exact" and (targets.dim() > 1 + stepwise or targets.is_floating_point()):
        neuron = net_map.readout.neuron
        example = "" if neuron is None else f", with one leak for all outputs and no reset, e.g. {library_of(neuron).integrator}"
        raise DataError(
            f"targets of {targets.dtype}, shape {tuple(targets.shape)}, for a readout {readout.kind}, which is {readout.exactness}",
            "one class index a sample or step: scale and shift of such a readout follow decisions, not values",
            "pass unpack=lambda batch: (batch[0], batch[1].argmax(-1)), the classes of one-hot rows, with the same loss; other "
            f"values need a mean over time{example}",
        )


def _check_single_output(readout: Readout, net_map: NetworkMap, loss: Loss) -> None:
    """Refuse a loss of values for a single spiking or resetting output, which is calibrated on decisions between two classes."""
    if readout.exactness != "exact" and net_map.readout.out_features == 1 and not loss.binary:
        found = f"the loss {loss.name} for a single output that is {readout.exactness}: {readout}"
        raise DataError(found, "a loss of labels 0 and 1", "pass loss='logistic'")


def _check_rest(readout: Readout, net_map: NetworkMap) -> None:
    """Refuse an output neuron that rests above zero if no bias can cancel the offset, at every step if steps have scores."""
    where = f"a readout {net_map.readout.name!r}"
    offset = readout.constant
    if readout.scale is not None and offset == 0.0:
        offset = float(readout.scale.offset.abs().max())
    if net_map.readout.bias is None and offset != 0.0:
        found = f"{where} without a bias, whose scores have an offset of {offset:.3g} from the output neuron or a norm"
        raise UnsupportedModuleError(found, "a bias to cancel the offset", "build the readout with bias=True")
    if readout.per_step:
        left = readout.constants - readout.rest_bias * readout.bias_gains
        if float(left.abs().max()) > 1e-6 * max(1.0, float(readout.constants.abs().max())):
            found = f"{where} at every step, whose output neuron drifts to a resting value that no bias cancels"
            fix = "pass readout='membrane_mean', or build the neuron with v_leak=0"
            raise UnsupportedModuleError(found, "a neuron that rests at zero, or one score a sample", fix)
