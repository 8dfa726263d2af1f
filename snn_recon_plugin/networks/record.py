"""Run a net on a batch and record what happens at chosen modules.  Every pass over a net goes through :func:`record`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from .calling import call_forward
from .forward import Forward
from .guard import seeded
from .layers import HiddenLayer
from .libraries import library_of, reset_states
from .taps import Taps, tapped

__all__ = ["StoredBatch", "Taps", "neuron_currents", "neuron_spikes", "record"]

_DRAW = 982_451_653  # a prime: seeds that differ in one bit alone draw alike
_NOTHING = Taps()


@dataclass(frozen=True)
class StoredBatch:
    """A batch to run the net on.

    Args:
        inputs: the inputs, on the net's device.
        rows: the rows of the captured features that are this batch's samples; their start seeds the batch's random numbers.
            If ``max_samples`` cut the batch they are its first samples, fewer than ``inputs`` holds.
        number: number of the batch in the loader, from 1, for messages; None if layers give random currents.
    """

    inputs: Any
    rows: slice
    number: int | None = 1

    @property
    def size(self) -> int:
        """Number of samples that count."""
        return int(self.rows.stop - self.rows.start)


def record(net: nn.Module, batch: StoredBatch, forward: Forward, taps: Taps = _NOTHING, *, draw: int = 0) -> Any:
    """Run the net once from rest on a batch, with the batch's own random numbers and without gradients.

    Args:
        net: the net; held by :func:`preserved`.
        batch: the batch.
        forward: how the net is called.
        taps: what to watch and what to replace; removed when the pass ends, however it ends.
        draw: another number draws other random numbers.

    Returns:
        The output of the net's forward, for all samples of the batch's inputs.

    Raises:
        CaptureError: if there are taps and the forward calls none of their modules.
        NetworkError: if the forward raises.
    """
    reset_states(net)
    with torch.no_grad(), tapped(taps) as called, seeded(batch.rows.start + _DRAW * draw, net):
        returned = call_forward(net, batch.inputs, forward, batch.number)
    watched = {*taps.before, *taps.after}
    if watched and not called:
        names = [f"{name!r} ({type(module).__name__})" for name, module in net.named_modules() if module in watched]
        which = "" if batch.number is None else f" on batch {batch.number}"
        raise CaptureError(
            f"a forward pass{which} that calls none of {', '.join(names)}",
            "a forward pass through the net's layers on every batch",
            "pass the forward that runs the net, e.g. forward=over_time(25), and check the loader",
        )
    return returned


def neuron_currents(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, keep: int | None = None
) -> Tensor:
    """Record the currents that enter a hidden layer's neuron, ``[T, n, *]``, of all samples or the first ``keep`` of each batch.

    Raises:
        CaptureError: if the forward pass doesn't reach the neuron, or a varying number of times.
    """
    neuron, library = layer.neuron, library_of(layer.neuron)
    own = library.synapse(neuron)
    axis = 1 if library.takes_sequences(neuron) else 0

    def taps_into(calls: list[Tensor]) -> Taps:
        steps: list[int] = []
        if own is None or own.module is neuron:
            return Taps(inputs={neuron: lambda current: calls.append(_first(current, axis, keep).detach().clone())})
        # The synapse inside the neuron gives the currents of all steps in one call, time and batch folded.
        return Taps(
            inputs={neuron: lambda value: steps.append(len(value))},
            outputs={own.module: lambda current: calls.append(current.detach().unflatten(0, (steps[-1], -1)).clone())},
        )

    return _over_batches(net, batches, layer, forward, taps_into)


def neuron_spikes(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> Tensor:
    """Record the spikes that a hidden layer's neuron emits, ``[T, n, *]``, of all samples of the batches.

    Raises:
        CaptureError: if the forward pass doesn't reach the neuron, or a varying number of times.
    """
    library = library_of(layer.neuron)

    def taps_into(calls: list[Tensor]) -> Taps:
        return Taps(outputs={layer.neuron: lambda output: calls.append(library.spikes(output).detach().clone())})

    return _over_batches(net, batches, layer, forward, taps_into)


def _first(value: Tensor, axis: int, keep: int | None) -> Tensor:
    return value if keep is None or value.ndim <= axis else value.narrow(axis, 0, min(keep, value.shape[axis]))


def _over_batches(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    layer: HiddenLayer,
    forward: Forward,
    taps_into: Callable[[list[Tensor]], Taps],
) -> Tensor:
    """Run the batches, each with taps that append a tensor at every call, and join the tensors over time and samples."""
    parts: list[Tensor] = []
    whole = library_of(layer.neuron).takes_sequences(layer.neuron)
    for batch in batches:
        calls: list[Tensor] = []
        record(net, batch, forward, taps_into(calls))
        if not calls or (whole and len(calls) > 1) or (parts and not whole and len(calls) != len(parts[0])):
            raise CaptureError(
                f"the neuron {layer.neuron_name!r} was called {len(calls)} times in a forward pass",
                "the same number of calls for every batch, at least one",
                "run all batches over the same number of steps, and give every layer a neuron of its own",
            )
        joined = calls[0] if whole else torch.stack(calls)
        parts.append(joined[:, : batch.size])
    return torch.cat(parts, dim=1)
