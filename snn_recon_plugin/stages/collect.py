"""Capture: features, targets and the network's own scores of all samples, and the split of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import SingleProcess
from ..errors import DataError, SilentLayerError, warn_user
from ..networks.calls.batches import device_of, lengths_of, tensors_in
from ..networks.calls.calls import LayerStats
from ..networks.calls.record import StoredBatch
from ..networks.capture import ActivityRecorder, Captured, capture
from ..networks.private.parameters import write_values
from ..networks.readout.readout import Readout
from ..networks.structure.layers import NetworkMap
from ..options import Options
from ..tables import Tables, tables_within
from .build import HiddenResult
from .criterion import Criterion, Labels
from .run import Initialisation
from .stream import Split, Stream, check_room, share_split
from .strength import Samples
from .task import Task
from .validation import CapturedBatches, check_validation, split_validation

_STORED_BYTES = 256 * 2**20
_SPIKE_BYTES = 512 * 2**20  # at four bytes a value, which only spikes of other sizes than one take
_KEPT_SAMPLES = 4000  # with spikes at every step; a fifth of them, held out, gives accuracies to a few tenths of a percent
_LABELS = 1000  # checked if the first batch has far fewer classes than there are outputs


@dataclass(frozen=True)
class ProgramData:
    """Captured samples of the program."""

    captured: Captured  # with the chosen hidden layers
    split: Split
    labels: Labels
    scores_before: Tensor  # [m, C], of the network as it was, of the first samples
    layers_before: dict[str, LayerStats]  # firing of its hidden layers meanwhile, by name, in all processes
    layers: dict[str, LayerStats]  # the same with the chosen hidden layers, on the first 10,000 samples
    places: Tensor  # [n] ascending, of the captured samples among those of all processes
    tables: Tables  # place of the features and of their copies
    processes: SingleProcess  # that share the samples
    targets: Tensor  # of the samples of all processes
    range_of_steps: tuple[int, int]  # time steps of the longest and of the shortest batch of all processes
    available: int  # samples in the loaders of all processes; 0 if they have no length

    def everywhere(self, rows: Tensor, samples: Tensor) -> Tensor:
        """Return the rows of some samples of each process, in the common order of all samples."""
        return self.processes.gather_rows(rows, self.places[samples.cpu()])

    def labels_of(self, samples: Tensor) -> Labels:
        """Return the labels of some samples of each process, in the common order."""
        own = self.labels.part(samples)
        parts = (own.targets, own.weights, own.labelled)
        return Labels(*(None if part is None else self.everywhere(part, samples) for part in parts))  # type: ignore[arg-type]

    def samples(self, task: Task) -> Samples:
        """Return the samples of the program, which processes share."""
        captured = self.captured
        column = bias_column(task.net_map, task.readout, captured)
        return Samples(
            captured.features,
            self.labels.targets,
            column,
            task.classes,
            rows=task.rows,
            weights=self.labels.weights,
            shards=self.processes,
            tables=self.tables,
        )


def gather_spikes(data: ProgramData) -> ProgramData | None:
    """Return data of all processes' samples with spikes, in their common order, without features; None without spikes."""
    captured, processes, spikes = data.captured, data.processes, data.captured.spikes
    if spikes is None or not processes.is_distributed:
        return None if spikes is None else data
    own, longest = torch.arange(spikes.shape[1]), data.range_of_steps[0]
    padded = spikes.new_zeros(longest, *spikes.shape[1:])
    padded[longest - len(spikes) :] = spikes  # samples of fewer steps have zeros before their first one
    lengths = torch.full((len(own),), len(spikes)) if captured.lengths is None else captured.lengths[: len(own)].cpu()
    lengths = data.everywhere(lengths, own).to(spikes.device)
    unequal = any(processes.gather(captured.lengths is not None or len(spikes) < longest))
    held = data.everywhere(torch.isin(own, data.split.heldout), own)
    split = replace(data.split, fitted=(~held).nonzero()[:, 0], heldout=held.nonzero()[:, 0], places=None)
    seen = data.scores_before
    return replace(
        data,
        places=data.everywhere(data.places[: len(own)], own),
        split=split,
        labels=data.labels_of(own),
        scores_before=data.everywhere(seen, torch.arange(len(seen))),
        captured=replace(
            captured,
            features=captured.features[:0],
            spikes=data.everywhere(padded.movedim(1, 0), own).movedim(0, 1),
            lengths=lengths if unequal else None,
            num_steps=longest,
        ),
    )


def bias_column(net_map: NetworkMap, readout: Readout, captured: Captured) -> float | Tensor | None:
    """Return what one unit of bias adds to each score of captured samples, in the form of ``Samples.bias_column``."""
    lengths = captured.lengths
    if net_map.readout.bias is None:
        return None
    if lengths is not None:
        gains = torch.zeros(len(lengths), dtype=torch.float64)
        for steps in torch.unique(lengths).tolist():
            gains[(lengths == steps).cpu()] = readout.for_steps(steps).bias_gain
        return gains
    return readout.bias_gains.expand(len(captured.targets), -1) if readout.per_step else readout.bias_gain


def capture_data(run: Initialisation, task: Task, hidden: HiddenResult, samples: int | None) -> ProgramData:
    """Run the private network once over all samples, about ``samples`` of them, with the chosen hidden layers."""
    net, stream, options, mode, processes = run.net, run.stream, run.options, run.mode, run.processes
    tables = tables_within(options.max_memory, processes.local_count)  # by default processes share what is free
    batches = CapturedBatches(stream, run.validation, _limit(options, processes))
    with processes.share_errors():
        (first, *_), _ = stream.head(1)
        with run.timer.stage("capture", samples, "samples"):
            recorder = ActivityRecorder(task.net_map, task.readout, processes.local_count(_spikes_to_keep(run, task)))
            stored = _storable(first, max(1, processes.local_count(mode.verified_samples)))
            captured = capture(
                net,
                batches,
                recorder,
                forward=options.call,
                samples=batches.most,
                stored=stored,
                tables=tables,
                progress=run.timer.advance_to,
            )
        _check_lengths(captured, options.criterion, task.readout)
        scores, firing = captured.scores, captured.firing
        if hidden.before:
            recorder = ActivityRecorder(task.net_map, task.readout)
            chosen = write_values(hidden.before)
            (scores,) = decode_batches(
                lambda batch: recorder.run(net, batch, options.call)[0], captured.batches, [task.readout.scores]
            )
            write_values(chosen)
            firing = recorder.firing
        labels = options.criterion.label(captured.targets)
    # A process may have a label at all steps, and another one may not.
    labels = labels.with_steps() if any(processes.gather(labels.labelled is not None)) else labels
    captured = replace(captured, targets=labels.targets)
    layers = {name: counter.stats(processes.sum) for name, counter in captured.firing.items()}
    _check_layers(layers, keep=options.hidden == "keep")
    before = {name: counter.stats(processes.sum) for name, counter in firing.items()}
    if run.validation is not None:
        own, others = (processes.global_indices(numbers) for numbers in batches.numbers)
        split, places = split_validation(own, others, processes, judged=hidden.judged, fit_val=run.fit_val)
        check_validation(batches, labels.targets, len(split.heldout), processes)
    else:
        numbers = processes.global_indices(stream.numbers[: len(captured.targets)])
        everything = torch.cat(processes.gather(numbers)).sort().values
        split, places = share_split(numbers, everything, options.holdout, options.seed, hidden.used)
    targets = processes.gather_rows(labels.targets, places)
    _check_outputs(task, targets, options.num_classes, warn=not mode.trained)
    longest, shortest = zip(*processes.gather(captured.range_of_steps), strict=True)
    return ProgramData(
        captured,
        split,
        labels,
        scores,
        before,
        layers,
        places,
        tables,
        processes,
        targets,
        (max(longest), min(shortest)),
        processes.total_rows(stream.total_samples or 0),
    )


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
    label, classes = options.criterion.label, options.num_classes
    if _find_spare_outputs(task.classes, label(stream.head(1)[1]).targets, classes) is not None:
        targets = label(stream.head(_LABELS)[1]).targets
        if not bool((targets[1:] >= targets[:-1]).all()):  # of labels sorted by class the first ones are not representative
            _check_outputs(task, targets, classes)


def count_samples(run: Initialisation, task: Task) -> int | None:
    """Return the number of samples to capture here, None if the loader has no length; refuse more than there is room for."""
    net, options, processes = run.net, run.options, run.processes
    total, limit = run.stream.total_samples, _limit(options, processes)
    samples = total if limit is None else min(total or limit, limit)
    if samples is not None and run.validation is not None:
        samples += run.validation.total_samples or 0
    tables = tables_within(options.max_memory, processes.local_count)
    check_room(samples, task.rows.each * task.net_map.readout.in_features, device_of(net), tables)
    return samples


def _limit(options: Options, processes: SingleProcess) -> int | None:
    """Return this process's part of the largest number of samples, at least one."""
    return None if options.max_samples is None else max(1, processes.local_count(options.max_samples))


def _spikes_to_keep(run: Initialisation, task: Task) -> int:
    """Return the number of samples whose spikes calibration needs at every step, within fixed memory."""
    if task.readout.exactness == "exact":
        return 0
    # Calibration holds a few values of each output at every step, spikes and membranes among them.
    layer = task.net_map.readout
    each = task.net_map.num_steps * max(layer.in_features, 8 * layer.out_features)
    wanted = _KEPT_SAMPLES + (0 if run.validation is None else run.processes.size * (run.validation.total_samples or 0))
    return max(1, min(wanted, _SPIKE_BYTES // (4 * each)))


def _storable(batch: StoredBatch, most: int) -> int:
    """Return the number of samples to keep for the verification, within fixed memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch.inputs))
    each = max(1, size // max(1, batch.size))
    return int(max(1, min(most, _STORED_BYTES // each)))


def _check_layers(layers: Mapping[str, LayerStats], *, keep: bool) -> None:
    """Refuse hidden layers whose neurons are all silent, or always on; ``keep`` if their weights were left alone."""
    fix = "check that its inputs are not all zero, as behind a silent encoder, then their scale, the thresholds and the weights"
    if keep:
        fix = "call hidden_init_(net, loader) before, or leave out hidden='keep' if you typed it"
    for name, stats in layers.items():
        if stats.silent == 1.0:
            found = f"hidden layer {name!r} is silent: none of its {stats.neurons} neurons spikes for any sample that was counted"
            raise SilentLayerError(found, "spikes that differ between samples", fix)
        if stats.always_on == 1.0:
            found = f"hidden layer {name!r} always spikes: all {stats.neurons} neurons at every step of every sample"
            raise SilentLayerError(found, "spikes that differ between samples", fix)


def _find_spare_outputs(outputs: int, targets: Tensor, classes: int | None) -> tuple[int, int] | None:
    """Return the least and the largest label if there are at least twice as many outputs as labels, and no option explains them.

    Values, and targets of a 0 or 1 for each output, are no labels.
    """
    if targets.is_floating_point() or targets.numel() == 0 or (targets.dim() > 1 and targets.shape[-1] == outputs):
        return None
    labels = int(targets.min()), int(targets.max())
    spare = labels[1] > 0 and outputs >= 2 * (labels[1] + 1)
    return labels if spare and classes is None else None


def _check_outputs(task: Task, targets: Tensor, classes: int | None, *, warn: bool = False) -> None:
    """Refuse to fit spiking outputs as one class each if there are at most half as many labels.

    Several spiking outputs a class are a population code, which decides by sums over outputs.  Outputs that do not spike are fitted
    as classes that do not occur, with a warning if wanted.
    """
    range_of_labels, layer = _find_spare_outputs(task.classes, targets, classes), task.net_map.readout
    if range_of_labels is None:
        return
    outputs, labels = layer.out_features, range_of_labels[1] + 1
    found = f"outputs of {layer.name!r}, and labels from {range_of_labels[0]} to {labels - 1} alone"
    population = (
        f"classes={labels}, or a loss such as SF.mse_count_loss(population_code=True, num_classes={labels}), if several outputs "
        "are summed for a class"
    )
    single = f"classes={outputs} if each output is a class, and some do not occur"
    if task.readout.of_spikes:
        needed = "one output a class, or the number of classes that the outputs represent"
        raise DataError(f"{outputs} spiking {found}", needed, f"pass {single}; pass {population}")
    if warn:
        warn_user(f"{outputs} {found}: fitted as {outputs} classes. Pass {single}; {population}.")


def _check_lengths(captured: Captured, criterion: Criterion, readout: Readout) -> None:
    """Refuse batches that differ in steps if an exact readout's targets depend on them; surrogates follow decisions, not values."""
    if captured.lengths is None or readout.exactness == "surrogate":
        return
    shortest, longest = int(captured.lengths.min()), captured.num_steps
    if vars(criterion.loss_for_steps(shortest)) != vars(criterion.loss_for_steps(longest)):
        found = f"batches of {shortest} to {longest} time steps for {criterion.name}, whose targets grow with the steps"
        fix = "pad all batches to one length in the loader, or pass loss='cross_entropy' or SF.ce_count_loss()"
        raise DataError(found, "batches of one number of steps, or a loss whose targets are the same at any number", fix)
