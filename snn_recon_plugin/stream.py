"""A user's loader, read once: its first batches can be looked at before the pass over all of them begins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError
from .networks import StoredBatch, check_finite, device_of, map_tensors, split_batch, to_device
from .networks.batches import batch_axis, unpack_of
from .networks.structures import copied, describe

__all__ = ["Stream", "Unpack"]


Unpack = Callable[[Any], tuple[Any, Any]]


class Stream:
    """(input, target) pairs of a loader in order, each drawn once, whether the loader can be read again or not.

    Pairs are copies, for a loader may fill one buffer again and again; those of a list are not, which holds them all anyway.

    Args:
        loader: gives batches.
        unpack: ``unpack(batch)`` gives the (input, target) pair of a batch; None for batches that are pairs.
        ignored: a label whose samples are left out, or None.

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
        """Buffers one more batch; False at the end."""
        pair = next(self._pairs(), None)
        if pair is not None:
            self._head.append(pair)
        return pair is not None

    def _pairs(self) -> Iterator[tuple[int, Any, Tensor]]:
        """The batches that are left, each with its number, but for those that hold nothing but ignored labels."""
        for number, batch in self._iterator:
            inputs, target = split_batch(_unpacked(batch, self._unpack, number), number)
            if not isinstance(self._loader, list | tuple):
                inputs, target = copied(inputs), target.clone()
            if self._ignored is not None and not target.is_floating_point() and bool((target == self._ignored).any()):
                inputs, target = _labelled(inputs, target, self._ignored, number)
                if not len(target):
                    continue
            yield number, inputs, target

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """All pairs, those looked at first.

        Raises:
            DataError: the targets of a batch have another dtype or shape than those of the first.
        """
        first: Tensor | None = None
        for number, inputs, target in itertools.chain(self._head, self._pairs()):
            first = target if first is None else first
            _check_alike(target, first, number)
            yield inputs, target

    def __len__(self) -> int:
        """Number of batches, where that is certain; TypeError otherwise, as for an iterable data set of a nominal length."""
        if isinstance(self._loader, list | tuple) or self.total_samples is not None:
            return len(self._loader)  # type: ignore[arg-type]
        raise TypeError(f"a {type(self._loader).__name__} that may give fewer batches than its length")

    @property
    def total_samples(self) -> int | None:
        """How many samples the loader's sampler draws, or None where it does not say."""
        try:
            return len(self._loader.sampler)  # type: ignore[attr-defined]
        except (AttributeError, TypeError):
            return None

    def head(self, net: nn.Module, samples: int, limit: int | None = None) -> tuple[list[StoredBatch], Tensor]:
        """The first batches that together hold at least ``samples`` samples, checked, and their targets.

        Args:
            net: where its parameters are, the inputs are moved.
            samples: how many samples are wanted; fewer are returned where the loader has no more.
            limit: no sample beyond so many counts, in rows or in targets.

        Raises:
            DataError: a batch is no (input, target) pair, is empty, or holds NaN or infinite inputs.
        """
        batches: list[StoredBatch] = []
        targets: list[Tensor] = []
        done, number, device = 0, 0, device_of(net)
        while done < samples and (number < len(self._head) or self._draw()):
            name, inputs, target = self._head[number]
            check_finite(inputs, name)
            if len(target) == 0:
                raise DataError(f"batch {name} is empty", "at least one sample in every batch", "drop empty batches")
            _check_alike(target, targets[0] if targets else target, name)
            count = len(target) if limit is None else min(len(target), limit - done)
            batches.append(StoredBatch(to_device(inputs, device), slice(done, done + count), name))
            targets.append(target[:count].to(device))
            done, number = done + count, number + 1
        return batches, torch.cat(targets)


def _unpacked(batch: Any, unpack: Unpack | None, number: int) -> Any:
    """The pair that the user's function takes a batch to."""
    if unpack is None:
        return batch
    try:
        return unpack(batch)
    except Exception as error:
        raise DataError(
            f"unpack(batch) raised {type(error).__name__}: {error}, for batch {number}, {describe(batch)}",
            "a function from a batch to its (input, target) pair",
            "pass one that suits the batches, " + unpack_of(batch),
        ) from error


def _labelled(inputs: Any, target: Tensor, ignored: int, number: int) -> tuple[Any, Tensor]:
    """The samples of a batch that have a label."""
    if target.dim() != 1:
        raise DataError(
            f"the label {ignored}, which the loss ignores, at some steps of batch {number}, of shape {tuple(target.shape)}",
            "a label at every step: steps can't be left out of the program, whole samples can",
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


def _check_alike(target: Tensor, first: Tensor, number: int) -> None:
    """Targets that are put into one table must not be converted on the way: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )
