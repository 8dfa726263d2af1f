"""Passes of a net with random currents in place of the readout's output, which show how its scores follow from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PASS_STEP, CaptureError, NetworkError
from ..calls.batches import Padded, describe
from ..calls.calls import time_first
from ..calls.forward import Forward
from ..calls.record import StoredBatch, Taps, record
from ..libraries import library_of
from ..libraries.library import Trace
from ..private.parameters import with_values
from ..private.quiet import quiet
from ..private.workbench import probe_copy, same_values
from ..readout.filters import fit_scale
from .graph import injector
from .layers import NetworkMap, ReadoutLayer

_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of currents at the readout, tried until its neuron spikes


@dataclass(frozen=True)
class Probe:
    """One pass under random readout currents; tensors are ``[T, B, C]``, and None without an output neuron."""

    currents: Tensor
    entered: Tensor | None  # input of the output neuron
    values: Tensor  # membranes of the output neuron, or the currents without one
    spikes: Tensor | None  # None also for a neuron that never spikes
    returned: Any  # by the net's forward
    alone: Trace | None = None  # simulation of the output neuron alone on ``entered``
    lengths: Tensor | None = None  # [B], of padded sequences


def run_probe(net: nn.Module, net_map: NetworkMap, inputs: Any, forward: Forward, draw: int = 0, gain: float = 1.0) -> Probe:
    """Run the net once from rest on a batch, with draw number ``draw`` of random currents in place of the readout's output.

    Currents are ``gain`` times those under which the output neuron spikes alone.
    Refuse calls that are not one for each step, and an output neuron that can't be simulated alone.
    """
    readout, lengths = net_map.readout, None
    if isinstance(inputs, Padded):  # lengths that differ, down from all steps, show what they change
        numbers = torch.arange(len(inputs.lengths), device=inputs.lengths.device)
        lengths = net_map.num_steps - numbers * net_map.num_steps // len(numbers)
        inputs = inputs._replace(lengths=lengths.to(inputs.lengths))
    calls, returned = _disturbed_pass(net, readout, inputs, forward, gain * _scale(readout, net_map.num_steps), draw)
    currents = _join(calls["currents"], net_map.layout, net_map)
    if readout.neuron is None:
        return Probe(currents, None, currents, None, returned, lengths=lengths)
    library = library_of(readout.neuron)
    layout = "time_first" if library.takes_sequences(readout.neuron) else "steps"
    entered = _join(calls["entered"], layout, net_map) if calls["entered"] else currents
    alone = library.run(readout.neuron, entered)
    # A neuron may hide its membranes in the net: those of its simulation alone replace them.
    values = _join(calls["membranes"], layout, net_map) if calls["membranes"] else alone.membranes
    # The output of a neuron that never spikes may be decoded over time already.
    spikes = None if torch.equal(alone.spikes, alone.membranes) else _join(calls["spikes"], layout, net_map)
    return Probe(currents, entered, values, spikes, returned, alone, lengths)


def layout_of_readout(
    net: nn.Module, readout: ReadoutLayer, layouts: Sequence[str], num_steps: int, inputs: Any, forward: Forward
) -> str:
    """Return the first possible layout by which the readout's currents, scaled, enter its neuron; the first one if none shows."""
    if len(layouts) == 1 or readout.neuron is None or library_of(readout.neuron).synapse(readout.neuron) is not None:
        return layouts[0]
    calls, _ = _disturbed_pass(net, readout, inputs, forward, _SCALES[0])
    takes_sequence = library_of(readout.neuron).takes_sequences(readout.neuron)
    if len(calls["entered"]) != (1 if takes_sequence else num_steps):
        return layouts[0]
    entered = calls["entered"][0] if takes_sequence else torch.stack(calls["entered"])
    for layout in layouts:
        if fit_scale(time_first(layout, calls["currents"], num_steps), entered) is not None:
            return layout
    return layouts[0]


def _scale(readout: ReadoutLayer, num_steps: int) -> float:
    """Return a size of random currents under which the output neuron spikes, if it ever does."""
    if readout.neuron is None:
        return _SCALES[0]
    weight = readout.weight
    for scale in _SCALES:
        currents = injector(scale)(weight.new_empty(num_steps, 4, readout.out_features))
        spikes = library_of(readout.neuron).run(readout.neuron, currents).spikes
        if bool((spikes != 0).any()):
            return scale
    return _SCALES[0]


def _disturbed_pass(
    net: nn.Module, readout: ReadoutLayer, inputs: Any, forward: Forward, scale: float, draw: int = 0
) -> tuple[defaultdict[str, list[Tensor]], Any]:
    """Run a copy of the net with random currents; return the values at each call of the readout and its neuron, and the output."""
    calls, draw_currents = defaultdict[str, list[Tensor]](list), injector(scale, draw=draw)
    copied, own = probe_copy(net)
    readout = replace(readout, module=own[readout.module], neuron=None if readout.neuron is None else own[readout.neuron])

    def inject(output: Any) -> Any:
        calls["currents"].append(draw_currents(output))
        return calls["currents"][-1].clone()

    def inject_input(value: Tensor) -> Tensor:
        calls["entered"].append(inject(value.new_empty(*value.shape[:-1], readout.out_features)))
        return calls["entered"][-1].clone()

    entered: dict[nn.Module, Callable[[Tensor], object]] = {}
    left: dict[nn.Module, Callable[[Any], object]] = {}
    if readout.neuron is not None:
        neuron, library = readout.neuron, library_of(readout.neuron)

        def keep(output: Any) -> None:
            membrane = library.membrane(neuron, output)
            if membrane is not None:
                calls["membranes"].append(membrane.clone())
            calls["spikes"].append(library.spikes(output).clone())

        left[neuron] = keep
        if library.synapse(neuron) is None:
            entered[neuron] = lambda value: calls["entered"].append(value.clone())
    if readout.module is readout.neuron:
        # With an identity as the weight the inputs are the currents.
        identity = {(readout.module, readout.weight_name): torch.eye(readout.out_features)}
        taps = Taps(inputs=entered, outputs=left, new_inputs={readout.module: inject_input})
    else:
        identity = {}
        taps = Taps(inputs=entered, outputs=left, new_outputs={readout.module: inject})
    with quiet(copied, seed=0), with_values(identity):
        returned = record(copied, StoredBatch(inputs, slice(0, 0), number=None), forward, taps)
    return calls, returned


def _join(calls: Sequence[Tensor], layout: str, net_map: NetworkMap) -> Tensor:
    if len(calls) == (net_map.num_steps if layout == "steps" else 1):
        sequence = time_first(layout, calls, net_map.num_steps)
        if sequence.ndim == 3:
            return sequence
    raise CaptureError(
        f"the readout or its neuron was called {len(calls)} times on {describe(calls[0]) if calls else 'nothing'} "
        f"in a forward pass of {net_map.num_steps} steps",
        "one call of both for each step with [batch, features]",
        "give every layer one neuron of its own for all steps, and call the readout only inside the time loop, once at each step",
    )


def check_neuron_alone(name: str, neuron: nn.Module, probe: Probe) -> None:
    """Refuse an output neuron that does something else in the net than alone."""
    assert probe.entered is not None
    assert probe.alone is not None
    # Autocast may round membranes to 16 bits, which tips spikes of those near the threshold.
    rounded = torch.finfo(probe.values.dtype).bits == 16
    same_spikes = probe.spikes is None or rounded or same_values(probe.alone.spikes, probe.spikes)
    if not same_values(probe.alone.membranes, probe.values) or not same_spikes:
        if same_values(probe.alone.membranes[:1], probe.values[:1]):
            found = f"a forward that changes the state of the output neuron {name!r} between time steps, as a clamp or a reset does"
            fix = "make it once before the time loop, and hand it on unchanged in forward"
            raise NetworkError(found, "an output neuron whose state is handed on as the neuron returns it", fix)
        raise NetworkError(
            f"the output neuron {name!r} does not start from rest in the net's forward",
            "a membrane of zero at the first step",
            f"reset it at the start of forward; if your script resets the net and then steps it, {PASS_STEP}",
        )
