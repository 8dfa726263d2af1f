"""The libraries the package knows, and which of them a module belongs to."""

from __future__ import annotations

from torch import nn

from ..errors import UnsupportedModuleError
from .neurons import NeuronAdapter
from .norse import NorseAdapter
from .snntorch import SnnTorchAdapter

__all__ = ["adapter_of", "is_neuron", "library_of", "reset_states"]

_ADAPTERS: tuple[NeuronAdapter, ...] = (SnnTorchAdapter(), NorseAdapter())
_LIBRARIES = tuple(adapter.library for adapter in _ADAPTERS)


def library_of(module: nn.Module) -> str | None:
    """Name the library that a module's class, or one that it derives from, was defined in.

    Args:
        module: any module; neurons and helpers of a library count alike.

    Returns:
        ``"snntorch"``, ``"norse"`` or None.
    """
    for cls in type(module).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in _LIBRARIES:
            return root
    return None


def is_neuron(module: nn.Module) -> bool:
    """Say whether a module is a spiking neuron that one of the adapters handles."""
    return any(adapter.owns(module) for adapter in _ADAPTERS)


def adapter_of(module: nn.Module) -> NeuronAdapter:
    """Give the adapter that handles a neuron.

    Args:
        module: a neuron.

    Returns:
        The adapter.

    Raises:
        UnsupportedModuleError: if no adapter knows the module.
    """
    for adapter in _ADAPTERS:
        if adapter.owns(module):
            return adapter
    raise UnsupportedModuleError(
        f"a {type(module).__name__} where a neuron was expected",
        f"a neuron of {', '.join(adapter.library for adapter in _ADAPTERS)}",
        "build the layer from that library's neurons",
    )


def reset_states(net: nn.Module) -> None:
    """Put every neuron of a net, however deeply nested, into its resting state; other nets are not touched.

    Args:
        net: the net.
    """
    for module in net.modules():
        if is_neuron(module):
            adapter_of(module).reset(module)
