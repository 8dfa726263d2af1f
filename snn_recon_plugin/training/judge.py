"""What tells two readouts apart in place of the held-out loss: validation data, or a number of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import Loss
from ..errors import DataError, OptionError
from ..networks import StoredBatch, compared_once, computed_once, device_of, preserved, run_batch, split_batch, to_device
from ..options import Options
from ..run import Run
from ..stream import Stream
from .batches import RefitBatches, Unpack

__all__ = ["AUTO", "HELD_OUT", "VALIDATION", "Judge", "judgement", "loss_on", "validation_loss"]

AUTO, HELD_OUT, VALIDATION = "auto", "held_out", "validation"
Judge = Callable[[Any], Any]


@contextmanager
def validating(trainer: Any) -> Iterator[None]:
    """The trainer says that it validates, which hooks that treat training data in another way ask for."""
    stage, trainer.validating = trainer.state.stage, True
    try:
        yield
    finally:
        trainer.state.stage = stage


def judgement(trainer: Any, judge: Judge, seed: int) -> tuple[float, float, float]:
    """What the user's function says of the module as it is, which is left as it was found; NaN; and 1, its weight among processes.

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
        return float(value), math.nan, 1.0
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None


def validation_loss(
    trainer: Any, options: Options, net: nn.Module, unpack: Unpack | None, most: float = math.inf
) -> tuple[float, float, float]:
    """Sums over the trainer's validation data, those of this process, by the network's own scores: losses, right rows, weights.

    A right row counts by its weight; NaN for regression.

    Args:
        trainer: whose validation data it is.
        options: of a solve: its loss, and how scores are read.
        net: the network as it is; left as it was found.
        unpack: takes a batch to its (input, target) pair; None for batches that are one.
        most: batches, beside the trainer's own limit.

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
        batches: Iterable[Any] = RefitBatches(loaders, trainer, unpack, None)
        return loss_on(options, net, batches if math.isinf(most) else islice(batches, int(most)))


def loss_on(options: Options, net: nn.Module, batches: Iterable[Any], most: float = math.inf) -> tuple[float, float, float]:
    """The same sums over (input, target) batches, as many as have ``most`` samples."""
    seen = 0
    total = right = weight = 0.0
    with preserved(net, seed=options.seed, loader=batches), computed_once(net), compared_once(net):
        stream = Stream(batches)
        head, targets = stream.head(net, 1)
        found = Run(options, net).inspect(head[0], targets)
        for number, batch in enumerate(stream, start=1):
            if seen >= most:
                break
            inputs, target = split_batch(batch, number)
            seen += len(target)
            inputs, target = to_device(inputs, device_of(net)), target.to(device_of(net))
            scores = found.readout.scores(run_batch(net, StoredBatch(inputs, slice(0, len(target))), options.forward)).double()
            labels = found.rows.targets(target)
            prepared = found.loss.prepare(labels, scores.shape[-1])
            values = found.loss.value(scores.flatten(0, -2), prepared)
            shares = found.rows.weights(options.criterion.weights(target))
            shares = torch.ones_like(values) if shares is None else shares.to(values)
            hits = _hits(found.loss, scores.flatten(0, -2), labels)
            total, right, weight = total + float(shares @ values), right + float(shares @ hits), weight + float(shares.sum())
    return total, right, weight


def _hits(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """1 for each row whose class is predicted, (n,); NaN where there are no classes."""
    if labels.dim() != 1 or labels.is_floating_point():
        return torch.full((len(scores),), math.nan, dtype=scores.dtype, device=scores.device)
    return (loss.predictions(scores) == labels).to(scores)
