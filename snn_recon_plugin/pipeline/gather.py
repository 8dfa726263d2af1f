"""Samples with spikes of all processes, brought together for the calibration of one readout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..distributed import SingleProcess
from .capture import ProgramData
from .data import Split


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


def gather_kept(data: ProgramData, processes: SingleProcess) -> ProgramData:
    """Return the samples with spikes of all processes in their common order, without features; one process has them already."""
    if not processes.is_distributed:
        return data
    parts = processes.gather(_part_of(data))
    order, longest = torch.cat([part.places for part in parts]).argsort(), max(part.longest for part in parts)
    captured, steps = data.captured, max(len(part.spikes) for part in parts)

    def joined(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(values))[order]

    # As in one process, batches of fewer steps have zeros before their first one.
    spikes = [functional.pad(part.spikes, (0, 0, 0, 0, steps - len(part.spikes), 0)) for part in parts]
    device, held = captured.targets.device, joined(part.held for part in parts)
    unequal = any(part.unequal or part.longest < longest for part in parts)
    return replace(
        data,
        places=joined(part.places for part in parts),
        split=Split((~held).nonzero()[:, 0], held.nonzero()[:, 0]),
        weights=None if data.weights is None else joined(part.weights for part in parts if part.weights is not None).to(device),
        captured=replace(
            captured,
            features=captured.features[:0],
            targets=joined(part.targets for part in parts).to(device),
            spikes=torch.cat(spikes, dim=1)[:, order].to(device),
            lengths=joined(part.lengths for part in parts).to(device) if unequal else None,
            num_steps=longest,
        ),
    )


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
        weights=None if data.weights is None else first(data.weights),
        longest=captured.num_steps,
        unequal=captured.lengths is not None,
    )
