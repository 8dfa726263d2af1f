"""What tells two readouts apart in place of the held-out loss: validation data, or a number of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..errors import DataError, OptionError
from ..networks import StoredBatch, device_of, preserved, run_batch, split_batch, to_device
from ..options import Options
from ..run import Run
from ..stream import Stream
from .batches import RefitBatches, Unpack

__all__ = ["VALIDATION", "Judge", "judgement", "validation_loss"]

VALIDATION = "validation"
Judge = Callable[[Any], Any]


def judgement(judge: Judge, module: Any, seed: int) -> float:
    """What the user's function says of a module as it is, which is left as it was found.

    Args:
        judge: ``judge(module)``; less is better.
        module: the LightningModule, in evaluation mode meanwhile and without gradients.
        seed: of random generators meanwhile, so that two judgements differ by the readout alone.

    Raises:
        OptionError: it gives no number.
    """
    with preserved(module, seed=seed):
        value = judge(module)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None


def validation_loss(trainer: Any, options: Options, net: nn.Module, unpack: Unpack | None) -> float:
    """Mean loss on the trainer's validation data, of this process where there are several, by the network's own scores.

    Args:
        trainer: whose validation data it is.
        options: of a solve: its loss, and how scores are read.
        net: the network as it is; left as it was found.
        unpack: takes a batch to its (input, target) pair; None for batches that are one.

    Raises:
        DataError: there are no validation data, or several loaders of them.
    """
    loaders = trainer.val_dataloaders
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        loaders = loaders[0]
    if loaders is None or isinstance(loaders, list | tuple | dict):
        found = "no validation data" if not loaders else f"{len(loaders)} loaders of validation data"
        raise DataError(
            found, "one loader for judge='validation'", "pass val_dataloaders to trainer.fit, or judge=lambda module: ..."
        )
    most = trainer.num_val_batches[0] if trainer.num_val_batches else math.inf
    batches: Iterable[Any] = RefitBatches(loaders, trainer, unpack, None)
    return _mean_loss(options, net, batches if math.isinf(most) else islice(batches, int(most)))


def _mean_loss(options: Options, net: nn.Module, batches: Iterable[Any]) -> float:
    total = weight = 0.0
    with preserved(net, seed=options.seed, loader=batches):
        stream = Stream(batches)
        head, targets = stream.head(net, 1)
        found = Run(options, net).inspect(head[0], targets)
        for number, batch in enumerate(stream, start=1):
            inputs, target = split_batch(batch, number)
            inputs, target = to_device(inputs, device_of(net)), target.to(device_of(net))
            scores = found.readout.scores(run_batch(net, StoredBatch(inputs, slice(0, len(target))), options.forward)).double()
            prepared = found.loss.prepare(found.rows.targets(target), scores.shape[-1])
            values = found.loss.value(scores.flatten(0, -2), prepared)
            shares = found.rows.weights(options.criterion.weights(target))
            shares = torch.ones_like(values) if shares is None else shares.to(values)
            total, weight = total + float(shares @ values), weight + float(shares.sum())
    return total / weight
