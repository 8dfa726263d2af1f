"""One pass over the data: features of the readout, the net's own scores, and firing of its hidden layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CaptureError, DataError, NetworkError
from ..tables import IN_MEMORY, Tables
from .calls.batches import align_ends, describe, lengths_of
from .calls.calls import SpikeCounter, time_first
from .calls.forward import Forward
from .calls.record import StoredBatch, Taps, record, spike_taps
from .readout.readout import Readout
from .structure.layers import NetworkMap

_COUNTED = 10_000  # samples whose spikes are counted: of 60,000, counting all takes a tenth of a pass


class ActivityRecorder:
    """Recorder of features and spike counts, one batch at a time.

    Features are ``sum_t filter[t] * s[t]`` of the values ``s`` that enter the readout; for scores at every step
    ``sum_s matrix[t, s] * s[s]``.  The values themselves are kept for the first ``keep_spikes`` samples.
    """

    def __init__(self, net_map: NetworkMap, readout: Readout, keep_spikes: int = 0) -> None:
        self.net_map, self.readout = net_map, readout
        self._unequal = False  # once batches differ in steps, the values of a batch are held until their number is known
        self._current = readout  # over the steps of the last batch
        self.lengths: Tensor | None = None  # [B], of the last batch, if scores depend on them
        self._calls = 0
        self._features: Tensor | None = None
        self._held: list[Tensor] = []  # values at each call in this batch, if all are needed at its end
        self._firing = {layer.name: SpikeCounter() for layer in net_map.hidden}
        self._done = 0
        self._left = keep_spikes
        self._kept: list[Tensor] = []

    @property
    def num_steps(self) -> int:
        """Time steps of the last batch."""
        return len(self._current.filter)

    def run(self, net: nn.Module, batch: StoredBatch, forward: Forward) -> tuple[Any, Tensor]:
        """Run the net on a batch, twice if it is the first one with another number of time steps; return output and features.

        Features are ``[B, P]``, or ``[B, T, P]`` for scores at every step.
        """
        outputs = self._pass(net, batch, forward, count=self._done < _COUNTED)
        if self.net_map.layout == "steps" and not self._unequal and self._calls not in (0, self.num_steps):
            self.readout.for_steps(self._calls)
            self._unequal = True
            outputs = self._pass(net, batch, forward, count=False)
        if self._unequal and self._calls:
            self._current = self.readout.for_steps(self._calls)
        elif self.net_map.layout != "steps" and self._held:
            self._current = self.readout.for_steps(self._steps_of(self._held[0]))
        expected = self.num_steps if self.net_map.layout == "steps" else 1
        if self._calls != expected:
            found = f"batch {batch.number} called the readout {self.net_map.readout.name!r} {self._calls} times"
            fix = "run all batches over the same number of steps"
            raise CaptureError(found, f"{expected} calls, as on the batch that the net was inspected on", fix)
        if self._held:
            self._weigh(batch.size)
        assert self._features is not None
        self._done += len(self._features)
        return outputs, self._features

    def _pass(self, net: nn.Module, batch: StoredBatch, forward: Forward, count: bool) -> Any:
        """Run the net on a batch, with or without counting spikes of the hidden neurons."""
        self._calls, self._features = 0, None
        self.lengths = lengths_of(batch.inputs) if self.readout.padded else None
        self._held.clear()
        counted = {layer.neuron: self._firing[layer.name].add for layer in self.net_map.hidden if count}
        taps = Taps(inputs={self.net_map.readout.module: self._add}, outputs=spike_taps(counted))
        output = record(net, batch, forward, taps)
        for name, counter in self._firing.items():
            if counter.varies:
                raise CaptureError(
                    f"samples of another size in batch {batch.number}: {describe(batch.inputs)}, seen by the neurons of {name!r}",
                    "samples of one size in all batches",
                    "resize the samples in the loader",
                )
        return output

    @property
    def firing(self) -> dict[str, SpikeCounter]:
        """Counters of the hidden layers that ran."""
        return {name: counter for name, counter in self._firing.items() if counter.spikes is not None}

    def spikes(self, steps: int = 0) -> Tensor | None:
        """Return what entered the readout, ``[T, m, P]``, uint8 if it was 0 or 1 throughout; None if nothing was kept.

        T is ``steps``, if no sample has more.  If samples differ in steps, the shorter ones have zeros before their first step,
        during which a neuron stays at rest.
        """
        if not self._kept:
            return None
        dtype = next((part.dtype for part in self._kept if part.dtype != torch.uint8), torch.uint8)
        longest = max(steps, *(len(part) for part in self._kept))
        return torch.cat([functional.pad(part.to(dtype), (0, 0, 0, 0, longest - len(part), 0)) for part in self._kept], dim=1)

    def _add(self, spikes: Tensor) -> None:
        """Hold the values that enter the readout, or add them to the features."""
        step, self._calls = self._calls, self._calls + 1
        one_filter = self.lengths is None and not self.readout.per_step
        if self.net_map.layout != "steps" or self._left > 0 or self._unequal or not one_filter:
            self._held.append(spikes.detach().clone())
        elif step < self.num_steps:  # more are refused at the end of the batch
            self._add_weighted(step, spikes.detach())

    def _add_weighted(self, step: int, spikes: Tensor) -> None:
        weight, spikes = float(self._current.filter[step]), spikes.to(torch.float32)
        self._features = spikes * weight if self._features is None else self._features.add_(spikes, alpha=weight)

    def _weigh(self, samples: int) -> None:
        """Make features of the values of all steps, and keep these of the first samples."""
        readout, spikes = self._current, time_first(self.net_map.layout, self._held, self.num_steps)
        if readout.per_step:
            self._features = torch.einsum("ts,sbp->btp", readout.matrix.to(spikes.device, torch.float32), spikes.to(torch.float32))
        elif self.lengths is not None:
            filters = readout.filters_at(self.lengths, len(spikes)).to(spikes.device, torch.float32)
            self._features = torch.einsum("tb,tbp->bp", filters, spikes.to(torch.float32))
            spikes = align_ends(spikes, self.lengths, int(self.lengths.max()))
        else:
            for step, values in enumerate(spikes):
                self._add_weighted(step, values)
        if self._left > 0:
            part = spikes[:, : min(self._left, samples)]
            binary = bool(((part == 0) | (part == 1)).all())
            self._kept.append(part.to(torch.uint8) if binary else part.clone())
            self._left -= part.shape[1]
        self._held.clear()

    def _steps_of(self, spikes: Tensor) -> int:
        """Return the number of steps in a call that holds all of them; the number inspected if they are folded with samples."""
        if self.net_map.layout in ("time_first", "batch_first"):
            return spikes.shape[1 if self.net_map.layout == "batch_first" else 0]
        if len(spikes) % self.net_map.num_steps != 0:
            found = f"a batch of {len(spikes)} time steps times samples"
            fix = "run all batches over the same number of steps"
            raise CaptureError(found, f"{self.net_map.num_steps} steps, as on the batch that the net was inspected on", fix)
        return self.net_map.num_steps


@dataclass(frozen=True)
class Captured:
    """Result of one pass over ``n`` samples, on the net's device; features are those of :class:`ActivityRecorder`."""

    features: Tensor  # [n, P] float32, [n, T, P] for scores at every step
    targets: Tensor
    scores: Tensor  # [n, C], the net's own, or [n, T, C] at every step
    firing: dict[str, SpikeCounter]  # of each hidden layer, by the name of its synapse
    batches: list[StoredBatch]  # the first ones
    num_steps: int  # of the longest batch
    spikes: Tensor | None = None  # [T, m, P], what entered the readout for the first samples, see ActivityRecorder.spikes
    lengths: Tensor | None = None  # [n], time steps of each sample, or of its batch; None if all are those of the map

    @property
    def range_of_steps(self) -> tuple[int, int]:
        """Time steps of the longest and of the shortest batch."""
        return self.num_steps, self.num_steps if self.lengths is None else int(self.lengths.min())


def capture(
    net: nn.Module,
    batches: Iterable[StoredBatch],
    recorder: ActivityRecorder,
    *,
    forward: Forward,
    samples: int | None = None,
    stored: int = 1024,
    tables: Tables = IN_MEMORY,
    progress: Callable[[int], None] | None = None,
) -> Captured:
    """Run a private net, within :func:`quiet`, once over the data and gather features, scores and firing rates.

    At most ``samples`` are read.  The first batches are stored, at least one, until they hold ``stored`` samples.  After every
    batch ``progress`` gets the number of samples done.
    """
    readout, kept = recorder.readout, list[StoredBatch]()
    gathered = [RowBuffer(tables) for _ in range(3)]
    lengths: list[Tensor] = []
    done = 0
    for batch in batches:
        target = batch.targets
        part = batch.cut(samples)
        left = part.size
        outputs, features = recorder.run(net, part, forward)
        scores = readout.scores(outputs, lengths_of(batch.inputs))
        _check_rows(batch.number, features, scores, target)
        _check_finite(features, batch.number)
        steps = target.new_full((left,), recorder.num_steps, dtype=torch.int64)
        lengths.append(steps if recorder.lengths is None else recorder.lengths[:left].to(steps))
        for table, rows in zip(gathered, (features, target, scores), strict=True):
            table.append(rows[:left], expected=_expected(batches, len(target), samples))
        if done < stored or not kept:
            kept.append(part)
        done += left
        if progress is not None:
            progress(done)
        if done == samples:
            break
    if done == 0:
        raise DataError("a loader without a single sample", "at least one batch", "pass a loader over your data")
    features, targets, scores = (table.rows() for table in gathered)
    steps = torch.cat(lengths)
    longest = int(steps.max())
    unequal = None if int(steps.min()) == longest == recorder.net_map.num_steps else steps
    return Captured(features, targets, scores, recorder.firing, kept, longest, recorder.spikes(longest), unequal)


def _check_rows(number: int | str | None, features: Tensor, scores: Tensor, target: Tensor) -> None:
    """Refuse a batch whose features, scores and targets are not of the same samples."""
    if not len(features) == len(scores) == len(target):
        raise DataError(
            f"batch {number} has {len(target)} targets, but {len(features)} samples reach the readout and "
            f"{len(scores)} scores come out",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )


def _check_finite(features: Tensor, number: int | str | None) -> None:
    # A sum first, which takes a twentieth of the time; large values may only add up to infinity.
    if not math.isfinite(features.sum()) and not bool(torch.isfinite(features).all()):
        found = f"NaN or infinite values entering the readout in batch {number}"
        raise NetworkError(found, "finite spikes", "check the net's hidden layers, and the inputs of that batch")


def _expected(batches: object, batch_size: int, max_samples: int | None) -> int:
    """Estimate the number of samples, to allocate memory once; a wrong estimate only costs a copy."""
    try:
        total = len(batches) * batch_size  # type: ignore[arg-type]
    except TypeError:
        total = batch_size
    return total if max_samples is None else min(total, max_samples)


class RowBuffer:
    """Rows gathered batch by batch in one tensor, allocated once if their number was foreseen."""

    def __init__(self, tables: Tables = IN_MEMORY) -> None:
        self._tables = tables
        self._store: Tensor | None = None
        self._filled = 0

    def append(self, rows: Tensor, *, expected: int) -> None:
        """Add rows ``[n, *]`` of one shape and dtype; of ``expected`` rows, probably, in all."""
        if self._store is None:
            self._store = self._tables.empty((max(expected, len(rows)), *rows.shape[1:]), rows.dtype, rows.device)
        if rows.shape[1:] != self._store.shape[1:]:
            found = f"samples of shape {list(rows.shape[1:])} after samples of shape {list(self._store.shape[1:])}"
            raise DataError(found, "samples of one shape in all batches", "check the loader's batches")
        needed = self._filled + len(rows)
        if needed > len(self._store):
            grown = self._tables.empty((max(needed, 2 * len(self._store)), *rows.shape[1:]), rows.dtype, rows.device)
            grown[: self._filled] = self._store[: self._filled]
            self._store = grown
        self._store[self._filled : needed] = rows
        self._filled = needed

    def rows(self) -> Tensor:
        """Return all rows so far, ``[n, *]``."""
        assert self._store is not None
        return self._store[: self._filled]
