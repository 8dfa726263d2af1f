"""Capture: features, targets and the network's own scores of all samples, and the split of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import DataError, SilentLayerError, warn_user
from ..networks.calls.activity import ActivityRecorder, LayerStats
from ..networks.calls.batches import device_of, lengths_of, tensors_in
from ..networks.calls.record import StoredBatch
from ..networks.capture import Captured, Storage, capture
from ..networks.private.parameters import write_values
from ..networks.readout.readout import SPIKE_READOUTS, Readout
from ..networks.structure.layers import NetworkMap
from ..options import Options
from ..tables import Tables, tables_within
from .build import HiddenResult
from .criterion import Criterion
from .run import Run
from .stream import Split, Stream, check_room, hold_first, share_split
from .strength import Samples
from .task import Task

_STORED_BYTES = 256 * 2**20
_SPIKE_BYTES = 512 * 2**20  # at four bytes a value, which only spikes of other sizes than one take
_KEPT_SAMPLES = 4000  # with spikes at every step; a fifth of them, held out, gives accuracies to a few tenths of a percent
_VERIFIED_IMAGES = 512  # on which a net whose convolutions were changed is run before and after: a pass takes long there
_LABELS = 1000  # checked if the first batch has far fewer classes than there are outputs


@dataclass(frozen=True)
class ProgramData:
    """Captured samples of the program."""

    captured: Captured  # with the chosen hidden layers
    split: Split
    weights: Tensor | None  # of the samples by their class, or [n, T] of their steps; 0 for a step without a label
    labelled: Tensor | None  # [n, T], True for steps with a label; None if all have one
    scores_before: Tensor  # [m, C], of the network as it was, of the first samples
    layers_before: dict[str, LayerStats]  # firing of its hidden layers meanwhile, by name, in all processes
    layers: dict[str, LayerStats]  # the same with the chosen hidden layers, on the first 10,000 samples
    places: Tensor  # [n] ascending, of the captured samples among those of all processes
    tables: Tables  # place of the features and of their copies

    @property
    def compared(self) -> Tensor:
        """Held-out samples that the network was run on before, ascending."""
        return self.split.heldout[self.split.heldout < len(self.scores_before)]

    def samples(self, task: Task, shards: SingleProcess) -> Samples:
        """Return the samples of the program, which processes share."""
        filters = None if task.readout.filters is None else task.readout.filters.index
        captured = self.captured
        column = bias_column(task.net_map, task.readout, captured)
        return Samples(captured.features, captured.targets, column, task.rows, self.weights, filters, shards, self.tables)

    def counted(self, samples: Tensor) -> Tensor | None:
        """Return True for the steps of some samples that have a label, flat; None if all have one."""
        return None if self.labelled is None else self.labelled[samples.to(self.labelled.device)].flatten()

    def prepared(self, task: Task, samples: Tensor) -> Tensor:
        """Return the targets of all rows of some samples, in the form of the training loss."""
        targets = self.captured.targets
        return task.prepare(targets[samples.to(targets.device)])


def bias_column(net_map: NetworkMap, readout: Readout, captured: Captured) -> float | Tensor | None:
    """Return what one unit of bias adds to each score of captured samples, in the form of ``Samples.bias_column``."""
    lengths = captured.lengths
    if net_map.readout.bias is None:
        return None
    if readout.filters is not None:
        gains = readout.filters.step_gains if readout.per_step else readout.filters.gains
        return gains.expand(len(captured.targets), *gains.shape)
    if lengths is not None:
        gains = torch.zeros(len(lengths), dtype=torch.float64)
        for steps in torch.unique(lengths).tolist():
            gains[(lengths == steps).cpu()] = readout.for_steps(steps).bias_gain
        return gains
    return readout.bias_gains.expand(len(captured.targets), -1) if readout.per_step else readout.bias_gain


def capture_data(run: Run, task: Task, hidden: HiddenResult, samples: int | None) -> ProgramData:
    """Run the private network once over all samples, about ``samples`` of them, with the chosen hidden layers."""
    net, stream, options, context, processes = run.net, run.stream, run.options, run.context, run.processes
    tables = _tables(options, processes)
    changes_images = bool(hidden.before) and any(layer.is_convolution for layer in task.net_map.hidden)
    with processes.share_errors():
        (first, *_), _ = stream.head(1)
        with run.progress.stage("capture", samples, "samples"):
            recorder = ActivityRecorder(task.net_map, task.readout, processes.local_count(_spikes_to_keep(task)))
            verified = min(context.verified_samples, _VERIFIED_IMAGES if changes_images else context.verified_samples)
            stored = _storable(first, max(1, processes.local_count(verified)))
            storage = Storage(_limit(options, processes), stored, tables)
            captured = capture(net, stream, recorder, options.call, storage, run.progress.advance_to)
        _check_lengths(captured, options.criterion, task.readout)
        scores, firing = captured.scores, captured.firing
        if hidden.before:
            recorder = ActivityRecorder(task.net_map, task.readout)
            play = partial(recorder.run, net, forward=options.call)
            chosen = write_values(hidden.before)
            (scores,) = decode_batches(play, captured.batches, [task.readout.scores])
            write_values(chosen)
            firing = recorder.firing
        criterion = options.criterion
        weights, labelled = criterion.weights(captured.targets), criterion.labelled(captured.targets)
        captured = replace(captured, targets=criterion.filled(captured.targets))
    layers = {name: counter.stats(processes.sum) for name, counter in captured.firing.items()}
    _check_layers(layers, keep=options.hidden == "keep")
    before = {name: counter.stats(processes.sum) for name, counter in firing.items()}
    numbers = processes.global_indices(stream.numbers[: len(captured.targets)])
    if context.held_first:
        split, places = hold_first(numbers, context.held_first), numbers
    else:
        kept = len(scores) * processes.size if changes_images else 0
        split, places = share_split(numbers, options.holdout, options.seed, hidden.used, processes, kept)
    labels = _range_of_labels(task.net_map, captured.targets, processes)
    _check_outputs(task.readout, task.net_map, labels, options.num_classes, warn=not context.warm_start)
    return ProgramData(captured, split, weights, labelled, scores, before, layers, places, tables)


def decode_batches(
    run: Callable[[StoredBatch], Any], batches: Sequence[StoredBatch], decoders: Sequence[Callable[[Any, Tensor | None], Tensor]]
) -> list[Tensor]:
    """Run stored batches, and return the scores of all samples, float64, that each decoder makes of the outputs."""
    parts = []
    for batch in batches:
        returned, lengths = run(batch), lengths_of(batch.inputs)
        parts.append([decoder(returned, lengths)[: batch.size].double() for decoder in decoders])
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def check_outputs_early(stream: Stream, task: Task, options: Options) -> None:
    """Refuse far more outputs than classes before minutes of work, judged on enough labels."""
    filled = options.criterion.filled
    targets = filled(stream.head(1)[1])
    if _has_many_outputs(task.net_map, _range_of_labels(task.net_map, targets), options.num_classes):
        targets = filled(stream.head(_LABELS)[1])
        if not bool((targets[1:] >= targets[:-1]).all()):  # of labels sorted by class the first ones are not representative
            _check_outputs(task.readout, task.net_map, _range_of_labels(task.net_map, targets), options.num_classes)


def count_samples(run: Run, task: Task) -> int | None:
    """Return the number of samples to capture here, None if the loader has no length; refuse more than there is room for."""
    net, options, processes = run.net, run.options, run.processes
    total, limit = run.stream.total_samples, _limit(options, processes)
    samples = total if limit is None else min(total or limit, limit)
    filters = 1 if task.readout.filters is None else len(task.readout.filters.filters)
    check_room(samples, task.rows.each * filters * task.net_map.readout.in_features, device_of(net), _tables(options, processes))
    return samples


def _limit(options: Options, processes: SingleProcess) -> int | None:
    """Return this process's part of the largest number of samples, at least one."""
    return None if options.max_samples is None else max(1, processes.local_count(options.max_samples))


def _tables(options: Options, processes: SingleProcess) -> Tables:
    """Return the place of features; by default processes share what is free."""
    return tables_within(options.max_memory, processes.local_count)


def _spikes_to_keep(task: Task) -> int:
    """Return the number of samples whose spikes calibration needs at every step, within fixed memory."""
    if task.readout.exactness == "exact":
        return 0
    # Calibration holds a few values of each output at every step, spikes and membranes among them.
    layer = task.net_map.readout
    each = task.net_map.num_steps * max(layer.in_features, 8 * layer.out_features)
    return max(1, min(_KEPT_SAMPLES, _SPIKE_BYTES // (4 * each)))


def _storable(batch: StoredBatch, most: int) -> int:
    """Return the number of samples to keep for the verification, within fixed memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch.inputs))
    each = max(1, size // max(1, batch.size))
    return int(max(1, min(most, _STORED_BYTES // each)))


def _check_layers(layers: Mapping[str, LayerStats], *, keep: bool) -> None:
    """Refuse hidden layers whose neurons are all silent, or always on; ``keep`` if their weights were left alone."""
    fix = "check the inputs' scale, the thresholds and the weights of this layer"
    if keep:
        fix = "leave hidden= out, or pass hidden='rescale' or hidden='reconstruct'"
    for name, stats in layers.items():
        if stats.silent == 1.0:
            found = f"hidden layer {name!r} is silent: none of its {stats.neurons} neurons spikes for any sample that was counted"
            raise SilentLayerError(found, "spikes that differ between samples", fix)
        if stats.always_on == 1.0:
            found = f"hidden layer {name!r} always spikes: all {stats.neurons} neurons at every step of every sample"
            raise SilentLayerError(found, "spikes that differ between samples", fix)


def _range_of_labels(net_map: NetworkMap, targets: Tensor, processes: SingleProcess = SINGLE_PROCESS) -> tuple[int, int] | None:
    """Return the least and the largest label in all processes; None if targets are values, or a 0 or 1 for each output."""
    outputs = net_map.readout.out_features
    if targets.is_floating_point() or targets.numel() == 0 or (targets.dim() > 1 and targets.shape[-1] == outputs):
        return None
    least, most = processes.max(torch.stack([-targets.min().long(), targets.max().long()])).tolist()
    return -least, most


def _has_many_outputs(net_map: NetworkMap, labels: tuple[int, int] | None, classes: int | None) -> bool:
    """Return True if there are at least twice as many outputs as labels, and no option explains the others."""
    if classes is not None or labels is None:
        return False
    return labels[1] > 0 and net_map.readout.out_features >= 2 * (labels[1] + 1)


def _check_outputs(
    readout: Readout, net_map: NetworkMap, range_of_labels: tuple[int, int] | None, classes: int | None, *, warn: bool = False
) -> None:
    """Refuse to fit spiking outputs as one class each if there are at most half as many labels.

    Several spiking outputs a class are a population code, which decides by sums over outputs.  Outputs that do not spike are fitted
    as classes that do not occur, with a warning if wanted.
    """
    if range_of_labels is None or not _has_many_outputs(net_map, range_of_labels, classes):
        return
    outputs, labels = net_map.readout.out_features, range_of_labels[1] + 1
    found = f"outputs of {net_map.readout.name!r}, and labels from {range_of_labels[0]} to {labels - 1} alone"
    population = (
        f"classes={labels}, or a loss such as SF.mse_count_loss(population_code=True, num_classes={labels}), if several outputs "
        "are summed for a class"
    )
    single = f"classes={outputs} if each output is a class, and some do not occur"
    if readout.kind in SPIKE_READOUTS:
        needed = "one output a class, or the number of classes that the outputs represent"
        raise DataError(f"{outputs} spiking {found}", needed, f"pass {single}; pass {population}")
    if warn:
        warn_user(f"{outputs} {found}: fitted as {outputs} classes. Pass {single}; {population}.")


def _check_lengths(captured: Captured, criterion: Criterion, readout: Readout) -> None:
    """Refuse batches that differ in time steps if the targets of an exact readout depend on their number.

    A surrogate follows decisions, not values: it takes the targets of the first batch's steps.
    """
    if captured.lengths is None or readout.exactness == "surrogate":
        return
    shortest, longest = int(captured.lengths.min()), captured.num_steps
    if vars(criterion.make(shortest)) != vars(criterion.make(longest)):
        raise DataError(
            f"batches of {shortest} to {longest} time steps for {criterion.name}, whose targets grow with the steps",
            "batches of one number of steps, or a loss whose targets are the same at any number",
            "pad all batches to one length in the loader, or pass loss='cross_entropy' or SF.ce_count_loss()",
        )
