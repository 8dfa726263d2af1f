"""Training data of one initialisation: a loader that is read once, the split of its samples, and the memory that they need."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from ..convex.distributed import Alone
from ..errors import DataError
from ..networks import Batch, StoredBatch, map_tensors, prepare_batch, split_batch
from ..networks.batches import batch_axis, copied, describe, tensors_in, unpack_of
from ..tables import COPIES, Tables, free_disk

Unpack = Callable[[Any], tuple[Any, Any]]

_CPU = torch.device("cpu")
_SAMPLE, _SAMPLE_BYTES = 256, 2**26  # first samples of the data that a report holds, by which training is watched
_MIN_SAMPLES = 10


class Stream:
    """Batches of a loader in order, each drawn, checked and moved once, with a view of the first ones ahead of the pass over all.

    They are copies, since a loader may fill one buffer again and again.  Those of a list are not: the list holds them anyway.
    ``unpack(batch)`` gives the (input, target) pair of a batch.  Samples whose label is ``ignored`` are left out.
    """

    def __init__(
        self, loader: Iterable[Any], device: torch.device = _CPU, unpack: Unpack | None = None, ignored: int | None = None
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
        self._iterator = enumerate(iter(loader), start=1)
        self._head: list[Batch] = []
        self._form: Tensor | None = None  # targets of the first batch
        self._read = 0  # samples, ignored ones counted
        self._numbers: list[Tensor] = []
        if not self._draw():
            raise DataError("an empty loader", "at least one (input, target) batch", "pass a loader over your data")

    def _draw(self) -> bool:
        """Buffer one more batch; return False at the end of the loader."""
        batch = next(self._batches(), None)
        if batch is not None:
            self._head.append(batch)
        return batch is not None

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches that are left, without those whose labels are all ignored."""
        for number, batch in self._iterator:
            inputs, targets = split_batch(_unpacked(batch, self._unpack, number), number)
            if not isinstance(self._loader, list | tuple):
                inputs, targets = copied(inputs), targets.clone()
            numbers = torch.arange(self._read, self._read + len(targets))
            self._read += len(targets)
            if self._ignored is not None and not targets.is_floating_point() and bool((targets == self._ignored).any()):
                inputs, targets, kept = _without_ignored(inputs, targets, self._ignored, number)
                numbers = numbers[kept.cpu()]
                if not len(targets):
                    continue
            self._numbers.append(numbers)
            self._form = targets if self._form is None else self._form
            _check_same_form(targets, self._form, number)
            yield prepare_batch(inputs, targets, number, self._device)

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

    def head(self, samples: int, limit: int | None = None) -> tuple[list[StoredBatch], Tensor]:
        """Return the first batches that together hold at least ``samples`` samples if there are as many, and their targets.

        At most ``limit`` samples count, in rows and targets.
        """
        batches: list[StoredBatch] = []
        targets: list[Tensor] = []
        done = 0
        while done < samples and (len(batches) < len(self._head) or self._draw()):
            batch = self._head[len(batches)]
            count = len(batch.targets) if limit is None else min(len(batch.targets), limit - done)
            batches.append(StoredBatch(batch.inputs, slice(done, done + count), batch.number))
            targets.append(batch.targets[:count])
            done += count
        return batches, torch.cat(targets)

    def sample(self, limit: int | None = None) -> list[tuple[Any, Tensor]]:
        """Return the first 256 samples as (input, target) batches: at most ``limit``, fewer if they are large."""
        first = self._head[0]
        each = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(first.inputs)) / len(first.targets)
        most = min(_SAMPLE, limit or _SAMPLE, max(1, int(_SAMPLE_BYTES // max(1.0, each))))
        stored, _ = self.head(most, most)
        return [first_samples(batch.inputs, batch.targets, part.size) for batch, part in zip(self._head, stored, strict=False)]


def find_repeats(loader: Any) -> str:
    """Return how a loader's sampler draws samples more than once; empty if it does not, as far as torch's samplers go."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if batches is None else getattr(batches, "sampler", None)
    kind, source = type(sampler).__name__, getattr(sampler, "data_source", None)
    if getattr(sampler, "replacement", False) is True:
        return f"a {kind}, which draws samples with replacement"
    if type(sampler) is RandomSampler and isinstance(source, Sized) and len(sampler) > len(source):
        return f"a {kind} of {len(sampler)} samples over {len(source)}, which draws samples again"
    return ""


def refuse_repeats(loader: Any) -> None:
    """Refuse a loader that gives samples more than once: copies of fitted samples would be among the held-out ones."""
    found = find_repeats(loader)
    if found:
        raise DataError(
            f"a loader with {found}",
            "each sample once: held-out samples must not be copies of fitted ones",
            "pass a loader with shuffle=True; for classes of different size pass loss=nn.CrossEntropyLoss(weight=...)",
        )


@dataclass(frozen=True)
class Split:
    """Samples to fit and samples held out, int64 indices in ascending order."""

    fitted: Tensor
    heldout: Tensor
    places: Tensor | None = None  # of the fitted samples among those of all processes; None if there is one process


def split_samples(count: int, share: float, seed: int, used: Tensor | None = None) -> Split:
    """Draw a share of the samples to hold out, at least one.

    Samples ``used`` ``[k]``, ascending, chose hidden rows and must not be held out.  The samples between them are held out first,
    since their spikes and scores are kept.
    """
    if count < _MIN_SAMPLES:
        needed = f"at least {_MIN_SAMPLES}, to fit some and compare on others"
        raise DataError(f"{count} samples", needed, "pass a loader with more data")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    never = order[:0]
    if used is not None:
        never = used.cpu()
        order = order[~torch.isin(order, never)]
        order = torch.cat([order[order < never[-1]], order[order > never[-1]]])
    held = max(1, min(round(share * count), len(order)))
    return Split(torch.cat([never, order[held:]]).sort().values, order[:held].sort().values)


def share_split(numbers: Tensor, share: float, seed: int, used: Tensor | None, processes: Alone) -> tuple[Split, Tensor]:
    """Return this process's part of the split that one process with all samples would draw, and the places of its samples.

    ``numbers`` ``[n]``, ascending, and ``used`` ``[k]``, as for ``split_samples``, are numbers of samples in an order that all
    processes share.  Places ``[n]`` count the samples of all processes in that order.
    """
    everything = torch.cat(processes.gathered(numbers)).sort().values
    places = torch.searchsorted(everything, numbers)
    if used is not None:
        used = used.cpu()
        used = torch.searchsorted(everything, used[torch.isin(used, everything)])
    split = split_samples(len(everything), share, seed, used if used is not None and len(used) else None)
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


def _unpacked(batch: Any, unpack: Unpack | None, number: int) -> Any:
    """Return the pair that the user's function makes of a batch."""
    if unpack is None:
        return batch
    try:
        return unpack(batch)
    except Exception as error:
        raise DataError(
            f"unpack(batch) raised {type(error).__name__}: {error}, for batch {number}, {describe(batch)}",
            "a function from a batch to its (input, target) pair",
            "pass a function for these batches, " + unpack_of(batch),
        ) from error


def first_samples(inputs: Any, targets: Tensor, samples: int) -> tuple[Any, Tensor]:
    """Return the inputs and targets of a batch's first samples, copied; of all if their axis is unknown."""
    axis = batch_axis(inputs, len(targets))
    if axis is None or len(targets) <= samples:
        return inputs, targets
    index = torch.arange(samples, device=targets.device)
    return map_tensors(lambda value: value.index_select(axis, index.to(value.device)), inputs), targets[index]


def _without_ignored(inputs: Any, target: Tensor, ignored: int, number: int) -> tuple[Any, Tensor, Tensor]:
    """Leave out the samples of a batch whose label is ignored; return inputs, targets and indices of the others."""
    if target.dim() != 1:
        raise DataError(
            f"the label {ignored}, which the loss ignores, at some steps of batch {number}, of shape {tuple(target.shape)}",
            "a label at every step: whole samples can be left out of the program, single steps can't",
            "cut sequences so that every step has a label, e.g. batches of sequences of one length",
        )
    kept = (target != ignored).nonzero()[:, 0]
    axis = batch_axis(inputs, len(target))
    if axis is None:
        raise DataError(
            f"{len(target) - len(kept)} samples of batch {number} with the label {ignored}, which the loss ignores, in inputs that "
            f"are {describe(inputs)}",
            f"tensors whose first or second axis alone holds the {len(target)} samples of the batch",
            "leave samples with that label out of the loader",
        )
    return map_tensors(lambda value: value.index_select(axis, kept.to(value.device)), inputs), target[kept], kept


def _check_same_form(target: Tensor, first: Tensor, number: int) -> None:
    """Refuse targets that one table can't hold without a conversion: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )
