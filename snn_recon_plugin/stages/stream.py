"""Training data of one initialisation: a loader that is read once, its checks, the split of its samples, and the room they need."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

from ..errors import PASS_STEP, DataError
from ..networks.calls.batches import (
    Padded,
    batch_axis,
    copied,
    describe,
    first_samples,
    map_samples,
    split_batch,
    tensors_in,
)
from ..networks.calls.record import StoredBatch, prepare_batch
from ..networks.private.quiet import seeded
from ..tables import COPIES, Tables, free_disk

_CPU = torch.device("cpu")
_SAMPLE, _SAMPLE_BYTES = 256, 2**26  # first samples of the data that a report holds, by which training is watched
MIN_SAMPLES = 10

Unpack = Callable[[Any], tuple[Any, Any] | tuple[Any, Any, Any]]


class Stream:
    """Batches of a loader in order, each drawn, checked and moved once, with a view of the first ones ahead of the pass over all.

    They are copies, since a loader may fill one buffer again and again.  Those of a list are not: the list holds them anyway.
    ``unpack(batch)`` gives the (input, target) pair of a batch.  Samples whose label is ``ignored``, at all steps, are left out.
    ``batches`` are an iterator that was made of the loader before.  ``batch_dim`` is the axis, 0 or 1, on which the forward takes
    the samples of every tensor; None if it is unknown.  ``labels`` returns a batch's targets as class indices if they are labels
    in another form.  ``training`` is the stream of the training data, if this one is of validation data: targets have one form.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device = _CPU,
        unpack: Unpack | None = None,
        ignored: int | None = None,
        *,
        batches: Iterator[Any] | None = None,
        batch_dim: int | None = None,
        labels: Callable[[Tensor], Tensor] | None = None,
        training: Stream | None = None,
    ) -> None:
        self._loader = loader
        self._device = device
        self._unpack = unpack
        self._ignored = ignored
        self._labels = labels
        stacks = isinstance(loader, DataLoader) and loader.batch_sampler is not None and loader.collate_fn is default_collate
        self._stacks = stacks and unpack is None  # samples on axis 0, whatever the sizes
        self._forward_dim = batch_dim
        self._batch_dim = 0 if batch_dim is None and self._stacks else batch_dim
        source = "" if training is None else " of val_loader"
        numbered = enumerate(start_loader(loader) if batches is None else batches, start=1)
        self._iterator = ((f"{number}{source}", batch) for number, batch in numbered)
        self._head: list[StoredBatch] = []
        self._form: Tensor | None = None if training is None else training._form  # targets of the first batch
        self._read = 0  # samples, ignored ones counted
        self._done = 0  # samples, without ignored ones
        self._numbers: list[Tensor] = []
        if not self._draw():
            unlabelled = f"{self._read} samples whose labels are all {self._ignored}, which the loss ignores"
            found = f"{unlabelled if self._read else 'an empty loader'}{source and ', of val_loader'}"
            raise DataError(found, "at least one (input, target) batch", "pass a loader over your data")

    def _draw(self) -> bool:
        """Buffer one more batch; return False at the end of the loader."""
        batch = next(self._batches(), None)
        if batch is not None:
            self._head.append(batch)
        return batch is not None

    def _batches(self) -> Iterator[StoredBatch]:
        """Yield the batches that are left, without those whose labels are all ignored."""
        for number, batch in self._iterator:
            with seeded(self._done):  # a step that mixes samples at random makes targets as it makes scores in a recorded pass
                inputs, targets = split_batch(unpacked(batch, self._unpack, number), number)
            if self._labels is not None:
                targets = self._labels(targets)
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
            self._done += len(targets)
            yield prepare_batch(inputs, targets, number, self._device, self._done - len(targets))

    def _check_axes(self, inputs: Any, samples: int, number: int | str) -> None:
        """Refuse a batch whose samples are on the axis that the forward takes for time."""
        axis = self._forward_dim
        if axis is None:
            return
        other = 1 - axis
        suspect = (self._stacks and other == 0) or batch_axis(inputs, samples, axis) is None
        if suspect and batch_axis(inputs, samples, other) is not None:
            found = f"batch {number} of {samples} samples on axis {other}, {describe(inputs)}, for a forward that takes axis {axis}"
            fix = f"pass forward=over_time(time_dim={axis}), with num_steps for inputs without a time axis"
            raise DataError(found, f"samples on axis {axis}", fix)

    def __iter__(self) -> Iterator[StoredBatch]:
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

    def first(self, samples: int) -> list[StoredBatch]:
        """Return the first batches that together hold at least so many samples if there are as many."""
        count = done = 0
        while done < samples and (count < len(self._head) or self._draw()):
            done += len(self._head[count].targets)
            count += 1
        return self._head[:count]

    def head(self, samples: int, limit: int | None = None) -> tuple[list[StoredBatch], Tensor]:
        """Return the same batches to run the network on, and their targets; at most ``limit`` samples count in both."""
        batches = [batch.cut(limit) for batch in self.first(samples)]
        return batches, torch.cat([batch.targets[: batch.size] for batch in batches])

    def axis_of(self, batch: StoredBatch) -> int | None:
        """Return the axis of a batch's samples, 0 or 1; None if it is unclear."""
        return batch_axis(batch.inputs, len(batch.targets), self._batch_dim)

    def sample(self, limit: int | None = None) -> list[tuple[Any, Tensor]]:
        """Return the first 256 samples as (input, target) batches: at most ``limit``, fewer if they are large."""
        first = self._head[0]
        each = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(first.inputs)) / len(first.targets)
        most = min(_SAMPLE, limit or _SAMPLE, max(1, int(_SAMPLE_BYTES // max(1.0, each))))
        found = []
        for batch in self.head(most, most)[0]:
            inputs, count = first_samples(batch.inputs, len(batch.targets), batch.size, axis=self._batch_dim)
            few = count < len(batch.targets)  # a view would keep the whole batch
            found.append((copied(inputs), batch.targets[:count].clone()) if few else (inputs, batch.targets))
        return found


# -- a loader and its batches, before they are read ------------------------------------------------------------------------------


def start_loader(loader: Any) -> Iterator[Any]:
    """Return an iterator of a loader's batches."""
    if not hasattr(loader, "__iter__") or isinstance(loader, Tensor | str | dict):
        fix = "pass DataLoader(TensorDataset(inputs, targets), batch_size=64), or a list such as [(inputs, targets)]"
        raise DataError(f"a loader of type {type(loader).__name__}", "an iterable of (input, target) batches", fix)
    return iter(loader)


def refuse_iterator(name: str, batches: object) -> None:
    """Refuse batches that can be read only once, where they are needed again and again."""
    if isinstance(batches, Iterator):
        found = f"{name} of type {type(batches).__name__}, which can be read once"
        raise DataError(found, "batches that can be read again", "pass a DataLoader, or a list of batches")


def refuse_repeats(loader: Any) -> None:
    """Refuse a loader that gives samples more than once, as far as torch's samplers go: held-out ones would be copies of others."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if batches is None else getattr(batches, "sampler", None)
    kind, source = type(sampler).__name__, getattr(sampler, "data_source", None)
    if getattr(sampler, "replacement", False) is True:
        found = f"a loader with a {kind}, which draws samples with replacement"
    elif type(sampler) is RandomSampler and isinstance(source, Sized) and len(sampler) > len(source):
        found = f"a loader with a {kind} of {len(sampler)} samples over {len(source)}, which draws samples again"
    else:
        return
    fix = "pass a loader with shuffle=True; for classes of different size pass loss=nn.CrossEntropyLoss(weight=...)"
    raise DataError(found, "each sample once: held-out samples must not be copies of fitted ones", fix)


def unpacked(batch: Any, unpack: Unpack | None, number: int | str) -> Any:
    """Return the pair that the user's function makes of a batch, with lengths beside the inputs if it gives them."""
    if unpack is None:
        return batch
    try:
        parts = unpack(batch)
    except Exception as error:
        raise DataError(
            f"unpack(batch) raised {type(error).__name__}: {error}, for batch {number}, {describe(batch)}",
            "a function from a batch to its (input, target) pair",
            f"correct unpack: the error above shows the line; or {PASS_STEP}",
        ) from error
    if not isinstance(parts, tuple) or len(parts) != 3:
        return parts
    inputs, targets, lengths = parts
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):
        whole, found = False, f"that are a {type(lengths).__name__}"
    else:
        whole = lengths.shape == (len(targets),) and not lengths.is_floating_point()
        found = f"from {int(lengths.min())}" if whole else f"of {lengths.dtype}, shape {tuple(lengths.shape)}"
    if not whole or bool((lengths < 1).any()):
        needed = "the number of steps of each sequence, whole numbers (B,) from 1, as the third value of unpack(batch)"
        fix = "pass unpack=lambda batch: (input, target, lengths), or give no third value"
        raise DataError(f"lengths {found}, for {len(targets)} targets in batch {number}", needed, fix)
    return Padded(inputs, lengths), targets


def binary_labels(targets: Tensor) -> Tensor:
    """Return floating labels 0 and 1 of one output, ``[n]`` or ``[n, 1]``, as class indices ``[n]``; other targets as they are."""
    one = targets.is_floating_point() and (targets.dim() == 1 or targets.shape[1:] == (1,))
    return targets.flatten().long() if one and bool(((targets == 0) | (targets == 1)).all()) else targets


def one_hot_labels(targets: Tensor) -> Tensor:
    """Return floating rows ``[..., C]`` with a 1 each, and 0 else, as class indices ``[...]``; other targets as they are."""
    rows = targets.is_floating_point() and targets.dim() > 1 and targets.shape[-1] > 1
    marked = rows and bool(((targets == 0) | (targets == 1)).all()) and bool((targets.sum(-1) == 1).all())
    return targets.argmax(-1) if marked else targets


def without_ignored(inputs: Any, target: Tensor, ignored: int, number: int | str, known: int | None) -> tuple[Any, Tensor, Tensor]:
    """Leave out the samples of a batch whose labels are all ignored; return inputs, targets and indices of the others."""
    kept = (target != ignored).reshape(len(target), -1).any(1).nonzero()[:, 0]
    if len(kept) == len(target):
        return inputs, target, kept
    axis = batch_axis(inputs, len(target), known)
    if axis is None:
        raise DataError(
            f"{len(target) - len(kept)} samples of batch {number} with the label {ignored}, which the loss ignores, in inputs that "
            f"are {describe(inputs)}",
            f"tensors whose first or second axis alone holds the {len(target)} samples of the batch",
            "leave samples with that label out of the loader",
        )
    return map_samples(lambda value, axis: value.index_select(axis, kept.to(value.device)), inputs, axis), target[kept], kept


def check_same_form(target: Tensor, first: Tensor, number: int | str) -> None:
    """Refuse targets that one table can't hold without a conversion: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )


# -- the split, and room for features ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Samples to fit and samples held out, int64 indices in ascending order."""

    fitted: Tensor
    heldout: Tensor
    places: Tensor | None = None  # of the fitted samples among those of all processes; None if there is one process
    excludes: bool = False  # held-out samples stay out of the final solve too
    judged: int | None = None  # held-out samples are validation samples, of all processes the first ones judged hidden layers


def split_samples(count: int, share: float, seed: int, used: Tensor | None = None) -> Split:
    """Draw a share of the samples to hold out, at least one.

    Samples ``used`` ``[k]``, ascending, chose hidden rows and must not be held out.  The samples between them are held out first,
    since their spikes and scores are kept.
    """
    if count < MIN_SAMPLES:
        needed = f"at least {MIN_SAMPLES}, to fit some and compare on others"
        raise DataError(f"{count} samples", needed, "pass a loader with more data")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    never = order[:0]
    if used is not None:
        never = used.cpu()
        order = order[~torch.isin(order, never)]
        order = torch.cat([order[order < never[-1]], order[order >= never[-1]]])
    held = max(1, min(round(share * count), len(order)))
    return Split(torch.cat([never, order[held:]]).sort().values, order[:held].sort().values)


def share_split(numbers: Tensor, everything: Tensor, share: float, seed: int, used: Tensor | None) -> tuple[Split, Tensor]:
    """Return a process's part of the split that one process with all samples would draw, and the places of its samples.

    ``numbers`` ``[n]`` are those of its samples, ``everything`` ``[N]`` those of all processes, ascending, in an order that all
    share.  ``used`` ``[k]`` are as for ``split_samples``.  Places ``[n]`` count the samples of all processes in that order.
    """
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
        fix = f"pass max_samples={max(MIN_SAMPLES, free // each)}"
        raise DataError(
            f"{samples} samples of {features} features, which take about {samples * each / 2**30:.1f} GiB where "
            f"{free / 2**30:.1f} GiB are {where}",
            "room for the features",
            fix if device.type == "cuda" else f"{fix}, or set TMPDIR to a folder on a larger disk",
        )
