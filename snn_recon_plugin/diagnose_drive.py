"""Drive of layers that fire too little or too much: how near their currents bring the membranes to the threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from .diagnose_rules import LayerDiagnosis
from .errors import ReconstructionError, UnsupportedModuleError
from .hidden.drive import RATE, take_few
from .hidden.driven_layer import DrivenLayer
from .networks.calls.batches import first_samples
from .networks.calls.fast_passes import fast_passes
from .networks.calls.record import StoredBatch
from .networks.capture import neuron_currents
from .networks.libraries import library_of
from .networks.structure.inspect import inspect_hidden, inspect_network
from .networks.structure.layers import HiddenLayer, NetworkMap
from .options import Options

_SAMPLES = 64  # of a batch whose currents are kept


def map_layers(net: nn.Module, batch: StoredBatch, options: Options) -> tuple[NetworkMap | None, Sequence[HiddenLayer]]:
    """Return the layers of a net that is refused for another reason, and its hidden ones; None and () if they can't be found."""
    few, _ = first_samples(batch.inputs, batch.size, run=lambda inputs: options.call(net, inputs))
    try:
        found = inspect_network(net, few, options.call, readout_layer=options.readout_layer)
    except ReconstructionError:
        try:
            return None, inspect_hidden(net, few, options.call)
        except ReconstructionError:
            return None, ()
    return found, found.hidden


def measure_drive(
    net: nn.Module, batch: StoredBatch, hidden: Sequence[HiddenLayer], layers: Sequence[LayerDiagnosis], options: Options
) -> tuple[LayerDiagnosis, ...]:
    """Add the drive of the hidden layers that fire too little or too much, as far as their neurons can run without the net."""
    by_name = {layer.name: layer for layer in hidden}
    found = []
    with fast_passes(net):
        for layer in layers:
            own = by_name.get(layer.name) if layer.is_unhealthy else None
            found.append(layer if own is None else _drive(net, batch, own, layer, options))
    return tuple(found)


def _drive(net: nn.Module, batch: StoredBatch, own: HiddenLayer, layer: LayerDiagnosis, options: Options) -> LayerDiagnosis:
    library, neuron = library_of(own.neuron), own.neuron
    if own.synapse is neuron:
        return layer
    try:
        few = take_few(neuron_currents(net, [batch], own, options.call, keep=_SAMPLES))
        alone = DrivenLayer(net, own, [batch], options.call, currents=few)
        first, gain = alone.find_gain(0.0), alone.find_gain(RATE)
    except ReconstructionError:
        return layer
    threshold = library.threshold(neuron)
    assert threshold is not None
    try:
        leak = library.dynamics(neuron).leak
    except UnsupportedModuleError:
        leak = math.nan
    reach, gain = 0.0 if first is None else 1 / first, math.inf if gain is None else gain
    return replace(layer, reach=reach, gain=gain, threshold=threshold[1], leak=leak)
