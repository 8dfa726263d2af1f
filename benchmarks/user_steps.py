"""The training step of each user net's script, from which the line reads what its options say otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import one_hot

from snn_recon_plugin.networks.calls.batches import Padded
from tests.user_nets.data import total
from tests.user_nets.record import TYPED, UserNet
from tests.user_nets.spikingjelly_nets import all_steps

LOSSES = {"logistic": nn.BCEWithLogitsLoss()}  # of torch, by the names that options give them
# Of scripts that say in other words what their options say: what goes into the loss, from what the net returns.
DECODED: dict[str, Callable[[Any], Tensor]] = {
    "readout of all layers and the input": lambda spikes: spikes.sum(1),
    "spikes batch first": lambda spikes: spikes.sum(1),
    "lists of steps": lambda output: sum(output[0]),
    "a value at every step, time first": lambda values: values,
    "first spike": itemgetter(0),
    "the same, spikes returned too": lambda output: output[1].mean(0),
}
OPTIONS = {  # of them, what the script has in place of an option
    "a value at every step, time first": "loss=nn.MSELoss()",
    "first spike": "loss=SF.ce_temporal_loss()",
    "classify_dvsg: ten outputs vote for a class": "forward=all_steps, loss=nn.MSELoss()",
}


def with_step(entry: UserNet) -> UserNet:
    """Return a net with its script's step as the only option: its forward and loss, and cross-entropy where the line gives none."""
    names = {**TYPED, "all_steps": all_steps, **entry.names}
    given = eval(f"dict({OPTIONS.get(entry.name, entry.options)})", names)
    forward, unpack = given.get("forward", lambda net, x: net(x)), given.get("unpack", lambda batch: batch)
    loss = given.get("loss", nn.CrossEntropyLoss())
    loss = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
    decode = DECODED.get(entry.name, lambda output: scores_of(output, loss, given.get("readout", "")))

    def train_step(net: nn.Module, batch: Any) -> Tensor:
        inputs, targets, *lengths = unpack(batch)
        scores = decode(forward(net, Padded(inputs, *lengths) if lengths else inputs))
        return loss(
            scores, as_targets(targets, scores) if isinstance(loss, nn.MSELoss | nn.HuberLoss | nn.BCEWithLogitsLoss) else targets
        )

    return replace(entry, options="step=train_step", names={"train_step": train_step})


def scores_of(output: Any, loss: object, readout: str) -> Tensor:
    """Return what the loss gets: values over time for a loss of snnTorch's, else their sum, largest or last."""
    own = type(loss).__module__.startswith("snntorch")
    if isinstance(output, dict):
        output = next(iter(output.values()))
    if isinstance(output, tuple | list):
        membranes = "membrane" in (type(loss).__name__ if own else readout)
        output = output[1] if membranes and isinstance(output[1], Tensor) else output[0]
    if own or output.dim() < 3:
        return output
    decode = {"membrane_last": itemgetter(-1), "membrane_max": lambda values: values.amax(0)}.get(readout, total)
    return decode(output)


def as_targets(targets: Tensor, scores: Tensor) -> Tensor:
    """Return targets in the shape of the scores, one-hot if they are classes."""
    if targets.numel() == scores.numel():
        return targets.to(scores.dtype).reshape(scores.shape)
    return one_hot(targets, scores.shape[1]).to(scores.dtype)
