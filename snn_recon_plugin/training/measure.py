"""The loss of a network, and its accuracy, on some data: the measurements that training compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks import StoredBatch, device_of, fast_passes, preserved, record
from ..pipeline import Context, Options, Task, inspect_task

_TRAINED = Context(warm_start=True, writes=False)  # a trained network, of which the user was warned before


class Judgement(NamedTuple):
    """A judgement."""

    value: float = math.nan  # less is better; NaN for no judgement
    accuracy: float = math.nan  # on validation data with classes

    def better_than(self, other: Judgement) -> bool:
        """Return whether it may replace the other: the value is lower and the accuracy is not.

        A lower value alone is not enough, since a convex readout is better calibrated at the same accuracy.
        """
        return self.value < other.value and not self.accuracy < other.accuracy

    def ranks_above(self, other: Judgement) -> bool:
        """Return whether it is the better of two moments: by accuracy, or by the value if accuracies are equal or missing."""
        if self.accuracy == other.accuracy or math.isnan(self.accuracy):
            return self.value < other.value
        return self.accuracy > other.accuracy


class Sums(NamedTuple):
    """Sums over samples, or over their steps if each step has a target."""

    loss: float = 0.0  # weighted, as are the others
    right: float = 0.0  # right decisions; NaN for regression
    weight: float = 0.0
    zero: float = 0.0  # loss of zero scores

    def plus(self, other: Sums) -> Sums:
        """Return the sums over both sets."""
        return Sums(*(one + two for one, two in zip(self, other, strict=True)))

    def judgement(self) -> Judgement:
        """Return the means; no judgement if the weights are zero."""
        return Judgement(self.loss / self.weight, self.right / self.weight) if self.weight else Judgement()


class Inspection:
    """Inspection of a network at its first measurement alone: it takes several times as long as a measurement."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def __call__(self, *arguments: Any) -> Task:
        """Return the task that ``inspect_task`` finds."""
        self._task = self._task or inspect_task(*arguments)
        return self._task


def measure_loss(
    net: nn.Module,
    batches: Iterable[Any],
    options: Options,
    inspect: Callable[..., Task] = inspect_task,
    *,
    samples: float = math.inf,
) -> Sums:
    """Sum the loss and the right decisions of a network's own scores; the network is left as it was.

    The sum stops after so many samples.
    """
    seen, sums = 0, Sums()
    with preserved(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = options.open(batches, device_of(net))
        head, targets = stream.head(1)
        task = inspect(net, head[0], targets, options, _TRAINED)
        for batch in stream:
            if seen >= samples:
                break
            count = len(batch.targets)
            seen += count
            stored = StoredBatch(batch.inputs, slice(0, count), batch.number)
            scores = task.readout.scores(record(net, stored, options.call)).double()
            sums = sums.plus(_sums_of(task, scores, batch.targets, options.criterion.weights(batch.targets)))
    return sums


def _sums_of(task: Task, scores: Tensor, target: Tensor, weights: Tensor | None) -> Sums:
    """Return the sums of one batch; ``weights`` are of its samples."""
    labels = task.rows.targets(target)
    prepared = task.loss.prepare(labels, scores.shape[-1])
    values = task.loss.value(scores.flatten(0, -2), prepared)
    shares = task.rows.weights(weights)
    shares = torch.ones_like(values) if shares is None else shares.to(values)
    decisions, decided = task.rows.decisions(scores), task.rows.decided(labels)
    if decided.dim() != 1 or decided.is_floating_point():  # no classes
        hits = torch.full_like(decisions[:, 0], math.nan)
    else:
        hits = (task.loss.predictions(decisions) == decided).to(scores)
    counted = task.rows.decided(shares)
    counted = counted * (len(shares) / len(counted))  # the weight of a sample of several rows is that of all of them
    zero = task.loss.value(torch.zeros_like(scores.flatten(0, -2)), prepared)
    return Sums(float(shares @ values), float(counted @ hits), float(shares.sum()), float(shares @ zero))
