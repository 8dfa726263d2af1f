"""Which readout a training loss is taken of: the one asked for, or the one that the loss itself prescribes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .convex import CrossEntropy
from .criteria import Criterion
from .errors import OptionError
from .networks import EXACTNESS, SPIKE_READOUTS, Forward, NetworkMap, Readout, resolve_readout

__all__ = ["resolve_reading"]


def resolve_reading(
    net: nn.Module,
    net_map: NetworkMap,
    inputs: Any,
    forward: Forward,
    kind: str,
    criterion: Criterion,
    scores: Callable[[Any], Tensor] | None,
    classes: int | None = None,
) -> Readout:
    """Finds the readout, and reads values over time as the training loss does.

    Args:
        net: the network.
        net_map: its map.
        inputs: a few samples.
        forward: how the network is called.
        kind: the readout asked for, or "auto".
        criterion: the training loss.  With "auto" it says whether spikes or membranes are read where the network returns both.
            Spikes are counted.  Membranes over time are read as the loss does, unless they reset: then no step is linear.
        scores: the user's function from the network's output to scores, or None.
        classes: how many classes the outputs stand for; None for one each.

    Raises:
        NetworkError: no readout explains the network's output.
        OptionError: the loss takes values over time, but the network returns scores; or it takes scores, but the network returns
            log-probabilities.
    """
    resolve = partial(
        resolve_readout,
        net,
        net_map,
        inputs,
        forward,
        allow=EXACTNESS,
        scores=scores,
        prefer=criterion.takes,
        classes=classes,
    )
    readout = resolve(kind)
    if readout.link != "identity" and not isinstance(criterion.make(net_map.num_steps), CrossEntropy):
        raise OptionError(
            f"the loss {criterion.name} for a network that returns {readout.link} of its scores",
            "a loss of log-probabilities, or a network that returns the scores themselves",
            "pass loss=nn.NLLLoss()",
        )
    wanted = _wanted(readout, criterion.reading)
    if kind != "auto" or scores is not None or wanted in (None, readout.kind):
        return readout
    try:
        return resolve(wanted)
    except OptionError as error:
        raise OptionError(
            f"the loss {criterion.name}, which takes values over time, for a network that returns {readout.kind}",
            f"a network that returns the output layer's values over time, to be read as {wanted}, or a loss of scores",
            "return the recorded membranes from forward, or pass loss='cross_entropy' or a loss of torch.nn",
        ) from error


def _wanted(readout: Readout, reading: str | None) -> str | None:
    """The kind that a loss prescribes, None where it leaves the kind as it is."""
    if reading is None or readout.kind in SPIKE_READOUTS or readout.kind == "custom":
        return None
    if reading == "per_step" and readout.exactness == "surrogate":
        return None
    family = readout.kind.split("_")[0]
    return f"{family}_{reading}"
