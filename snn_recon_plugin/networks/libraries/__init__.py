"""Libraries of spiking neurons, and the one that a neuron belongs to; see ``base`` for how to add one."""

from __future__ import annotations

from torch import nn

from ...errors import UnsupportedModuleError
from .library import Dynamics, Library, Trace
from .norse import Norse
from .snntorch import SnnTorch

__all__ = [
    "LIBRARIES",
    "Dynamics",
    "Library",
    "SnnTorch",
    "Trace",
    "is_neuron",
    "libraries_in",
    "library_of",
    "reset_states",
]

LIBRARIES: tuple[Library, ...] = (SnnTorch(), Norse())


def is_neuron(module: nn.Module) -> bool:
    """Return whether a module is a spiking neuron of one of the libraries."""
    return any(library.is_neuron(module) for library in LIBRARIES)


def library_of(neuron: nn.Module) -> Library:
    """Return the library that a neuron belongs to.

    Raises:
        UnsupportedModuleError: the module is no neuron of any library.
    """
    for library in LIBRARIES:
        if library.is_neuron(neuron):
            return library
    raise UnsupportedModuleError(
        f"a {type(neuron).__name__} where a neuron was expected",
        f"a neuron of {' or '.join(library.name for library in LIBRARIES)}",
        "build the layer from that library's neurons, e.g. snn.Leaky(beta=0.9) or norse.LIFCell()",
    )


def libraries_in(net: nn.Module) -> list[str]:
    """Return the names of the libraries that a net's modules come from, neurons and helpers alike, in alphabetical order."""
    return sorted(library.name for library in LIBRARIES if any(map(library.owns, net.modules())))


def reset_states(net: nn.Module) -> None:
    """Put every neuron of a net, however deeply nested, into its resting state; other nets are not touched."""
    for module in net.modules():
        if is_neuron(module):
            library_of(module).reset(module)
