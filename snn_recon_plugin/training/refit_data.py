"""Training data for solves, read by a separate loader: iterating the trainer's own would use up its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from ..errors import DataError
from ..stages.stream import Unpack, refuse_iterator, unpacked
from .hard_samples import HardSampler
from .lightning import move_batch
from .settings import Settings


class Batches:
    """(input, target) batches of a loader, converted and moved as the trainer does it; at most ``limit`` of them."""

    def __init__(
        self,
        loader: Iterable[Any],
        trainer: Any,
        unpack: Unpack | None,
        indices: list[int] | None = None,
        limit: int | None = None,
    ) -> None:
        self._loader, self._trainer, self._unpack, self._limit = loader, trainer, unpack, limit
        self.indices = indices  # of the samples in the data set, in order; None if unknown
        self.first: list[Any] = []  # converted batches that come before the loader's
        self.sampler = None if indices is None else range(len(indices))
        # Random sources of the loader, which a solve puts back.
        self.generator = getattr(loader, "generator", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)

    def __len__(self) -> int:
        count = len(self._loader)  # type: ignore[arg-type]
        return count if self._limit is None else min(count, self._limit)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from self.first
        for number, batch in enumerate(islice(self._loader, self._limit), start=1):
            yield unpacked(move_batch(self._trainer, batch), self._unpack, number)


def training_batches(
    trainer: Any, settings: Settings, samples: int | None, seed: int, *, process: tuple[int, int] = (0, 1)
) -> Batches:
    """Return training data for one solve, from the trainer's data set or a given ``dataloader``, read in its own order.

    Samples are drawn at random; None stands for as many as an epoch has.  ``process`` is the rank and number of the processes that
    share them.
    """
    dataloader, unpack = settings.dataloader, settings.initializer.unpack
    if dataloader is not None:
        refuse_iterator("a dataloader=", dataloader)
        return Batches(dataloader, trainer, unpack)
    loader = trainer.train_dataloader
    obstacle = explain_obstacle(loader)
    if obstacle:
        raise DataError(
            f"training data that no second DataLoader can read: {obstacle}",
            "a DataLoader over a data set with indices",
            "pass ReconstructionCallback(dataloader=...), a loader over (a part of) the training data",
        )
    size, most = loader.batch_sampler.batch_size, count_epoch_samples(trainer, None) or 0
    # An ordered epoch that is cut short never reaches the samples after the cut: they are no training data.
    count = most if is_ordered(loader.batch_sampler.sampler) else len(loader.dataset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    wanted = most if samples is None else min(samples, most)
    rank, world = process
    if wanted > size * world:
        wanted -= wanted % (size * world)  # a net that is built for one batch size takes no smaller batch
    indices = order[:wanted][rank::world].tolist()
    return Batches(make_loader(loader, indices, size, seed), trainer, unpack, indices)


def count_epoch_samples(trainer: Any, dataloader: Any) -> int | None:
    """Return the number of samples of an epoch, which another loader can read, or of ``dataloader``; None if unknown."""
    if dataloader is not None:
        known = find_batch_size(dataloader) is not None and isinstance(dataloader.sampler, Sized)
        return len(dataloader.sampler) if known else None
    loader = trainer.train_dataloader
    return int(min(len(loader.dataset), trainer.num_training_batches * loader.batch_sampler.batch_size * trainer.world_size))


def find_batch_size(loader: Any) -> int | None:
    """Return the number of samples of a batch; None unless torch's own batch sampler makes batches."""
    sampler = loader.batch_sampler if isinstance(loader, DataLoader) else None
    return sampler.batch_size if type(sampler) is BatchSampler else None


def make_loader(loader: DataLoader[Any], indices: list[int], size: int, seed: int) -> DataLoader[Any]:
    """Return another loader over some samples of a loader; tensors are read a batch at a time, which is faster."""
    data_set: Any = loader.dataset
    while type(data_set) is Subset:
        indices, data_set = [int(data_set.indices[index]) for index in indices], data_set.dataset
    reading: dict[str, Any] = {"batch_size": size, "sampler": indices, "collate_fn": loader.collate_fn}
    if type(data_set) is TensorDataset and loader.collate_fn is default_collate:
        reading = {"batch_size": None, "sampler": BatchSampler(indices, size, False), "collate_fn": list}
    return DataLoader(
        data_set,
        **reading,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(seed),
    )


def is_ordered(sampler: Any) -> bool:
    """Return True if samples come in the data set's order; under DDP Lightning replaces the first class by the second."""
    return type(sampler) is SequentialSampler or (type(sampler) is DistributedSampler and not sampler.shuffle)


def explain_obstacle(loader: Any) -> str:
    """Return the reason why another loader can't read a loader's data set; empty if it can."""
    if not isinstance(loader, DataLoader):
        return f"it comes from a {type(loader).__name__}"
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return f"its data set is a {type(loader.dataset).__name__}, which has no indices"
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return "its data set makes the batches itself"
    if type(batch_sampler) is not BatchSampler:
        return f"its batches are drawn by a {type(batch_sampler).__name__}"
    # Exact types: Lightning wraps samplers of the user's own in a subclass of DistributedSampler.
    sampler = batch_sampler.sampler
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler, HardSampler):
        return f"its samples are drawn by a {type(sampler).__name__}, which may leave some out or repeat them"
    return ""
