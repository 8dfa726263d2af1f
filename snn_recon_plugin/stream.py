"""A user's loader, read once: its first batches can be looked at before the pass over all of them begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError
from .networks import StoredBatch, check_finite, device_of, split_batch, to_device

__all__ = ["Stream"]


class Stream:
    """Batches of a loader in order, each drawn once, whether the loader can be read again or not.

    Args:
        loader: gives (input, target) batches.

    Raises:
        DataError: the loader can't be iterated, or is empty.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, Tensor | str | dict):
            raise DataError(
                f"a loader of type {type(loader).__name__}",
                "an iterable of (input, target) batches",
                "pass a DataLoader, or a list such as [(inputs, targets)]",
            )
        self._loader = loader
        self._iterator = iter(loader)
        self._head: list[Any] = []
        if not self._draw():
            raise DataError("an empty loader", "at least one (input, target) batch", "pass a loader over your data")

    def _draw(self) -> bool:
        """Buffers one more batch; False at the end."""
        for batch in self._iterator:
            self._head.append(batch)
            return True
        return False

    def __iter__(self) -> Iterator[Any]:
        """All batches, those looked at first.

        Raises:
            DataError: the targets of a batch have another dtype or shape than those of the first.
        """
        first: Tensor | None = None
        for number, batch in enumerate(itertools.chain(self._head, self._iterator), start=1):
            target = split_batch(batch, number)[1]
            first = target if first is None else first
            _check_alike(target, first, number)
            yield batch

    def __len__(self) -> int:
        """Number of batches, where the loader knows it; TypeError otherwise."""
        return len(self._loader)  # type: ignore[arg-type]

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
            inputs, target = split_batch(self._head[number], number + 1)
            check_finite(inputs, number + 1)
            if len(target) == 0:
                raise DataError(f"batch {number + 1} is empty", "at least one sample in every batch", "drop empty batches")
            _check_alike(target, targets[0] if targets else target, number + 1)
            count = len(target) if limit is None else min(len(target), limit - done)
            batches.append(StoredBatch(to_device(inputs, device), slice(done, done + count)))
            targets.append(target[:count].to(device))
            done, number = done + count, number + 1
        return batches, torch.cat(targets)


def _check_alike(target: Tensor, first: Tensor, number: int) -> None:
    """Targets that are put into one table must not be converted on the way: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )
