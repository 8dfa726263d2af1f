"""The loss of a network on some data: the measurement that training compares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks import Inspections, StoredBatch, device_of, fast_passes, private_copy, quiet, record, unwrap
from ..stages import Context, Options, Task, inspect_task

# Training begins from small scores and makes them too large, a solve does neither: the loss at the best temperature compares them.
# With few validation samples it finds weights that test better than their accuracy does (benchmarks/training/ranking.py).
TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-16, 17))
MEASURED = Context(warm_start=True)  # of a network that is measured only, of which the user was warned before


class Sums(NamedTuple):
    """Weighted sums over samples, or over their steps if each step has a target."""

    weight: float = 0.0
    zero: float = 0.0  # loss of zero scores
    own: float = 0.0
    scaled: tuple[float, ...] = (0.0,) * len(TEMPERATURES)  # loss of the scores over each temperature

    def numbers(self) -> list[float]:
        """Return all sums, as ``of_numbers`` takes them."""
        return [self.weight, self.zero, self.own, *self.scaled]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Sums:
        """Return the sums in ``numbers()``."""
        weight, zero, own, *scaled = numbers
        return cls(weight, zero, own, tuple(scaled))

    def plus(self, other: Sums) -> Sums:
        """Return the sums over both sets."""
        return Sums.of_numbers([one + two for one, two in zip(self.numbers(), other.numbers(), strict=True)])

    def judgement(self) -> Judgement:
        """Return the mean losses; NaN if the weights are zero."""
        if not self.weight:
            return Judgement()
        return Judgement(min(self.scaled) / self.weight, self.own / self.weight, self.zero / self.weight)


class Judgement(NamedTuple):
    """Mean losses of a network over the samples of all ranks; NaN for none.

    Args:
        loss: at the best temperature, by which weights are chosen; a metric in its place.
        own: without a temperature.
        zero: of zero scores.
    """

    loss: float = math.nan
    own: float = math.nan
    zero: float = math.nan

    def beats(self, other: Judgement) -> bool:
        """Return whether these weights are better; never without a judgement, and always than weights without one."""
        return self.loss < other.loss or (math.isnan(other.loss) and not math.isnan(self.loss))


def measure_loss(
    net: nn.Module,
    batches: Iterable[Any],
    options: Options,
    inspections: Inspections | None = None,
    *,
    samples: float = math.inf,
    shared: Iterable[object] = (),
) -> Sums:
    """Sum the losses of a network's own scores on so many samples, by a private copy, which shares the objects in ``shared``.

    ``inspections`` are those of this network.
    """
    seen, sums, net = 0, Sums(), private_copy(unwrap(net), shared)
    with quiet(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = options.open(batches, device_of(net))
        head, targets = stream.head(1)
        task = inspect_task(net, head[0], targets, options, replace(MEASURED, inspections=inspections))
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
    """Return the sums of one batch; ``weights`` are of its samples.  Only scores of class probabilities have a temperature."""
    # Batches may differ in their number of steps.
    of_sample = task.rows if scores.dim() == 2 else replace(task.rows, each=scores.shape[1])
    prepared, rows = task.loss.prepare(of_sample.targets(target), scores.shape[-1]), scores.flatten(0, -2)
    shares = of_sample.weights(weights)
    shares = torch.ones(len(rows)) if shares is None else shares

    def total(scores: Tensor) -> float:
        values = task.loss.value(scores, prepared)
        return float(shares.to(values) @ values)

    own = total(rows)
    scaled = tuple(total(rows / temperature) if task.loss.has_temperature else own for temperature in TEMPERATURES)
    return Sums(float(shares.sum()), total(torch.zeros_like(rows)), own, scaled)
