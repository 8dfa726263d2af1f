"""What tells two readouts apart in place of the held-out loss: validation data, or a number of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..convex import Loss
from ..errors import DataError, OptionError
from ..networks import StoredBatch, device_of, fast_passes, preserved, run_batch, split_batch, to_device
from ..pipeline import START, Options, Stream, Task, inspect_task
from .batches import RefitBatches, Unpack

__all__ = ["AUTO", "HELD_OUT", "VALIDATION", "Judge", "Judged", "Sums", "judgement", "loss_on", "validation_loss"]

AUTO, HELD_OUT, VALIDATION = "auto", "held_out", "validation"
Judge = Callable[[Any], Any]
Inspect = Callable[[StoredBatch, Tensor], Task]


class Sums(NamedTuple):
    """Over samples, or over steps where each has a target.

    Args:
        loss: of it, by weight.
        right: of decisions that are right, by weight; NaN for regression.
        weight: of what is summed.
        squares: of the squared loss, by weight.
        decisions: how many.
    """

    loss: float = 0.0
    right: float = 0.0
    weight: float = 0.0
    squares: float = 0.0
    decisions: float = 0.0

    def plus(self, other: Sums) -> Sums:
        """Of both together."""
        return Sums(*(one + two for one, two in zip(self, other, strict=True)))

    def judged(self) -> Judged:
        """Means, and how far chance may have moved what is compared; nothing where nothing weighs anything."""
        if not self.weight:
            return Judged()
        value, accuracy = self.loss / self.weight, self.right / self.weight
        variance = self.squares / self.weight - value**2 if math.isnan(accuracy) else accuracy * (1 - accuracy)
        return Judged(value, accuracy, math.sqrt(max(0.0, variance) / self.decisions) if self.decisions else math.nan)


class Judged(NamedTuple):
    """What a judge said.

    Args:
        value: less is better; NaN for nothing.
        accuracy: on validation data with classes, else NaN.
        error: standard error of the accuracy, or of the value where there is none; NaN where it is not known.
    """

    value: float = math.nan
    accuracy: float = math.nan
    error: float = math.nan

    def better_than(self, other: Judged) -> bool:
        """A lower value, and no lower accuracy: a convex readout is the better calibrated, which alone is no reason to keep it."""
        return self.value < other.value and not self.accuracy < other.accuracy

    def clearly_better_than(self, other: Judged) -> bool:
        """Better by more than chance explains: by two standard errors of the accuracy, or of the value where there is none."""
        lead = other.value - self.value if math.isnan(self.accuracy) else self.accuracy - other.accuracy
        return self.better_than(other) and lead > 2 * math.hypot(self.error, other.error)


@contextmanager
def validating(trainer: Any) -> Iterator[None]:
    """The trainer says that it validates, which hooks that treat training data in another way ask for."""
    stage, trainer.validating = trainer.state.stage, True
    try:
        yield
    finally:
        trainer.state.stage = stage


def judgement(trainer: Any, judge: Judge, seed: int) -> Sums:
    """What the user's function says of the module as it is, which is left as it was found, with a weight of 1 among processes.

    Args:
        trainer: whose module is judged, in evaluation mode meanwhile and without gradients.
        judge: ``judge(module)``; less is better.
        seed: of random generators meanwhile, so that two judgements differ by the readout alone.

    Raises:
        OptionError: it gives no number.
    """
    module = trainer.lightning_module
    with preserved(module, seed=seed), validating(trainer):
        value = judge(module)
    try:
        return Sums(float(value), math.nan, 1.0)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None


def validation_loss(
    trainer: Any, options: Options, net: nn.Module, unpack: Unpack | None, most: float = math.inf, inspect: Inspect | None = None
) -> Sums:
    """Over the trainer's validation data, those of this process, by the network's own scores.

    Args:
        trainer: whose validation data it is.
        options: of a solve: its loss, and how scores are read.
        net: the network as it is; left as it was found.
        unpack: takes a batch to its (input, target) pair; None for batches that are one.
        most: batches, beside the trainer's own limit.
        inspect: gives what is known of the network already; default looks anew.

    Raises:
        DataError: there are no validation data, or several loaders of them.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    with validating(trainer):
        if trainer.enable_validation and loop._combined_loader is None:
            loop.setup_data()  # Lightning itself waits for the first epoch that is validated
        loaders = None if loop._combined_loader is None else loop._combined_loader.iterables
        if isinstance(loaders, list | tuple) and len(loaders) == 1:
            loaders = loaders[0]
        if loaders is None or isinstance(loaders, list | tuple | dict):
            found = "no validation data" if not loaders else f"{len(loaders)} loaders of validation data"
            fix = "pass val_dataloaders to trainer.fit, or a function, judge=lambda module: ..."
            raise DataError(found, "one loader of them for judge='validation'", fix)
        most = min(most, *loop._max_batches)
        batches = RefitBatches(loaders, trainer, unpack, None, None if math.isinf(most) else int(most))
        return loss_on(options, net, batches, inspect=inspect)


def loss_on(
    options: Options, net: nn.Module, batches: Iterable[Any], most: float = math.inf, inspect: Inspect | None = None
) -> Sums:
    """The same over (input, target) batches, as many as have ``most`` samples."""
    seen, sums = 0, Sums()
    with preserved(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = Stream(batches, options.unpack, options.criterion.ignored)
        head, targets = stream.head(net, 1)
        found = inspect_task(net, head[0], targets, options, START) if inspect is None else inspect(head[0], targets)
        for number, batch in enumerate(stream, start=1):
            if seen >= most:
                break
            inputs, target = split_batch(batch, number)
            seen += len(target)
            inputs, target = to_device(inputs, device_of(net)), target.to(device_of(net))
            stored = StoredBatch(inputs, slice(0, len(target)), number)
            scores = found.readout.scores(run_batch(net, stored, options.call)).double()
            labels = found.rows.targets(target)
            prepared = found.loss.prepare(labels, scores.shape[-1])
            values = found.loss.value(scores.flatten(0, -2), prepared)
            shares = found.rows.weights(options.criterion.weights(target))
            shares = torch.ones_like(values) if shares is None else shares.to(values)
            hits = _hits(found.loss, found.rows.decisions(scores), found.rows.decided(labels))
            counted = found.rows.decided(shares)
            counted = counted * (len(shares) / len(counted))  # of a sample that is several rows, all of them
            loss, right, weight, squares = shares @ values, counted @ hits, shares.sum(), shares @ values.square()
            sums = sums.plus(Sums(float(loss), float(right), float(weight), float(squares), len(hits)))
    return sums


def _hits(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """1 for each decision that is right, (n,); NaN where there are no classes."""
    if labels.dim() != 1 or labels.is_floating_point():
        return torch.full((len(scores),), math.nan, dtype=scores.dtype, device=scores.device)
    return (loss.predictions(scores) == labels).to(scores)
