"""Hidden layers: original weights, weights times a gain, or selected candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..convex import SquaredHinge
from ..errors import DataError
from ..hidden.drive import DRIVE_SAMPLES, keep_convolution
from ..hidden.gains import TIE_LOSS_RATIO, choose_gain
from ..hidden.hidden_task import HiddenTask, LayerDecision, LayerGain, change_layers, make_averaging_readout, make_temporary_readout
from ..hidden.rebuild import rebuild_layer
from ..hidden.samplers import refuse_without_leaks
from ..hidden.stage import MEASURED, list_fresh_norms, measure_statistics
from ..networks.calls.batches import Padded, align_ends, batch_axis, map_tensors, tensors_in
from ..networks.calls.calls import CallRecorder
from ..networks.calls.forward import Forward, OverTime, drop_autocast, without_contexts
from ..networks.calls.record import StoredBatch
from ..networks.capture import ActivityRecorder
from ..networks.private.parameters import Values, write_values
from ..networks.readout.readout import Readout
from ..networks.structure.layers import NetworkMap
from ..options import Options
from ..read.step import ReadStep
from .run import Initialisation
from .stream import split_samples
from .task import Task

_GAIN_SAMPLES = 3000
_SELECT_SAMPLES = 3000
_MIN_SELECT_SAMPLES = 500  # of a selection, even if the inputs are long and wide
_PILOT_SAMPLES = 1000  # that show whether rebuilt layers can be better than trained ones, in about a second
_PILOT_CANDIDATES = 1.0  # relative to the width, for the same
_SELECT_BYTES = 2**30  # input of a layer at all steps
_SELECT_STEPS = 2**20  # samples times steps: long sequences need fewer samples (docs/evidence/decisions.md)


@dataclass(frozen=True)
class HiddenResult:
    """Decisions on the hidden layers, in order of execution; the private network has the new values."""

    decisions: Sequence[LayerDecision]
    before: Values  # the tensors of the private network that were changed, as they were
    used: Tensor | None = None  # [k] ascending, numbers of the samples that chose rows
    judged: int = 0  # first validation samples, which judged the layers


def count_wanted(task: Task, options: Options) -> int:
    """Return the number of samples that hidden layers are chosen on; 0 if they are kept."""
    if options.hidden == "keep" or not task.net_map.hidden:
        return 0
    if options.hidden == "rescale":
        return min(_GAIN_SAMPLES, options.max_samples or _GAIN_SAMPLES)
    if all(layer.is_convolution for layer in task.net_map.hidden):
        return min(DRIVE_SAMPLES, options.max_samples or DRIVE_SAMPLES)
    return _selection_samples(task, options)


def choose_hidden(run: Initialisation, task: Task, wanted: int) -> HiddenResult:
    """Choose weights of all hidden layers on the first ``wanted`` samples, and write them into the private network."""
    options, timer = run.options, run.timer
    layers = task.net_map.hidden
    if not wanted:
        return HiddenResult([LayerGain(layer.name) for layer in layers], {})
    rescales = options.hidden == "rescale"
    if options.hidden == "auto" and run.was_trained:
        with timer.stage("reconstruct"):
            kept = _keep_trained(run, task, min(wanted, _PILOT_SAMPLES))
        if kept is not None:
            return kept
    chooses_rows = not rescales and not all(layer.is_convolution for layer in layers)
    with timer.stage("rescale") if rescales else timer.stage("reconstruct", len(layers), "layers"):
        # Samples that choose rows give an optimistic accuracy afterwards: the others of these are held out.
        hidden, used = _hidden_task(run, task, wanted, compares=chooses_rows)
        norms = list_fresh_norms(hidden.recorder, layers, task.net_map.readout.module)

        def prepare(number: int) -> Values:
            return measure_statistics(hidden.recorder.first(MEASURED), norms[number])

        if rescales:
            return HiddenResult(*change_layers(layers, partial(_decide, choose_gain, hidden), prepare=prepare))
        refuse_without_leaks(hidden)
        hidden = replace(hidden, samples=used)
        decisions, before = change_layers(layers, partial(_decide, rebuild_layer, hidden), timer.note, prepare)
        if run.validation is not None and chooses_rows:
            return HiddenResult(decisions, before, judged=len(hidden.targets) - len(used))
        return HiddenResult(decisions, before, run.stream.numbers[used] if chooses_rows else None)


def _keep_trained(run: Initialisation, task: Task, samples: int) -> HiddenResult | None:
    """Return the decision to keep all layers of a trained network, unless layers rebuilt on few samples are better together.

    Layers of a deep network were trained for those above them, so each alone can seem worse than a rebuilt one.
    """
    layers = task.net_map.hidden
    if any(layer.is_convolution for layer in layers):
        reason = "a trained network with convolutions keeps its layers"
        return HiddenResult([LayerGain(layer.name, reason=reason) for layer in layers], {})
    hidden, used = _hidden_task(run, task, samples, compares=True)
    hidden = replace(hidden, samples=used, n_candidates=min(hidden.n_candidates, _PILOT_CANDIDATES))
    own = _evaluate_readout(hidden)
    refuse_without_leaks(hidden)
    before = change_layers(layers, partial(rebuild_layer, hidden))[1]
    rebuilt = _evaluate_readout(hidden) if before else own
    write_values(before)
    if TIE_LOSS_RATIO * rebuilt < own:
        return None
    reason = f"trained layers are no worse than rebuilt ones on {run.judged_on}, loss {own:.3g} against {rebuilt:.3g}"
    judged = 0 if run.validation is None else len(hidden.targets) - len(used)
    return HiddenResult([LayerGain(layer.name, reason=reason) for layer in layers], {}, judged=judged)


def _evaluate_readout(hidden: HiddenTask) -> float:
    """Return the loss of a temporary readout of the network as it is now, on the samples that compare."""
    recorder, activity = hidden.recorder, ActivityRecorder(hidden.net_map, hidden.readout)
    runs = ((batch.size, activity.run(recorder.net, batch, recorder.forward)[1]) for batch in recorder.batches)
    features = [found[:size].clone() for size, found in runs]
    rows = hidden.temporary.take_features(torch.cat(features))
    rows = rows[hidden.temporary.find_rows(hidden.compared_samples[0].to(rows.device))]
    return hidden.comparison.evaluate_rows(rows)[0]


def _decide(
    choose: Callable[[HiddenTask, int], tuple[LayerDecision, Values]], hidden: HiddenTask, number: int
) -> tuple[LayerDecision, Values]:
    """Choose weights for the layer of a number; convolutions are kept."""
    return keep_convolution(hidden, number) if hidden.net_map.hidden[number].is_convolution else choose(hidden, number)


def _selection_samples(task: Task, options: Options) -> int:
    """Return the number of samples that choose rows, within fixed memory and work."""
    weights = (getattr(layer.synapse, "weight", None) for layer in task.net_map.hidden)
    widest = max((weight[0].numel() for weight in weights if isinstance(weight, Tensor)), default=1)
    steps = task.net_map.num_steps
    most = min(_SELECT_BYTES // (4 * steps * widest), _SELECT_STEPS // steps)
    wanted = min(_SELECT_SAMPLES, max(_MIN_SELECT_SAMPLES, most))
    wanted = max(_MIN_SELECT_SAMPLES, wanted // make_temporary_readout(task.readout, task.rows.stepwise).rows_each)
    return min(wanted, options.max_samples or wanted)


def _read_samples(run: Initialisation, task: Task, wanted: int, compares: bool) -> tuple[list[StoredBatch], Tensor, Tensor]:
    """Return batches that choose hidden weights, their targets, and the samples to fit.

    Layers are compared on the other samples: held-out ones, or validation samples, of which half are left to judge the result.
    """
    held, parts = 0, list[tuple[list[StoredBatch], Tensor]]()
    if run.validation is not None and compares:
        held = round(run.options.holdout * wanted)
        held = min(held, sum(batch.size for batch in run.validation.first(2 * held)) // 2)
    for stream, number in ((run.stream, wanted - held), (run.validation, held)):
        if stream is None or number == 0:
            continue
        batches, targets = stream.head(number, number)
        behind = sum(len(each) for _, each in parts)
        moved = [replace(one, rows=slice(one.rows.start + behind, one.rows.stop + behind)) for one in batches]
        parts.append((moved, targets))
    targets = torch.cat([each for _, each in parts])
    # Refuses too few samples ahead of the work.
    split = split_samples(len(targets), run.options.holdout, run.options.seed)
    fitted = torch.arange(len(parts[0][1])) if held else split.fitted
    return [batch for batches, _ in parts for batch in batches], targets, fitted


def _hidden_task(run: Initialisation, task: Task, wanted: int, *, compares: bool) -> tuple[HiddenTask, Tensor]:
    """Return what the choice of hidden weights needs, with batches of one length and a smooth loss, and the samples to fit."""
    net, options = run.net, run.options
    batches, targets, fitted = _read_samples(run, task, wanted, compares)
    batches, net_map, readout = pad_batches(batches, task.net_map, task.readout, options.call)
    forward = drop_autocast(options.call)
    labels = options.criterion.label(targets)
    counted = None if labels.labelled is None else labels.labelled.any(0)
    temporary = make_temporary_readout(readout, task.rows.stepwise, len(targets), counted)
    if net_map.num_steps == 1 and not task.rows.stepwise and net_map.hidden:
        steps = len(CallRecorder(net, batches[:1], forward).record_currents(net_map.hidden[-1], keep=1))
        temporary = make_averaging_readout(steps) if steps > 1 else temporary  # spikes are averaged before the last layer
    values = task.programs[0].fits_values and (labels.targets.is_floating_point() or task.classes == 1)
    return HiddenTask(
        CallRecorder(net, batches, forward),
        labels.targets,
        net_map,
        readout,
        temporary,
        loss=task.programs[0] if values else SquaredHinge(),
        seed=options.seed,
        weights=labels.weights,
        witnesses=options.witnesses,
        n_candidates=options.n_candidates,
        heterogeneous=options.heterogeneous,
        compares=options.hidden == "auto",
    ), fitted


def pad_batches(
    batches: list[StoredBatch], net_map: NetworkMap, readout: Readout, forward: Forward
) -> tuple[list[StoredBatch], NetworkMap, Readout]:
    """Pad batches with zeros after their last step to the steps of the longest; return map and readout for that length.

    Hidden rows and gains are chosen by simulations that run all samples over the same steps.  The readout is solved on the
    batches as they are.  Batches of the same steps are returned as they are, with the same map and readout.  Sequences of known
    lengths are put at the end, since the last steps decide.
    """
    given = without_contexts(forward)
    if isinstance(given, ReadStep):
        return _pad_parts(batches, net_map, readout)
    first = _sequence(batches[0])
    if not isinstance(first, Tensor) or first.ndim < 2:
        return batches, net_map, readout
    samples = batch_axis(first, batches[0].rows.stop)
    axis = given.time_dim if isinstance(given, OverTime) else None if samples is None else 1 - samples
    if axis is None:
        return batches, net_map, readout
    lengths = [_sequence(batch).shape[axis] for batch in batches]
    longest = max(lengths)
    if min(lengths) == longest and not readout.padded:
        return batches, net_map, readout
    if not readout.padded and first.shape[axis] != net_map.num_steps:
        raise DataError(
            f"batches of {min(lengths)} to {longest} values on axis {axis}, of which the network makes {net_map.num_steps} steps "
            f"from {first.shape[axis]}",
            "as many time steps as the inputs have, to choose hidden layers",
            "pass hidden='keep', or pad all batches to one length in the loader",
        )
    padded = [replace(batch, inputs=_padded(batch.inputs, axis, longest)) for batch in batches]
    return padded, replace(net_map, num_steps=longest), readout.for_steps(longest)


def _pad_parts(batches: list[StoredBatch], net_map: NetworkMap, readout: Readout) -> tuple[list[StoredBatch], NetworkMap, Readout]:
    """Pad the parts of batches whose second axis is time: of the first batch it has the steps of the net, and others differ."""
    shapes = [[value.shape for value in tensors_in(batch.inputs)] for batch in batches]
    over_time = [number for number, shape in enumerate(shapes[0]) if len(shape) > 1 and shape[1] == net_map.num_steps]
    varying = [number for number in over_time if len({each[number][1] for each in shapes}) > 1]
    if not varying:
        return batches, net_map, readout
    longest = max(each[number][1] for each in shapes for number in varying)

    def padded(batch: StoredBatch) -> StoredBatch:
        numbers = count()
        inputs = map_tensors(lambda value: _padded(value, 1, longest) if next(numbers) in varying else value, batch.inputs)
        return replace(batch, inputs=inputs)

    return [padded(batch) for batch in batches], replace(net_map, num_steps=longest), readout.for_steps(longest)


def _sequence(batch: StoredBatch) -> Any:
    return batch.inputs.inputs if isinstance(batch.inputs, Padded) else batch.inputs


def _padded(inputs: Any, axis: int, length: int) -> Any:
    """Add zeros at the end of an axis, or before sequences of known lengths."""
    if isinstance(inputs, Padded):
        aligned = align_ends(inputs.inputs.movedim(axis, 0), inputs.lengths, length).movedim(0, axis)
        return Padded(aligned, torch.full_like(inputs.lengths, length))
    missing = length - inputs.shape[axis]
    return torch.nn.functional.pad(inputs, [0, 0] * (inputs.ndim - 1 - axis) + [0, missing])
