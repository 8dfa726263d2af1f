"""One pass of a net under random readout currents, from which the readout is resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError, NetworkError, UnsupportedModuleError
from .batches import describe
from .forward import Forward
from .guard import preserved
from .layers import NetworkMap, ReadoutLayer, time_first
from .libraries import Trace, library_of
from .probes import injector
from .readouts import same_values
from .record import StoredBatch, Taps, record

__all__ = ["Probe", "check_alone", "find_layout", "run_probe"]

_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Probe:
    """One pass under random readout currents.

    Args:
        currents: ``[T, B, C]``, the random currents.
        entered: ``[T, B, C]``, input of the output neuron, or None without one.
        values: ``[T, B, C]``, membranes of the output neuron, or the currents without one.
        spikes: ``[T, B, C]``, output of the output neuron; None without one, or for one that never spikes.
        returned: output of the net's forward.
        alone: simulation of the output neuron alone on ``entered``, or None without one.
    """

    currents: Tensor
    entered: Tensor | None
    values: Tensor
    spikes: Tensor | None
    returned: Any
    alone: Trace | None = None


@dataclass
class _Calls:
    """Values at each call of the readout and of its neuron."""

    currents: list[Tensor]
    entered: list[Tensor]
    membranes: list[Tensor | None]
    spikes: list[Tensor]


def run_probe(net: nn.Module, net_map: NetworkMap, inputs: Any, forward: Forward, draw: int = 0) -> Probe:
    """Run the net once from rest on a batch, with draw number ``draw`` of random currents in place of the readout's output.

    Raises:
        CaptureError: if the readout or its neuron isn't called once for each step.
        UnsupportedModuleError: if the output neuron can't be simulated alone.
    """
    readout = net_map.readout
    calls, returned = _disturbed_pass(net, readout, inputs, forward, _scale(readout, net_map.num_steps), draw)
    currents = _join(calls.currents, net_map.layout, net_map)
    if readout.neuron is None:
        return Probe(currents, None, currents, None, returned)
    library = library_of(readout.neuron)
    layout = "time_first" if library.takes_sequences(readout.neuron) else "steps"
    entered = _join(calls.entered, layout, net_map) if calls.entered else currents
    spikes = _join(calls.spikes, layout, net_map)
    alone = library.run(readout.neuron, entered)
    seen = [membrane for membrane in calls.membranes if membrane is not None]
    # A layer of Norse returns its last state only: its membranes alone replace those in the net.
    values = _join(seen, layout, net_map) if seen else alone.membranes
    silent = torch.equal(alone.spikes, alone.membranes)
    return Probe(currents, entered, values, None if silent else spikes, returned, alone)


def find_layout(
    net: nn.Module, readout: ReadoutLayer, layouts: Sequence[str], num_steps: int, inputs: Any, forward: Forward
) -> str:
    """Find the order of time and batch at the readout among the layouts that the shapes allow.

    Returns:
        The layout by which the readout's currents are those that enter its neuron; the first one if none is.
    """
    if readout.neuron is None or library_of(readout.neuron).synapse(readout.neuron) is not None:
        return layouts[0]
    calls, _ = _disturbed_pass(net, readout, inputs, forward, _SCALES[0])
    whole = library_of(readout.neuron).takes_sequences(readout.neuron)
    if len(calls.entered) != (1 if whole else num_steps):
        return layouts[0]
    entered = calls.entered[0] if whole else torch.stack(calls.entered)
    for layout in layouts:
        if torch.equal(time_first(layout, calls.currents, num_steps), entered):
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
) -> tuple[_Calls, Any]:
    """Run the net with random currents, and keep the values at each call."""
    calls, replace = _Calls([], [], [], []), injector(scale, draw=draw)

    def inject(output: Any) -> Any:
        calls.currents.append(replace(output))
        return calls.currents[-1].clone()

    def inject_input(value: Tensor) -> Tensor:
        calls.entered.append(inject(value.new_empty(*value.shape[:-1], readout.out_features)))
        return calls.currents[-1].clone()

    entered: dict[nn.Module, Callable[[Tensor], object]] = {}
    left: dict[nn.Module, Callable[[Any], object]] = {}
    if readout.neuron is not None:
        neuron, library = readout.neuron, library_of(readout.neuron)

        def keep(output: Any) -> None:
            membrane = library.membrane(neuron, output)
            calls.membranes.append(None if membrane is None else membrane.clone())
            calls.spikes.append(library.spikes(output).clone())

        left[neuron] = keep
        if library.synapse(neuron) is None:
            entered[neuron] = lambda value: calls.entered.append(value.clone())
    if readout.fused:
        # With an identity as the weight the inputs are the currents.
        identity = {(readout.module, readout.weight_name): torch.eye(readout.out_features).to(readout.weight)}
        taps = Taps(inputs=entered, outputs=left, new_inputs={readout.module: inject_input}, parameters=identity)
    else:
        taps = Taps(inputs=entered, outputs=left, new_outputs={readout.module: inject})
    with preserved(net, seed=0):
        returned = record(net, StoredBatch(inputs, slice(0, 0), number=None), forward, taps)
    return calls, returned


def _join(calls: Sequence[Tensor], layout: str, net_map: NetworkMap) -> Tensor:
    """Join the values of all calls to ``[T, B, C]``."""
    if len(calls) == (net_map.num_steps if layout == "steps" else 1):
        whole = time_first(layout, calls, net_map.num_steps)
        if whole.ndim == 3:
            return whole
    raise CaptureError(
        f"the readout or its neuron was called {len(calls)} times on {describe(calls[0]) if calls else 'nothing'} "
        f"in a forward pass of {net_map.num_steps} steps",
        "one call for each step with [batch, features]",
        "give every layer a neuron of its own, and run all batches over the same number of steps",
    )


def check_alone(name: str, neuron: nn.Module, probe: Probe) -> None:
    """Check that the output neuron receives the readout's currents, and does the same in the net as alone from rest.

    Raises:
        NetworkError: if its state at the first step is not zero, or is not handed from step to step.
        UnsupportedModuleError: if something between the readout and the neuron changes the current.
    """
    assert probe.entered is not None
    assert probe.alone is not None
    if probe.entered.shape != probe.currents.shape or not torch.equal(probe.entered, probe.currents):
        raise UnsupportedModuleError(
            f"something between the readout layer and its neuron {name!r} changes the current",
            "the readout layer's output as it is",
            "remove the scaling, normalisation or second input there, or fold it into the layer",
        )
    # Autocast rounds StateLeaky's convolution to 16 bits, which tips spikes of membranes near the threshold.
    rounded = torch.finfo(probe.values.dtype).bits == 16
    same_spikes = probe.spikes is None or rounded or same_values(probe.alone.spikes, probe.spikes)
    if not same_values(probe.alone.membranes, probe.values) or not same_spikes:
        each = library_of(neuron).run(neuron, probe.entered.flatten(0, 1)[None]).membranes[0]  # every step from rest
        if not library_of(neuron).takes_sequences(neuron) and same_values(each, probe.values.flatten(0, 1)):
            raise NetworkError(
                f"the state of the output neuron {name!r} is not handed from step to step: every step starts from rest",
                "a state that is made once before the time loop and handed on in it",
                "write e.g. mem = self.lif2.reset_mem() before the loop and spk, mem = self.lif2(current, mem) in it",
            )
        raise NetworkError(
            f"the output neuron {name!r} does not start from rest in the net's forward",
            "a membrane of zero at the first step",
            "reset it at the start of forward, e.g. mem = self.lif2.reset_mem(), or state = None with Norse",
        )
