"""Sampler that trains more often on hard samples: those that the network decides wrongly, or by a small margin."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset
from torch.utils.hooks import RemovableHandle

from ..distributed import SingleProcess
from ..errors import DataError, OptionError
from ..networks import Inspections, plain_forward
from ..networks.batches import tensors_in
from ..networks.forward import bare
from ..stages.report_content import ReportContent
from .hardness import Decode, log_probabilities, measure_hardness
from .measure import TEMPERATURES

MIN_SAMPLES = 15_000  # smaller data sets gain nothing by the sampler, or overfit
LEAST_KEEP = 0.2  # smallest share of the samples in a pass: no sample comes more than five times an epoch, on average
_EASY = 0.1  # probability of an easy sample, relative to the mean
_LEAST_WEIGHT = 1e-6  # of the easiest samples, so that any share can be kept
_RENEWED, _RENEWED_SHARE = 1000, 0.1  # samples that are measured after an epoch without updates: at least so many, or this share
_DECAY = 0.98  # of the losses that choose the temperature of updates: about 50 batches
_BATCH = 256  # samples to measure at once, unless the report holds one of the user's batches


class HardSampler(Sampler[int]):
    """Indices of an epoch: passes over a data set that keep hard samples more often, until there are as many as samples.

    The hardness of a sample is 1 - p(label).  A pass is a random order of the data set.  It keeps sample i with probability
    ``min(1, 0.1 keep + c hardness_i)``, where c makes the mean ``keep``: twice the mean of the first hardness, from 0.2 to 1.  It
    stays when hardness falls, since samples that are learnt by heart have no hardness either.

    If a share of the labels is wrong, a calibrated network gives right labels 1 minus that share, and wrong ones less than that
    share.  The median hardness estimates it, and samples with a hardness above 1 minus the median count as easy.

    Args:
        labels: class index of each sample, (n,).
        hardness: of each sample, (n,), 0 to 1.
        seed: of orders and draws; global generators are not used.
        balanced: True for passes with as many samples of each class, on average.
        rank: number of this process, which takes every ``world``-th of the indices that all ranks draw alike.
        world: number of processes.
        renew: function from indices (k,) to their hardness (k,), called between epochs unless there were updates.
    """

    replacement = True  # an epoch repeats samples: solves refuse a loader with this sampler

    def __init__(
        self,
        labels: Tensor,
        hardness: Tensor,
        *,
        seed: int = 0,
        balanced: bool = False,
        rank: int = 0,
        world: int = 1,
        renew: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.labels, self._hardness = labels.cpu(), hardness.detach().float().cpu().clone()
        self._seed, self._balanced, self._rank, self._world, self._renew = seed, balanced, rank, world, renew
        self._generator, self._order = torch.Generator(), list[int]()  # the order of this epoch so far, for all ranks
        self._epoch, self._resumes, self._updated = -1, False, True  # updated since the epoch began
        self._given = self._position = self._batch = 0  # this rank's indices handed out, visited, and visited at once
        self._losses = torch.zeros(len(TEMPERATURES))  # of the last batches, at each temperature
        self.keep = min(1.0, max(LEAST_KEEP, 2 * float(self._hardness.mean())))  # share of the samples in a pass
        # Indices, and values on the device of the scores: every transfer would wait for it.  Several ranks share them first.
        self._updates: list[tuple[Tensor, Tensor]] = []

    @property
    def hardness(self) -> Tensor:
        """Hardness of each sample, (n,), as all ranks know it."""
        if self._world == 1:
            self._apply()
        return self._hardness

    def probabilities(self) -> Tensor:
        """Return the probability of each sample to be in a pass, (n,)."""
        hardness = self.hardness
        weights = hardness.where(hardness <= 1 - hardness.median(), 0.0)
        if not self._balanced:
            return _scaled(weights, self.keep)
        result, counts = torch.empty_like(weights), self.labels.bincount()
        present = counts.nonzero()[:, 0]
        each = min(self.keep * len(weights) / len(present), float(counts[present].min()))
        for label in present.tolist():
            members = self.labels == label
            result[members] = _scaled(weights[members], each / float(counts[label]))
        return result

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self._world)

    def __iter__(self) -> Iterator[int]:
        if not self._resumes:
            if self._world == 1 and not self._updated:  # one rank would wait for others that have updates: see share_hardness
                self._measure_some()
            self._apply()
            self._epoch += 1
            self._generator.manual_seed(self._seed + self._epoch)
            self._order, self._given, self._position, self._batch, self._updated = [], 0, 0, 0, False
        self._resumes = False
        while self._given < len(self):
            place = self._rank + self._world * self._given
            while place >= len(self._order):
                order = torch.randperm(len(self.labels), generator=self._generator)
                kept = torch.rand(len(order), generator=self._generator) < self.probabilities()
                self._order += order[kept[order]].tolist()
            self._given += 1
            yield self._order[place]

    def end_epoch(self) -> None:
        """Let a state that is saved from now on begin a new epoch; needed if this one is cut short."""
        self._position = self._given = len(self)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers to resume from, also in the middle of an epoch."""
        # Workers prefetch indices, which are handed out but not visited.  A loop that calls nothing has no other mark.
        position = self._position if self._updated else self._given
        numbers = {"epoch": self._epoch, "position": position, "batch": self._batch, "updated": self._updated}
        order, generator = torch.tensor(self._order, dtype=torch.int64), self._generator.get_state()
        tensors = {"hardness": self.hardness.clone(), "losses": self._losses.cpu().clone()}
        return {"order": order, "generator": generator, "keep": self.keep, **tensors, **numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict``: next comes the rest of the epoch that was interrupted, or a new one."""
        if len(state["hardness"]) != len(self.labels):
            found = f"the state of a sampler of {len(state['hardness'])} samples, for {len(self.labels)}"
            raise OptionError(found, "the state of a sampler of the same data", "resume with the data set of the checkpoint")
        self._hardness, self._order, self._losses = state["hardness"].clone(), state["order"].tolist(), state["losses"].clone()
        self._updates, self._epoch, self._updated, self._batch = [], state["epoch"], state["updated"], state["batch"]
        self._given = self._position = state["position"]
        self._generator.set_state(state["generator"])
        self.keep = state["keep"]
        # With drop_last the rest may be smaller than a batch, and is never visited.
        self._resumes = self._epoch >= 0 and len(self) - self._position >= max(1, self._batch)

    @property
    def unvisited(self) -> int:
        """Number of this epoch's indices that were handed out and not visited."""
        return self._given - self._position

    def visited(self, count: int) -> Tensor:
        """Return the indices of the next batch of this epoch, (count,), in the order handed out."""
        if count > self.unvisited:
            found = f"{count} samples visited, of {self.unvisited} that were handed out and not visited"
            raise OptionError(found, "each batch visited once", "call sampler.visited(len(scores)) once a batch of the loader")
        first = self._rank + self._world * self._position
        self._position, self._batch = self._position + count, max(self._batch, count)
        return torch.tensor(self._order[first : first + self._world * count : self._world], dtype=torch.int64)

    def update(self, indices: Tensor, scores: Tensor) -> None:
        """Renew the hardness of samples, (B,), by the network's scores (B, C); the hardness of scores that are NaN is 1.

        The temperature is the best one of the last batches.
        """
        indices = indices.cpu()
        if scores.dim() != 2 or len(scores) != len(indices):
            found = f"scores of shape {tuple(scores.shape)} for {len(indices)} samples"
            raise OptionError(found, "a row of scores for each sample", "call sampler.update(indices, scores) with scores (B, C)")
        logs = log_probabilities(scores.detach(), self.labels[indices])
        self._losses = _DECAY * self._losses.to(logs.device) - logs.sum(1)
        self._updates.append((indices, 1 - logs[self._losses.argmin()].exp()))
        self._updated = True

    def follow(self, net: nn.Module, decode: Decode) -> RemovableHandle:
        """Update by each training batch, with a hook on the network; ``decode`` turns its output into scores (B, C)."""
        return net.register_forward_hook(_Follower(self, net, decode), with_kwargs=True)

    def share_hardness(self, processes: SingleProcess) -> None:
        """Give all ranks each other's updates, or measure some samples if there are none; all call it between epochs."""
        own = [torch.cat(parts).cpu() for parts in zip(*self._updates, strict=True)]
        shared = [(part[0], part[1]) for part in processes.gather(own) if part]
        self._apply(shared)
        if self._world > 1 and not shared and self._epoch >= 0:
            self._measure_some()

    def _apply(self, shared: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        """Enter the updates of all ranks; this rank's own are dropped if there are several and it did not share them."""
        for indices, values in self._updates if self._world == 1 else shared:
            self._hardness[indices] = values.cpu()
        self._updates = []

    def _measure_some(self) -> None:
        if self._renew is not None:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            count = max(_RENEWED, round(_RENEWED_SHARE * len(self.labels)))
            indices = torch.randperm(len(self.labels), generator=generator)[:count]
            self._hardness[indices] = self._renew(indices)


class _Follower:
    """Hook on a network that updates a sampler; in a copy of the network it does nothing."""

    _sampler: Callable[[], HardSampler | None] = staticmethod(lambda: None)

    def __init__(self, sampler: HardSampler, net: nn.Module, decode: Decode) -> None:
        self._sampler, self._net, self._decode = weakref.ref(sampler), weakref.ref(net), decode
        self._last: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)  # input of the last batch, and its version

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, for copies."""
        return {}

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        sampler = self._sampler()
        if sampler is None or module is not self._net() or not (module.training and torch.is_grad_enabled()):
            return
        value = next(tensors_in((args, kwargs)), None)
        if value is None or (self._last[0]() is value and self._last[1] == value._version):  # a batch again, as LBFGS runs it
            return
        self._last = (weakref.ref(value), value._version)
        try:
            with torch.no_grad():
                scores = self._decode(output)
        except Exception:  # training goes on with an output that evaluation does not have, and some samples are measured again
            return
        if len(scores) <= sampler.unvisited:  # else the batch is not the sampler's
            sampler.update(sampler.visited(len(scores)), scores)


def _scaled(weights: Tensor, keep: float) -> Tensor:
    """Return probabilities of mean ``keep``: a common part and a multiple of the weights, up to 1."""
    weights, low, high = weights.clamp_min(_LEAST_WEIGHT), 0.0, 1 / _LEAST_WEIGHT
    for _ in range(50):
        middle = (low + high) / 2
        result = (_EASY * keep + middle * weights).clamp_max(1.0)
        low, high = (middle, high) if float(result.mean()) < keep else (low, middle)
    return result


def make_sampler(
    report: ReportContent,
    dataset: Any,
    *,
    balanced: bool = False,
    processes: SingleProcess | None = None,
    **reading: Any,
) -> HardSampler:
    """Return a sampler of a data set, the same in all processes, that the network of a report updates as it trains.

    If the report's ``forward`` runs the network, some samples are measured between epochs instead.  ``reading`` are arguments of
    the DataLoader that reads the data set.

    Raises:
        OptionError: a report that was undone.
        DataError: a data set without length or indices, or targets other than a class index a sample.
    """
    if report.undone:
        raise OptionError("a report that was undone", "the report of weights that are in the network", "call convex_init_ again")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        found = f"a data set of type {type(dataset).__name__}, without a length or indices"
        raise DataError(found, "a data set with both", "pass the data set of your DataLoader; train streams without a sampler")
    sample, inspections = report.sample, Inspections(report.sample.net)
    options, shared = sample.options, sample.processes if processes is None else processes
    shared.check_equal("samples of the data set", len(dataset))
    size = len(sample.batches[0][1]) if sample.batches else _BATCH

    def measure(indices: Tensor) -> tuple[Tensor, Tensor, Decode]:
        own = indices[shared.rank :: shared.size]
        full = own[torch.arange(math.ceil(len(own) / size) * size) % len(own)]  # a network may take batches of one size alone
        loader = DataLoader(Subset(dataset, full.tolist()), size, generator=torch.Generator(), **reading)
        return measure_hardness(sample.net, loader, options, len(own), shared, inspections)

    values, labels, decode = measure(torch.arange(len(dataset)))
    rest: dict[str, Any] = {"seed": options.seed, "rank": shared.rank, "world": shared.size}
    sampler = HardSampler(labels, values, balanced=balanced, renew=lambda indices: measure(indices)[0], **rest)
    if bare(options.call) is plain_forward:
        sampler.follow(sample.net, decode)
    return sampler
