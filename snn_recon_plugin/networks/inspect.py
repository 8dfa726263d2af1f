"""Inspection of a net: its hidden layers, its readout and its time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import AmbiguousReadoutError, CaptureError, DataError, ReadoutNotFoundError, UnsupportedModuleError
from .forward import Forward, OverTime, bare
from .graph import Graph
from .layers import NetworkMap, ReadoutLayer
from .libraries import library_of
from .probes import find_layout
from .refusals import (
    check_arguments,
    check_linear,
    check_output_neuron,
    check_readable,
    refuse_unrepeatable,
    require_one_library,
)
from .timing import Timing, read_timing

__all__ = ["inspect_network"]


def inspect_network(
    net: nn.Module, inputs: Any, forward: Forward, *, readout_layer: str | None = None, batch: int | None = None
) -> NetworkMap:
    """Find hidden layers, readout and time steps by running the net, once undisturbed and once for every synapse.

    Args:
        net: the net; left as found.
        inputs: one batch of inputs; a few samples are enough, see :func:`~.batches.few_samples`.
        forward: how the net is called.
        readout_layer: name of the readout, if several layers could be it.
        batch: number of samples in the inputs, which separates time from batch; None if unknown.

    Raises:
        AmbiguousReadoutError: several linear layers end a path and ``readout_layer`` is None.
        CaptureError: the forward pass reaches no synapse, or not the one of the given name.
        DataError: the net takes the inputs' batch axis for time.
        NetworkError: the readout's calls hide its time steps, weights are not finite, two passes over the same inputs differ, or
            forward takes more than the inputs.
        ReadoutNotFoundError: no linear layer ends a path, or none has the given name.
        UnsupportedModuleError: the net, its neurons, or what it ends in can't be read.
    """
    library = require_one_library(net)
    check_readable(net)
    check_arguments(net, forward)
    graph = Graph(net, inputs, forward)
    if not graph.repeats():
        refuse_unrepeatable(net, inputs, forward)
    module = _choose(graph, readout_layer)
    fed = graph.fed_by(module)
    readout = _readout(graph, module, fed[0] if fed else None)
    check_output_neuron(readout)
    check_linear(net, readout, inputs, forward)
    hidden = graph.hidden(module, exclude=fed)
    neuron = readout.neuron or (hidden[-1].neuron if hidden else None)
    timing = read_timing(graph, readout, neuron, forward)
    _check_axes(timing, forward, batch)
    layout = timing.layouts[0]
    if len(timing.layouts) > 1:
        layout = find_layout(net, readout, timing.layouts, timing.num_steps, inputs, forward)
    return NetworkMap(library, hidden, readout, timing.num_steps, layout)


def _check_axes(timing: Timing, forward: Forward, batch: int | None) -> None:
    """Refuse a pass that took the samples of a batch for time steps."""
    if batch is None or timing.num_steps != batch or timing.batch == batch:
        return
    given, fix = bare(forward), "swap them, e.g. forward=lambda net, x: net(x.transpose(0, 1))"
    if isinstance(given, OverTime) and given.time_dim is not None:
        fix = f"pass forward={replace(given, time_dim=1 - given.time_dim)!r}"
        if given.num_steps is None:
            static = replace(given, num_steps=25, time_dim=None)
            fix += f"; for inputs without a time axis the number of steps, e.g. {static!r}"
    raise DataError(
        f"a forward pass of {batch} time steps on {timing.batch} samples, for inputs that hold {batch} samples",
        "time and batch on the axes on which forward takes them",
        fix,
    )


def _readout(graph: Graph, module: nn.Module, neuron: nn.Module | None) -> ReadoutLayer:
    """Describe the readout by its modules and the names of its parameters."""
    weight, bias = "weight", None if getattr(module, "bias", None) is None else "bias"
    if neuron is module:  # weight and neuron in one
        own = library_of(module).synapse(module)
        assert own is not None
        assert own.weight is not None
        weight, bias = own.weight, own.bias
    return ReadoutLayer(graph.names[module], module, graph.names[neuron] if neuron is not None else None, neuron, weight, bias)


def _choose(graph: Graph, wanted: str | None) -> nn.Module:
    """Pick the readout among the layers that end a path."""
    candidates = graph.readouts()
    if wanted is not None:
        return _named(graph, candidates, wanted)
    ends = [] if candidates else graph.unreadable_ends()
    if ends:
        raise UnsupportedModuleError(
            f"a net that ends in {graph.names_of(ends)}, a neuron with weights of its own",
            "an nn.Linear (or Norse's LILinearCell) as the readout, followed by a neuron without recurrent weights, or by none",
            "end the net with an nn.Linear and e.g. norse.LICell() or snn.Leaky(beta=0.9, reset_mechanism='none'); as a hidden "
            "layer it may stay",
        )
    if not candidates:
        raise ReadoutNotFoundError(
            f"no readout among the layers {graph.names_of(graph.synapses)}",
            "an nn.Linear (or Norse's LILinearCell) whose output reaches the net's output and no further synapse",
            "end the net with an nn.Linear, or check that forward returns what comes after it",
        )
    if len(candidates) > 1:
        raise AmbiguousReadoutError(
            f"{len(candidates)} layers that could be the readout: {graph.names_of(candidates)}",
            "one",
            f'name it, e.g. readout_layer="{graph.names[candidates[0]]}"',
        )
    return candidates[0]


def _named(graph: Graph, candidates: Sequence[nn.Module], wanted: str) -> nn.Module:
    for module in candidates:
        if graph.names[module] == wanted:
            return module
    uncalled = [module for module in graph.synapses if graph.names[module] == wanted and module not in graph.ran]
    if uncalled:
        raise CaptureError(
            f"a forward pass that never calls the readout {wanted!r}",
            f"a forward pass through it; it called {graph.names_of([m for m in graph.synapses if m in graph.ran])}",
            "pass the forward that runs the whole net, by forward=",
        )
    offer = f'pass readout_layer="{graph.names[candidates[0]]}"' if candidates else "leave readout_layer out"
    raise ReadoutNotFoundError(
        f"readout_layer={wanted!r}, which is not a readout of this net",
        f"one of the net's readouts {graph.names_of(candidates)} (its layers are {graph.names_of(graph.synapses)})",
        offer,
    )
