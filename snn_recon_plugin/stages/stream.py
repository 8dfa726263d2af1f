"""Training data of one initialisation: a loader that is read once, the split of its samples, and the memory that they need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, default_collate

from ..distributed import SingleProcess
from ..errors import DataError
from ..networks.calls.batches import (
    Batch,
    batch_axis,
    copied,
    describe,
    first_samples,
    map_samples,
    prepare_batch,
    split_batch,
    tensors_in,
)
from ..networks.calls.forward import OverTime
from ..networks.calls.record import StoredBatch
from ..tables import COPIES, Tables, free_disk
from .loader import Unpack, check_same_form, class_labels, unpacked, without_ignored

_CPU = torch.device("cpu")
_SAMPLE, _SAMPLE_BYTES = 256, 2**26  # first samples of the data that a report holds, by which training is watched
_MIN_SAMPLES = 10


class Stream:
    """Batches of a loader in order, each drawn, checked and moved once, with a view of the first ones ahead of the pass over all.

    They are copies, since a loader may fill one buffer again and again.  Those of a list are not: the list holds them anyway.
    ``unpack(batch)`` gives the (input, target) pair of a batch.  Samples whose label is ``ignored``, at all steps, are left out.
    ``over_time`` is the forward that will take the inputs, if it has time and batch on known axes.  With a ``binary`` loss floating
    labels 0 and 1 of one output become class indices.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device = _CPU,
        unpack: Unpack | None = None,
        ignored: int | None = None,
        *,
        over_time: OverTime | None = None,
        binary: bool = False,
    ) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, Tensor | str | dict):
            raise DataError(
                f"a loader of type {type(loader).__name__}",
                "an iterable of (input, target) batches",
                "pass DataLoader(TensorDataset(inputs, targets), batch_size=64), or a list such as [(inputs, targets)]",
            )
        self._loader = loader
        self._device = device
        self._unpack = unpack
        self._ignored = ignored
        self._over_time = over_time
        self._binary = binary
        stacks = isinstance(loader, DataLoader) and loader.batch_sampler is not None and loader.collate_fn is default_collate
        self._stacks = stacks and unpack is None  # samples on axis 0, whatever the sizes
        self._batch_dim = over_time.batch_dim if over_time is not None else 0 if self._stacks else None
        self._iterator = enumerate(iter(loader), start=1)
        self._head: list[Batch] = []
        self._form: Tensor | None = None  # targets of the first batch
        self._read = 0  # samples, ignored ones counted
        self._numbers: list[Tensor] = []
        if not self._draw():
            unlabelled = f"{self._read} samples whose labels are all {self._ignored}, which the loss ignores"
            found = unlabelled if self._read else "an empty loader"
            raise DataError(found, "at least one (input, target) batch", "pass a loader over your data")

    def _draw(self) -> bool:
        """Buffer one more batch; return False at the end of the loader."""
        batch = next(self._batches(), None)
        if batch is not None:
            self._head.append(batch)
        return batch is not None

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches that are left, without those whose labels are all ignored."""
        for number, batch in self._iterator:
            inputs, targets = split_batch(unpacked(batch, self._unpack, number), number)
            if self._binary:
                targets = class_labels(targets)
            if not isinstance(self._loader, list | tuple):
                inputs, targets = copied(inputs), targets.clone()
            self._check_axes(inputs, len(targets), number)
            numbers = torch.arange(self._read, self._read + len(targets))
            self._read += len(targets)
            if self._ignored is not None and not targets.is_floating_point() and bool((targets == self._ignored).any()):
                inputs, targets, kept = without_ignored(inputs, targets, self._ignored, number, self._batch_dim)
                numbers = numbers[kept.cpu()]
                if not len(targets):
                    continue
            self._numbers.append(numbers)
            self._form = targets if self._form is None else self._form
            check_same_form(targets, self._form, number)
            yield prepare_batch(inputs, targets, number, self._device)

    def _check_axes(self, inputs: Any, samples: int, number: int) -> None:
        """Refuse a batch whose samples are on the axis that the forward takes for time."""
        if self._over_time is None:
            return
        axis = self._over_time.batch_dim
        other = 1 - axis
        suspect = (self._stacks and other == 0) or batch_axis(inputs, samples, axis) is None
        if suspect and batch_axis(inputs, samples, other) is not None:
            raise DataError(
                f"batch {number} of {samples} samples on axis {other}, {describe(inputs)}, for {self._over_time!r}",
                f"samples on axis {axis} and time on axis {other}",
                self._over_time.suggest_axes(),
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, buffered ones first."""
        yield from self._head
        yield from self._batches()

    def __len__(self) -> int:
        """Return the number of batches; raise TypeError if the loader may give fewer, like an iterable data set."""
        if isinstance(self._loader, list | tuple) or self.total_samples is not None:
            return len(self._loader)  # type: ignore[arg-type]
        raise TypeError(f"a {type(self._loader).__name__} that may give fewer batches than its length")

    @property
    def total_samples(self) -> int | None:
        """Number of samples that the loader's sampler draws, None if it has no length or something else makes the batches."""
        if isinstance(self._loader, DataLoader) and type(self._loader.batch_sampler) is not BatchSampler:
            return None
        try:
            return len(self._loader.sampler)  # type: ignore[attr-defined]
        except (AttributeError, TypeError):
            return None

    @property
    def numbers(self) -> Tensor:
        """Numbers of the samples drawn so far among all of the loader, from 0; ignored ones are counted."""
        return torch.cat(self._numbers)

    def first(self, samples: int) -> list[Batch]:
        """Return the first batches that together hold at least so many samples if there are as many."""
        count = done = 0
        while done < samples and (count < len(self._head) or self._draw()):
            done += len(self._head[count].targets)
            count += 1
        return self._head[:count]

    def head(self, samples: int, limit: int | None = None) -> tuple[list[StoredBatch], Tensor]:
        """Return the same batches to run the network on, and their targets; at most ``limit`` samples count in both."""
        batches: list[StoredBatch] = []
        targets: list[Tensor] = []
        done = 0
        for batch in self.first(samples):
            count = len(batch.targets) if limit is None else min(len(batch.targets), limit - done)
            batches.append(StoredBatch(batch.inputs, slice(done, done + count), batch.number))
            targets.append(batch.targets[:count])
            done += count
        return batches, torch.cat(targets)

    def pieces(self, samples: int, size: int) -> list[StoredBatch] | None:
        """Return the first samples as :meth:`head` does, in batches of at most ``size``; None if the axis of samples is unclear."""
        found: list[StoredBatch] = []
        done = 0
        for batch in self.first(samples):
            axis = self.axis_of(batch)
            if axis is None:
                return None
            for start in range(0, min(len(batch.targets), samples - done), size):
                count = min(size, len(batch.targets) - start, samples - done)
                take = partial(_narrow, start=start, count=count)
                found.append(StoredBatch(map_samples(take, batch.inputs, axis), slice(done, done + count), batch.number))
                done += count
        return found

    def axis_of(self, batch: Batch) -> int | None:
        """Return the axis of a batch's samples, 0 or 1; None if it is unclear."""
        return batch_axis(batch.inputs, len(batch.targets), self._batch_dim)

    def sample(self, limit: int | None = None) -> list[tuple[Any, Tensor]]:
        """Return the first 256 samples as (input, target) batches: at most ``limit``, fewer if they are large."""
        first = self._head[0]
        each = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(first.inputs)) / len(first.targets)
        most = min(_SAMPLE, limit or _SAMPLE, max(1, int(_SAMPLE_BYTES // max(1.0, each))))
        stored, _ = self.head(most, most)
        found = []
        for part, batch in zip(stored, self._head, strict=False):
            inputs, count = first_samples(part.inputs, len(batch.targets), part.size, axis=self._batch_dim)
            few = count < len(batch.targets)  # a view would keep the whole batch
            found.append((copied(inputs), batch.targets[:count].clone()) if few else (inputs, batch.targets))
        return found


@dataclass(frozen=True)
class Split:
    """Samples to fit and samples held out, int64 indices in ascending order."""

    fitted: Tensor
    heldout: Tensor
    places: Tensor | None = None  # of the fitted samples among those of all processes; None if there is one process
    excludes: bool = False  # held-out samples stay out of the final solve too


def split_samples(count: int, share: float, seed: int, used: Tensor | None = None, kept: int = 0) -> Split:
    """Draw a share of the samples to hold out, at least one.

    Samples ``used`` ``[k]``, ascending, chose hidden rows and must not be held out.  The samples between them, and the first
    ``kept``, are held out first, since their spikes and scores are kept.
    """
    if count < _MIN_SAMPLES:
        needed = f"at least {_MIN_SAMPLES}, to fit some and compare on others"
        raise DataError(f"{count} samples", needed, "pass a loader with more data")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    never = order[:0]
    if used is not None:
        never = used.cpu()
        order = order[~torch.isin(order, never)]
        first = max(int(never[-1]), kept)
        order = torch.cat([order[order < first], order[order >= first]])
    held = max(1, min(round(share * count), len(order)))
    return Split(torch.cat([never, order[held:]]).sort().values, order[:held].sort().values)


def hold_first(numbers: Tensor, first: int) -> Split:
    """Return the split that holds out the ``first`` samples of a loader, for good; ``numbers`` are the samples' numbers in it."""
    count, held = len(numbers), int((numbers < first).sum())
    if count - held < _MIN_SAMPLES:
        raise DataError(f"{count - held} samples to fit", f"at least {_MIN_SAMPLES}", "pass a loader with more data")
    return Split(torch.arange(held, count), torch.arange(held), excludes=True)


def share_split(
    numbers: Tensor, share: float, seed: int, used: Tensor | None, processes: SingleProcess, kept: int = 0
) -> tuple[Split, Tensor]:
    """Return this process's part of the split that one process with all samples would draw, and the places of its samples.

    ``numbers`` ``[n]``, ascending, and ``used`` ``[k]``, as for ``split_samples``, are numbers of samples in an order that all
    processes share.  Places ``[n]`` count the samples of all processes in that order.
    """
    everything = torch.cat(processes.gather(numbers)).sort().values
    places = torch.searchsorted(everything, numbers)
    if used is not None:
        used = used.cpu()
        used = torch.searchsorted(everything, used[torch.isin(used, everything)])
    split = split_samples(len(everything), share, seed, used if used is not None and len(used) else None, kept)
    held = torch.zeros(len(everything), dtype=torch.bool).index_fill(0, split.heldout, True)
    mine, before = held[places], (~held).cumsum(0) - 1
    fitted = (~mine).nonzero()[:, 0]
    return Split(fitted, mine.nonzero()[:, 0], before[places[fitted]]), places


def check_room(samples: int | None, features: int, device: torch.device, tables: Tables) -> None:
    """Refuse a capture of so many values a sample for which there is no room; an unknown number of samples is not checked."""
    if samples is None:
        return
    each = int(4 * features * COPIES)
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], f"free on {device}"
    elif tables.in_memory(4 * features * samples):
        return
    else:
        free, where = free_disk(), f"free in {tempfile.gettempdir()}, the folder of temporary files"
    if samples * each > free:
        fix = f"pass max_samples={max(_MIN_SAMPLES, free // each)}"
        raise DataError(
            f"{samples} samples of {features} features, which take about {samples * each / 2**30:.1f} GiB where "
            f"{free / 2**30:.1f} GiB are {where}",
            "room for the features",
            fix if device.type == "cuda" else f"{fix}, or set TMPDIR to a folder on a larger disk",
        )


def _narrow(value: Tensor, axis: int, start: int, count: int) -> Tensor:
    return value.narrow(axis, start, count)
