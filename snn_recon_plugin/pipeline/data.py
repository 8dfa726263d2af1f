"""Training data of one initialisation: a loader that is read once, the split of its samples, and the memory that they need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ..errors import DataError
from ..networks import StoredBatch, check_finite, device_of, map_tensors, split_batch, to_device
from ..networks.batches import batch_axis, unpack_of
from ..networks.structures import copied, describe

__all__ = ["Split", "Stream", "Unpack", "check_memory", "split_samples"]

Unpack = Callable[[Any], tuple[Any, Any]]

_MIN_SAMPLES = 10
_COPIES = 3.0  # of the features in memory: all, the fitted part, and the solver's own blocks


class Stream:
    """(input, target) pairs of a loader in order, each drawn once, with a view of the first ones ahead of the pass over all.

    Pairs are copies, since a loader may fill one buffer again and again.  Those of a list are not: the list holds them anyway.

    Args:
        loader: gives batches.
        unpack: ``unpack(batch)`` gives the (input, target) pair of a batch; None if batches are pairs.
        ignored: label of samples that are left out, or None.

    Raises:
        DataError: the loader can't be iterated, or is empty.
    """

    def __init__(self, loader: Iterable[Any], unpack: Unpack | None = None, ignored: int | None = None) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, Tensor | str | dict):
            raise DataError(
                f"a loader of type {type(loader).__name__}",
                "an iterable of (input, target) batches",
                "pass a DataLoader, or a list such as [(inputs, targets)]",
            )
        self._loader, self._unpack, self._ignored = loader, unpack, ignored
        self._iterator = enumerate(iter(loader), start=1)
        self._head: list[tuple[int, Any, Tensor]] = []
        if not self._draw():
            raise DataError("an empty loader", "at least one (input, target) batch", "pass a loader over your data")

    def _draw(self) -> bool:
        """Buffer one more batch; return False at the end of the loader."""
        pair = next(self._pairs(), None)
        if pair is not None:
            self._head.append(pair)
        return pair is not None

    def _pairs(self) -> Iterator[tuple[int, Any, Tensor]]:
        """Yield the remaining batches with their numbers, without samples whose labels are ignored."""
        for number, batch in self._iterator:
            inputs, target = split_batch(_unpacked(batch, self._unpack, number), number)
            if not isinstance(self._loader, list | tuple):
                inputs, target = copied(inputs), target.clone()
            if self._ignored is not None and not target.is_floating_point() and bool((target == self._ignored).any()):
                inputs, target = _without_ignored(inputs, target, self._ignored, number)
                if not len(target):
                    continue
            yield number, inputs, target

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield all pairs, buffered ones first.

        Raises:
            DataError: the targets of a batch have another dtype or shape than those of the first.
        """
        first: Tensor | None = None
        for number, inputs, target in itertools.chain(self._head, self._pairs()):
            first = target if first is None else first
            _check_same_form(target, first, number)
            yield inputs, target

    def __len__(self) -> int:
        """Return the number of batches; raise TypeError if the loader may give fewer, like an iterable data set."""
        if isinstance(self._loader, list | tuple) or self.total_samples is not None:
            return len(self._loader)  # type: ignore[arg-type]
        raise TypeError(f"a {type(self._loader).__name__} that may give fewer batches than its length")

    @property
    def total_samples(self) -> int | None:
        """Number of samples that the loader's sampler draws, None if it has no length."""
        try:
            return len(self._loader.sampler)  # type: ignore[attr-defined]
        except (AttributeError, TypeError):
            return None

    def head(self, net: nn.Module, samples: int, limit: int | None = None) -> tuple[list[StoredBatch], Tensor]:
        """Return the first batches that together hold at least ``samples`` samples, checked, and their targets.

        Args:
            net: inputs are moved to the device of its parameters.
            samples: number wanted; the loader may have fewer.
            limit: maximum number of samples counted, in rows and targets.

        Raises:
            DataError: a batch is no (input, target) pair, is empty, or holds NaN or infinite inputs.
        """
        batches: list[StoredBatch] = []
        targets: list[Tensor] = []
        done, position, device = 0, 0, device_of(net)
        while done < samples and (position < len(self._head) or self._draw()):
            number, inputs, target = self._head[position]
            check_finite(inputs, number)
            if len(target) == 0:
                raise DataError(f"batch {number} is empty", "at least one sample in every batch", "drop empty batches")
            _check_same_form(target, targets[0] if targets else target, number)
            count = len(target) if limit is None else min(len(target), limit - done)
            batches.append(StoredBatch(to_device(inputs, device), slice(done, done + count), number))
            targets.append(target[:count].to(device))
            done, position = done + count, position + 1
        return batches, torch.cat(targets)


@dataclass(frozen=True)
class Split:
    """Samples to fit and samples held out, int64 indices in ascending order."""

    fitted: Tensor
    heldout: Tensor


def split_samples(count: int, share: float, seed: int, used: Tensor | None = None) -> Split:
    """Draw the samples to hold out.

    Args:
        count: number of samples.
        share: share to hold out, 0 to 1; at least one sample is held out.
        seed: of the draw.
        used: ``[k]`` ascending, samples that chose hidden rows and must not be held out.  The samples between them are held out
            first, since their spikes and scores are kept.

    Raises:
        DataError: fewer than 10 samples.
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


def check_memory(samples: int | None, features: int, device: torch.device) -> None:
    """Refuse a capture whose features would not fit into memory.

    Args:
        samples: number of samples; None if unknown, which is not checked.
        features: number of values of a sample.
        device: device of the features.

    Raises:
        DataError: the message gives the number of samples that fit.
    """
    if samples is None:
        return
    free = int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
    each = int(4 * features * _COPIES)
    if samples * each > free:
        raise DataError(
            f"{samples} samples of {features} features, which take about {samples * each / 2**30:.1f} GiB where "
            f"{free / 2**30:.1f} GiB are free on {device}",
            "features that fit into memory",
            f"pass max_samples={max(_MIN_SAMPLES, free // each)}",
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


def _without_ignored(inputs: Any, target: Tensor, ignored: int, number: int) -> tuple[Any, Tensor]:
    """Leave out the samples of a batch whose label is ignored."""
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
    return map_tensors(lambda value: value.index_select(axis, kept.to(value.device)), inputs), target[kept]


def _check_same_form(target: Tensor, first: Tensor, number: int) -> None:
    """Refuse targets that one table can't hold without a conversion: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )
