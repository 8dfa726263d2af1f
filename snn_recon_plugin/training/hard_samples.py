"""Sampler that trains more often on hard samples: those that the network decides wrongly, or by a small margin."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset
from torch.utils.hooks import RemovableHandle

from ..errors import DataError, OptionError
from ..networks.calls.batches import tensors_in
from ..networks.calls.forward import plain_forward, without_contexts
from ..report.rows import Live
from .measure import TEMPERATURES, Decode, WeightJudge, log_probabilities

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
        renew: function from indices (k,) to their hardness (k,), called between epochs unless there were updates.
    """

    replacement = True  # an epoch repeats samples: solves refuse a loader with this sampler

    def __init__(self, labels: Tensor, hardness: Tensor, *, seed: int = 0, renew: Callable[[Tensor], Tensor] | None = None) -> None:
        self.labels, self._hardness = labels.cpu(), hardness.detach().float().cpu().clone()
        self._seed, self._renew = seed, renew
        self._epoch, self._updated = -1, True  # updated since the epoch began
        self._order, self._position = list[int](), 0  # indices that this epoch handed out, and how many of them were visited
        self._losses = torch.zeros(len(TEMPERATURES))  # of the last batches, at each temperature
        self.keep = min(1.0, max(LEAST_KEEP, 2 * float(self._hardness.mean())))  # share of the samples in a pass
        # Indices, and values on the device of the scores: every transfer would wait for it.
        self._updates: list[tuple[Tensor, Tensor]] = []

    @property
    def hardness(self) -> Tensor:
        """Hardness of each sample, (n,)."""
        for indices, values in self._updates:
            self._hardness[indices] = values.cpu()
        self._updates = []
        return self._hardness

    def probabilities(self) -> Tensor:
        """Return the probability of each sample to be in a pass, (n,)."""
        hardness = self.hardness
        weights = hardness.where(hardness <= 1 - hardness.median(), 0.0).clamp_min(_LEAST_WEIGHT)
        low, high = 0.0, 1 / _LEAST_WEIGHT
        for _ in range(50):
            middle = (low + high) / 2
            result = (_EASY * self.keep + middle * weights).clamp_max(1.0)
            low, high = (middle, high) if float(result.mean()) < self.keep else (low, middle)
        return result

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        if not self._updated and self._renew is not None:
            draw = torch.Generator().manual_seed(self._seed + self._epoch)
            some = torch.randperm(len(self), generator=draw)[: max(_RENEWED, round(_RENEWED_SHARE * len(self)))]
            self._hardness[some] = self._renew(some)
        self._epoch += 1
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        given = self._order = list[int]()
        self._position, self._updated = 0, False
        while len(given) < len(self):
            order = torch.randperm(len(self), generator=generator)
            kept = torch.rand(len(self), generator=generator) < self.probabilities()
            for index in order[kept[order]].tolist()[: len(self) - len(given)]:
                given.append(index)
                yield index

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers to resume from; the epoch that is under way is not resumed, and the next one follows."""
        tensors = {"hardness": self.hardness.clone(), "losses": self._losses.cpu().clone()}
        return {**tensors, "keep": self.keep, "epoch": self._epoch, "updated": self._updated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict``."""
        if len(state["hardness"]) != len(self.labels):
            found = f"the state of a sampler of {len(state['hardness'])} samples, for {len(self.labels)}"
            raise OptionError(found, "the state of a sampler of the same data", "resume with the data set of the checkpoint")
        self._hardness, self._losses, self._updates = state["hardness"].clone(), state["losses"].clone(), []
        self.keep, self._epoch, self._updated = state["keep"], state["epoch"], state["updated"]

    @property
    def unvisited(self) -> int:
        """Number of this epoch's indices that were handed out and not visited; workers prefetch them."""
        return len(self._order) - self._position

    def visited(self, count: int) -> Tensor:
        """Return the indices of the next batch of this epoch, (count,), in the order handed out."""
        if count > self.unvisited:
            found = f"{count} samples visited, of {self.unvisited} that were handed out and not visited"
            raise OptionError(found, "each batch visited once", "call sampler.visited(len(scores)) once a batch of the loader")
        self._position += count
        return torch.tensor(self._order[self._position - count : self._position], dtype=torch.int64)

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
        return net.register_forward_hook(_ScoreFollower(self, decode), with_kwargs=True)


class _ScoreFollower:
    """Hook on a network that updates a sampler; in a copy of the network it does nothing."""

    _sampler: Callable[[], HardSampler | None] = staticmethod(lambda: None)

    def __init__(self, sampler: HardSampler, decode: Decode) -> None:
        self._sampler, self._decode = weakref.ref(sampler), decode
        self._last: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)  # input of the last batch, and its version

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def is_idle(self) -> bool:
        """True in a copy, so that plans run it."""
        return self._sampler() is None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        sampler = self._sampler()
        if sampler is None or not (module.training and torch.is_grad_enabled()):
            return
        value: Tensor | None = next(tensors_in((args, kwargs)), None)
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


def make_sampler(start: Live, dataset: Any, **reading: Any) -> HardSampler:
    """Return a sampler of a data set, that the network of a start updates as it trains.

    If the start's ``forward`` runs the network, some samples are measured between epochs instead.  ``reading`` are arguments of
    the DataLoader that reads the data set.
    """
    if start.transaction.undone:
        raise OptionError("a report that was undone", "the report of weights that are in the network", "call convex_init_ again")
    if start.processes.is_distributed:
        fix = "train with a DistributedSampler"
        raise OptionError("the report of processes that share the samples", "that of a single process", fix)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        found = f"a data set of type {type(dataset).__name__}, without a length or indices"
        raise DataError(found, "a data set with both", "pass the data set of your DataLoader; train streams without a sampler")
    judge = WeightJudge(start.net, start.options)
    size = len(start.batches[0][1]) if start.batches else _BATCH

    def measure(indices: Tensor) -> tuple[Tensor, Tensor, Decode]:
        full = indices[torch.arange(math.ceil(len(indices) / size) * size) % len(indices)]  # a network may take full batches alone
        loader = DataLoader(Subset(dataset, full.tolist()), size, generator=torch.Generator(), **reading)
        return judge.measure_hardness(loader, len(indices))

    values, labels, decode = measure(torch.arange(len(dataset)))
    sampler = HardSampler(labels, values, seed=start.options.seed, renew=lambda indices: measure(indices)[0])
    if without_contexts(start.options.call) is plain_forward:
        sampler.follow(start.net, decode)
    return sampler
