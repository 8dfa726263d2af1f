"""The training data in an order of the callback's own: the trainer's loader is never iterated, which would use up its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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

__all__ = ["batch_size", "epoch_samples", "refit_batches"]

Unpack = Callable[[Any], tuple[Any, Any]]


class RefitBatches:
    """(input, target) batches as the trainer would hand them to the module.

    Args:
        loader: gives batches.
        trainer: whose precision, strategy and module convert and move them.
        unpack: takes a batch to its (input, target) pair.
        samples: how many there are; None where that is not known.
        most: batches of the loader; default all.
    """

    def __init__(
        self, loader: Iterable[Any], trainer: Any, unpack: Unpack | None, samples: int | None, most: int | None = None
    ) -> None:
        self._loader, self._trainer, self._unpack, self._most = loader, trainer, unpack, most
        self.sampler = None if samples is None else range(samples)
        # Where the loader draws from, to be put back.
        self.generator = getattr(loader, "generator", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)

    def __len__(self) -> int:
        count = len(self._loader)  # type: ignore[arg-type]
        return count if self._most is None else min(count, self._most)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        trainer = self._trainer
        for batch in islice(self._loader, self._most):
            moved = trainer.precision_plugin.convert_input(batch)
            moved = trainer.lightning_module._on_before_batch_transfer(moved, dataloader_idx=0)
            moved = trainer.strategy.batch_to_device(moved, dataloader_idx=0)
            yield moved if self._unpack is None else self._unpack(moved)


def refit_batches(
    trainer: Any,
    dataloader: Iterable[Any] | None,
    unpack: Unpack | None,
    samples: int | None,
    seed: int,
    processes: tuple[int, int] = (0, 1),
    times: int = 1,
) -> RefitBatches:
    """Training data for one solve.

    Args:
        trainer: whose training data it is.
        dataloader: to use instead of a loader over the trainer's data set.
        unpack: takes a batch to its (input, target) pair; None for batches that are one.
        samples: how many, drawn by chance from those that an epoch may have; None for as many as an epoch has.  A given
            ``dataloader`` is read in its own order.
        seed: of the draw.
        processes: which process of how many this one is: each gets its own part of the samples.
        times: how many of the trainer's batches make one, for a network that takes batches of other sizes.

    Raises:
        DataError: the trainer's data can't be read a second time, or those given can't.
    """
    if dataloader is not None:
        if isinstance(dataloader, Iterator):
            found = f"a dataloader= of type {type(dataloader).__name__}, which can be read once"
            raise DataError(found, "batches that every refit can read", "pass a DataLoader, or a list of batches")
        return RefitBatches(dataloader, trainer, unpack, None)
    loader = trainer.train_dataloader
    why = _not_readable(loader)
    if why:
        raise DataError(
            f"training data that can't be read a second time: {why}",
            "a DataLoader over a data set with indices",
            "pass ReconstructionCallback(dataloader=...), a loader over (a part of) the training data",
        )
    size, most = batch_size(loader) or 1, epoch_samples(trainer, None) or 0
    # Where an epoch is cut short, in order, what comes after is not the training's.
    count = most if _in_order(loader.batch_sampler.sampler) else len(loader.dataset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    wanted = most if samples is None else min(samples, most)
    rank, world = processes
    if times == 1 and wanted > size * world:
        wanted -= wanted % (size * world)  # a net built for one batch size takes no smaller one
    indices = order[:wanted][rank::world].tolist()
    own = DataLoader(
        **_reading(loader, indices, times * size),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(seed),
    )
    return RefitBatches(own, trainer, unpack, len(indices))


def _reading(loader: DataLoader[Any], indices: list[int], size: int) -> dict[str, Any]:
    """How samples are read: tensors a batch at a time, which gives what one sample after the other gives, but sooner."""
    data_set: Any = loader.dataset
    while type(data_set) is Subset:
        indices, data_set = [int(data_set.indices[index]) for index in indices], data_set.dataset
    if type(data_set) is TensorDataset and loader.collate_fn is default_collate:
        return {"dataset": data_set, "batch_size": None, "sampler": BatchSampler(indices, size, False), "collate_fn": list}
    return {"dataset": data_set, "batch_size": size, "sampler": indices, "collate_fn": loader.collate_fn}


def epoch_samples(trainer: Any, dataloader: Any) -> int | None:
    """How many samples the data has, at most as many as an epoch; None where it does not say."""
    loader = trainer.train_dataloader if dataloader is None else dataloader
    size = batch_size(loader)
    if size is None or isinstance(loader.dataset, IterableDataset):
        return None
    data_set: Any = loader.dataset
    count = len(data_set)
    batches = trainer.num_training_batches if dataloader is None else math.inf
    return int(min(count, batches * size * trainer.world_size))


def batch_size(loader: Any) -> int | None:
    """Samples of a batch; None where that is for another than torch's own batch sampler to say."""
    sampler = loader.batch_sampler if isinstance(loader, DataLoader) else None
    return sampler.batch_size if type(sampler) is BatchSampler else None


def _in_order(sampler: Any) -> bool:
    """Whether samples come in the order of the data set; Lightning puts the second in the place of the first."""
    return type(sampler) is SequentialSampler or (type(sampler) is DistributedSampler and not sampler.shuffle)


def _not_readable(loader: Any) -> str:
    """Why a loader's data set can't be read by another loader; empty where it can."""
    if not isinstance(loader, DataLoader):
        return f"it comes from a {type(loader).__name__}"
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return f"its data set is a {type(loader.dataset).__name__}, which has no indices"
    batch_sampler = loader.batch_sampler
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        return f"its batches are drawn by a {type(batch_sampler).__name__}"
    if batch_sampler is None:
        return "its data set makes the batches itself"
    # Exact types: Lightning wraps samplers of the user's own in a subclass of the last.
    sampler = batch_sampler.sampler
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler):
        return f"its samples are drawn by a {type(sampler).__name__}, which may leave some out or repeat them"
    return ""
