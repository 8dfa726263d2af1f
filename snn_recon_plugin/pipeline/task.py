"""Task of the convex program: the network's map, the readout, the losses to solve, and the rows of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..convex import CrossEntropy, Loss
from ..errors import NetworkError, OptionError, warn_user
from ..networks import (
    EXACTNESS,
    INSPECTED,
    KINDS,
    SPIKE_READOUTS,
    NetworkMap,
    Readout,
    StoredBatch,
    carries_over,
    check_forward,
    check_writable,
    few_samples,
    inspect_network,
    resolve_readout,
)
from .criterion import Criterion
from .options import Context, Options
from .programs import candidate_losses
from .requirements import check_no_images, check_rest, check_targets
from .rows import Rows, rows_of

__all__ = ["Task", "check_network_type", "inspect_task", "resolve_task_readout"]


@dataclass(frozen=True)
class Task:
    """Convex task of one network and loss, known from the first batch.

    Args:
        net_map: the network's map.
        readout: decodes scores from the readout's currents.
        loss: training loss of the scores.
        programs: candidate losses to solve, in this order.
        rows: rows of a sample in the program, and their targets.
    """

    net_map: NetworkMap
    readout: Readout
    loss: Loss
    programs: tuple[Loss, ...]
    rows: Rows

    @property
    def classes(self) -> int:
        """Number of scores of a row, one a class."""
        return self.readout.classes(self.net_map.readout.out_features)

    def prepare(self, targets: Tensor) -> Tensor:
        """Return targets of all rows of some samples in the form of the training loss."""
        return self.loss.prepare(self.rows.targets(targets), self.classes)


def inspect_task(net: nn.Module, batch: StoredBatch, targets: Tensor, options: Options, context: Context) -> Task:
    """Inspect a network on the first batch, and refuse layers and labels that can't be solved before minutes of work.

    Args:
        net: the network, held by ``preserved``.
        batch: the first batch.
        targets: its targets, in the user's form.
        options: options of the run.
        context: circumstances of the run.

    Raises:
        NetworkError: the network can't be read, written or solved.
        DataError: targets that fit neither the loss nor the readout.
        OptionError: an option that contradicts the network.
    """
    check_no_images(targets)
    forward, criterion = options.call, options.criterion
    few = few_samples(batch.inputs, len(targets), lambda inputs: forward(net, inputs))
    count = INSPECTED
    if few is batch.inputs:
        count = len(targets)
        check_forward(net, few, forward, count)
    net_map = inspect_network(net, few, forward, readout_layer=options.readout_layer, batch=count)
    check_writable(net, net_map, allow_tied=options.allow_tied)
    readout = resolve_task_readout(net, net_map, few, options)
    check_rest(readout, net_map)
    if not context.warm_start and carries_over(net, few, forward):
        warn_user(
            "The net keeps its membranes from one call to the next. It is reset before each batch here, and the report's "
            "accuracies are of a net that is: reset it at the start of forward, or before each batch of your own test."
        )
    # A squared loss of counts has the targets of all outputs of a class together.
    loss = criterion.make(net_map.num_steps * readout.per_class)
    classes = readout.classes(net_map.readout.out_features)
    rows = rows_of(loss, targets, classes, net_map.num_steps, readout.per_step)
    criterion.weights(targets)
    check_targets(readout, targets)
    programs = candidate_losses(
        options.fit_loss,
        loss,
        strength=options.strength,
        solver=options.solver,
        exactness=readout.exactness,
        rows_each=rows.each,
    )
    return Task(net_map, readout, loss, programs, rows)


def resolve_task_readout(net: nn.Module, net_map: NetworkMap, inputs: Any, options: Options) -> Readout:
    """Find the readout of a network, with values over time decoded as the training loss decodes them.

    Args:
        net: the network.
        net_map: its map.
        inputs: a few samples.
        options: ``readout="auto"`` leaves the choice to the loss.  The loss decides between spikes and membranes if the network
            returns both.  Spikes are counted.  Membranes that reset keep their own readout, since no step of them is linear.

    Raises:
        NetworkError: no readout explains the network's output.
        OptionError: the loss takes values over time, but the network returns scores; or it takes scores, but the network returns
            log-probabilities.
    """
    criterion = options.criterion
    resolve = partial(
        resolve_readout,
        net,
        net_map,
        inputs,
        options.call,
        allow=EXACTNESS,
        scores=options.scores,
        prefer=criterion.takes,
        classes=options.num_classes,
    )
    readout = resolve(options.readout)
    if readout.link != "identity" and not isinstance(criterion.make(net_map.num_steps), CrossEntropy):
        raise OptionError(
            f"the loss {criterion.name} for a network that returns {readout.link} of its scores",
            "a loss of log-probabilities, or a network that returns the scores themselves",
            "pass loss=nn.NLLLoss()",
        )
    wanted = _kind_of_loss(readout, criterion)
    if options.readout != "auto" or options.scores is not None or wanted in (None, readout.kind):
        return readout
    try:
        return resolve(wanted)
    except OptionError as error:
        raise OptionError(
            f"the loss {criterion.name}, which takes values over time, for a network that returns {readout.kind}",
            f"a network that returns the output layer's values over time, to be read as {wanted}, or a loss of scores",
            "return the recorded membranes from forward, or pass loss='cross_entropy' or a loss of torch.nn",
        ) from error


def _kind_of_loss(readout: Readout, criterion: Criterion) -> str | None:
    """Return the readout kind that a loss prescribes, None if it prescribes none."""
    if criterion.decoding is None or readout.kind in SPIKE_READOUTS or readout.kind not in KINDS:
        return None
    kind = KINDS[readout.kind].decoded_by(criterion.decoding)
    return None if kind.per_step and readout.exactness == "surrogate" else kind.name


def check_network_type(net: object) -> nn.Module:
    """Return the network, or refuse an object that is none.

    Raises:
        NetworkError: no ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
    return net
