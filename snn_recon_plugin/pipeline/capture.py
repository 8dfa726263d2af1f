"""Capture: features, targets and the network's own scores of all samples, and the split of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import ActivityRecorder, Captured, LayerStats, StoredBatch, capture, device_of, replace_parameters
from ..networks.batches import tensors_in
from .data import Split, Stream, check_memory, split_samples
from .hidden import HiddenResult
from .options import Context, Options
from .progress import Progress
from .requirements import check_layers, check_lengths, check_outputs, many_outputs
from .task import Task

__all__ = ["ProgramData", "capture_data", "check_outputs_early", "count_samples", "decode_batches"]

_STORED_BYTES = 256 * 2**20
_SPIKE_BYTES = 512 * 2**20  # at four bytes a value, which only spikes of other sizes than one take
_KEPT_SAMPLES = 4000  # with spikes at every step; a fifth of them, held out, gives accuracies to a few tenths of a percent
_LABELS = 1000  # checked if the first batch has far fewer classes than there are outputs


@dataclass(frozen=True)
class ProgramData:
    """Captured samples of the program.

    Args:
        captured: features, spikes, targets and scores, with the chosen hidden layers.
        split: samples to fit and samples held out.
        weights: weights of the samples by their class, or None.
        scores_before: ``[m, C]``, the scores of the network as it was, of the first samples.
        layers_before: firing of its hidden layers meanwhile, by name.
    """

    captured: Captured
    split: Split
    weights: Tensor | None
    scores_before: Tensor
    layers_before: dict[str, LayerStats]

    def bias_column(self, task: Task) -> float | Tensor | None:
        """Return what one unit of bias adds to a score; None for a readout without a bias.

        A number; (T,) if each step is a row; (n,) if samples differ in steps; (1, C) or (T, C) if outputs have own filters.
        """
        readout, lengths = task.readout, self.captured.lengths
        if task.net_map.readout.bias is None:
            return None
        if readout.filters is not None:
            return readout.filters.step_gains if readout.per_step else readout.filters.gains[None]
        if lengths is not None:
            gains = torch.zeros(len(lengths), dtype=torch.float64)
            for steps in torch.unique(lengths).tolist():
                gains[(lengths == steps).cpu()] = readout.at(steps).bias_gain
            return gains
        return readout.bias_gains if readout.per_step else readout.bias_gain

    def prepared(self, task: Task, samples: Tensor) -> Tensor:
        """Return the targets of all rows of some samples, in the form of the training loss."""
        targets = self.captured.targets
        return task.prepare(targets[samples.to(targets.device)])


def capture_data(
    net: nn.Module,
    stream: Stream,
    task: Task,
    hidden: HiddenResult,
    options: Options,
    context: Context,
    progress: Progress,
    *,
    samples: int | None,
) -> ProgramData:
    """Run the network once over all samples, with the chosen hidden layers.

    Args:
        net: the network, held by ``preserved``.
        stream: the data.
        task: the program's task.
        hidden: values of the hidden layers.
        options: options of the run.
        context: circumstances of the run.
        progress: timer of the stage.
        samples: number of samples to expect, None if unknown.

    Raises:
        SilentLayerError: a hidden layer never spikes, or always.
        DataError: features that do not fit into memory, or batches that can't be solved together.
    """
    (first, *_), _ = stream.head(1)
    with progress.stage("capture", samples, "samples"), replace_parameters(hidden.values):
        captured = _capture(net, stream, task, options, _storable(first, context.verified_samples), progress.advance_to)
    check_lengths(captured, options.criterion, task.readout)
    check_layers(captured, keep=options.hidden == "keep")
    before = captured.scores, captured.layers
    if hidden.values:
        recorder = ActivityRecorder(task.net_map, task.readout)
        (scores,) = decode_batches(lambda batch: recorder.run(net, batch, options.call), captured.batches, [task.readout.scores])
        before = scores, recorder.stats()
    weights = options.criterion.weights(captured.targets)
    split = split_samples(len(captured.targets), options.holdout, options.seed, hidden.used)
    check_outputs(task.readout, task.net_map, captured.targets, options.num_classes, warn=not context.warm_start)
    return ProgramData(captured, split, weights, *before)


def decode_batches(
    run: Callable[[StoredBatch], Any], batches: Sequence[StoredBatch], decoders: Sequence[Callable[[Any], Tensor]]
) -> list[Tensor]:
    """Run stored batches, and decode the outputs.

    Args:
        run: runs the network on a batch.
        batches: to run.
        decoders: from the output to scores.

    Returns:
        Scores of all samples, float64, for each decoder.
    """
    parts = []
    for batch in batches:
        returned = run(batch)
        parts.append([decoder(returned)[: batch.size].double() for decoder in decoders])
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def check_outputs_early(stream: Stream, task: Task, options: Options) -> None:
    """Refuse far more outputs than classes before minutes of work, judged on enough labels."""
    _, targets = stream.head(1)
    if many_outputs(task.net_map, targets, options.num_classes):
        _, targets = stream.head(_LABELS)
        if not bool((targets[1:] >= targets[:-1]).all()):  # of labels sorted by class the first ones are not representative
            check_outputs(task.readout, task.net_map, targets, options.num_classes)


def count_samples(net: nn.Module, stream: Stream, task: Task, options: Options) -> int | None:
    """Return the number of samples to capture, None if the loader has no length; refuse more than fit into memory."""
    total, limit = stream.total_samples, options.max_samples
    samples = total if limit is None else min(total or limit, limit)
    filters = 1 if task.readout.filters is None else len(task.readout.filters.filters)
    check_memory(samples, task.rows.each * filters * task.net_map.readout.in_features, device_of(net))
    return samples


def _capture(net: nn.Module, stream: Stream, task: Task, options: Options, store: int, progress: Callable[[int], None]) -> Captured:
    net_map, exact = task.net_map, task.readout.exactness == "exact"
    # Calibration holds a few values of each output at every step, spikes and membranes among them.
    each = net_map.num_steps * max(net_map.readout.in_features, 8 * net_map.readout.out_features)
    return capture(
        net,
        stream,
        net_map,
        task.readout,
        options.call,
        max_samples=options.max_samples,
        store_samples=store,
        keep_spikes=0 if exact else max(1, min(_KEPT_SAMPLES, _SPIKE_BYTES // (4 * each))),
        progress=progress,
    )


def _storable(batch: StoredBatch, most: int) -> int:
    """Return the number of samples to keep for the verification, within fixed memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch.inputs))
    each = max(1, size // max(1, batch.size))
    return int(max(1, min(most, _STORED_BYTES // each)))
