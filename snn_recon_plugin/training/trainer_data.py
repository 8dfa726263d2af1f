"""Data of a trainer: batches for solves, by separate loaders since iterating the trainer's would use it up, and judgements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
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

from ..errors import DataError, OptionError, ProcessError, ReconstructionError
from ..networks.calls.forward import Within, plain_forward, without_contexts
from ..networks.calls.record import refuse_calls
from ..networks.private.quiet import keep_generators, quiet, unwrap
from ..networks.private.workbench import private_copy
from ..options import ALWAYS, Options
from ..read.loss_calls import replaced
from ..read.step import is_pair, read_options
from ..scan.passes import KeptPasses
from ..stages.stream import Unpack, refuse_iterator, unpacked
from .lightning import defines, move_batch, processes_of, validating, validation_loader
from .measure import Judgement, WeightJudge
from .module_step import FastModuleStep, ModuleStep, explain_slow_step, names_read

_COMPARED = 1000  # training samples that weights are compared on if there are no validation data


class Batches:
    """(input, target) batches of a loader, converted and moved as the trainer does it; at most ``limit`` of them."""

    def __init__(
        self, loader: Iterable[Any], trainer: Any, unpack: Unpack | None, indices: list[int] | None = None, limit: int | None = None
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


class TrainerJudge(WeightJudge):
    """Judge of a trainer's network: by validation data, by training samples (or ``dataloader``), or by a metric of the user's."""

    def __init__(
        self, trainer: Any, net: nn.Module, initializer: Options, loader: Iterable[Any] | None, metric: Callable[[Any], Any] | None
    ) -> None:
        self.trainer, self.dataloader, self.metric = trainer, loader, metric
        self.unpack: Unpack | None = None
        self._attributes: dict[str, Any] | None = None  # those that the module's step reads, when plans were made
        super().__init__(net, initializer, processes_of(trainer), [trainer])
        given = (initializer.forward, initializer.unpack, initializer.loss)
        if initializer.step is not None or (given == (None, None, None) and initializer.readout == "auto"):
            initializer = self._read(initializer)
        initializer = initializer.of_module(trainer.lightning_module, unwrap(net))
        forward = Within(initializer.call, trainer.precision_plugin.forward_context)
        self.unpack = initializer.unpack
        self.initializer = replace(initializer, forward=forward, unpack=None, progress=False)  # batches come unpacked
        self.options = self.initializer.for_refit(write=ALWAYS)

    def _read(self, options: Options) -> Options:
        """Return options with what the module's training step, or the user's ``step``, shows; unchanged if it can't be read."""
        network, module = unwrap(self.net), self.trainer.lightning_module
        step = ModuleStep(self.trainer, network) if options.step is None else options.step
        tests = [name for name in ("validation_step", "test_step") if defines(module, name)]
        test = ModuleStep(self.trainer, network, tests[0]) if tests and options.test is None else options.test
        context = self.trainer.precision_plugin.forward_context
        wanted = replace(options, step=Within(step, context), test=None if test is None else Within(test, context))
        batch = next(iter(self.samples(find_batch_size(self.trainer.train_dataloader) or 1)), None)
        if batch is None:
            return options
        net, read, refusal = private_copy(network, self.shared), options, ""
        try:
            with refuse_calls(module), quiet(net, seed=options.seed):
                read = read_options(wanted, net, batch)
        except ReconstructionError as error:
            if options.step is not None or not is_pair(batch):  # forward alone needs a pair
                raise
            refusal = str(error)
            rank_zero_warn(f"training_step was not read, and the network's forward is used.\n{refusal}")
        return options if any(self.processes.gather(bool(refusal))) else read

    def install_fast_loop(self, aids: ExitStack) -> str:
        """Let training_step run by plans until ``aids`` close; return why it can't."""
        module = self.trainer.lightning_module
        why = "several processes train" if self.trainer.world_size > 1 else explain_slow_step(module)
        if not why:
            aids.enter_context(replaced(module, {"training_step": FastModuleStep(module)}))
        return why and f"its time loop is in training_step, and {why}"

    def try_validation(self) -> None:
        """Measure one batch; without usable validation data training samples are compared."""
        try:
            self.measure(limit=1)
        except Exception as error:
            if self.metric is not None or isinstance(error, ProcessError):
                raise
            self.validates = False
            if self.trainer.enable_validation:  # without validation data the choice is no surprise
                fix = "Pass ReconstructionCallback(metric=...) to decide by a number of your own."
                rank_zero_warn(f"Validation data can't be measured; training samples decide. {fix}\n{error}")

    def measure(self, *, limit: float = math.inf) -> Judgement:
        """Judge the weights, on at most ``limit`` batches of validation data; return the mean over ranks."""
        if self.metric is not None:
            values = self.processes.gather(self.together(self._call_metric))
            mean = sum(values) / len(values)
            return Judgement(mean, own=mean)
        return self.mean(lambda: self._sum_validation(limit)) if self.validates else self.watch(_COMPARED)

    def _sum_validation(self, limit: float) -> Tensor:
        self._keep_plans()
        with validating(self.trainer):
            return self.sum_losses(self._validation(limit))

    def _keep_plans(self) -> None:
        """Keep plans of passes from one measurement to the next, as long as these depend on the network and the batch alone."""
        module, net = self.trainer.lightning_module, unwrap(self.net)
        names, plain = names_read(type(module)), bool | int | float | str | tuple
        read = {name for name in vars(module) if name in names or "getattr" in names}
        values = {name: vars(module)[name] for name in sorted(read) if isinstance(vars(module)[name], plain)}
        if self._attributes == values:
            return
        own = {id(value) for value in (*net.parameters(), *net.buffers())}
        outside = any(id(value) not in own for value in (*module.parameters(), *module.buffers()))
        by_step = without_contexts(self.options.call) is not plain_forward
        alone = not by_step or not (outside or explain_slow_step(module))
        self._attributes, self.passes = values, KeptPasses() if alone else None

    def _call_metric(self) -> float:
        assert self.metric is not None
        module = private_copy(self.trainer.lightning_module, self.shared)
        with quiet(module, seed=self.options.seed), validating(self.trainer):
            value = self.metric(module)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            fix = "return a float, less for better, e.g. minus the accuracy on validation data"
            raise OptionError(f"metric gave a {type(value).__name__}", "one number", fix) from None

    def _validation(self, limit: float = math.inf) -> Batches:
        """Return the batches of validation data; call it, and read them, inside ``validating``."""
        loader, most = validation_loader(self.trainer)
        most = min(limit, most)
        return Batches(loader, self.trainer, self.unpack, limit=None if math.isinf(most) else int(most))

    def first_validation(self, samples: float) -> list[Any]:
        """Return the first batches of validation data; none if a metric judges, or in several processes."""
        if not self.validates or self.metric is not None or self.trainer.world_size > 1:
            return []
        found, count = [], 0
        with validating(self.trainer):
            batches = self._validation()
            with torch.no_grad(), keep_generators(self.options.seed, loader=batches):
                for batch in batches:
                    found.append(batch)
                    count += len(batch[1])
                    if count >= samples:
                        break
        return found

    def samples(self, count: int | None, draw: int = 0, process: tuple[int, int] = (0, 1)) -> Batches:
        """Return training data, from the trainer's data set or the user's ``dataloader``, read in its own order.

        Samples are drawn at random; ``draw`` is the number of the drawing, and None stands for as many samples as an epoch has.
        ``process`` is the rank and number of the processes that share them.
        """
        if self.dataloader is not None:
            refuse_iterator("a dataloader=", self.dataloader)
            return Batches(self.dataloader, self.trainer, self.unpack)
        loader, seed = self.trainer.train_dataloader, self.options.seed + draw
        obstacle = explain_obstacle(loader)
        if obstacle:
            found = f"training data that no second DataLoader can read: {obstacle}"
            fix = "pass ReconstructionCallback(dataloader=...), a loader over (a part of) the training data"
            raise DataError(found, "a DataLoader over a data set with indices", fix)
        size, most = loader.batch_sampler.batch_size, self.count_epoch() or 0
        # An ordered epoch that is cut short never reaches the samples after the cut: they are no training data.
        total = most if is_ordered(loader.batch_sampler.sampler) else len(loader.dataset)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        wanted = most if count is None else min(max(count, size), most)
        rank, world = process
        if wanted > size * world:
            wanted -= wanted % (size * world)  # a net that is built for one batch size takes no smaller batch
        indices = order[:wanted][rank::world].tolist()
        return Batches(make_loader(loader, indices, size, seed), self.trainer, self.unpack, indices)

    def count_epoch(self) -> int | None:
        """Return the number of samples of an epoch that another loader can read; None if unknown."""
        loader: Any = self.trainer.train_dataloader if self.dataloader is None else self.dataloader
        if self.dataloader is not None:
            known = find_batch_size(loader) is not None and isinstance(loader.sampler, Sized)
            return len(loader.sampler) if known else None
        batches = self.trainer.num_training_batches * self.trainer.world_size
        return int(min(len(loader.dataset), batches * loader.batch_sampler.batch_size))


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
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler):
        return f"its samples are drawn by a {type(sampler).__name__}, which may leave some out or repeat them"
    return ""
