"""Inspection of a net: its hidden layers, its readout and its time steps; and a store of what was found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import (
    PASS_STEP,
    AmbiguousReadoutError,
    CaptureError,
    DataError,
    NetworkError,
    ReadoutNotFoundError,
    UnsupportedModuleError,
)
from ..calls.batches import first_samples, tensors_in
from ..calls.calls import possible_layouts, steps_and_samples
from ..calls.forward import Forward, OverTime, keeps_state, plain_forward, without_contexts
from ..libraries import takes_sequences
from ..readout.readout import Readout
from .graph import Graph, layout_of_readout
from .layers import HiddenLayer, NetworkMap, ReadoutLayer
from .refusals import check_linear, check_output_neuron, check_readable, require_one_library


def inspect_network(
    net: nn.Module,
    inputs: Any,
    forward: Forward,
    *,
    readout_layer: str | None = None,
    batch: int | None = None,
    targets: Sequence[int] = (),
) -> NetworkMap:
    """Find hidden layers, readout and time steps by running the net, once undisturbed and once for every synapse.

    ``inputs`` are a few samples, ``batch`` of them; the number separates time from batch, None if it is unknown.  ``targets`` is
    the shape of the targets of all samples, () if it is unknown.  ``readout_layer`` names the readout if several layers end a
    path.  The error for a net that can't be read names the obstacle.
    """
    library = require_one_library(net)
    graph = _make_graph(net, inputs, forward)
    module = _choose(graph, readout_layer)
    fed = graph.fed_by(module)
    readout = _readout(graph, module, fed[0] if fed else None)
    check_output_neuron(readout)
    check_linear(net, readout, inputs, forward)
    hidden = graph.hidden(module, exclude=fed)
    neuron = readout.neuron or (hidden[-1].neuron if hidden else None)
    num_steps, samples, layouts = _read_timing(graph, readout, neuron, forward)
    _check_axes(num_steps, samples, batch, targets)
    layout = layout_of_readout(net, readout, layouts, num_steps, inputs, forward)
    return NetworkMap(library, hidden, readout, num_steps, layout)


def inspect_hidden(net: nn.Module, inputs: Any, forward: Forward) -> list[HiddenLayer]:
    """Find the hidden layers of a net that may end in anything, from the input up; refuse a net without one."""
    require_one_library(net)
    graph = _make_graph(net, inputs, forward)
    if graph.called_once and without_contexts(forward) is plain_forward and not takes_sequences(net):
        _refuse_single_step(graph)
    found = [layer for layer in graph.all_hidden() if layer.library.threshold(layer.neuron) is not None]
    if not found:
        needed = "a spiking neuron between two layers with weights"
        fix = "give each layer its own neuron; check that forward runs the whole net; a net of one layer needs no start"
        raise NetworkError(f"no hidden layer in a {type(net).__name__}, whose layers are {graph.names_of(graph.ran)}", needed, fix)
    return found


def _make_graph(net: nn.Module, inputs: Any, forward: Forward) -> Graph:
    """Run a net that can be read, and refuse one whose passes differ."""
    check_readable(net)
    graph = Graph(net, inputs, forward)
    graph.refuse_unrepeatable()
    _refuse_folded(graph)
    return graph


def _refuse_folded(graph: Graph) -> None:
    """Refuse neurons that get all steps of another one as samples, in one call: each of their steps starts from rest."""
    takes_all = graph.library.takes_sequences
    seen = {neuron: shapes[0] for neuron in graph.neurons if len(shapes := graph.plain.shapes.get(neuron, [])) == 1}
    folds = {shape[0] * shape[1]: shape[0] for neuron, shape in seen.items() if takes_all(neuron) and len(shape) > 2}
    for neuron, shape in seen.items():
        steps = 1 if takes_all(neuron) else folds.get(shape[0], 1)
        if steps > 1:
            found = f"the neuron {graph.names[neuron]!r}, which takes one step a call, gets all {steps} steps in one, as samples"
            fix = "call it once a step, or let it take all steps, in SpikingJelly by functional.set_step_mode(net, 'm')"
            raise NetworkError(f"{found}: every step starts from rest", "a state that is kept over the steps", fix)


def _check_axes(num_steps: int, samples: int, batch: int | None, targets: Sequence[int]) -> None:
    """Refuse a pass that took the samples of a batch for time steps."""
    if batch is None or num_steps != batch or samples == batch:
        return
    if len(targets) > 1 and targets[1] == samples:
        found = f"targets of shape {tuple(targets)}, whose axis 1 holds the {samples} samples of the forward pass"
        raise DataError(found, "samples on axis 0 of targets", "pass unpack=lambda batch: (batch[0], batch[1].transpose(0, 1))")
    found = f"a forward pass of {batch} time steps on {samples} samples, for inputs that hold {batch} samples"
    raise DataError(found, "time and batch on the axes on which forward takes them", PASS_STEP)


def _readout(graph: Graph, module: nn.Module, neuron: nn.Module | None) -> ReadoutLayer:
    weight, bias = "weight", None if getattr(module, "bias", None) is None else "bias"
    if neuron is module:  # weight and neuron in one
        own = graph.library.synapse(module)
        assert own is not None
        assert own.weight is not None
        weight, bias = own.weight, own.bias
    return ReadoutLayer(graph.names[module], module, graph.names[neuron] if neuron is not None else None, neuron, weight, bias)


def _choose(graph: Graph, wanted: str | None) -> nn.Module:
    candidates = graph.readouts()
    if wanted is not None:
        return _named(graph, candidates, wanted)
    ends = [] if candidates else graph.unreadable_ends()
    library = graph.library
    if ends:
        needed = f"{library.readouts} as the readout, followed by a neuron without recurrent weights, or by none"
        fix = f"end the net with an nn.Linear and e.g. {library.integrator}; as a hidden layer it may stay"
        raise UnsupportedModuleError(f"a net that ends in {graph.names_of(ends)}, a neuron with weights of its own", needed, fix)
    if not candidates:
        found = f"no readout among the layers {graph.names_of(graph.synapses)}"
        fix = "end the net with an nn.Linear, or check that forward returns what comes after it"
        raise ReadoutNotFoundError(found, f"{library.readouts} whose output reaches the net's output and no further synapse", fix)
    if len(candidates) > 1:
        found = f"{len(candidates)} layers that could be the readout: {graph.names_of(candidates)}"
        raise AmbiguousReadoutError(found, "one", f'name it, e.g. readout_layer="{graph.names[candidates[0]]}"')
    return candidates[0]


def _named(graph: Graph, candidates: Sequence[nn.Module], wanted: str) -> nn.Module:
    for module in candidates:
        if graph.names[module] == wanted:
            return module
    uncalled = [module for module in graph.synapses if graph.names[module] == wanted and module not in graph.ran]
    if uncalled:
        found = f"a forward pass that never calls the readout {wanted!r}"
        needed = f"a forward pass through it; it called {graph.names_of([m for m in graph.synapses if m in graph.ran])}"
        raise CaptureError(found, needed, PASS_STEP)
    offer = f'pass readout_layer="{graph.names[candidates[0]]}"' if candidates else "leave readout_layer out"
    needed = f"one of the net's readouts {graph.names_of(candidates)} (its layers are {graph.names_of(graph.synapses)})"
    raise ReadoutNotFoundError(f"readout_layer={wanted!r}, which is not a readout of this net", needed, offer)


# -- time steps ----------------------------------------------------------------------------------------------------------------


def _read_timing(graph: Graph, readout: ReadoutLayer, neuron: nn.Module | None, forward: Forward) -> tuple[int, int, list[str]]:
    """Return steps, samples and layouts by the shapes of calls; refuse a time loop that is missing, twice there, or hidden."""
    shapes, forward = graph.plain.shapes[readout.module], without_contexts(forward)
    calls, rank = len(shapes), len(shapes[0])
    if rank == 1:
        found = f"the readout {readout.name!r} is called {calls} times with inputs of shape {list(shapes[0])}, without a batch axis"
        raise NetworkError(found, "inputs [time, batch, ...], as forward takes the first axis for time", PASS_STEP)
    seen = [] if neuron is None else graph.plain.shapes.get(neuron, [])
    takes_sequence = graph.library.takes_sequences(neuron) if neuron is not None and seen else rank > 2
    if neuron is not None and seen and takes_sequence and len(seen[0]) == 2:
        found = f"the neuron {graph.names[neuron]!r}, which takes all time steps in one call, on inputs of shape {list(seen[0])}"
        fix = "add it, e.g. by forward=lambda net, x: net(x.expand(25, *x.shape)) to static inputs [batch, features]"
        raise NetworkError(found, "inputs [time, batch, features]: a time axis or a batch axis is missing", fix)
    steps, batch = steps_and_samples(seen or shapes, takes_sequence)
    layouts = possible_layouts(shapes, steps, batch)
    if not layouts and rank == 2:
        # A layer on what the net has summed up over time itself, or a neuron that is called for other layers as well.
        steps, layouts = calls, ["steps"]
    if isinstance(forward, OverTime) and forward.num_steps and layouts and steps != forward.num_steps and steps > 1:
        found = f"{forward!r} around a net that itself runs the readout {steps // forward.num_steps} times"
        raise NetworkError(found, "one time loop", "leave forward out: this net has its time loop inside")
    if rank == 2 and calls == 1 and steps == 1 and forward is plain_forward and graph.called_once:
        _refuse_single_step(graph)
    if not layouts:
        raise NetworkError(
            f"the readout {readout.name!r} is called {calls} times with inputs of shape {list(shapes[0])}",
            "one call per time step with [batch, features], or one call with [time, batch, features]",
            f"if your script reshapes the inputs or loops over time, {PASS_STEP}; else flatten all axes behind time and batch",
        )
    return steps, batch, layouts


def _refuse_single_step(graph: Graph) -> None:
    """Refuse a net that was run for one step, but would go on from it in the next call."""
    if keeps_state(graph.net) or graph.carries_over():
        found = "a forward pass of a single time step, by neurons that keep their state from one call to the next"
        fix = f"{PASS_STEP}; or forward=over_time(25), with your number of steps"
        raise NetworkError(found, "a forward pass over all time steps", fix)


# -- what was found ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """Layers and readout of a network.

    It holds no inputs: a store of structures would keep a batch in memory for as long as training takes.
    """

    net_map: NetworkMap
    readout: Readout
    whole: bool  # found on a whole batch, since the network takes no fewer samples, or since their axis is unclear

    @property
    def lasts(self) -> bool:
        """False if training changes what was measured, the scale of a norm behind the readout."""
        return self.readout.scale is None


class Inspections:
    """Structures of a network, the ``origin``, and its copies, by the shapes of a few samples: finding one takes several passes."""

    def __init__(self, origin: nn.Module) -> None:
        self._origin = origin
        self._found: dict[Any, Structure] = {}

    def find(
        self, net: nn.Module, inputs: Any, samples: int, inspect: Callable[[], Structure], *, only_read: bool = False
    ) -> Structure:
        """Return the structure of a copy for a batch of so many samples; inspect it if no batch of these shapes came before.

        Where a net that is ``only_read`` has become one that can't be solved, as with a norm a step, an earlier structure does.
        """
        few, _ = first_samples(inputs, samples)
        shapes = tuple(value.shape for value in tensors_in(few)) or getattr(inputs, "shape", ())  # of an array
        known = self._found.get(shapes)
        if known is not None and known.lasts:
            return _moved(known, self._origin, net)
        try:
            structure = inspect()
        except UnsupportedModuleError:
            if known is None or not only_read:
                raise
            return _moved(known, self._origin, net)
        self._found[shapes] = _moved(structure, net, self._origin)  # of the origin, since copies are dropped
        return structure


def _moved(structure: Structure, old: nn.Module, new: nn.Module) -> Structure:
    if old is new:
        return structure
    return copy.deepcopy(structure, {id(one): other for one, other in zip(old.modules(), new.modules(), strict=True)})
