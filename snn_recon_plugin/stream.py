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
        """All batches, those looked at first."""
        return itertools.chain(self._head, self._iterator)

    def __len__(self) -> int:
        """Number of batches, where the loader knows it; TypeError otherwise."""
        return len(self._loader)  # type: ignore[arg-type]

    @property
    def total_samples(self) -> int | None:
        """How many samples the loader's data set says it has, or None."""
        dataset = getattr(self._loader, "dataset", None)
        try:
            return len(dataset)  # type: ignore[arg-type]
        except TypeError:
            return None

    def head(self, net: nn.Module, samples: int) -> tuple[list[StoredBatch], Tensor]:
        """The first batches that together hold at least ``samples`` samples, checked, and their targets.

        Args:
            net: where its parameters are, the inputs are moved.
            samples: how many samples are wanted; fewer are returned where the loader has no more.

        Raises:
            DataError: a batch is no (input, target) pair, or holds NaN or infinite inputs.
        """
        batches: list[StoredBatch] = []
        targets: list[Tensor] = []
        done, number, device = 0, 0, device_of(net)
        while done < samples and (number < len(self._head) or self._draw()):
            inputs, target = split_batch(self._head[number], number + 1)
            check_finite(inputs, number + 1)
            batches.append(StoredBatch(to_device(inputs, device), slice(done, done + len(target))))
            targets.append(target.to(device))
            done, number = done + len(target), number + 1
        _check_alike(targets)
        return batches, torch.cat(targets)


def _check_alike(targets: list[Tensor]) -> None:
    first = targets[0]
    for number, target in enumerate(targets, start=1):
        if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
            raise DataError(
                f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
                f"shape {tuple(first.shape)}",
                "targets of one dtype and one shape, but for the number of samples",
                "check the loader's collate function",
            )
