"""Reasons why a hidden layer keeps its own weights, up to a gain, where the others are rebuilt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import HiddenLayer, library_of

from .site import CONVOLUTIONS
from .trials import fixed_reason
from .units import alike, one_for_all, unit_names

__all__ = ["own_weights_reasons"]

_REBUILT = (nn.Linear, *CONVOLUTIONS)


def own_weights_reasons(layers: Sequence[HiddenLayer], unit_parameters: bool = False) -> list[str]:
    """Return for each layer why it can't be rebuilt; an empty string where it can.

    Args:
        layers: all hidden layers of the net.
        unit_parameters: whether candidates may take parameters of a unit along.
    """
    return [fixed_reason(layer, layers) or _own(layer, unit_parameters) for layer in layers]


def _own(layer: HiddenLayer, unit_parameters: bool) -> str:
    # What one recurrent neuron does depends on all others, so that no row can be chosen by itself.
    library = library_of(layer.neuron)
    if layer.synapse is layer.neuron or library.recurrence(layer.neuron) is not None:
        return "recurrent: own weights"
    weight = getattr(layer.synapse, "weight", None)
    if not isinstance(layer.synapse, _REBUILT) or not isinstance(weight, Tensor):
        return f"the rows of a {type(layer.synapse).__name__} can't be replaced"
    if library.inhibits(layer.neuron):
        return "neurons that inhibit each other"
    with one_for_all(layer.neuron, len(weight)):
        return _units(layer, weight, unit_parameters)


def _units(layer: HiddenLayer, weight: Tensor, unit_parameters: bool) -> str:
    """Return that a neuron can't run more candidates than it has units, or that its units differ where they may not."""
    own = unit_names(layer.neuron, len(weight))
    if own and not unit_parameters:
        return f"units with a {' and a '.join(own)} of their own; unit_parameters=True rebuilds them"
    try:
        with alike(layer.neuron, own):
            library_of(layer.neuron).run(layer.neuron, weight.new_zeros(1, 1, len(weight) + 1))
    except UnsupportedModuleError as error:
        return f"{error.found}, which can't be simulated alone"
    except RuntimeError:
        return "units with parameters of their own in a shape that candidates can't take; give each unit one value"
    return ""
