"""Which hidden layers can be rebuilt, which keep their own weights, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import HiddenLayer, adapter_of, can_try

from .units import alike, one_for_all, unit_names

__all__ = ["check_shared", "own_weights_reason"]


def check_shared(layers: Sequence[HiddenLayer]) -> None:
    """Refuses a synapse or a neuron that serves two layers: what one of them gets, the other would get too.

    Raises:
        UnsupportedModuleError: the message names both.
    """
    for number, layer in enumerate(layers):
        for other in layers[:number]:
            if other.synapse is layer.synapse or other.neuron is layer.neuron:
                part = "synapse" if other.synapse is layer.synapse else "neuron"
                found = f"the same {part} as {other.name!r} ({other.neuron_name!r} and {layer.neuron_name!r})"
                raise _unsupported(layer, found, "a synapse and a neuron of its own for each layer")


def own_weights_reason(layer: HiddenLayer, unit_parameters: bool = False) -> str:
    """Why a layer keeps its own weights, up to a gain; empty where it can be rebuilt.

    Only recurrent layers do: what one of their neurons does depends on all others, so that no row can be chosen by itself.

    Args:
        layer: the layer.
        unit_parameters: whether candidates may take parameters of a unit along.

    Raises:
        UnsupportedModuleError: a layer that is neither: another synapse than a Linear or Conv2d, weights that can't be written,
            neurons that inhibit each other or have parameters of their own.
    """
    if layer.synapse is layer.neuron or isinstance(getattr(layer.neuron, "recurrent", None), nn.Module):
        return "recurrent: own weights"
    synapse, weight = layer.synapse, getattr(layer.synapse, "weight", None)
    plain = isinstance(synapse, nn.Linear) or (isinstance(synapse, nn.Conv2d) and synapse.groups == 1)
    names = [name for name in ("weight", "bias") if isinstance(getattr(synapse, name, None), Tensor)]
    if not plain or not isinstance(weight, Tensor) or not all(can_try(synapse, name) for name in names):
        found = f"a {type(synapse).__name__} whose rows can't be replaced"
        raise _unsupported(layer, found, "an nn.Linear or nn.Conv2d of one group")
    if getattr(layer.neuron, "inhibition", False):
        raise _unsupported(layer, "neurons that inhibit each other", "neurons that can be simulated each alone")
    with one_for_all(layer.neuron, len(weight)):
        _check_units(layer, weight, unit_parameters)
    return ""


def _check_units(layer: HiddenLayer, weight: Tensor, unit_parameters: bool) -> None:
    """Refuses a neuron that can't run more candidates than it has units, or whose units differ where they may not."""
    own = unit_names(layer.neuron, len(weight))
    if own and not unit_parameters:
        raise UnsupportedModuleError(
            f"hidden layer {layer.name!r} with units that have a {' and a '.join(own)} of their own",
            "a neuron whose units are alike, or leave to move these parameters between units",
            "pass unit_parameters=True, or hidden='rescale', which keeps the layers' own weights",
        )
    try:
        with alike(layer.neuron, own):
            adapter_of(layer.neuron).run(layer.neuron, weight.new_zeros(1, 1, len(weight) + 1))
    except UnsupportedModuleError as error:
        raise _unsupported(layer, error.found, error.needed) from error
    except RuntimeError as error:
        found = "units with parameters of their own"
        raise _unsupported(layer, f"{found} ({error})", "a neuron whose units are alike") from error


def _unsupported(layer: HiddenLayer, found: str, needed: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"hidden layer {layer.name!r} with {found}", needed, "pass hidden='rescale', which keeps the layers' own weights"
    )
