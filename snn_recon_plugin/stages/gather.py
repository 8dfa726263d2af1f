"""Samples of all processes, brought together in rank 0: the first ones, and those with spikes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..distributed import SingleProcess
from ..networks.calls.batches import to_device
from .collect import ProgramData
from .criterion import Labels
from .stream import Split, Stream

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class FirstSamples:
    """First samples of all processes."""

    stream: Stream  # as one process would read them, if they are dealt out one by one
    numbers: Tensor  # [n], of the stream's samples among those of all processes


@dataclass(frozen=True)
class _Batch:
    """Batch of one process, on the CPU."""

    inputs: Any
    targets: Tensor
    axis: int | None  # of the samples in the inputs
    numbers: Tensor  # of the samples among those of all processes


def gather_first(stream: Stream, wanted: int, processes: SingleProcess) -> FirstSamples | None:
    """Return the first samples of all processes, about as many as wanted, in rank 0; None in the others."""
    with processes.share_errors():
        batches = stream.first(max(1, processes.local_count(wanted)))
        sizes = [len(batch.targets) for batch in batches]
        numbers = torch.split(processes.global_indices(stream.numbers[: sum(sizes)]), sizes)
        own = [
            _Batch(to_device(batch.inputs, _CPU), batch.targets.cpu(), stream.axis_of(batch), some)
            for batch, some in zip(batches, numbers, strict=True)
        ]
    parts = processes.collect(own)
    with processes.share_errors():
        return _join_batches(parts, batches[0].targets.device) if parts else None


def _join_batches(parts: list[list[_Batch]], device: torch.device) -> FirstSamples:
    """Return the batches of all processes.

    Tensors of one form are laid out in the order of their samples, in batches of the first one's size.  Other batches stay whole,
    in rounds over the processes.
    """
    batches = [batch for some in zip_longest(*parts) for batch in some if batch is not None]
    numbers, axis = torch.cat([batch.numbers for batch in batches]), batches[0].axis
    if axis is None or len({_form(batch) for batch in batches}) > 1:
        return FirstSamples(Stream([(batch.inputs, batch.targets) for batch in batches], device), numbers)
    order, size = numbers.argsort(), len(batches[0].targets)
    inputs = torch.cat([batch.inputs for batch in batches], axis).index_select(axis, order)
    targets = torch.cat([batch.targets for batch in batches])[order]
    pairs = zip(torch.split(inputs, size, axis), torch.split(targets, size), strict=True)
    return FirstSamples(Stream(list(pairs), device), numbers[order])


def _form(batch: _Batch) -> object:
    """Return what batches have in common that can be joined along their samples."""
    if not isinstance(batch.inputs, Tensor) or batch.axis is None:
        return object()
    return batch.axis, batch.inputs.dtype, batch.inputs.select(batch.axis, 0).shape


@dataclass(frozen=True)
class _Part:
    """Samples of one process, on the CPU."""

    places: Tensor  # [m], among the samples of all processes
    held: Tensor  # [m], True if held out
    spikes: Tensor  # [T, m, P]
    targets: Tensor
    lengths: Tensor  # [m], time steps
    weights: Tensor | None
    longest: int  # time steps of the process's longest batch
    unequal: bool  # batches differ in time steps


def gather_kept(data: ProgramData, processes: SingleProcess) -> ProgramData | None:
    """Return the samples with spikes of all processes in their common order, without features, in rank 0; None in the others."""
    parts = processes.collect(_part_of(data))
    with processes.share_errors():
        return _join_kept(data, parts) if parts else None


def _join_kept(data: ProgramData, parts: list[_Part]) -> ProgramData:
    """Return data with the samples of all processes in place of one's own."""
    order, longest = torch.cat([part.places for part in parts]).argsort(), max(part.longest for part in parts)
    captured = data.captured

    def joined(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(values))[order]

    device, held = captured.targets.device, joined(part.held for part in parts)
    targets, weights = joined(part.targets for part in parts).to(device), None
    if data.labels.weights is not None:
        weights = joined(part.weights for part in parts if part.weights is not None).to(device)
    unequal = any(part.unequal or part.longest < longest for part in parts)
    return replace(
        data,
        places=joined(part.places for part in parts),
        split=Split((~held).nonzero()[:, 0], held.nonzero()[:, 0]),
        labels=Labels(targets, weights, None),
        captured=replace(
            captured,
            features=captured.features[:0],
            targets=targets,
            spikes=_join_spikes([part.spikes for part in parts], order).to(device),
            lengths=joined(part.lengths for part in parts).to(device) if unequal else None,
            num_steps=longest,
        ),
    )


def _join_spikes(parts: list[Tensor], order: Tensor) -> Tensor:
    """Return spikes ``[T, n, P]`` of all processes in a common order; those of fewer steps have zeros before their first one."""
    steps, counts = max(len(part) for part in parts), [part.shape[1] for part in parts]
    spikes = parts[0].new_zeros(steps, sum(counts), parts[0].shape[2])
    for part, places in zip(parts, torch.split(order.argsort(), counts), strict=True):
        spikes[steps - len(part) :].index_copy_(1, places, part)
    return spikes


def _part_of(data: ProgramData) -> _Part:
    """Return this process's samples with spikes."""
    captured, spikes = data.captured, data.captured.spikes
    assert spikes is not None
    count = spikes.shape[1]

    def first(values: Tensor) -> Tensor:
        return values[:count].to("cpu", copy=True)  # a view would travel with all that it is a part of

    lengths = torch.full((count,), captured.num_steps) if captured.lengths is None else first(captured.lengths)
    return _Part(
        places=first(data.places),
        held=torch.isin(torch.arange(count), data.split.heldout),
        spikes=spikes.cpu(),
        targets=first(captured.targets),
        lengths=lengths,
        weights=None if data.labels.weights is None else first(data.labels.weights),
        longest=captured.num_steps,
        unequal=captured.lengths is not None,
    )
